"""The benchmark of searches at a small size, and when a search has reached a figure."""

from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import tune
from cluster import pipeline
from genrec.config import Dimension
from genrec.evaluation.search_record import TrialRecord

pytestmark = pytest.mark.benchmark


def trial(name: str, *ndcg: float | None) -> TrialRecord:
    curve = [{"step": 10.0 * place, "ndcg@10": value} for place, value in enumerate(ndcg)]
    return TrialRecord(
        id=name, name=name, values={}, seed=0, status="finished", curve=curve, steps=10 * (len(ndcg) - 1)
    )


def test_steps_are_counted_until_the_first_validation_that_reaches_a_figure() -> None:
    trials = [trial("a", 0.1, 0.2, None), trial("b", 0.1, 0.15, 0.3, 0.4), trial("c", 0.5)]
    assert tune.steps_to_reach(trials, 0.3) == 20 + 20
    assert tune.steps_to_reach(trials, 0.35) == 20 + 30
    assert tune.steps_to_reach(trials, 0.2) == 10
    assert tune.steps_to_reach(trials, 0.6) == 0


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_the_same_trials_are_run_by_random_search_by_hand_by_asha_and_side_by_side(tmp_path: Path) -> None:
    settings = ("tune.trials=2", "tune.steps=2", "tune.validations=2", "compute.rollout_actors=0", "compute.threads=1")
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), *settings)
    config = config.replace({"tune.space": {"rewards.hit": Dimension(low=0.5, high=2.0)}})
    found = tune.run(config, pipeline.run(config, *tune.NEEDS))
    assert found.figures["random_steps"] == found.figures["pairs_steps"] == 4
    assert 0 < found.figures["asha_steps"] <= 4 and found.figures["best_asha"] <= found.figures["best_random"]
    assert {"search_over_by_hand", "side_by_side_over_one", "asha_steps_over_random"} <= set(found.ratios)
