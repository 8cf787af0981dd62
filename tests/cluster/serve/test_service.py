"""The HTTP service, in this process: what it answers, refuses, keeps and reloads."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from support.served import serve
from support.service import HEADERS, KEY, client_of, make_service
from support.waiting import wait_until

import genrec
from cluster.serve import guard, served_run
from cluster.serve.catalog_writer import CatalogWriter
from cluster.serve.http_app import make_app
from cluster.serve.locks import RateLimit
from cluster.serve.runs_file import Split
from cluster.serve.served_run import CHATS, ServedRun
from genrec.errors import InputError
from genrec.inference.answers import Reply
from genrec.inference.hf_folder.export_run import export_run
from genrec.inference.hf_folder.import_run import import_run
from genrec.inference.recommender import Recommender
from genrec.inference.request import RecommendRequest
from genrec.inference.run_place import RunPlace
from genrec.inference.run_record import RunRecord
from genrec.sid import catalog_updates

HISTORY = ["i1", "i2", "i3"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served")
    serve(directory)
    return directory / "storage"


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREC_API_KEY", KEY)


@pytest.fixture
def own(storage: Path, tmp_path: Path) -> Path:
    """A copy of the storage that a test may change."""
    return shutil.copytree(storage, tmp_path / "storage")


@pytest.fixture
def client(storage: Path) -> Generator[TestClient]:
    with client_of(make_service(storage, "alone", max_k=50, max_history=8, max_body_kb=4)) as client:
        yield client


def recommend(client: TestClient, **body: object) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, path: str, status: int, body: object, **headers: str) -> str:
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    return answer.json()["error"]


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["id"] for item in answer["items"]]


def test_the_service_answers_what_the_recommender_answers(client: TestClient, storage: Path) -> None:
    answer = recommend(client, history=HISTORY, k=4, constraint={"category": "soap"})
    wanted = genrec.load(storage / "runs" / "alone").recommend(HISTORY, 4, genrec.Constraint(category="soap"))
    assert ids(answer) == [item.id for item in wanted]
    assert [item["score"] for item in answer["items"]] == pytest.approx([item.score for item in wanted])
    assert answer["source"] == "policy"
    assert answer["served"] == {"run": "alone", "policy": "sft/made", "catalog": "made/made"}


def test_an_event_that_the_policy_cannot_be_asked_for_is_said(client: TestClient) -> None:
    assert "event: " in recommend(client, history=HISTORY, event="buyy")["notes"][0]
    assert recommend(client, history=HISTORY)["notes"] == []


def test_a_user_of_the_log_is_answered_as_his_history(client: TestClient, storage: Path) -> None:
    by_user = recommend(client, user="u1", k=5)
    shop = [f"i{(1 * 5 + step) % 24}" for step in range(8)]
    assert ids(by_user) == ids(recommend(client, history=shop, k=5))
    assert "user 'nobody'" in refused(client, "/v1/recommend", 422, {"user": "nobody"})


def test_unknown_items_are_named_and_the_others_used(client: TestClient) -> None:
    answer = recommend(client, history=["zz", *HISTORY, "yy", "zz"], k=5, history_times=[0, 1, 2, 3, 4, 5])
    assert answer["unknown"] == ["zz", "yy"]
    assert ids(answer) == ids(recommend(client, history=HISTORY, k=5))


@pytest.mark.parametrize("history", [[], ["zz"]])
def test_an_empty_history_is_answered_by_popular_items_and_the_answer_says_so(
    client: TestClient, history: list[str]
) -> None:
    answer = recommend(client, history=history, k=24)
    scores = [item["score"] for item in answer["items"]]
    assert (answer["source"], scores) == ("popularity", sorted(scores, reverse=True))
    assert "the most frequent items" in " ".join(answer["notes"])
    assert set(ids(recommend(client, history=history, constraint={"deny": ["i1", "i2"]}, k=24))) == set(ids(answer)) - {
        "i1",
        "i2",
    }


def test_k_beyond_the_catalogue_is_said(client: TestClient) -> None:
    answer = recommend(client, history=HISTORY, k=40)
    assert len(answer["items"]) <= 24
    assert "k=40 is above the catalogue's 24 items" in answer["notes"]


def test_a_batch_answers_each_request_as_alone(client: TestClient) -> None:
    bodies = [{"history": HISTORY[:n], "k": n + 1, "constraint": {"unseen": n == 2}} for n in (1, 2, 3)]
    answer = client.post("/v1/recommend/batch", json={"requests": bodies}).json()
    assert [ids(one) for one in answer["answers"]] == [ids(recommend(client, **body)) for body in bodies]


def test_requests_that_come_together_share_a_search(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    search = Recommender.recommend_each

    def counted(self: Recommender, requests: Sequence[RecommendRequest]) -> list[Any]:
        sizes.append(len(requests))
        time.sleep(0.2)
        return search(self, requests)

    service = make_service(storage, "alone", cached_answers=0, batch=4, deadline_ms=60_000)
    monkeypatch.setattr(Recommender, "recommend_each", counted)
    histories = [[f"i{n}", f"i{n + 1}"] for n in range(12)]
    with client_of(service) as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda history: recommend(client, history=history), histories))
    assert sum(sizes) == 12
    assert 1 < max(sizes) <= 4
    assert len(sizes) < 12
    wanted = genrec.load(storage / "runs" / "alone")
    assert [ids(one) for one in answers] == [[item.id for item in wanted.recommend(history)] for history in histories]


def test_one_bad_request_of_a_search_is_refused_and_the_others_answered(storage: Path) -> None:
    service = make_service(storage, "alone", cached_answers=0)
    bodies = [{"history": HISTORY}, {"history": HISTORY, "constraint": {"category": "none"}}, {"history": ["i5"]}]
    with client_of(service) as client, ThreadPoolExecutor(3) as pool:
        codes = list(pool.map(lambda body: client.post("/v1/recommend", json=body).status_code, bodies))
    assert codes == [200, 422, 200]


def test_an_answer_that_would_be_late_is_popular_items_within_the_constraint(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(storage, "alone")
    search = Recommender.recommend_each

    def slow(self: Recommender, requests: Sequence[RecommendRequest]) -> list[Any]:
        time.sleep(0.3)
        return search(self, requests)

    monkeypatch.setattr(Recommender, "recommend_each", slow)
    with client_of(service) as client:
        late = recommend(client, history=HISTORY, deadline_ms=50, constraint={"category": "soap"})
        assert late["source"] == "popularity"
        assert "deadline" in late["notes"][0]
        soaps = {f"i{n}" for n in range(24) if client.get(f"/v1/items/i{n}").json()["categories"][-1] == "soap"}
        assert set(ids(late)) == soaps
        assert recommend(client, history=HISTORY, deadline_ms=5000)["source"] == "policy"


def test_the_same_question_is_answered_from_the_last_answers_until_the_catalogue_changes(own: Path) -> None:
    with client_of(make_service(own, "alone")) as client:
        first, second = (recommend(client, history=HISTORY, user=user) for user in ("a", "b"))
        assert (first["cached"], second["cached"]) == (False, True)
        assert ids(first) == ids(second)
        gone = ids(first)[0]
        assert client.delete(f"/v1/items/{gone}", headers=HEADERS).json()["removed"] == 1
        third = recommend(client, history=HISTORY)
        assert (third["cached"], gone in ids(third)) == (False, False)
        assert third["served"]["catalog"] == "made/00001"
        assert client.get(f"/v1/items/{gone}").json()["removed"]


def test_another_replica_serves_a_change_from_the_next_request_on(own: Path) -> None:
    """Two services of one storage are two replicas."""
    with client_of(make_service(own, "alone")) as one, client_of(make_service(own, "alone")) as other:
        gone = ids(recommend(other, history=HISTORY))[0]
        one.delete(f"/v1/items/{gone}", headers=HEADERS)
        assert gone not in ids(recommend(other, history=HISTORY))
        assert gone not in ids(recommend(other, history=[], k=50))


def test_of_many_writers_each_makes_its_change(own: Path) -> None:
    with client_of(make_service(own, "alone")) as one, client_of(make_service(own, "alone")) as other:
        with ThreadPoolExecutor(6) as pool:
            names = [f"i{n}" for n in range(6)]
            wait = [
                pool.submit((one, other)[n % 2].delete, f"/v1/items/{name}", headers=HEADERS)
                for n, name in enumerate(names)
            ]
        assert [one.result().status_code for one in wait] == [200] * 6
        assert not set(names) & set(ids(recommend(one, history=HISTORY, k=50)))


def a_removal_is_shown_by_another_replica(own: Path) -> None:
    with client_of(make_service(own, "alone")) as one, client_of(make_service(own, "alone")) as other:
        assert one.delete("/v1/items/i5", headers=HEADERS).status_code == 200
        wait_until(lambda: other.get("/v1/items/i5").json()["removed"], limit_s=20)


def test_a_change_by_another_replica_is_shown_without_a_search(own: Path) -> None:
    a_removal_is_shown_by_another_replica(own)


def test_a_replica_goes_on_following_after_any_fault(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.serve.service.WATCH_S", 0.01)
    follow, faults = ServedRun.follow_changes, iter([PermissionError("a disk"), InputError("a store")])

    def faulty(run: ServedRun) -> None:
        if (fault := next(faults, None)) is not None:
            raise fault
        follow(run)

    monkeypatch.setattr(ServedRun, "follow_changes", faulty)
    a_removal_is_shown_by_another_replica(own)
    assert next(faults, None) is None


def test_conversations_that_outlast_their_requests_keep_their_places_until_they_end(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(Recommender, "chat", lambda *args, **options: go.wait(20) and Reply("done", [], True))
    with client_of(make_service(storage, "alone", timeout_s=0.2)) as client:
        for _ in range(CHATS):
            refused(client, "/v1/chat", 504, {"messages": "hello"})
        assert "try again" in refused(client, "/v1/chat", 503, {"messages": "hello"})
        go.set()
        deadline = time.monotonic() + 20
        while (answer := client.post("/v1/chat", json={"messages": "hello"})).status_code in (503, 504):
            assert time.monotonic() < deadline
        assert answer.json()["text"] == "done"


def test_a_run_of_a_store_that_was_copied_into_a_directory_is_changed_there(own: Path) -> None:
    file = own / "runs" / "alone" / "recommender.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"config": about["config"] | {"storage": "s3://bucket/of-another-time"}}))
    with client_of(make_service(own, "alone")) as client:
        assert client.delete("/v1/items/i5", headers=HEADERS).status_code == 200
        assert "i5" not in ids(recommend(client, history=HISTORY, k=50))
        assert (own / "live" / "made" / "00001").is_dir()


def test_a_reload_changes_the_run_without_a_failed_request(own: Path) -> None:
    service, stop, codes = make_service(own, "alone", cached_answers=0), threading.Event(), list[int]()
    with client_of(service) as client:

        def ask() -> None:
            while not stop.is_set():
                codes.append(client.post("/v1/recommend", json={"history": HISTORY}).status_code)

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask) for _ in range(2)]
            answer = client.post("/v1/reload", json={"run": "steered"}, headers=HEADERS)
            stop.set()
            [one.result() for one in asking]
        assert answer.json()["served"] == [{"run": "steered", "policy": "sft/made", "catalog": "made/made"}]
        assert recommend(client, history=HISTORY)["served"]["run"] == "steered"
        assert set(codes) == {200}
        again = client.post("/v1/reload", json={"run": "steered"}, headers=HEADERS).json()
        assert not again["changed"]


def test_a_replica_that_starts_later_or_runs_beside_serves_the_reloaded_run(own: Path) -> None:
    beside = make_service(own, "alone")
    with client_of(make_service(own, "alone")) as client, client_of(beside) as other:
        client.post("/v1/reload", json={"run": "steered"}, headers=HEADERS)
        assert make_service(own, "alone").versions[0].run == "steered"
        assert make_service(own, "alone", deployment="another").versions[0].run == "alone"
        wait_until(lambda: recommend(other, history=HISTORY)["served"]["run"] == "steered", limit_s=20)


def broken(own: Path, change: dict[str, object]) -> None:
    shutil.copytree(own / "runs" / "alone", own / "runs" / "bad")
    about = json.loads((own / "runs" / "alone" / "recommender.json").read_text())
    (own / "runs" / "bad" / "recommender.json").write_text(json.dumps(about | change))


def test_a_run_that_cannot_be_read_is_not_served_and_the_old_one_stays(own: Path) -> None:
    broken(own, {"config": {"of": "another version"}})
    with client_of(make_service(own, "alone")) as client:
        told = refused(client, "/v1/reload", 409, {"run": "bad"}, **HEADERS)
        assert told.startswith("nothing was changed: ")
        assert str(own) not in told
        assert "there is no 'nothing'" in refused(client, "/v1/reload", 404, {"run": "nothing"}, **HEADERS)
        assert recommend(client, history=HISTORY)["served"]["run"] == "alone"


def test_a_run_that_fails_its_smoke_test_is_not_served(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(own, "alone")
    monkeypatch.setattr(Recommender, "recommend_each", lambda self, requests: [[] for _ in requests])
    with client_of(service) as client:
        assert "smoke test" in refused(client, "/v1/reload", 409, {"run": "steered"}, **HEADERS)
        assert client.get("/readyz").json()["served"][0]["run"] == "alone"


def test_two_runs_share_the_users_and_a_user_stays_with_his(storage: Path) -> None:
    service = make_service(storage, "alone", "mixed", share=0.25)
    with client_of(service) as client:
        runs = [recommend(client, user=f"u{n}", history=HISTORY)["served"]["run"] for n in range(40)]
        again = [recommend(client, user=f"u{n}", history=["i7"])["served"]["run"] for n in range(40)]
        assert runs == again
        assert {run: runs.count(run) for run in ("alone", "mixed")}["mixed"] in range(3, 20)
        assert recommend(client, user="u1", history=HISTORY, run="mixed")["served"]["run"] == "mixed"
        assert "served are ['alone', 'mixed']" in refused(client, "/v1/recommend", 422, {"run": "x", "history": []})
    shares = [Split(0.25).of(f"user {n}") for n in range(4000)]
    assert sum(shares) / 4000 == pytest.approx(0.25, abs=0.03)


def test_an_item_that_one_of_two_catalogues_has_is_removed_from_it(own: Path) -> None:
    made, other = own / "assign" / "made", own / "assign" / "other"
    shutil.copytree(made, other)
    items = pq.read_table(other / "sids.parquet")["id"].to_pylist()
    renamed = ["other5" if item == "i5" else item for item in items]
    pq.write_table(pa.table({"id": renamed}), other / "sids.parquet")
    about = json.loads((own / "runs" / "mixed" / "recommender.json").read_text())
    about["parts"]["catalog"] = "assign/other"
    (own / "runs" / "mixed" / "recommender.json").write_text(json.dumps(about))
    with client_of(make_service(own, "alone", "mixed", share=0.25)) as client:
        for item in ("i5", "other5", "i7"):
            assert client.delete(f"/v1/items/{item}", headers=HEADERS).json()["removed"] == 1
            for run in ("alone", "mixed"):
                assert item not in ids(recommend(client, history=HISTORY, k=50, run=run))
        nobody = client.delete("/v1/items/nobody", headers=HEADERS)
        assert (nobody.status_code, "nobody" in nobody.json()["error"]) == (404, True)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/items", {"items": [{"id": "new", "title": "new"}]}),
        ("DELETE", "/v1/items/i1", None),
        ("POST", "/v1/reload", {}),
    ],
)
def test_nothing_changes_without_the_key(
    storage: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: object
) -> None:
    with client_of(make_service(storage, "alone")) as client:
        for headers in ({}, {"x-api-key": "wrong"}, {"x-api-key": KEY + " "}, {"x-api-key": "\xff"}):
            encoded = {name: value.encode("latin-1") for name, value in headers.items()}
            assert client.request(method, path, json=body, headers=encoded).status_code == 401
    for weak in ("", "short"):
        monkeypatch.setenv("GENREC_API_KEY", weak)
        with client_of(make_service(storage, "alone")) as client:
            answer = client.request(method, path, json=body, headers={"x-api-key": weak})
            assert (answer.status_code, "GENREC_API_KEY" in answer.json()["error"]) == (403, True)
    assert not (storage / "live").exists()


def test_nothing_changes_without_the_key_below_a_prefix(storage: Path) -> None:
    service = make_service(storage, "alone")
    with TestClient(make_app(service), root_path="/shop") as client:
        assert client.get("/shop/healthz").status_code == 200
        assert client.get("/shop/v1/about").status_code == 200
        assert client.delete("/shop/v1/items/i1").status_code == 401
        assert client.post("/shop/v1/reload", json={}).status_code == 401
        assert client.post("//v1/reload", json={}).status_code in (401, 404, 405)


def test_reads_ask_for_the_key_where_the_config_says_so_and_probes_never(storage: Path) -> None:
    with client_of(make_service(storage, "alone", key_for_reads=True)) as client:
        assert client.post("/v1/recommend", json={"history": HISTORY}).status_code == 401
        assert client.post("/v1/recommend", json={"history": HISTORY}, headers=HEADERS).status_code == 200
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 401]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"history": "i1"}, "history: Input should be a valid list"),
        ({"histroy": []}, "histroy: Extra inputs are not permitted"),
        ({"history": [None]}, "history.0"),
        ({"history": HISTORY, "k": 0}, "k: "),
        ({"history": HISTORY, "k": 51}, "k: got 51; wanted at most 50 (serve.max_k)"),
        ({"history": ["i1"] * 9}, "history: got 9 items; wanted at most 8 (serve.max_history), the newest ones"),
        ({"history": HISTORY, "history_times": [1]}, "history_times: got 1 entries"),
        ({"history": HISTORY, "constraint": {"price": [2, 1]}}, "price: got"),
        ({"history": HISTORY, "constraint": {"category": "none"}}, "no item has the category 'none'"),
        ({"history": HISTORY, "constraint": {"allow": ["zz"]}}, "allow names 1 items"),
        ({"history": HISTORY, "deadline_ms": -1}, "deadline_ms"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_a_wrong_body_is_refused_with_what_is_wrong(client: TestClient, body: object, told: str) -> None:
    assert told in refused(client, "/v1/recommend", 422, body)


def test_broken_json_long_bodies_and_unknown_paths_are_refused(client: TestClient) -> None:
    json_type = {"content-type": "application/json"}
    broken = client.post("/v1/recommend", content=b'{"history": [', headers=json_type)
    assert broken.status_code == 422 and broken.json()["error"].startswith("body: JSON decode error")
    assert client.post("/v1/recommend", content=b"\xff\xfe", headers=json_type).status_code == 422
    assert client.post("/v1/recommend", content=b" " * 5000, headers=json_type).status_code == 413
    assert client.post("/v1/recommend", content=iter([b" " * 3000] * 2), headers=json_type).status_code == 413
    assert client.get("/v1/items/zz").status_code == 404
    assert client.get("/nothing").json()["error"].startswith("Not Found")
    assert client.get("/v1/recommend").status_code in (404, 405)


def test_a_client_that_asks_too_often_waits(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "RateLimit", partial(RateLimit, clock=lambda: 1000.0))
    with client_of(make_service(storage, "alone", rate_per_s=1.0)) as client:
        codes = [client.get("/v1/about").status_code for _ in range(4)]
        assert codes == [200, 200, 429, 429]
        assert int(client.get("/v1/about").headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200


def test_no_stack_trace_leaves_the_process(
    storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(storage, "alone")

    def fail(self: Recommender, requests: object) -> list[Any]:
        raise ZeroDivisionError("a secret of the service")

    monkeypatch.setattr(Recommender, "recommend_each", fail)
    with client_of(service) as client:
        answer = client.post("/v1/recommend", json={"history": HISTORY}, headers={"x-request-id": "mine-1"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "mine-1")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "request mine-1 failed" in caplog.text


def test_a_request_that_takes_too_long_ends(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(storage, "alone", timeout_s=0.2)
    monkeypatch.setattr(Recommender, "score", lambda *args, **options: time.sleep(1) or [0.0])
    with client_of(service) as client:
        told = refused(client, "/v1/score", 504, {"history": HISTORY, "items": ["i1"]})
    assert "0.2 s (serve.timeout_s)" in told


def test_logs_have_request_ids_and_no_item_or_user(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        answer = recommend(client, history=HISTORY, user="somebody")
    line = next(record.getMessage() for record in caplog.records if record.name == "cluster.serve.guard")
    assert line.startswith(f"{answer['request_id']} POST /v1/recommend 200 ")
    assert "thing number" not in caplog.text
    assert "somebody" not in caplog.text


def test_scores_are_those_of_recommendations(client: TestClient) -> None:
    best = recommend(client, history=HISTORY, k=3)["items"]
    body = {"history": ["zz", *HISTORY], "items": [item["id"] for item in best]}
    answer = client.post("/v1/score", json=body).json()
    assert [item["score"] for item in answer["items"]] == pytest.approx([item["score"] for item in best], rel=1e-4)
    assert answer["unknown"] == ["zz"]


def test_every_route_is_described_counted_and_findable(client: TestClient) -> None:
    recommend(client, history=HISTORY)
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/recommend/batch", "/v1/score", "/v1/chat", "/v1/reload", "/v1/items"} <= set(paths)
    figures = client.get("/metrics").text
    assert 'genrec_requests_total{method="POST",route="/v1/recommend",status="200"}' in figures
    assert 'genrec_answers_total{cached="false",run="alone",source="policy"}' in figures
    assert client.get("/v1/about").json()["categories"] == ["hair", "paper", "shop", "soap", "tooth"]
    hits = client.get("/v1/items", params={"title": "soap number 1", "limit": 3}).json()["items"]
    assert all("soap" in hit["title"] for hit in hits)
    assert "knows semantic IDs only" in refused(client, "/v1/chat", 422, {"messages": "hello"})


def test_an_imported_run_is_served_though_its_log_has_no_users(storage: Path, tmp_path: Path) -> None:
    own = genrec.load(storage / "runs" / "alone")
    export_run(own, storage / "runs" / "alone", tmp_path / "folder")
    elsewhere = tmp_path / "elsewhere"
    run = import_run(tmp_path / "folder", elsewhere)
    with client_of(make_service(elsewhere, run.name)) as client:
        found = recommend(client, history=HISTORY, k=3)
        assert [item["id"] for item in found["items"]] == [item.id for item in own.recommend(HISTORY, k=3)]
        assert recommend(client, history=[], k=2)["source"] == "popularity"


def test_reloads_of_two_replicas_are_both_kept(own: Path) -> None:
    for name in ("new1", "new2"):
        shutil.copytree(own / "runs" / "steered", own / "runs" / name)
    one, other = (make_service(own, "alone", "mixed", share=0.5) for _ in range(2))
    with client_of(one) as a, client_of(other) as b:
        first = a.post("/v1/reload", json={"run": "new1", "replaces": "alone"}, headers=HEADERS)
        second = b.post("/v1/reload", json={"run": "new2", "replaces": "mixed"}, headers=HEADERS)
        assert (first.status_code, second.status_code) == (200, 200)
        assert [version["run"] for version in second.json()["served"]] == ["new1", "new2"]


def test_a_reload_that_cannot_be_told_to_the_others_changes_nothing(own: Path) -> None:
    (own / "serving").write_text("a file in the way, as a disk that is full or read-only")
    with client_of(make_service(own, "alone")) as client:
        assert "nothing was changed" in refused(client, "/v1/reload", 409, {"run": "steered"}, **HEADERS)
        assert client.get("/readyz").json()["served"][0]["run"] == "alone"


def test_a_time_beyond_64_bits_is_refused_and_other_requests_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tmp_path, "policy.context.gaps=true")
    search, begun, go = Recommender.recommend_each, threading.Event(), threading.Event()

    def held(self: Recommender, requests: Sequence[RecommendRequest]) -> Any:
        begun.set()
        go.wait(20)
        return search(self, requests)

    service = make_service(tmp_path / "storage", "alone", cached_answers=0, deadline_ms=20_000)
    monkeypatch.setattr(Recommender, "recommend_each", held)
    good = {"history": HISTORY, "history_times": [1, 2, 3]}
    bodies = [good, good, good | {"history_times": [1, 2, 10**20]}, good]
    with client_of(service) as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.post, "/v1/recommend", json=bodies[0])
        assert begun.wait(20)
        rest = [pool.submit(client.post, "/v1/recommend", json=body) for body in bodies[1:]]
        time.sleep(0.3)
        go.set()
        assert first.result().status_code == 200
        assert [one.result().status_code for one in rest] == [200, 422, 200]


def test_popular_items_leave_out_what_the_run_leaves_out(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Recommender.recommend_each

    def slow(self: Recommender, requests: Sequence[RecommendRequest]) -> Any:
        time.sleep(0.3)
        return search(self, requests)

    history = [f"i{n}" for n in range(8)]
    with client_of(make_service(storage, "mixed")) as client:
        monkeypatch.setattr(Recommender, "recommend_each", slow)
        answer = recommend(client, history=history, k=23, deadline_ms=20)
    assert answer["source"] == "popularity"
    assert not set(ids(answer)) & set(history[-5:])


def test_what_an_answer_leaves_out_is_said(storage: Path) -> None:
    with client_of(make_service(storage, "mixed")) as client:
        few = recommend(client, history=HISTORY, k=24)
        assert len(few["items"]) == 21
        assert few["notes"] == ["this run answers no item of the history, which left 21 items"]
        popular = recommend(client, history=[], k=3, explain=True, diversity={"kind": "categories"})
        assert "diversity and explain: for answers of the policy alone, and left out here" in popular["notes"]
        for fields in ({"history_events": ["buy"]}, {"history_times": [1, 2]}):
            assert "one per item" in refused(client, "/v1/recommend", 422, {"user": "u1", **fields})


def test_a_refused_batch_says_which_of_its_requests_is_wrong(client: TestClient) -> None:
    good, bad = {"history": HISTORY}, {"history": HISTORY, "constraint": {"category": "none of these"}}
    told = refused(client, "/v1/recommend/batch", 422, {"requests": [good, good, bad, good]})
    assert told.startswith("requests.2: no item has the category")
    told = refused(client, "/v1/recommend/batch", 422, {"requests": [good, good | {"k": 51}]})
    assert told.startswith("requests.1: k: got 51")


def test_a_conversation_is_about_the_catalogue_as_it_is_now(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def present(recommender: Recommender, *args: object, **options: object) -> Reply:
        return Reply("", [one for one in recommender.view.ids if not recommender.item(one).removed], True)

    monkeypatch.setattr("cluster.serve.service.WATCH_S", 60)
    monkeypatch.setattr(Recommender, "chat", present)
    with client_of(make_service(own, "alone")) as one, client_of(make_service(own, "alone")) as other:
        one.delete("/v1/items/i5", headers=HEADERS)
        assert "i5" not in other.post("/v1/chat", json={"messages": "hello"}).json()["items"]


def test_an_answer_names_the_catalogue_that_it_is_from(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread takes over a change while the answer is made."""
    popular, record = served_run.popular_items, RunPlace.find(own / "runs" / "alone").read()

    def changed(*args: Any) -> Any:
        catalog_updates.remove(record.catalog, record.live, ["i5"])
        run.recommender.refresh()
        return popular(*args)

    service = make_service(own, "alone")
    (run,) = service.runs
    monkeypatch.setattr(served_run, "popular_items", changed)
    with client_of(service) as client:
        answer = recommend(client, history=[], k=50)
        assert ("i5" in ids(answer), answer["served"]["catalog"]) == (True, "made/made")
        answer = recommend(client, history=[], k=50)
        assert ("i5" in ids(answer), answer["served"]["catalog"]) == (False, "made/00001")


def test_a_change_that_one_of_two_catalogues_refuses_is_told_and_made_in_the_other(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(own / "assign" / "made", own / "assign" / "other")
    about = json.loads((own / "runs" / "mixed" / "recommender.json").read_text())
    about["parts"]["catalog"] = "assign/other"
    (own / "runs" / "mixed" / "recommender.json").write_text(json.dumps(about))
    remove, refuses = CatalogWriter.remove, set[str]()

    def refusing(writer: CatalogWriter, record: RunRecord, items: Sequence[str]) -> dict[str, int]:
        if record.catalog.name in refuses:
            raise InputError("another process is changing it")
        return remove(writer, record, items)

    monkeypatch.setattr(CatalogWriter, "remove", refusing)
    with client_of(make_service(own, "alone", "mixed", share=0.25)) as client:
        for item, catalog, has, lacks in (("i5", "made", "mixed", "alone"), ("i7", "other", "alone", "mixed")):
            refuses.add(catalog)
            answer = client.delete(f"/v1/items/{item}", headers=HEADERS)
            refuses.clear()
            assert answer.status_code == 422
            told = f"the catalogue of {has} has the change now, and that of {lacks} has not: another process"
            assert answer.json()["error"].startswith(told)
            for run in (has, lacks):
                found = ids(recommend(client, history=["i1"], k=50, run=run))
                assert (item in found) == (run == lacks)
        assert client.delete("/v1/items/i5", headers=HEADERS).json()["removed"] == 1


def test_a_catalogue_that_cannot_be_read_is_no_fault_of_who_asks(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    with client_of(make_service(own, "alone")) as client:
        recommend(client, history=HISTORY)
        (own / "live" / "made" / "00001").mkdir(parents=True)
        for path, body in (
            ("recommend", {"history": HISTORY}),
            ("recommend", {"history": ["i4"]}),
            ("recommend", {"history": []}),
            ("score", {"history": HISTORY, "items": ["i5"]}),
            ("chat", {"messages": "hello"}),
        ):
            assert refused(client, f"/v1/{path}", 500, body) == guard.FAULT
            assert "no readable catalogue" in caplog.text
            caplog.clear()
        assert client.delete("/v1/items/i1", headers=HEADERS).status_code == 500


def test_methods_that_clients_make_up_are_counted_as_one(client: TestClient) -> None:
    for number in range(3):
        assert client.request(f"MADE{number}", "/v1/about").status_code == 405
    told = client.get("/metrics").text
    assert "MADE" not in told and 'method="other"' in told
