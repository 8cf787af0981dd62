"""The service of a run in an object store: replicas on machines that share nothing but the store."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.s3_server import BUCKET, S3Server, refusing
from support.served import PRIORS, serve
from support.service import HEADERS, KEY, client_of
from support.stored import upload_storage
from support.waiting import wait_until

import genrec
from cluster import writer_lease
from cluster.serve import service as service_module
from cluster.serve.answer_cache import AnswerCache
from cluster.serve.runs_file import RunsFile, Split
from cluster.serve.service import HttpService
from genrec.config import Serve
from genrec.data import object_store
from genrec.data.object_store import ObjectStore
from genrec.errors import InputError
from genrec.inference.run_place import RunPlace

HISTORY = ["i1", "i2", "i3"]
OnMachine = Callable[[str], HttpService]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the name ``shop``, of which the first is the newest."""
    directory = tmp_path_factory.mktemp("served")
    serve(directory, priors={"shop-1": PRIORS["alone"], "shop-2": PRIORS["steered"]})
    (directory / "storage/runs/shop").symlink_to("shop-1")
    return directory / "storage"


@pytest.fixture
def on_machine(storage: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnMachine:
    """A replica of the service on a machine of that name."""
    upload_storage(shutil.copytree(storage, tmp_path / "storage", symlinks=True), s3)
    monkeypatch.setenv("GENREC_API_KEY", KEY)
    monkeypatch.setattr(writer_lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(service_module, "STORE_WATCH_S", 0.05)
    monkeypatch.setattr(object_store, "WAITS_S", ())

    def made(machine: str) -> HttpService:
        monkeypatch.setenv("HOME", str(tmp_path / machine))
        place = RunPlace.find(s3.url("genrec/runs/shop"))
        return HttpService([place], Split(), Serve(cached_answers=0, deadline_ms=20_000), RunsFile(s3.url(), "one"))

    return made


def ids(client: TestClient) -> list[str]:
    answer = client.post("/v1/recommend", json={"history": HISTORY, "k": 30})
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_replicas_on_two_machines_follow_each_others_changes_and_reloads(on_machine: OnMachine, s3: S3Server) -> None:
    with ExitStack() as stack:
        one, other = (stack.enter_context(client_of(on_machine(name))) for name in ("a", "b"))
        assert ids(one) == ids(other) and "i5" in ids(one)
        for asked, gone, sees in ((one, "i5", other), (other, "i6", one)):
            assert asked.delete(f"/v1/items/{gone}", headers=HEADERS).status_code == 200
            assert gone not in ids(asked)
            wait_until(lambda sees=sees, gone=gone: gone not in ids(sees))
        third = stack.enter_context(client_of(on_machine("c")))
        assert ids(third) == ids(one) == ids(other)
        assert not one.post("/v1/reload", json={}, headers=HEADERS).json()["changed"]
        ObjectStore(s3.url()).write("runs/shop/newest.json", json.dumps({"run": "shop-2"}).encode())
        assert one.post("/v1/reload", json={}, headers=HEADERS).json()["changed"]
        steered = genrec.load(s3.url("genrec/runs/shop-2")).recommend(HISTORY, 30)
        wait_until(lambda: ids(other) == ids(one) == [item.id for item in steered])
        assert one.post("/v1/reload", json={"run": "nothing"}, headers=HEADERS).status_code == 404


def test_what_the_store_does_not_take_is_refused_and_was_never_made(on_machine: OnMachine, s3: S3Server) -> None:
    with client_of(on_machine("a")) as client:
        before = ids(client)
        with s3.failing(refusing("403 Forbidden", "AccessDenied", methods=("PUT", "POST"))):
            answer = client.delete("/v1/items/i5", headers=HEADERS)
            assert answer.status_code in (409, 422) and "access is denied" in answer.json()["error"]
            assert ids(client) == before
        with s3.failing(refusing("503 Slow Down", "SlowDown")):
            time.sleep(0.3)
            assert ids(client) == before, "it answers from what it has"
        assert client.delete("/v1/items/i5", headers=HEADERS).status_code == 200
        assert "i5" not in ids(client)


def test_half_of_an_update_is_none(on_machine: OnMachine, s3: S3Server, tmp_path: Path) -> None:
    with client_of(on_machine("a")) as client:
        assert client.delete("/v1/items/i5", headers=HEADERS).status_code == 200
        after = ids(client)
        live = next(tmp_path.glob("a/.cache/genrec/*/live/made"))
    shutil.copytree(live / "00001", live / "00002")
    (live / "00002" / ".stored").unlink()  # A machine that ended before it could tell the store.
    s3.client.put_object(Bucket=BUCKET, Key="genrec/live/made/00002/added.parquet", Body=b"")  # And one in between.
    for machine in ("a", "b"):
        with client_of(on_machine(machine)) as client:
            assert ids(client) == after
    assert not (live / "00002").exists()
    with client_of(on_machine("b")) as client:
        assert client.delete("/v1/items/i6", headers=HEADERS).status_code == 200
        assert "genrec/live/made/00002/change.json" in s3.names()
        assert "genrec/live/made/00002/added.parquet" not in s3.names(), "what was left of the other is gone"
    with client_of(on_machine("a")) as client:
        assert set(ids(client)) == set(after) - {"i6"}


def test_a_run_of_a_store_that_is_not_there_is_refused(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no finished run 'none'"):
        RunPlace.find(s3.url("genrec/runs/none")).read()
    with pytest.raises(InputError, match="wanted the URL of a run's report"):
        RunPlace.find(s3.url("genrec/none"))


def test_a_replica_that_is_several_changes_behind_answers_while_it_fetches_the_newest(
    on_machine: OnMachine, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(server: S3Server, environ: dict[str, Any], start: Callable[..., Any]) -> None:
        if environ["REQUEST_METHOD"] == "GET" and "00003/catalog.safetensors" in environ["PATH_INFO"]:
            time.sleep(1.5)

    with client_of(on_machine("a")) as one:
        monkeypatch.setattr(service_module, "STORE_WATCH_S", 0.5)
        with client_of(on_machine("b")) as other:
            assert "i5" in ids(other)
            with s3.failing(late):
                for gone in ("i5", "i6", "i7"):
                    assert one.delete(f"/v1/items/{gone}", headers=HEADERS).status_code == 200
                end = time.monotonic() + 20
                while "i5" in ids(other):  # which asserts that each answer is one
                    assert time.monotonic() < end
                    time.sleep(0.05)


def test_a_change_that_the_store_refused_leaves_no_answers(on_machine: OnMachine, s3: S3Server) -> None:
    service = on_machine("a")
    service.runs[0]._cache = AnswerCache(100)
    refuse = refusing("403 Forbidden", "AccessDenied")

    def late_refusal(server: S3Server, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] in ("PUT", "POST") and "live/made/0" in environ["PATH_INFO"]:
            time.sleep(0.5)
            return refuse(server, environ, start)
        return None

    with client_of(service) as client, ThreadPoolExecutor(1) as pool:
        assert {"i5", "i6"} <= set(ids(client))
        with s3.failing(late_refusal):
            change = pool.submit(client.delete, "/v1/items/i5", headers=HEADERS)
            while not change.done():
                assert "i5" in ids(client), "what is not made is not searched"
                time.sleep(0.05)
        assert change.result().status_code == 422
        assert client.delete("/v1/items/i6", headers=HEADERS).status_code == 200
        after = ids(client)
        assert "i6" not in after and "i5" in after


def test_a_replica_that_cannot_follow_a_reload_follows_the_catalogue(on_machine: OnMachine, s3: S3Server) -> None:
    with client_of(on_machine("a")) as one, client_of(on_machine("b")) as other:
        assert "i5" in ids(other)
        runs = {"reloads": 1, "runs": [{"name": "gone", "folder": "gone"}]}
        ObjectStore(s3.url()).write("serving/one.json", json.dumps(runs).encode())
        time.sleep(0.3)
        assert one.delete("/v1/items/i5", headers=HEADERS).status_code == 200
        end = time.monotonic() + 20
        while "i5" in ids(other):
            assert time.monotonic() < end
            time.sleep(0.05)
