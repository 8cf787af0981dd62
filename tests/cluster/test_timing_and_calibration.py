"""The times and probabilities of a report are those of the system that their label names."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.timing_and_calibration import calibrations, speeds
from genrec.inference.prior import RankedItems


def searched(directory: Path, seconds: float) -> None:
    """The times that a search of four queries in two shards leaves behind."""
    directory.mkdir(parents=True)
    for shard, queries in enumerate((3, 1)):
        about = {"queries": queries, "seconds": seconds * queries}
        (directory / f"part-{shard:05d}.json").write_text(json.dumps(about), "utf-8")


def test_a_model_whose_prior_is_mixed_in_afterwards_has_the_time_of_both(tmp_path: Path) -> None:
    searched(tmp_path / "grpo" / "test" / "policy", 0.5)
    searched(tmp_path / "sft" / "test" / "policy", 0.25)
    found = speeds(tmp_path, "grpo", "policy", {"itemknn": 0.001, "sasrec": 0.002}, mixing=0.125)
    assert {name: one["per_query_s"] for name, one in found.items()} == pytest.approx(
        {"model": 0.625, "policy": 0.5, "sft": 0.25, "itemknn": 0.001, "sasrec": 0.002}
    )
    assert list(found) == ["model", "policy", "sft", "itemknn", "sasrec"]


def test_a_model_with_a_search_of_its_own_has_that_time_and_one_that_is_the_policy_that_of_the_policy(
    tmp_path: Path,
) -> None:
    searched(tmp_path / "sft" / "test" / "policy", 0.5)
    assert speeds(tmp_path, "sft", "model", {}) == {"model": {"per_query_s": pytest.approx(0.5)}}
    searched(tmp_path / "sft" / "test" / "model", 0.75)
    both = speeds(tmp_path, "sft", "policy", {})
    assert {name: one["per_query_s"] for name, one in both.items()} == pytest.approx({"model": 0.75, "policy": 0.5})


def test_a_policy_with_an_item_head_is_calibrated_part_by_part() -> None:
    """Its search ranks by both parts: the first answer is not the one whose semantic ID is the most probable."""
    targets_Q = np.arange(20)
    items_QK = np.stack([targets_Q, targets_Q + 1], axis=1)
    fused = RankedItems(items_QK, np.log(np.tile([0.2, 0.7], (20, 1))), np.log(np.tile([0.9, 0.1], (20, 1))))
    parts = {
        "sid_path": RankedItems(items_QK[:, ::-1], np.log(np.tile([0.7, 0.2], (20, 1)))),
        "item_head": RankedItems(items_QK, np.log(np.tile([0.9, 0.1], (20, 1)))),
    }
    found = calibrations({"policy": fused}, parts, targets_Q)
    errors = {name: one["first"]["error"] for name, one in found.items()}
    assert errors == pytest.approx({"sid_path": 0.7, "item_head": 0.1})
    assert set(calibrations({"model": fused, "sft": fused}, {}, targets_Q)) == {"model", "sft"}
