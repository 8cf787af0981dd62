"""Content fingerprints: the same bytes give the same digest wherever they are, and unchanged files are read once."""

import hashlib
import json
import os
import shutil

import pytest

from genrec.data import content
from genrec.data.content import BLOCK, HashCache, content_digest
from genrec.data.sources.source import fingerprint, total_bytes
from genrec.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "log").mkdir(parents=True)
    (tmp_path / "in" / "items.parquet").write_bytes(b"items")
    (tmp_path / "in" / "log" / "a.parquet").write_bytes(b"first")
    (tmp_path / "in" / "log" / "b.parquet").write_bytes(b"second")
    return tmp_path / "in"


def age(path):
    """Another modification time, the same bytes."""
    os.utime(path, ns=(1, 1))


def test_a_files_digest_is_the_sha_256_of_its_bytes(tmp_path):
    for size in (0, 1, BLOCK, 2 * BLOCK + 7):
        data = os.urandom(size)
        (tmp_path / "file").write_bytes(data)
        assert content_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_directorys_digest_depends_on_names_and_bytes_but_not_on_place_or_time(folder, tmp_path):
    before = content_digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    age(tmp_path / "copy" / "log" / "a.parquet")
    assert content_digest(tmp_path / "copy") == before
    (tmp_path / "copy" / "log" / "a.parquet").rename(tmp_path / "copy" / "log" / "c.parquet")
    renamed = content_digest(tmp_path / "copy")
    (tmp_path / "copy" / "log" / "b.parquet").write_bytes(b"changed")
    assert len({before, renamed, content_digest(tmp_path / "copy")}) == 3


def test_hidden_files_do_not_count(folder):
    before = content_digest(folder)
    (folder / ".hidden").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_bytes(b"x")
    assert content_digest(folder) == before
    (folder / "visible").write_bytes(b"x")
    assert content_digest(folder) != before


def test_names_and_bytes_of_neighbouring_files_are_not_confused(tmp_path):
    for name, files in (("x", {"a": b"bc", "d": b""}), ("y", {"a": b"b", "cd": b""}), ("z", {"ab": b"c", "d": b""})):
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / file).write_bytes(data)
    assert len({content_digest(tmp_path / name) for name in "xyz"}) == 3


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: got no file or directory"):
        content_digest(tmp_path / "nowhere")


def test_a_cached_file_is_not_read_again_until_it_changes(folder, tmp_path, monkeypatch):
    file, store = folder / "items.parquet", tmp_path / "cache" / "hashes.json"
    digest = content_digest(file, HashCache(store))
    monkeypatch.setattr(content, "BLOCK", "no file may be read")
    assert content_digest(file, HashCache(store)) == digest
    age(file)
    with pytest.raises(TypeError):
        content_digest(file, HashCache(store))
    monkeypatch.undo()
    file.write_bytes(b"other")
    assert content_digest(file, HashCache(store)) == hashlib.sha256(b"other").hexdigest() != digest


def test_the_cache_names_each_file_by_absolute_path_size_and_time(folder, tmp_path, monkeypatch):
    store = tmp_path / "hashes.json"
    monkeypatch.chdir(folder)
    content_digest(folder.relative_to(folder) / "log", HashCache(store))
    status = (folder / "log" / "a.parquet").stat()
    entry = [status.st_size, status.st_mtime_ns, hashlib.sha256(b"first").hexdigest()]
    entries = json.loads(store.read_text())
    assert sorted(entries) == [str(folder / "log" / name) for name in ("a.parquet", "b.parquet")]
    assert entries[str(folder / "log" / "a.parquet")] == entry
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"x": 1}', '{"x": [1, 2]}', b"\xff\xfe"])
def test_a_broken_cache_file_is_an_empty_cache(folder, tmp_path, broken):
    store = tmp_path / "hashes.json"
    store.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    assert content_digest(folder, HashCache(store)) == content_digest(folder)
    assert len(json.loads(store.read_text())) == 3


def test_two_caches_of_one_file_keep_each_others_entries(folder, tmp_path):
    store = tmp_path / "hashes.json"
    first, second = HashCache(store), HashCache(store)
    content_digest(folder / "items.parquet", first)
    content_digest(folder / "log" / "a.parquet", second)
    assert len(json.loads(store.read_text())) == 2


def test_a_file_that_changes_while_it_is_read_is_not_cached(folder, tmp_path, monkeypatch):
    file, store = folder / "items.parquet", tmp_path / "hashes.json"
    states = iter([[5, 1], [5, 2]])
    monkeypatch.setattr(content, "_state", lambda path: next(states))
    content_digest(file, HashCache(store))
    assert not store.exists()


def test_the_fingerprint_of_the_same_files_in_another_folder_is_the_same(folder, tmp_path):
    def files(root):
        return [str(root / name) for name in ("items.parquet", "log/a.parquet", "log/b.parquet")]

    shutil.copytree(folder, tmp_path / "elsewhere" / "deep")
    for name in files(tmp_path / "elsewhere" / "deep"):
        age(name)
    found = fingerprint(files(folder), HashCache(tmp_path / "hashes.json"))
    assert found == fingerprint(files(tmp_path / "elsewhere" / "deep"))
    assert found[1] == ["log/a.parquet", hashlib.sha256(b"first").hexdigest()]
    (folder / "log" / "a.parquet").write_bytes(b"First")
    assert fingerprint(files(folder), HashCache(tmp_path / "hashes.json")) != found


def test_a_url_is_its_own_fingerprint_and_its_size_is_unknown(folder):
    url, file = "https://example.org/X.json.gz", str(folder / "items.parquet")
    assert fingerprint([url, file]) == [[url], ["items.parquet", hashlib.sha256(b"items").hexdigest()]]
    assert fingerprint([url]) == [[url]]
    assert total_bytes([url, file]) is None
    assert total_bytes([file, str(folder / "log" / "a.parquet")]) == 10
