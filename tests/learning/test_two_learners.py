"""GRPO on two workers: the update is that of one learner with all queries."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.synthetic import random_catalog, small_policy
from support.two_workers import joined
from torch import multiprocessing

from genrec.errors import InputError
from genrec.types import Query

SIZES = (40, (5, 5, 5))
QUERIES = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(8)]
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {"objective": "dapo", "entropy": 0.1, "ema_decay": 0.5},
    "ppo": {"objective": "ppo"},
    "ppo with layers": {"objective": "ppo", "critic": "layers"},
    "batch_std": {"advantage": "batch_std", "candidate_weight": "probability"},
}


def update(queries: list[Query], options: dict[str, Any], directory: Path) -> None:
    """One update; leaves the learner's checkpoint and its measurements in ``directory``."""
    from accelerate import Accelerator

    from genrec.config import Rewards, Rl
    from genrec.data.files import write_json
    from genrec.learning.checkpoints import TrainingState
    from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
    from genrec.learning.rl.learner import GrpoLearner
    from genrec.learning.rl.rollout import LocalRollouts

    catalog = random_catalog(*SIZES)
    policy, prompts = small_policy(catalog)
    settings = Rl(steps=3, group=6, lr=1e-3, warmup=0.0, micro_queries=2, **options)
    rewards = Rewards(rank_log=0.0, prefix=0.5)
    context = RewardContext(catalog.codes_NL, [""] * len(catalog), buckets={"head": torch.arange(len(catalog)) < 20})
    reward = RewardFunction(rewards, context, active_terms(rewards))
    learner = GrpoLearner(policy, prompts, catalog.trie, reward, settings, Accelerator(cpu=True))
    rollouts = LocalRollouts(policy, prompts, catalog.trie, settings, seed=0)
    measured = learner.update(rollouts.collect(rollouts.submit(queries, learner.snapshot())))
    directory.mkdir(parents=True)
    learner.write(directory, TrainingState())
    write_json({name: value for name, value in measured.items() if "advantage_share" not in name}, directory / "m.json")


def work(rank: int, root: Path) -> None:
    with joined(rank, root):
        for name, options in SETTINGS.items():
            update(QUERIES[rank::2], options, root / name / str(rank))
        with pytest.raises(InputError, match="step 1: got a loss of inf"):
            update(QUERIES[rank::2], {"sft": 1e38}, root / "inf" / str(rank))


def test_two_workers_make_the_update_of_one_learner_with_all_queries(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    start = {name: tensor.detach() for name, tensor in small_policy(random_catalog(*SIZES))[0].trainable().items()}
    for name, options in SETTINGS.items():
        update(QUERIES, options, tmp_path / name / "alone")
        alone, first, second = (tmp_path / name / folder for folder in ("alone", "0", "1"))
        for file in ("policy", "optimizer", *(["average"] if "ema_decay" in options else [])):
            expected, found, other = (load_file(place / f"{file}.safetensors") for place in (alone, first, second))
            assert set(expected) == set(found) == set(other)
            assert all(torch.equal(found[key], other[key]) for key in found), (name, file)
            origin = {key: start.get(key, torch.zeros(())) for key in expected}
            change = sum(float((expected[key] - origin[key]).square().sum()) for key in expected) ** 0.5
            error = sum(float((expected[key] - found[key]).square().sum()) for key in expected) ** 0.5
            # AdamW's first step is lr · sign(gradient), and the sign of a gradient of 0 is rounding noise.
            assert error < (1e-5 if file == "optimizer" else 5e-3) * change, (name, file)
        if (alone / "critic.pt").is_file():  # A run may continue with another number of workers.
            wanted, found = (torch.load(place / "critic.pt", weights_only=True) for place in (alone, first))
            assert set(wanted["critic"]) == set(found["critic"]), name
            for number, moments in wanted["optimizer"]["state"].items():  # The first moment is a tenth of the gradient.
                gradient, own = (state["exp_avg"] for state in (moments, found["optimizer"]["state"][number]))
                torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-7)
        measured, wanted = (json.loads((place / "m.json").read_text()) for place in (first, alone))
        assert measured == pytest.approx(wanted, rel=1e-3, abs=1e-5)
