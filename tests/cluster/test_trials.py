"""Trials of a search that want the same earlier stage at the same time."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ray import tune
from support.synthetic import chain_shop, tiny_config

from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.search import trial
from cluster.search.trial import SearchSpec
from cluster.search.tuner import _has_state
from cluster.stages.tune import _write_tuned, finalist_points
from cluster.train import RunSpec
from genrec.config import Config, load_config
from genrec.data.files import write_json
from genrec.evaluation.search_choice import with_front
from genrec.evaluation.search_record import BudgetRecord, DimensionRecord, SearchRecord, TrialRecord


def test_what_another_trial_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "WAIT_S", 0.05)
    config, recipe = tiny_config(tmp_path, chain_shop(tmp_path / "shop")), Recipe("sft", {}, (__name__,))
    (tmp_path / "sft").mkdir()
    other = FileLock(f"{tmp_path / 'sft' / recipe.key}.partial.lock", thread_local=False)
    made: list[Path] = []

    def work(folder: Path) -> dict[str, int]:
        made.append(folder)
        return {}

    def remake(config: Config, *stages: str) -> dict[str, Artifact]:
        return {stage: make_artifact(config, recipe, work) for stage in stages}

    spec = SearchSpec(RunSpec(config, tmp_path, tmp_path, tmp_path), remake)
    other.acquire()
    start = time.monotonic()
    threading.Timer(0.4, other.release).start()
    found = trial._with_own_stages(spec, config, {"learning.sft.lr": 1e-3})
    assert time.monotonic() - start >= 0.4 and len(made) == 1, "nothing was made while the other held it"
    assert found.start == found.data == tmp_path / "sft" / recipe.key


def test_values_that_came_twice_are_one_finalist() -> None:
    config = load_config([], ["tune.space.hit={kind: choice, values: [1.0, 2.0, 4.0]}", "tune.finalists=2"])
    found = {"t0": (1.0, 0.10), "t1": (4.0, 0.12), "t2": (4.0, 0.12), "t3": (2.0, 0.11)}
    common: dict[str, Any] = {"seed": 0, "status": "finished", "feasible": True}
    trials = [
        TrialRecord(id=name, name=name, values={"rewards.hit": hit}, metrics={"ndcg@10": ndcg, "last": ndcg}, **common)
        for name, (hit, ndcg) in found.items()
    ]
    record = SearchRecord(
        metric="ndcg@10",
        objectives=["ndcg@10"],
        constraints={},
        space={"rewards.hit": DimensionRecord(kind="choice", values=[1.0, 2.0, 4.0])},
        searcher="random",
        scheduler="none",
        trials=with_front(trials, ["ndcg@10"]),
        budget=BudgetRecord(trials=4),
    )
    points, chosen = finalist_points(config, record)
    assert [one.id for one in chosen] == ["t1", "t3"]
    assert all(points.count(point) == 1 for point in points)


def test_a_winner_is_kept_that_fits_the_searched_config_alone(tmp_path: Path) -> None:
    config = load_config([], ["learning.rl.generation=slate", "tune.space.rewards.lists.dcg=[0,1]"])
    _write_tuned("it won", {"rewards.lists.dcg": 0.5}, config, tmp_path / "tuned.yaml")
    kept = load_config([tmp_path / "tuned.yaml"], ["learning.rl.generation=slate"])
    assert kept.rewards.lists.dcg == 0.5


def test_a_member_that_takes_over_another_one_takes_over_what_it_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = tmp_path / "theirs", tmp_path / "own"
    write_json({"20": {"hr@50": 0.2}}, checkpoint / trial.BROKEN)
    write_json({"broken": {"10": {"hr@50": 0.1}}, "seconds": 3.0}, out / trial.REPORT)
    monkeypatch.setattr(tune, "get_checkpoint", lambda: tune.Checkpoint.from_directory(str(checkpoint)))
    trial._take_over(out)
    assert trial.read_report(out / trial.REPORT) == {"broken": {"20": {"hr@50": 0.2}}, "seconds": 3.0}


def test_a_search_that_was_killed_before_its_first_state_begins_again(tmp_path: Path) -> None:
    experiment = tmp_path / "finalists"
    assert not _has_state(str(experiment), None)
    experiment.mkdir()
    (experiment / "tuner.pkl").write_bytes(b"half")
    assert not _has_state(str(experiment), None), "Tune would begin again without the points"
    (experiment / "experiment_state-2026.json").write_text("{}")
    assert _has_state(str(experiment), None)
