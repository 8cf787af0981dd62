"""Metrics of a shop's goals on rankings whose values are known, in validation and in the report."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.config import RewardSettings
from genrec.data.item_values import item_values
from genrec.errors import InputError
from genrec.evaluation.goals import Goals, compare_goals, covered_means
from genrec.evaluation.report.page import shown_name
from genrec.evaluation.validate import Search, Validator

ITEMS = pa.table(
    {
        "item": range(5),
        "id": list("abcde"),
        "categories": [["x", "p"], ["x", "q"], ["y", "p"], [], ["x", "p"]],
        "price": [10.0, 2.0, 3.0, 0.0, 4.0],
    }
)
COUNTS = np.array([9, 4, 5, 0, 7])
RANKED = np.array([[0, 4, 1, 2], [3, 0, -1, -1], [2, 1, 4, 0]])
TARGETS = np.array([1, 4, 0])
EVENTS = ["buy", "view", None]
SETTINGS = RewardSettings(events={"buy": 3.0, "view": 1.0}, other_events=0.5, rare=4, value_column="price")


def test_each_metric_is_what_its_formula_says() -> None:
    goals = Goals(ITEMS, COUNTS, SETTINGS)
    found = goals.values(RANKED, TARGETS, EVENTS)
    assert found["value@10"].tolist() == [3 * 2, 0, 0.5 * 10]
    assert found["categories@10"].tolist() == [3, 1, 3]
    assert found["new_items@10"].tolist() == [0.25, 0.5, 0.25]
    assert found["ndcg@10/buy"][0] == pytest.approx(0.5) and np.isnan(found["ndcg@10/buy"][1:]).all()
    assert found["ndcg@10/view"][1] == 0 and np.isnan(found["ndcg@10/view"][[0, 2]]).all()
    assert set(found) == set(goals.names(EVENTS))
    assert covered_means(found)["ndcg@10/buy"] == pytest.approx(0.5)


def test_without_types_columns_or_categories_there_is_a_value_per_hit() -> None:
    goals = Goals(ITEMS.set_column(2, "categories", [[[]] * 5]), COUNTS, RewardSettings())
    found = goals.values(RANKED, TARGETS)
    assert set(found) == {"value@10", "new_items@10"} == set(goals.names([None, None]))
    assert found["value@10"].tolist() == [1, 0, 1]


def test_a_change_is_paired_over_the_queries_that_a_metric_covers() -> None:
    nan, rng = np.nan, np.random.default_rng(0)
    before = {"value@10": rng.random(40), "ndcg@10/buy": np.r_[rng.random(20), np.full(20, nan)]}
    after = {name: values + 0.1 for name, values in before.items()} | {"ndcg@10/none": np.full(40, nan)}
    found = compare_goals(after, before | {"ndcg@10/none": np.full(40, nan)}, 50, 0)
    assert set(found) == set(before)
    for name, trade in found.items():
        assert [trade[end] for end in ("difference", "low", "high")] == pytest.approx([0.1] * 3)
        assert trade["sft"] == pytest.approx(np.nanmean(before[name]))
        assert trade["relative"] == pytest.approx(0.1 / trade["sft"])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("cost", None, "those that it has: price"),
        ("title", None, "no such column of numbers"),
        ("price", [1.0, -2.0, 3.0, 0.0, 1.0], "1 of 5 items have no value or a negative one, e.g. b: -2.0"),
        ("price", [1.0, None, float("nan"), 0.0, 1.0], "2 of 5 items"),
    ],
)
def test_a_value_column_that_is_missing_or_negative_is_refused(
    column: str, values: list[float] | None, message: str
) -> None:
    items = ITEMS if values is None else ITEMS.set_column(3, "price", pa.array(values))
    with pytest.raises(InputError, match=message):
        item_values(items, column)


def test_validation_has_the_goals_and_refuses_one_that_its_queries_do_not_have() -> None:
    from accelerate import Accelerator

    catalog = random_catalog(30, (5, 5, 5))
    policy, prompts = small_policy(catalog)
    count, rng = 24, np.random.default_rng(1)
    items = pa.table({"id": [str(i) for i in range(30)], "categories": [[str(i % 4)] for i in range(30)]})
    queries = pa.table(
        {
            "id": range(count),
            "user": range(count),
            "history": rng.integers(0, 30, (count, 3)).tolist(),
            "target": pa.array(rng.integers(0, 30, count), pa.int32()),
            "event": ["buy" if i % 3 else "view" for i in range(count)],
        }
    )
    validator = Validator(
        queries,
        prompts,
        catalog.trie,
        Accelerator(cpu=True),
        count=count,
        search=Search(50),
        batch_size=7,
        train_counts_N=np.arange(30),
        goals=Goals(items, np.arange(30), RewardSettings()),
    )
    found = validator(policy)
    assert 1 <= found["categories@10"] <= 4 and 0 < found["new_items@10"] < 1
    both = (2 * found["ndcg@10/buy"] + found["ndcg@10/view"]) / 3
    assert found["ndcg@10"] == pytest.approx(both)
    validator.require([*found])
    with pytest.raises(InputError, match=r"\['ndcg@10/purchase'\].*ndcg@10/buy"):
        validator.require(["ndcg@10/purchase"])
    validator.search = Search(20)
    with pytest.raises(InputError, match=r"\['hr@50', 'tail_hr@50'\]"):
        validator.require(["hr@50", "tail_hr@50"])
    validator.search = Search(50)
    rankings = validator.rankings(policy)
    assert [tuple(part.shape) for part in rankings] == [(7, 50)] * 3 + [(3, 50)]
    assert bool((torch.cat(rankings)[:, 30:] == -1).all())


def test_metrics_are_named_in_words() -> None:
    names = {"ndcg@10/Buy": "NDCG@10/Buy", "tail_hr@50": "Tail HR@50", "new_items@10": "New items@10"}
    assert {name: shown_name(name) for name in names} == names


def test_rankings_of_twenty_items_have_no_hit_rate_at_fifty() -> None:
    """The recipes search with 20 beams: what they find among those is no HR@50."""
    ranked = np.stack([np.random.default_rng(query).permutation(60) for query in range(30)])
    goals = Goals(pa.table({"categories": [["x"]] * 60}), np.arange(60), RewardSettings())
    targets = np.arange(30)
    cut, whole = goals.all_values(ranked[:, :20], targets), goals.all_values(ranked, targets)
    assert "hr@50" not in cut and "tail_hr@50" not in cut
    assert cut["hr@20"].mean() == (ranked[:, :20] == targets[:, None]).any(1).mean() < whole["hr@50"].mean()
    few = Goals(pa.table({"categories": [["x"]] * 12}), np.arange(12), RewardSettings())
    assert "hr@50" in few.all_values(np.tile(np.arange(12), (30, 1)), targets % 12), "that is all there is"
    assert {"hr@20", "tail_hr@20"} <= set(cut) and {"hr@50", "tail_hr@50"} <= set(whole)
