"""Trials of a search that want the same earlier stage at the same time."""

import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from support.synthetic import chain_shop, tiny_config

from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.search import trial
from cluster.search.trial import SearchSpec
from cluster.train import RunSpec
from genrec.config import Config


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
    threading.Timer(0.4, other.release).start()
    start = time.monotonic()
    found = trial._with_own_stages(spec, config, {"learning.sft.lr": 1e-3})
    assert time.monotonic() - start >= 0.4 and len(made) == 1, "nothing was made while the other held it"
    assert found.start == found.data == tmp_path / "sft" / recipe.key
