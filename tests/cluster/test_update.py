"""A finished run goes on learning: new events and items, the guard, the new run, and the way back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.encoders import CircleEncoder
from support.pipeline import made
from support.s3_server import S3Server
from support.service import HEADERS, KEY, client_of, make_service
from support.stored import upload_storage
from support.synthetic import chain_shop, random_catalog, small_policy, tiny_config

import genrec
from cluster import writer_lease
from cluster.artifacts import make_artifact
from cluster.newest_run import point_to
from cluster.serve.catalog_writer import CatalogWriter
from cluster.serve.messages import NewItem
from cluster.update import run_update
from cluster.update.policy_update import UpdateTask, update_policy
from cluster.update.run_update import roll_back, update_run
from genrec.baselines.train_log import read_train_log
from genrec.config import Update
from genrec.data.new_events import append_events
from genrec.data.object_store import ObjectStore
from genrec.data.readers import read_items
from genrec.data.tables import SEQUENCES
from genrec.data.train_counts import read_train_counts
from genrec.errors import InputError
from genrec.evaluation.validate import Search
from genrec.inference.run_place import RunPlace
from genrec.learning.sft.batches import Rows
from genrec.learning.update.drift_loss import DriftLoss, kl_divergence
from genrec.learning.update.update_guard import UpdateGuard
from genrec.sid import embed as sid_embed

Event = tuple[str, str, int]
STEPS = {"learning.update.steps": 30, "learning.update.eval_every": 15, "learning.update.lr": 1e-2}
FAST = STEPS | {"learning.update.batch_size": 32, "learning.update.kl": 0.01}


def write_log(file: Path, *events: Event) -> Path:
    user, item, time = zip(*events, strict=True)
    pq.write_table(pa.table({"user_id": user, "item_id": item, "timestamp": time}), file)
    return file


def chain_events(item_of: Callable[[int], str], users: int = 60, items: int = 24, steps: int = 4) -> list[Event]:
    """What the users of ``chain_shop`` do next: they walk on; every user begins where the shop's log ended."""
    start = [(user * 5 + 8) % items for user in range(users)]
    return [
        (f"u{user}", item_of((start[user] + step) % items), 1_000_000 + step)
        for step in range(steps)
        for user in range(users)
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of_a_shop(tmp_path_factory, "sid.cf_weight=0")


def run_of_a_shop(tmp_path_factory: pytest.TempPathFactory, *overrides: str) -> Path:
    """A storage with a run that was trained too shortly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sid_embed, "make_encoder", lambda settings, device: CircleEncoder())
        storage = tmp_path_factory.mktemp("storage")
        settings = ("sid.codebook_size=4", "learning.sft.epochs=1", "policy.dropout=0", *overrides)
        config = tiny_config(storage, chain_shop(tmp_path_factory.mktemp("shop")), *settings)
        parts = {"data": made(config, "prepare"), "catalog": made(config, "assign"), "policy": made(config, "sft")}
    about = {
        "parts": {part: f"{one.name}/{one.key}" for part, one in parts.items()},
        "prior": {"kind": "itemknn", "weight": 0.3, "power": 1.0, "settings": {}, "head_weight": 1.0},
        "mask_seen": False,
        "config": config.model_dump(mode="json"),
    }
    (storage / "runs" / "tiny-first").mkdir(parents=True)
    (storage / "runs" / "tiny-first" / "recommender.json").write_text(json.dumps(about))
    (storage / "runs" / "tiny").symlink_to("tiny-first")
    return storage


@pytest.fixture
def storage(shop: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shop, tmp_path / "storage", symlinks=True)


def test_an_update_learns_publishes_and_is_rolled_back(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENREC_API_KEY", KEY)
    newest = storage / "runs" / "tiny"
    log = write_log(tmp_path / "new.parquet", *chain_events(lambda item: f"i{item}"))
    service = make_service(storage, "tiny")
    done = update_run(newest, log, None, FAST)
    assert done.run is not None and newest.resolve() == done.run
    assert done.counts["new"] == 240 and done.counts["train"] + done.counts["valid"] == 240
    best = max(done.curve, key=lambda one: one["new"])
    assert best["new"] > done.curve[0]["new"] + 0.1 and best["old"] > done.curve[0]["old"]
    with client_of(service) as client:
        assert client.get("/v1/about").json()["runs"][0]["served"]["policy"].startswith("sft/")
        assert client.post("/v1/reload", json={}, headers=HEADERS).json()["changed"]
        assert client.get("/v1/about").json()["runs"][0]["served"]["policy"].startswith("update/")
        assert client.post("/v1/recommend", json={"user": "u3"}).status_code == 200
    assert roll_back(newest).name == "tiny-first" and newest.resolve().name == "tiny-first"
    with pytest.raises(InputError, match="is no update"):
        roll_back(newest)


def test_an_update_goes_on_from_one_that_was_published_meanwhile(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, log = storage / "runs" / "tiny", write_log(tmp_path / "a.parquet", *chain_events(lambda item: f"i{item}"))

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        shutil.copytree(storage / "runs" / "tiny-first", storage / "runs" / "tiny-second")
        point_to(newest, storage / "runs" / "tiny-second")
        return make_artifact(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run_update, "make_artifact", meanwhile)
        with pytest.raises(InputError, match="another one made tiny-second the newest 'tiny'"):
            update_run(newest, log, None, FAST)
    assert newest.resolve().name == "tiny-second" and len(list(newest.parent.iterdir())) == 3
    done = update_run(newest, log, None, FAST)
    assert newest.resolve() == done.run and roll_back(newest).name == "tiny-second"


def test_a_run_in_an_object_store_is_updated_and_rolled_back_there(
    storage: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(sid_embed, "make_encoder", lambda settings, device: CircleEncoder())
    pq.write_table(pa.table({"id": ["new1"], "title": ["thing number 3"]}), tmp_path / "items.parquet")
    log = write_log(tmp_path / "new.parquet", *chain_events(lambda item: {3: "new1"}.get(item, f"i{item}")))
    upload_storage(storage, s3)
    monkeypatch.setenv("HOME", str(tmp_path / "one"))
    url, local = s3.url("genrec/runs/tiny"), update_run(storage / "runs/tiny", log, tmp_path / "items.parquet", FAST)
    done = update_run(url, log, tmp_path / "items.parquet", FAST)
    assert done.inserted == local.inserted == 1 and done.curve == local.curve
    monkeypatch.setenv("HOME", str(tmp_path / "another machine"))
    assert done.run is not None and RunPlace.find(url).folder == done.run.name
    recommender = genrec.load(url)
    assert recommender.view.rows["new1"] == 24 and "/update/" in str(RunPlace.find(url).read().policy)
    assert roll_back(url).folder == RunPlace.find(url).folder == "tiny-first"
    assert "/sft/" in str(RunPlace.find(url).read().policy)


def test_an_insert_fetches_the_vectors_that_it_needs(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(sid_embed, "make_encoder", lambda settings, device: CircleEncoder())
    upload_storage(run_of_a_shop(tmp_path_factory, "sid.cf_weight=1"), s3)
    monkeypatch.setenv("HOME", str(tmp_path))
    place, item = RunPlace.find(s3.url("genrec/runs/tiny")), NewItem(id="new1", title="thing number 3")
    assert CatalogWriter().insert(place.read(), [item])["inserted"] == 1
    ObjectStore(s3.url()).remove_folder("embed")
    shutil.rmtree(next(tmp_path.glob(".cache/genrec/*/embed")))
    with pytest.raises(InputError, match=r"embed/\w+ is gone from s3://.*make it again with `genrec embed`"):
        CatalogWriter().insert(place.read(), [NewItem(id="new2", title="thing number 9")])


def test_an_update_inserts_items_and_learns_from_their_events(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sid_embed, "make_encoder", lambda settings, device: CircleEncoder())
    fresh = {"id": ["new1", "new2"], "title": ["thing number 3", "thing number 9"], "price": [2.5, None]}
    pq.write_table(pa.table(fresh), tmp_path / "items.parquet")
    (before,) = (storage / "prepare").glob("*/items.parquet")  # of a shop whose own prices are whole numbers
    before.chmod(0o644)
    pq.write_table(pq.read_table(before).append_column("price", pa.array([3] * 24)), before)
    names = {3: "new1", 9: "new2"}
    log = write_log(tmp_path / "new.parquet", *chain_events(lambda item: names.get(item, f"i{item}")))
    first, of_new = storage / "runs" / "tiny-first", {"new1", "new2"}
    left_out = update_run(first, log, None, FAST | {"learning.update.steps": 1})
    assert left_out.inserted == 0
    assert left_out.counts["unknown_items"] == sum(item in of_new for item in pq.read_table(log)["item_id"].to_pylist())
    done = update_run(first, log, tmp_path / "items.parquet", FAST)
    assert done.inserted == 2 and done.counts["unknown_items"] == 0 and done.run is not None
    run = genrec.load(storage / "runs" / "tiny")
    assert read_items(run.run.data)["id"].to_pylist()[-2:] == ["new1", "new2"]
    assert read_items(run.run.data)["price"].to_pylist()[-3:] == [3.0, *fresh["price"]]
    assert len(run.view.ids) == 26 and run.view.titles[24:] == fresh["title"]
    assert [run.item(name).price for name in of_new] == [fresh["price"][fresh["id"].index(name)] for name in of_new]
    # ItemKNN has counted the new items, so what follows the one before is the new one.
    assert "new1" in [found.id for found in run.recommend(["i1", "i2"], k=3)]
    counts, log = read_train_counts(run.run.data, 26), read_train_log(run.run.data, 26)
    assert counts.events_N.tolist() == log.counts_N.tolist() and all(counts.events_N[24:] > 0)
    assert (counts.users, counts.repeat_share) == (60, log.repeat_share)
    as_assigned = genrec.load(storage / "runs" / "tiny", live=False)
    assert len(as_assigned.recommend(["i1", "i2"], k=30)) == 24


def test_a_version_that_is_worse_on_old_queries_is_not_published(storage: Path, tmp_path: Path) -> None:
    first = update_run(
        storage / "runs" / "tiny", write_log(tmp_path / "a.parquet", *chain_events(lambda item: f"i{item}")), None, FAST
    )
    assert first.run is not None
    # Everybody now takes one and the same item: better on new queries, and ruin for the old ones.
    events = [(f"u{user}", "i0", 2_000_000 + step) for step in range(6) for user in range(60)]
    wild = {"learning.update.replay": 0.0, "learning.update.kl": 0.0, "learning.update.lr": 3e-2}
    done = update_run(storage / "runs" / "tiny", write_log(tmp_path / "b.parquet", *events), None, FAST | wild)
    assert done.run is None and "old queries fell" in done.curve[-1]["refused"]
    assert (storage / "runs" / "tiny").resolve() == first.run


def test_the_guard_searches_as_the_run_is_served_also_after_an_update_with_repeats(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (storage / "runs").glob("*/recommender.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mask_seen": True}))
    searches: list[Search] = []

    def noted(task: UpdateTask, *others: Any) -> Any:
        searches.append(task.search)
        return update_policy(task, *others)

    monkeypatch.setattr(run_update, "update_policy", noted)
    for day, last in enumerate((10_000_000, 20_000_000)):
        events = [(user, item, time + last) for user, item, time in chain_events(lambda item: f"i{item}")]
        log = write_log(tmp_path / f"{day}.parquet", *events, ("u0", "i0", last + 2_000_000))
        assert update_run(storage / "runs" / "tiny", log, None, FAST).run is not None or day
    assert searches == [Search(10, masked=5)] * 2


def test_a_run_with_positions_in_the_place_of_times_is_refused(storage: Path, tmp_path: Path) -> None:
    (stats,) = (storage / "prepare").glob("*/stats.json")
    told = json.loads(stats.read_text())
    stats.write_text(json.dumps(told | {"log": told["log"] | {"no_time": 480}}))
    log = write_log(tmp_path / "new.parquet", ("u0", "i8", 1_000_000))
    with pytest.raises(InputError, match="480 events of the run's log have no timestamp"):
        update_run(storage / "runs" / "tiny", log, None, {})


def test_new_events_are_appended_once_and_in_their_order() -> None:
    user = {"user": 4, "user_id": "a", "items": [0, 1], "split": [0, 1], "times": [10, 20], "events": None}
    sequences = pa.Table.from_pylist([user | {"values": None}], schema=SEQUENCES)
    rows = {"x": 0, "y": 1, "z": 2}
    events = [("a", "z", 30), ("a", "y", 20), ("a", "x", 15), ("b", "x", 5), ("b", "q", 6), ("b", "y", 7)]
    log = pa.table(
        {
            "user_id": [one[0] for one in events],
            "item_id": [one[1] for one in events],
            "timestamp": [one[2] for one in events],
            "event": [None, None, None, None, None, "buy"],
            "value": pa.nulls(6, pa.float32()),
        }
    )
    options: dict[str, Any] = {"max_history": 1, "first_query": 7, "held_out": 1e-9, "seed": 0}
    found = append_events(sequences, log, rows, **options)
    assert found.counts == {"new": 3, "known": 1, "late": 1, "unknown_items": 1, "train": 2, "valid": 0}
    assert found.sequences["items"].to_pylist() == [[0, 1, 2], [0, 1]] and found.unknown == ["q"]
    assert found.sequences["split"].to_pylist() == [[0, 1, 1], [0, 1]]
    assert found.sequences["events"].to_pylist() == [None, [None, "buy"]]
    queries = found.train.to_pylist()
    assert [(one["id"], one["history"], one["target"]) for one in queries] == [(7, [1], 2), (8, [0], 1)]
    held = append_events(sequences, log, rows, **options | {"held_out": 1 - 1e-9})
    assert held.counts["valid"] == 2 and held.counts["train"] == 0
    with pytest.raises(InputError, match="none of 3 events is new"):
        append_events(found.sequences, log.slice(0, 3), rows, **options)


def test_the_divergence_is_zero_at_the_former_policy_and_has_the_right_value() -> None:
    catalog = random_catalog(20, (4, 4, 4))
    policy, prompts = small_policy(catalog)
    former = {name: tensor.clone() for name, tensor in policy.snapshot(0).tensors.items()}
    loss = DriftLoss(prompts, catalog, former, head_weight=1.0, kl=1.0)
    batch = Rows([[1, 2], [3]], torch.tensor([4, 5]))
    own_B, drift_B = loss(policy, batch)
    torch.testing.assert_close(drift_B, torch.zeros(2))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.1)
    moved_B, drift_B = loss(policy, batch)
    assert (drift_B > 0).all() and not torch.allclose(own_B, moved_B)
    old, new = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.75, 0.0]]).log()
    expected = 0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log()
    torch.testing.assert_close(kl_divergence(old, new), expected[None])


def test_the_guard_keeps_the_best_version_that_no_set_of_queries_refuses() -> None:
    guard, low, high = UpdateGuard(Update()), torch.full((50,), 0.2), torch.full((50,), 0.6)
    tensors = {"a": torch.zeros(1)}
    guard.judge(0, {"old": high, "new": low}, tensors)
    assert guard.best_step == 0 and not guard.best
    assert "refused" in guard.judge(1, {"old": low, "new": high + 0.3}, tensors)
    assert "refused" not in guard.judge(2, {"old": high, "new": low + 0.1}, tensors)
    assert "refused" not in guard.judge(3, {"old": high, "new": low + 0.05}, tensors)
    assert guard.best_step == 2 and guard.best == tensors


def test_events_that_cannot_be_used_are_named(storage: Path, tmp_path: Path) -> None:
    newest = storage / "runs" / "tiny"
    with pytest.raises(InputError, match="not found"):
        update_run(newest, tmp_path / "nothing.parquet", None, {})
    pq.write_table(pa.table({"user_id": ["a"], "item_id": ["i1"], "position": [1]}), tmp_path / "untimed.parquet")
    with pytest.raises(InputError, match="need a timestamp"):
        update_run(newest, tmp_path / "untimed.parquet", None, {})
    with pytest.raises(InputError, match=r"unknown items \['q'\]"):
        update_run(newest, write_log(tmp_path / "q.parquet", ("a", "q", 5)), None, {})
    with pytest.raises(InputError, match="no query to learn from"):
        update_run(newest, write_log(tmp_path / "one.parquet", ("somebody", "i1", 5)), None, {})
    with pytest.raises(InputError, match="no finished run"):
        update_run(tmp_path, write_log(tmp_path / "x.parquet", ("a", "i1", 5)), None, {})
    assert not [path for path in (storage / "runs").iterdir() if path.name not in ("tiny", "tiny-first")]
