"""An object store keeps whole files: faults that pass are outlasted, those that stay are one message."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from support.s3_server import BUCKET, Fault, S3Server, busy, cut, refusing, slow

from genrec.data.artifact_cache import FILES, MANIFEST, ArtifactCache, SharedFolder
from genrec.data.object_store import FileDigest, ObjectStore
from genrec.errors import MachineError


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def artifact(path: Path) -> Path:
    folder(path / "inner", b="second" * 1000)
    return folder(path, a="first", **{MANIFEST: "{}"})


def content(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_what_is_written_is_listed_read_and_removed(kind: str, s3: S3Server, tmp_path: Path) -> None:
    store = ObjectStore(s3.url() if kind == "s3" else f"file://{tmp_path}/store")
    assert store.read("x/y") is None and not store.holds("x/y") and store.files("x") == {}
    store.write("x/y", b"12345")
    store.write("x/z/w", b"")
    assert store.read("x/y") == b"12345" and store.holds("x/y") and not store.holds("x")
    assert {name: about.size for name, about in store.files("x").items()} == {"y": 5, "z/w": 0}
    store.remove(["x/y", "x/none"])
    assert set(store.files("x")) == {"z/w"}
    store.require_usable(".probe")
    assert not store.holds(".probe")
    assert pickle.loads(pickle.dumps(store)).read("x/z/w") == b""


@pytest.mark.parametrize("fault", [busy(3), slow(0.05), cut(3)], ids=["busy", "slow", "cut"])
def test_an_artifact_arrives_whole_through_faults_that_pass(fault: Fault, s3: S3Server, tmp_path: Path) -> None:
    store = ObjectStore(s3.url())
    here, there = (ArtifactCache(store, tmp_path / name) for name in ("here", "there"))
    made = artifact(here.root / "sft" / "k1")
    with s3.failing(fault):
        here.upload(made, made)
        assert there.fetch(there.root / "sft" / "k1")
    assert content(there.root / "sft" / "k1") == content(made)


def test_the_manifest_is_written_last(s3: S3Server, tmp_path: Path) -> None:
    cache = ArtifactCache(ObjectStore(s3.url()), tmp_path)
    made = artifact(tmp_path / "sft" / "k1")
    with s3.failing(cut_off_at(FILES)), pytest.raises(MachineError):
        cache.upload(made, made)
    assert not cache.holds(made) and s3.names("genrec/sft/k1/a")
    assert not ArtifactCache(cache.store, tmp_path / "other").fetch(tmp_path / "other" / "sft" / "k1")
    cache.upload(made, made)
    written = [
        path.rpartition("/")[2] for method, path in s3.requests if method in ("PUT", "POST") and "sft/k1" in path
    ]
    assert written[-1] == MANIFEST and cache.holds(made)


def cut_off_at(name: str) -> Fault:
    """Refuse to write the file ``name``."""
    refuse = refusing("500 Internal Server Error", "InternalError", methods=("PUT", "POST"))
    return lambda server, environ, start: refuse(server, environ, start) if name in environ["PATH_INFO"] else None


def test_a_damaged_file_is_never_taken(s3: S3Server, tmp_path: Path) -> None:
    store = ObjectStore(s3.url())
    made = artifact(tmp_path / "here" / "sft" / "k1")
    ArtifactCache(store, tmp_path / "here").upload(made, made)
    store.write("sft/k1/a", b"other")
    there = ArtifactCache(store, tmp_path / "there")
    with pytest.raises(MachineError, match="a: got 5 bytes that differ from the 5 that were written"):
        there.fetch(tmp_path / "there" / "sft" / "k1")
    assert not (tmp_path / "there" / "sft" / "k1").exists()
    store.write("sft/k1/a", b"first")
    assert there.fetch(tmp_path / "there" / "sft" / "k1")


def test_a_fetch_that_was_killed_goes_on(s3: S3Server, tmp_path: Path) -> None:
    store = ObjectStore(s3.url())
    made = artifact(tmp_path / "here" / "sft" / "k1")
    ArtifactCache(store, tmp_path / "here").upload(made, made)
    half = folder(tmp_path / "there" / "sft" / "k1.arriving", a="first")
    s3.requests.clear()
    assert ArtifactCache(store, tmp_path / "there").fetch(tmp_path / "there" / "sft" / "k1")
    assert content(tmp_path / "there" / "sft" / "k1") == content(made) and not half.exists()
    assert not [path for method, path in s3.requests if method == "GET" and path.endswith("k1/a")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (refusing("403 Forbidden", "AccessDenied"), "access is denied; wanted: credentials"),
        (refusing("403 Forbidden", "InvalidAccessKeyId"), "access is denied; wanted: credentials"),
        (refusing("403 Forbidden", "AccessDenied", methods=("PUT", "POST")), "access is denied; wanted: credentials"),
        (refusing("301 Moved Permanently", "PermanentRedirect"), "lies in another region; name it in AWS_REGION"),
        (refusing("400 Bad Request", "AuthorizationHeaderMalformed"), "lies in another region"),
        (refusing("404 Not Found", "NoSuchBucket"), "there is no such bucket, or no longer"),
        (refusing("503 Slow Down", "SlowDown"), "fails again and again"),
    ],
)
def test_a_store_that_refuses_is_one_message(s3: S3Server, fault: Fault, message: str) -> None:
    with s3.failing(fault), pytest.raises(MachineError, match=message) as caught:
        ObjectStore(s3.url()).require_usable(".probe")
    assert s3.url() in str(caught.value) and "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_and_a_server_that_is_gone_are_told(s3: S3Server) -> None:
    with pytest.raises(MachineError, match="there is no such bucket"):
        ObjectStore(s3.url(bucket="nobody")).require_usable(".probe")
    gone = ObjectStore(f"s3://{BUCKET}/x?endpoint_override=http://127.0.0.1:9&region=us-east-1")
    with pytest.raises(MachineError, match="cannot be reached"):
        gone.require_usable(".probe")


def test_a_refusal_that_will_stay_is_not_tried_again(s3: S3Server) -> None:
    with s3.failing(refusing("403 Forbidden", "AccessDenied")), pytest.raises(MachineError):
        ObjectStore(s3.url()).write("x", b"x")
    assert len(s3.requests) <= 2


def test_two_machines_fill_one_folder(s3: S3Server, tmp_path: Path) -> None:
    store = ObjectStore(s3.url())
    caches = [ArtifactCache(store, tmp_path / name) for name in ("driver", "worker")]
    paths = [folder(cache.root / "prepare" / "k.partial") for cache in caches]
    driver, worker = (SharedFolder(cache, path) for cache, path in zip(caches, paths, strict=True))
    folder(paths[0], plan="1")
    driver.push()
    driver.note()
    worker.pull()
    worker.note()
    assert content(paths[1]) == {"plan": "1"}
    folder(paths[1], shard="2", **{".shard.7.tmp": "being written"})
    worker.push()
    driver.pull()
    assert content(paths[0]) == {"plan": "1", "shard": "2"}
    (paths[1] / "shard").unlink()
    folder(paths[1], plan="3")
    worker.push()
    driver.pull()
    assert content(paths[0]) == {"plan": "3"}


def test_work_that_lies_in_the_store_alone_is_taken_up_and_newer_files_here_stay(s3: S3Server, tmp_path: Path) -> None:
    cache = ArtifactCache(ObjectStore(s3.url()), tmp_path)
    cache.store.write("prepare/k.partial/old", b"store")
    cache.store.write("prepare/k.partial/new", b"store, which is older")
    path = folder(tmp_path / "prepare" / "k.partial", new="here")
    SharedFolder(cache, path).resume()
    assert content(path) == {"old": "store", "new": "here"}


def test_a_digest_is_of_size_and_bytes(tmp_path: Path) -> None:
    one, two = folder(tmp_path, one="abc", two="abd") / "one", tmp_path / "two"
    assert FileDigest.of(one) == FileDigest.of(one) != FileDigest.of(two)
