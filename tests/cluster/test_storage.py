"""Storage that is a URL: the same results as in a directory, on machines that share nothing but the store."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.pipeline import made
from support.s3_server import BUCKET, Fault, S3Server, busy, cut, refusing, slow
from support.served import PRIORS, serve
from support.stored import upload_storage
from support.synthetic import tiny_config
from support.waiting import wait_until

import genrec
from cluster import node_check, store_folders, writer_lease
from cluster.artifacts import Recipe, make_artifact, shown_in_storage
from cluster.data import _Actor
from cluster.node_files import files_of_stage, machine_of, ray_storage
from cluster.store_folders import change_of_catalog, publish_in_store
from cluster.writer_lease import WriterLease
from genrec.config import Config, load_config, to_yaml
from genrec.data.artifact_cache import MANIFEST
from genrec.data.object_store import ObjectStore
from genrec.errors import InputError
from genrec.evaluation.search_record import SearchRecord
from genrec.inference.run_place import RunPlace
from workflows.cli import command_line

ROOT = Path(__file__).parents[2]
LOGS = ("stage.log", "manifest.json", "config.yaml", "stats.json")
RECIPE = Recipe("probe", {}, (__name__,))


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_lease, "SETTLE_S", 0.0)


@pytest.fixture
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_lease, "RENEW_S", 0.2)


def on(machine: Path, s3: S3Server, shop: Path, *overrides: str) -> Config:
    """The config of a command on a machine whose cache is in ``machine``."""
    return tiny_config(s3.url(), shop, f"compute.cache={machine}", *overrides)  # type: ignore[arg-type]


def results(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in LOGS)
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def write(folder: Path, text: str = "done") -> dict[str, int]:
    (folder / "result.txt").write_text(text)
    return {"size": len(text)}


def test_an_artifact_of_the_store_is_that_of_a_directory_and_another_machine_finds_it(
    s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    local = made(tiny_config(tmp_path / "directory", shop), "prepare")
    first = made(on(tmp_path / "a", s3, shop), "prepare")
    second = made(on(tmp_path / "b", s3, shop), "prepare")
    assert [one.skipped for one in (first, second)] == [False, True]
    assert first.key == second.key == local.key, "where results lie is in no key"
    assert results(first.path) == results(second.path) == results(local.path)
    assert second.path.is_relative_to(tmp_path / "b")
    names = s3.names()
    assert f"genrec/prepare/{first.key}/{MANIFEST}" in names
    assert not [name for name in names if ".partial" in name or "writer" in name or "probe" in name]


def test_work_through_a_busy_store_gives_the_same(s3: S3Server, shop: Path, tmp_path: Path) -> None:
    with s3.failing(busy(5)):
        first = make_artifact(on(tmp_path / "a", s3, shop), RECIPE, write)
        second = make_artifact(on(tmp_path / "b", s3, shop), RECIPE, write)
    assert second.skipped and results(first.path) == results(second.path) != {}


def test_a_store_that_fails_while_a_result_is_uploaded_costs_no_work(s3: S3Server, shop: Path, tmp_path: Path) -> None:
    config, runs = on(tmp_path, s3, shop), list[Path]()

    def work(folder: Path) -> dict[str, int]:
        runs.append(folder)
        return write(folder)

    refuse = refusing("503 Slow Down", "SlowDown", methods=("PUT", "POST"))

    def fault(server: S3Server, environ: dict[str, Any], start: Any) -> Any:
        return refuse(server, environ, start) if "result.txt" in environ["PATH_INFO"] else None

    with s3.failing(fault), pytest.raises(InputError, match="fails again and again"):
        make_artifact(config, RECIPE, work)
    done = make_artifact(config, RECIPE, work)
    assert len(runs) == 1 and (done.path / "result.txt").is_file()
    assert ObjectStore(s3.url()).holds(f"probe/{RECIPE.key}/{MANIFEST}")


def test_a_bucket_that_was_emptied_is_filled_again_from_the_cache(s3: S3Server, shop: Path, tmp_path: Path) -> None:
    make_artifact(on(tmp_path / "a", s3, shop), RECIPE, write)
    for name in s3.names():
        s3.client.delete_object(Bucket=BUCKET, Key=name)
    make_artifact(on(tmp_path / "a", s3, shop), RECIPE, lambda folder: pytest.fail("it is here"))
    again = make_artifact(on(tmp_path / "b", s3, shop), RECIPE, lambda folder: pytest.fail("it is in the store"))
    assert again.skipped


def test_work_of_a_machine_that_is_gone_is_taken_up_by_another(s3: S3Server, shop: Path, tmp_path: Path) -> None:
    store = ObjectStore(s3.url())
    store.write(f"probe/{RECIPE.key}.partial/shard", b"made by a worker")
    store.write(f"probe/{RECIPE.key}.ray/train/checkpoint", b"made by Ray Train")
    filesystem, root = store.filesystem
    filesystem.create_dir(f"{root}/probe/{RECIPE.key}.ray/train/empty", recursive=True)
    done = make_artifact(
        on(tmp_path, s3, shop), RECIPE, lambda folder: {"found": sorted(path.name for path in folder.glob("sh*"))}
    )
    assert done.metrics["found"] == ["shard"]
    left = [entry["Key"] for entry in s3.client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert not [name for name in left if ".partial" in name or ".ray" in name], "nor an object for an empty folder"


@contextmanager
def holding(s3: S3Server, name: str) -> Iterator[WriterLease]:
    lease = WriterLease(ObjectStore(s3.url()), name, "another machine")
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def test_of_two_machines_one_writes(quick_leases: None, s3: S3Server, shop: Path, tmp_path: Path) -> None:
    config = on(tmp_path, s3, shop)
    with (
        holding(s3, f"probe/{RECIPE.key}.partial"),
        pytest.raises(InputError, match=r"is written by process \d+ on .*; wait until it ends"),
    ):
        make_artifact(config, RECIPE, write)
    assert not s3.names("genrec/probe")
    assert not make_artifact(config, RECIPE, write).skipped


def test_the_lease_of_a_machine_that_died_is_taken_over(
    quick_leases: None, s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    left = {"writer": "x", "machine": "m", "number": 9, "host": "gone", "process": 1}
    ObjectStore(s3.url()).write(f"probe/{RECIPE.key}.partial.writer.json", json.dumps(left).encode())
    assert make_artifact(on(tmp_path, s3, shop), RECIPE, write).metrics["size"] == 4


def test_a_writer_that_lost_its_lease_publishes_nothing(s3: S3Server, shop: Path, tmp_path: Path) -> None:
    def work(folder: Path) -> dict[str, int]:
        store.write(name, json.dumps({"writer": "y", "machine": "m", "host": "other", "process": 7}).encode())
        return write(folder)

    store, name = ObjectStore(s3.url()), f"probe/{RECIPE.key}.partial.writer.json"
    with pytest.raises(InputError, match="is written by process 7 on other"):
        make_artifact(on(tmp_path, s3, shop), RECIPE, work)
    assert not store.holds(f"probe/{RECIPE.key}/{MANIFEST}")


def test_a_lease_is_renewed_while_its_writer_lives(quick_leases: None, s3: S3Server) -> None:
    store = ObjectStore(s3.url())
    with holding(s3, "x") as lease:
        first = store.read_json("x.writer.json")["number"]
        end = time.monotonic() + 30
        while store.read_json("x.writer.json")["number"] == first:
            assert time.monotonic() < end
            time.sleep(0.05)
        lease.require()
    assert not store.holds("x.writer.json")


class Nodes:
    """A cache that is that of one machine or another, at the same place on both, as on the nodes of a cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.cache = folder, folder / "cache"

    def become(self, node: str) -> None:
        self.cache.unlink(missing_ok=True)
        (self._folder / node).mkdir(exist_ok=True)
        self.cache.symlink_to(self._folder / node)


def test_workers_on_another_node_fetch_what_they_read_and_their_shards_come_back(
    s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    nodes = Nodes(tmp_path)
    nodes.become("driver")
    config = on(nodes.cache, s3, shop, "compute.address=cluster:6379")
    before = make_artifact(config, RECIPE, write)
    out = config.storage_path / "next" / "k.partial"
    out.mkdir(parents=True)
    files = files_of_stage(config, [before.path], out)
    assert files is not None
    (out / "plan.txt").write_text("double")
    files.offer()

    def make() -> Any:
        text = (before.path / "result.txt").read_text() + (out / "plan.txt").read_text()
        return lambda shard: {"written": (out / f"part-{shard}").write_text(f"{text}{shard}")}

    nodes.become("worker")
    assert not out.exists()
    actor = _Actor(make, files.__class__(**files.__getstate__()))
    assert [actor({"shard": shard})["refused"] for shard in (0, 1)] == ["", ""]
    nodes.become("driver")
    assert not list(out.glob("part-*"))
    files.collect()
    assert {path.name: path.read_text() for path in out.glob("part-*")} == {
        "part-0": "donedouble0",
        "part-1": "donedouble1",
    }
    nodes.become("driver")
    s3.requests.clear()
    assert _Actor(make, files)({"shard": 2})["refused"] == "" and not s3.requests, "nothing moves on the same machine"


def test_an_input_that_vanished_is_told_by_the_worker(s3: S3Server, shop: Path, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    nodes.become("driver")
    config = on(nodes.cache, s3, shop, "compute.address=cluster:6379")
    before = make_artifact(config, RECIPE, write)
    files = files_of_stage(config, [before.path], config.storage_path / "next" / "k.partial")
    ObjectStore(s3.url()).remove([f"probe/{RECIPE.key}/{MANIFEST}"])
    nodes.become("worker")
    row = _Actor(lambda: lambda shard: {}, files)({"shard": 0})
    assert f"probe/{RECIPE.key} is gone from storage" in row["refused"]


def test_the_record_of_a_run_and_what_the_newest_points_to_are_written_last(
    s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    config = on(tmp_path, s3, shop)
    report = config.storage_path / "runs" / "tiny-k"
    report.mkdir(parents=True)
    for name in ("a.html", "recommender.json", "z.json"):
        (report / name).write_text(name)
    s3.client.put_object(Bucket=BUCKET, Key="genrec/runs/tiny/update.json", Body=b"{}")  # Of the run before.
    s3.requests.clear()
    publish_in_store(config, report, report.with_name("tiny"))
    written = [path for method, path in s3.requests if method in ("PUT", "POST") and not path.endswith("/")]
    assert len(written) == 7
    assert written[2].endswith("runs/tiny-k/recommender.json") and written[5].endswith("runs/tiny/recommender.json")
    assert written[6].endswith("runs/tiny/newest.json")
    assert RunPlace.find(s3.url("genrec/runs/tiny")).folder == "tiny-k"
    assert "genrec/runs/tiny/update.json" not in s3.names()
    assert shown_in_storage(config, report / "a.html") == f"s3://{BUCKET}/genrec/runs/tiny-k/a.html"


def test_a_catalogue_that_changes_is_the_same_on_every_machine(
    quick_leases: None, s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    first, second = (on(tmp_path / name, s3, shop) for name in ("a", "b"))
    for number, config in ((1, first), (2, second), (3, first)):
        folder = config.storage_path / "live" / "k"
        with change_of_catalog(config, folder):
            assert len(list(folder.glob("*/change.json"))) == number - 1
            (folder / f"{number:05d}").mkdir(parents=True)
            (folder / f"{number:05d}" / "change.json").write_text(str(number))
    with (
        holding(s3, "live/k"),
        pytest.raises(InputError, match="is written by process"),
        change_of_catalog(second, second.storage_path / "live" / "k"),
    ):
        pytest.fail("another machine is changing it")


def test_one_process_at_a_time_changes_a_catalogue_in_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_folders, "WAIT_S", 0.05)
    config, folder = Config(storage=str(tmp_path)), tmp_path / "live" / "k"
    with (
        change_of_catalog(config, folder),
        pytest.raises(InputError, match="another process has been changing the catalogue"),
        change_of_catalog(config, folder),
    ):
        pytest.fail("two at once")
    with change_of_catalog(config, folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_run_is_loaded_from_its_url(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (local,) = serve(tmp_path, priors={"mixed": PRIORS["mixed"]}).values()
    upload_storage(tmp_path / "storage", s3)
    url = s3.url("genrec/runs/mixed")
    assert RunPlace.find(url).read(parts=False).config.storage == s3.url()
    assert not list(tmp_path.glob("home/.cache/genrec/*/sft")), "who only looks fetches no policy"
    assert genrec.load(url).recommend(["i3"]) == local.recommend(["i3"])
    s3.requests.clear()
    genrec.load(url)
    assert not [path for method, path in s3.requests if method == "GET" and "parquet" in path], "it is here already"
    for wrong, message in (
        (s3.url(), "wanted the URL of a run's report"),
        (f"{s3.url('genrec/runs/x')}", "no finished run"),
    ):
        with pytest.raises(InputError, match=message):
            genrec.load(wrong)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("ftp://host/x", "a URL that begins with s3://, gs://, hdfs://, file://"),
        ("s3://", "a URL that begins with"),
        ("s3://id:secret@bucket/x", "has a password or key in it"),
        ("s3://bucket/x?zone=3", r"unknown options \['zone'\]; wanted region"),
    ],
)
def test_a_url_that_cannot_be_a_storage_is_refused(storage: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config([], [f"storage={storage}"])
    assert "secret@" not in str(caught.value)


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    config = load_config([], [f"storage=file://{tmp_path}/x"])
    assert not config.is_remote and config.storage_path == tmp_path / "x"
    assert ray_storage(config, tmp_path / "x" / "train") == {"storage_path": str(tmp_path / "x" / "train")}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (refusing("403 Forbidden", "AccessDenied"), "access is denied"),
        (refusing("301 Moved Permanently", "PermanentRedirect"), "another region"),
        (refusing("404 Not Found", "NoSuchBucket"), "no such bucket"),
    ],
)
def test_the_command_ends_with_one_message_before_any_work(
    s3: S3Server, shop: Path, tmp_path: Path, fault: Fault, message: str
) -> None:
    words = [f"storage={s3.url()}", f"data.path={shop}", f"compute.cache={tmp_path}", "compute.data_actors=0"]
    with s3.failing(fault):
        result = CliRunner().invoke(command_line, ["prepare", "demo", *words])
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2 and len(errors) == 1 and message in errors[0], result.output
    assert not list(tmp_path.rglob("*.partial"))


def test_a_node_that_does_not_see_the_directory_is_named(tmp_path: Path) -> None:
    config = Config(storage=str(tmp_path))
    (tmp_path / "seen").touch()
    assert node_check.missing_on_node(config, tmp_path / "seen") == ""
    assert "does not see storage=" in node_check.missing_on_node(config, tmp_path / "unseen")


def test_a_node_without_access_to_the_store_is_named(s3: S3Server, shop: Path, tmp_path: Path) -> None:
    config = on(tmp_path, s3, shop)
    assert node_check.missing_on_node(config, Path("token")) == ""
    with s3.failing(refusing("403 Forbidden", "AccessDenied")):
        assert "cannot use the storage s3://" in node_check.missing_on_node(config, Path("token"))
    assert not [name for name in s3.names() if "probe" in name]


@pytest.mark.ray
@pytest.mark.slow
def test_training_on_ray_keeps_its_checkpoints_in_the_store(
    ray_cluster: None, s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    options = ("compute.workers=1", "learning.sft.max_steps=4", "learning.sft.checkpoint_every=1")
    local = made(tiny_config(tmp_path / "directory", shop, *options), "sft")
    stored = made(on(tmp_path / "a", s3, shop, *options), "sft")
    assert results(stored.path) == results(local.path)
    kept = {path for method, path in s3.requests if method in ("PUT", "POST") and f"sft/{stored.key}.ray/train" in path}
    assert any("checkpoint" in path for path in kept)
    assert not [name for name in s3.names() if ".ray" in name]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_in_the_store_is_the_one_in_a_directory(
    ray_cluster: None, s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    trials = ("tune.trials=2", "tune.steps=2", "tune.validations=1", "tune.seeds=2", "tune.space.hit=[0.5,2.0]")
    options = ("compute.workers=1", "compute.rollout_actors=0", "compute.worker_cpus=0.5", *trials)
    local = SearchRecord.read(made(tiny_config(tmp_path / "directory", shop, *options), "tune").path)
    stored = SearchRecord.read(made(on(tmp_path / "a", s3, shop, *options), "tune").path)
    assert [(one.values, one.metrics) for one in stored.trials] == [(one.values, one.metrics) for one in local.trials]
    assert stored.default.seeds == local.default.seeds and len(local.default.seeds) == 2
    assert not [name for name in s3.names() if ".ray" in name]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_in_a_faulty_store_goes_on_on_another_machine_after_a_kill(
    s3: S3Server, shop: Path, tmp_path: Path
) -> None:
    options = ("compute.workers=1", "compute.rollout_cpus=0.5", "compute.worker_cpus=0.5")
    local = tiny_config(tmp_path / "directory", shop, *options)
    first, second = (on(tmp_path / name, s3, shop, *options) for name in ("a", "b"))
    assert full(local, tmp_path / "local").wait() == 0
    with s3.failing(busy(7)):
        killed = full(first, tmp_path / "first")

        def has_checkpoints() -> bool:
            assert killed.poll() is None, "it ended before it could be killed"
            return len(checkpoints_of_grpo(s3.requests)) > 1

        wait_until(has_checkpoints, limit_s=300)
        os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    with s3.failing(cut(3)):
        assert full(second, tmp_path / "second").wait() == 0
    with s3.failing(slow(0.02)):
        assert full(second, tmp_path / "third").wait() == 0
    said = (tmp_path / "second" / "log").read_text()
    assert "[sft] done already" in said and "[grpo] version 0" not in said, "it begins at a checkpoint"
    assert (tmp_path / "third" / "log").read_text().count("done already") >= 6
    kept = {name.removeprefix("genrec/") for name in s3.names("genrec/runs/tiny/")}
    assert "runs/tiny/metrics.json" in kept, sorted(kept)
    there = json.loads(s3.client.get_object(Bucket=BUCKET, Key="genrec/runs/tiny/metrics.json")["Body"].read())
    here = json.loads((tmp_path / "directory/runs/tiny/metrics.json").read_text())
    for name in ("model", "sft", "sid_path", "baselines", "spread"):
        assert there[name] == here[name], name


def checkpoints_of_grpo(requests: list[tuple[str, str]]) -> set[str]:
    """The names of the checkpoints of which something was written."""
    written = [path for method, path in list(requests) if method in ("PUT", "POST") and "/grpo/" in path]
    return {found[0] for path in written if (found := re.search(r"checkpoint_\d+[^/]*", path))}


def full(config: Config, folder: Path) -> subprocess.Popen[bytes]:
    """``genrec full`` in a process group of its own, its log in ``folder``."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "workflows.full", str(folder / "config.yaml")]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def test_commands_that_begin_at_once_in_a_new_cache_agree_on_its_name(tmp_path: Path) -> None:
    root, many = tmp_path / "cache", 16
    together = threading.Barrier(many)

    def look(_: int) -> str:
        together.wait()
        return machine_of(root)

    with ThreadPoolExecutor(many) as pool:
        assert len(set(pool.map(look, range(many)))) == 1
