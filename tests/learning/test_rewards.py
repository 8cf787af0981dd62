"""Every reward term on a group that was computed by hand, the context that terms look up, and terms of users."""

import math
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.stages import grpo
from genrec.config import Config, Rewards, RewardSettings, load_config
from genrec.errors import InputError
from genrec.learning.rewards import (
    TERMS,
    FutureItems,
    RewardContext,
    active_terms,
    compute_rewards,
    load_terms,
    plugins,
)
from genrec.learning.rewards.read_context import read_reward_context
from genrec.learning.rewards.terms import event
from genrec.types import Group, Query

CODES = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
TRAIN = pa.table(
    {
        "id": [10, 11, 12, 20],
        "user": [0, 0, 0, 1],
        "target": [0, 2, 1, 3],
        "event": ["click", "seen", "purchase", "click"],
    }
)


def scores(user: int, history: Sequence[int], items_G: torch.Tensor) -> torch.Tensor:
    return (items_G == history[-1] + 1).float()


CONTEXT = RewardContext(
    CODES,
    ["a", "a", "b", ""],
    RewardSettings(horizon=3, discount=0.5, rare=3),
    counts_N=torch.tensor([0, 1, 3, 7]),
    future_items=FutureItems(TRAIN),
    vectors_ND=torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [-1, 0]]),
    neighbours=scores,
)


def group(items: Sequence[int], target: int, history: Sequence[int] = (1,), query: int = 10) -> Group:
    chosen = torch.tensor(items)
    asked = Query(query, 0, tuple(history), target)
    logp_GL = torch.zeros(len(items), CODES.shape[1])
    return Group(asked, 0, chosen, CODES[chosen.clamp(min=0)], logp_GL, torch.empty(0), {})


W = [1 / math.log2(rank + 1) for rank in range(1, 5)]
BY_HAND = {
    "hit": [0, 0, 1, 0],
    "rank_log": [0, 0, math.log(3), 0],
    "rank_linear": [0, 0, 3, 0],
    "ndcg_rank": [-W[0] / sum(W), -W[1] / sum(W), 0, -W[3] / sum(W)],
    "prefix": [0, 2 / 3, 1, 1 / 3],
    "future": [0, 0.25, 1, 0.5],
    "event": [0, 0.75, 1, 0.5],
    "semantic": [-1, 0.6, 1, 0],
    "collaborative": [0, 0, 0, 1],
    "diversity": [0, 1, 0, 1],
    "category_count": [0.5, 0.5, 0.5, 0.5],
    "repeat": [0, 1, 0, 0],
    "unwanted_repeat": [0, 0, 0, 0],
    "novelty": [0, 0.75, 1, 0.25],
    "popularity_penalty": [-1, -1 / 3, 0, -2 / 3],
}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_gives_what_its_formula_says(name: str) -> None:
    assert TERMS[name](group([3, 1, 0, 2], 0), CONTEXT).tolist() == pytest.approx(BY_HAND[name])


def test_every_term_has_a_weight_in_the_config_and_the_other_way_round() -> None:
    assert set(Rewards().weights()) == set(TERMS) == set(BY_HAND)


def test_the_rank_terms_are_0_in_a_group_without_a_hit() -> None:
    for name in ("ndcg_rank", "rank_log", "rank_linear"):
        assert TERMS[name](group([3, 1, 2], 0), CONTEXT).abs().max() == 0


def test_the_future_ends_with_the_user() -> None:
    assert TERMS["future"](group([3, 1, 2, 0], 1, query=12), CONTEXT).tolist() == [0, 1, 0, 0]


SHOP = pa.table(
    {
        "id": [1, 2, 3, 4],
        "user": [0, 0, 0, 0],
        "target": [0, 1, 2, 3],
        "event": ["view", "view", "purchase", "review"],
    }
)


def paid(
    name: str, items: Sequence[int], history: Sequence[int] = (9,), query: int = 1, **settings: object
) -> list[float]:
    found = RewardContext(CODES, [""] * 4, RewardSettings.model_validate(settings), future_items=FutureItems(SHOP))
    target = SHOP["target"].to_pylist()[query - 1]
    return TERMS[name](group(items, target, history, query=query), found).tolist()


def test_events_are_worth_what_their_type_says_and_others_a_default() -> None:
    values = {"events": {"view": 1.0, "purchase": 3.0}, "horizon": 4, "discount": 1.0}
    assert paid("event", [0, 1, 2, 3], **values) == [1, 1, 3, 1]
    assert paid("event", [0, 1, 2, 3], **values, other_events=0.0) == [1, 1, 3, 0]


def test_a_click_counts_now_and_a_purchase_later() -> None:
    values = {"events": {"view": 1.0, "purchase": 3.0}, "horizon": 3, "discount": 1.0, "delayed": ["purchase"]}
    assert paid("event", [0, 1, 2, 3], **values) == [1, 0, 3, 0], "a view after the target has no reward"
    assert paid("event", [0, 1, 2, 3], query=2, **values) == [0, 1, 3, 0]
    assert paid("event", [2, 3, 1, 0], query=3, **values) == [3, 0, 0, 0]


def test_what_was_viewed_and_is_bought_next_is_no_unwanted_repeat() -> None:
    asked = {"items": [0, 1, 2, 3], "history": (1, 2, 3), "horizon": 4}
    assert paid("repeat", **asked) == [0, 1, 1, 1]  # type: ignore[arg-type]
    assert paid("unwanted_repeat", **asked) == [0, 1, 0, 1]  # type: ignore[arg-type]
    assert paid("unwanted_repeat", **asked, purchases=["review"]) == [0, 1, 1, 0]  # type: ignore[arg-type]
    assert paid("unwanted_repeat", **asked | {"horizon": 2}) == [0, 1, 1, 1]  # type: ignore[arg-type]


def test_the_ground_truth_is_the_target_or_a_set_of_the_next_items() -> None:
    assert paid("hit", [3, 1, 0]) == [0, 0, 1]
    many = {"ground_truth": "future", "horizon": 2}
    assert paid("hit", [3, 1, 0], **many) == [0, 1, 1]
    assert paid("rank_log", [3, 1, 0], **many) == pytest.approx([0, math.log(2), math.log(3)])
    assert paid("rank_linear", [3, 1, 0], **many) == [0, 2, 3]


def test_rewards_are_weighted_sums_and_empty_candidates_have_reward_0() -> None:
    made, weights = group([0, -1, 2], 0), Rewards(hit=2.0, rank_log=0.0, prefix=0.5, semantic=1.0)
    compute_rewards([made], CONTEXT, weights, active_terms(weights))
    assert made.rewards_G.tolist() == pytest.approx([3.5, 0.0, 0.5 / 3])
    assert set(made.terms) == {"hit", "prefix", "semantic"}


def raises(group: Group, context: RewardContext) -> torch.Tensor:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (raises, "'mine' failed on query 10.*ZeroDivisionError"),
        (lambda group, context: torch.ones(3), r"'mine' on query 10: got shape \(3,\)"),
        (
            lambda group, context: torch.tensor([1.0, math.nan]),
            "'mine' on query 10: got shape .* with 1 values that are not finite",
        ),
        (lambda group, context: [1.0, 2.0], "'mine': got a list"),
    ],
)
def test_a_broken_term_is_named(term: Callable[[Group, RewardContext], torch.Tensor], message: str) -> None:
    weights = Rewards(custom={"mine": 1.0})
    with pytest.raises(InputError, match=message):
        compute_rewards([group([0, 1], 0)], CONTEXT, weights, active_terms(weights, {**TERMS, "mine": term}))


@pytest.mark.parametrize(
    "name",
    [
        *("future", "event", "unwanted_repeat", "semantic", "collaborative", "novelty", "popularity_penalty"),
    ],
)
def test_a_term_whose_context_was_not_loaded_is_refused(name: str) -> None:
    weights = Rewards(hit=0.0, rank_log=0.0, **{name: 1.0})
    with pytest.raises(InputError, match=f"'{name}'.*not loaded"):
        compute_rewards([group([0, 1], 0)], RewardContext(CODES, [""] * 4), weights, active_terms(weights))


def test_the_list_level_category_term_warns_that_it_cancels() -> None:
    weights = Rewards(category_count=0.1)
    with pytest.warns(UserWarning, match="cancels"):
        active_terms(weights)
    assert "category_count" in active_terms(weights, centred=False)


def test_a_control_has_no_reward_at_all() -> None:
    assert not any(Rewards(hit=0.0, rank_log=0.0, control=True).weights().values())


def test_rewards_that_teach_nothing_are_refused() -> None:
    zero = {"hit": 0.0, "rank_log": 0.0}
    with pytest.raises(ValueError, match=r"every weight of rewards is 0.*such as rewards\.hit=1"):
        Rewards(**zero)
    with pytest.raises(InputError, match=r"every weight of rewards is 0"):
        load_config([], ["rewards.hit=0", "rewards.rank_log=0"])
    assert Rewards(**zero, custom={"mine": 1.0}).weights()["mine"]
    alone = Rewards(**zero, category_count=1.0)
    with pytest.raises(InputError, match="alone it teaches nothing"):
        active_terms(alone)
    assert active_terms(alone, centred=False)


def test_a_term_comes_from_a_python_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def even(group, context):\n    return (group.items_G % 2 == 0).float()\nTERMS = {'even': even}\n")
    weights = Rewards(hit=0.0, rank_log=0.0, custom={"even": 0.5})
    made = group([3, 2, 0], 0)
    compute_rewards([made], CONTEXT, weights, active_terms(weights, load_terms(weights.custom, file)))
    assert made.rewards_G.tolist() == [0, 0.5, 0.5]
    with pytest.raises(InputError, match=r"rewards\.custom names \['even'\]"):
        active_terms(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/0", "cannot be imported.*ZeroDivisionError"),
        ("x = 1", "defines no TERMS"),
        ("TERMS = {'hit': print}", "'hit' of a reward term is in use"),
        ("TERMS = {'mine': 3}", "'mine': got a int"),
    ],
)
def test_a_bad_file_of_terms_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_terms([], tmp_path / "bad.py")
    with pytest.raises(InputError, match="no such Python file"):
        load_terms([], tmp_path / "none.py")


def test_a_term_comes_from_an_entry_point_that_the_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("root", "math:sqrt", plugins.GROUP), EntryPoint("broken", "no.such:thing", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)
    assert load_terms(["root"])["root"] is math.sqrt
    assert set(load_terms([])) == set(TERMS)
    assert plugins.packages_of(["root"]) == {"root": "math:sqrt"}
    with pytest.raises(InputError, match=r"no\.such:thing.*cannot be loaded"):
        load_terms(["broken"])


def test_another_version_of_a_package_with_a_term_is_another_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(version: str) -> EntryPoint:
        found = EntryPoint("root", "math:sqrt", plugins.GROUP)
        vars(found).update(dist=SimpleNamespace(version=version))
        return found

    config, kept = load_config([], ["rewards.custom.root=0.5"]), list[object]()
    for version in ("1.0", "1.1"):
        monkeypatch.setattr(plugins, "entry_points", lambda group, version=version: [entry(version)])
        kept.append(grpo.rl_settings(config))
    assert kept[0] != kept[1] and "reward_packages" not in grpo.rl_settings(load_config([], []))


def test_custom_weights_are_read_searched_and_kept_apart_from_the_built_in_ones() -> None:
    config: Config = load_config([], ["rewards.custom.mine=0.5", "tune.space.mine=[0.0,1.0]"])
    assert config.rewards.weights()["mine"] == 0.5
    assert config.rewards.weighted({"mine": 0.7, "hit": 2.0}).weights()["mine"] == 0.7
    assert config.rewards.weighted({"mine": 0.7, "hit": 2.0}).hit == 2.0
    with pytest.raises(InputError, match="names of built-in terms"):
        load_config([], ["rewards.custom.hit=0.5"])


def test_the_context_is_read_from_train_rows_alone(world: tuple[Path, Path]) -> None:
    data, vectors = world
    wanted = ("future", "semantic", "collaborative")
    context = read_reward_context(data, CODES, wanted, RewardSettings(), vectors)
    assert context.counts_N is not None
    assert context.counts_N.tolist() == [1, 1, 1, 0]
    assert context.future_items is not None
    assert context.future_items.items(1, 9) == [1, 2]
    assert context.vectors_ND is not None
    assert context.vectors_ND.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert context.neighbours is not None
    near = context.neighbours(1, (0,), torch.tensor([1, 2, 3]))
    assert float(near[0]) == 1.0
    assert near.tolist() == sorted(near.tolist(), reverse=True)
    assert float(near[2]) == 0.0
    assert context.neighbours(0, (0,), torch.tensor([1, 2, 3])).tolist() == [0.0] * 3, (
        "the user's own steps must not count"
    )
    assert context.buckets["unseen"].tolist() == [False, False, False, True]


def test_context_that_the_data_does_not_have_is_refused_before_the_run(world: tuple[Path, Path]) -> None:
    data, _ = world
    with pytest.raises(InputError, match="want item vectors"):
        read_reward_context(data, CODES, ["semantic"], RewardSettings())
    with pytest.raises(InputError, match=r"event types are \['unknown'\]"):
        read_reward_context(data, CODES, ["event"], RewardSettings(events={"click": 1.0}, other_events=0.0))
    context = read_reward_context(data, CODES, ["event"], RewardSettings(events={"click": 1.0}))
    asked = group([2, 1, 0], 1, query=1)
    assert TERMS["event"](asked, context).tolist() == [0.5, 1, 0], "a type without a value has that of other_events"


def test_a_term_that_the_data_leaves_idle_is_warned_of(
    world: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    read_reward_context(world[0], CODES, ["diversity", "unwanted_repeat"], RewardSettings(purchases=("unknown",)))
    assert not caplog.messages
    items = pq.read_table(world[0] / "items.parquet")
    without = pa.array([[]] * 4, items["categories"].type)
    place = items.schema.get_field_index("categories")
    pq.write_table(items.set_column(place, items.field(place), without), world[0] / "items.parquet")
    read_reward_context(world[0], CODES, ["diversity", "unwanted_repeat"], RewardSettings())
    no_category, no_purchase = caplog.messages
    assert no_category == "no item has a category, so nothing is paid by the rewards: diversity"
    assert "types are ['unknown']" in no_purchase and "every repeat is unwanted, a target too" in no_purchase


def test_a_log_without_event_types_rewards_every_event_alike(world: tuple[Path, Path]) -> None:
    context = read_reward_context(world[0], CODES, ["event", "future"], RewardSettings())
    asked = group([2, 1, 0], 1, query=1)
    assert TERMS["event"](asked, context).tolist() == TERMS["future"](asked, context).tolist() == [0.5, 1, 0]


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    """One user walks items 0, 1, 2 (train), then 3 (test)."""
    from genrec.data.files import write_parquet
    from genrec.data.tables import ITEMS, QUERIES, SEQUENCES
    from genrec.sid.vectors import write_vectors

    items = {
        "item": list(range(4)),
        "id": list("abcd"),
        **{name: [""] * 4 for name in ("title", "description", "brand")},
        "categories": [["x"], [], ["x", "y"], []],
        "first_seen": [None] * 4,
    }
    write_parquet(pa.table(items, schema=ITEMS), tmp_path / "items.parquet")
    walk = {"user": [0], "user_id": ["u"], "items": [[0, 1, 2, 3]], "split": [[0, 1, 1, 3]], "times": [[0, 1, 2, 3]]}
    sequences = pa.table({**walk, "events": [None], "values": [None]}, schema=SEQUENCES)
    write_parquet(sequences, tmp_path / "sequences" / "part-00000.parquet")
    rows = {
        "id": [1, 2],
        "user": [0, 0],
        "user_id": ["u", "u"],
        "history": [[0], [0, 1]],
        "target": [1, 2],
        "time": [None, None],
        "event": [None, None],
    }
    write_parquet(pa.table(rows, schema=QUERIES), tmp_path / "queries" / "train" / "part-00000.parquet")
    write_vectors(torch.randn(4, 3).numpy(), 0, tmp_path / "vectors" / "part-00000.parquet")
    return tmp_path, tmp_path / "vectors"


def test_a_negative_value_of_an_event_is_paid() -> None:
    queries = pa.table({"id": [0], "user": [0], "target": pa.array([3], pa.int32()), "event": ["refund"]})
    settings = RewardSettings(events={"purchase": 3.0, "refund": -2.0}, horizon=1)
    context = RewardContext(torch.zeros(5, 1).long(), [""] * 5, settings, future_items=FutureItems(queries))
    zeros = torch.zeros(2, 1)
    group = Group(Query(0, 0, (1,), 3), 0, torch.tensor([3, 2]), zeros.long(), zeros, torch.empty(0), {})
    assert event(group, context).tolist() == [-2.0, 0.0]
