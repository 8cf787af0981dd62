"""Digests of content: bytes and relative names count, places and times do not."""

import os
from pathlib import Path

import pytest

from genrec.data import content
from genrec.data.content import HashCache, content_digest
from genrec.data.sources.source import fingerprint, total_bytes


def test_the_same_bytes_have_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "x").write_text("one")
        (tmp_path / folder / ".hidden").write_text(folder)
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b")
    (tmp_path / "b" / "inner" / "x").rename(tmp_path / "b" / "inner" / "y")
    assert content_digest(tmp_path / "a") != content_digest(tmp_path / "b")


def test_a_cached_file_is_read_again_when_its_size_or_time_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, place = tmp_path / "x", tmp_path / "cache" / "content.json"
    file.write_text("one")
    first = content_digest(file, HashCache(place))
    monkeypatch.setattr(content, "_sha256", lambda _: pytest.fail("read again"))
    assert content_digest(file, HashCache(place)) == first
    monkeypatch.undo()
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert content_digest(file, HashCache(place)) != first


@pytest.mark.parametrize("text", ["", "{", "[]", '{"/x": 3}'])
def test_a_broken_cache_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "cache.json").write_text(text)
    (tmp_path / "x").write_text("one")
    assert content_digest(tmp_path / "x", HashCache(tmp_path / "cache.json")) == content_digest(tmp_path / "x")


def test_a_source_is_known_by_names_and_bytes(tmp_path: Path) -> None:
    made = []
    for folder in ("a", "b"):
        (tmp_path / folder / "log").mkdir(parents=True)
        files = [tmp_path / folder / "items.parquet", tmp_path / folder / "log" / "1.parquet"]
        for number, file in enumerate(files):
            file.write_text(f"bytes {number}")
        made.append([str(file) for file in files])
    assert fingerprint(made[0]) == fingerprint(made[1], HashCache(tmp_path / "cache.json"))
    assert [name for name, _ in fingerprint(made[0])] == ["items.parquet", "log/1.parquet"]
    assert total_bytes(made[0]) == 14
    assert fingerprint(["https://shop.example/x.csv"]) == [["https://shop.example/x.csv", ""]]
    assert total_bytes([*made[0], "https://shop.example/x.csv"]) is None
