"""Requests that name an event type, and requests that name none."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pipeline import made
from support.served import serve
from support.synthetic import tiny_config

import genrec
from genrec.errors import InputError
from genrec.inference.recommender import Recommender

CONTEXT = ("policy.context.events=wanted", "policy.context.gaps=true", "policy.context.types=[view,buy]")
LEARNING = (
    "sid.quantizer=title",
    "policy.layers=2",
    "learning.sft.epochs=15",
    "learning.sft.eval_every=15",
    "learning.rl.steps=1",
)
HISTORY = ["i3", "i4", "i9"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    directory = tmp_path_factory.mktemp("shop")
    serve(directory, *CONTEXT)
    run = directory / "storage" / "runs" / "alone"
    about = json.loads((run / "recommender.json").read_text())
    (run / "recommender.json").write_text(json.dumps(about | {"event": "buy"}))
    return genrec.load(run)


def scores(shop: Recommender, **asked: object) -> dict[str, float]:
    return {found.id: found.score for found in shop.recommend(HISTORY, 24, **asked)}  # type: ignore[arg-type]


def test_the_event_asked_for_changes_the_answer_and_the_runs_own_is_the_default(shop: Recommender) -> None:
    bought, viewed = scores(shop, event="buy"), scores(shop, event="view")
    assert bought != viewed
    assert scores(shop) == pytest.approx(bought, abs=1e-6)


def test_events_and_times_of_the_history_count_and_are_the_default_type_where_they_are_not_given(
    shop: Recommender,
) -> None:
    plain = scores(shop, event="view")
    assert scores(shop, event="view", history_events=["buy"] * 3) == pytest.approx(plain, abs=1e-6)
    assert scores(shop, event="view", history_events=["view", "buy", "view"]) != plain
    assert scores(shop, event="view", history_times=[10, 20, 90_000]) != plain


def test_unknown_event_types_share_a_token_and_are_not_refused(shop: Recommender) -> None:
    rented = scores(shop, event="rent", history_events=["wish", "buy", "buy"])
    assert rented == pytest.approx(scores(shop, event="lend", history_events=["rent", "buy", "buy"]), abs=1e-6)
    assert len(rented) == 24


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"history_events": ["view"]}, "history_events.*one entry per item, 3 in all"),
        ({"history_events": "buy"}, "history_events.*one entry per item"),
        ({"history_times": [1, 2, 3.5]}, "history_times.*whole number"),
        ({"event": 3}, "event: got 3; wanted the name of an event type"),
        ({"history_events": [1, 2, 3]}, "history_events: got 1"),
    ],
)
def test_what_is_no_event_or_time_is_refused(shop: Recommender, asked: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scores(shop, **asked)


def test_a_policy_without_context_answers_the_same_whatever_is_asked_for(tmp_path: Path) -> None:
    plain = serve(tmp_path)["alone"]
    asked = {"event": "buy", "history_events": ["view"] * 3, "history_times": [1, 2, 3]}
    assert scores(plain, **asked) == pytest.approx(scores(plain), abs=1e-6)


def views_and_purchases(directory: Path) -> Path:
    """A shop whose users walk 12 items in order; after half of the views they buy the item 12 places further."""
    directory.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), list[tuple[str, str, int, str]]()
    for user, step in itertools.product(range(120), range(5)):
        at, time = (user + step) % 12, 100 * step
        rows.append((f"u{user}", f"i{at}", time, "view"))
        if rng.random() < 0.5:
            rows.append((f"u{user}", f"i{at + 12}", time + 1, "buy"))
    names = ("user_id", "item_id", "timestamp", "event")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), directory / "interactions.parquet")
    items = {"id": [f"i{i}" for i in range(24)], "title": [f"thing number {i}" for i in range(24)]}
    pq.write_table(pa.table(items), directory / "items.parquet")
    return directory


def test_a_whole_run_learns_what_is_viewed_and_what_is_bought_next_and_reports_both(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "storage", views_and_purchases(tmp_path / "shop"), *CONTEXT, *LEARNING)
    report = made(config, "evaluate").path
    metrics, about = (json.loads((report / f"{name}.json").read_text()) for name in ("metrics", "recommender"))
    assert set(metrics["events"]["model"]) == set(metrics["events"]["itemknn"]) == {"view", "buy"}
    assert sum(one["queries"] for one in metrics["events"]["model"].values()) == metrics["queries"]
    assert about["event"] == "view"
    served = genrec.load(tmp_path / "storage" / "runs" / "tiny")
    for event, target in (("view", "i6"), ("buy", "i17")):
        seen = ["i4", "i5"]
        best = served.recommend(seen, 1, event=event, history_events=["view", "view"], history_times=[0, 100])
        assert best[0].id == target
