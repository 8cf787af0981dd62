"""A GRPO update beside an SFT step and beside the public design; rollout actors beside each other, and simulated."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.decode import generate
from benchmarks.harness import Bench, interleaved_timings, random_catalog, ratio, timed
from benchmarks.throughput_model import Service
from cluster.train import RunSpec
from genrec.config import Config, PolicyConfig

ACTORS = (1, 2, 4, 8, 16, 32, 64)
FAST = 16
"""A second simulated learner is this much faster than the measured one, as a learner on an accelerator is."""


@dataclass(frozen=True)
class RlSize:
    """What is measured: the model, the catalogue, prompts of ``1 + 3 * history`` tokens, queries per update."""

    layers: int = 6
    hidden: int = 256
    items: int = 3686
    history: int = 33
    queries: int = 16
    step_queries: int = 128
    chunk: int = 8
    rounds: int = 3


def run(config: Config, size: RlSize | None = None) -> Bench:
    """By default a 6-layer hidden-256 Qwen3, prompts of 100 tokens and the config's GRPO settings (G = 16)."""
    import torch

    size = size or RlSize()
    torch.set_num_threads(config.compute.threads)
    with tempfile.TemporaryDirectory() as directory:
        made = _RlSetup(_fitted(config, size), size, Path(directory))
        bench = Bench("rl")
        learn_s = _updates(made, bench)
        mail_s, request_s = _actors(made, bench)
        _snapshots(made, bench, mail_s)
        _simulated(size, bench, Service(request_s, max(ACTORS), learn_s, mail_s))
    return bench


def _fitted(config: Config, size: RlSize) -> Config:
    """The config with this size's policy, requests and actors of one thread."""
    shape = PolicyConfig(arch="qwen3", hidden=size.hidden, layers=size.layers, heads=8, dropout=0.0)
    changed = {"rollout_chunk": size.chunk, "lr": 1e-6, "min_lr": 0.0, "generation": "beam"}
    learning = config.learning.model_copy(update={"grpo": config.learning.rl.model_copy(update=changed)})
    compute = config.compute.model_copy(update={"rollout_threads": 1, "rollout_cpus": 0.5, "rollout_gpus": 0.0})
    data = config.data.model_copy(update={"max_history": size.history})
    return config.model_copy(update={"policy": shape, "learning": learning, "compute": compute, "data": data})


class _RlSetup:
    """A policy, its learner and its queries; ``job`` builds the same policy on an actor."""

    def __init__(self, config: Config, size: RlSize, directory: Path) -> None:
        import torch
        from accelerate import Accelerator

        from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
        from genrec.learning.rl.learner import GrpoLearner
        from genrec.learning.rl.rollout import LocalRollouts
        from genrec.types import Query

        generator = torch.Generator().manual_seed(config.seed)
        self.catalog = random_catalog(size.items, generator)
        self.catalog.save(directory)
        self.size, self.settings = size, config.learning.rl
        self.job = RunSpec(config, directory, directory, directory)
        self.policy, self.prompts, _ = self.job.build()
        self.context = RewardContext(self.catalog.codes_NL, [""] * size.items)
        where = (self.policy, self.prompts, self.catalog.trie)
        reward = RewardFunction(config.rewards, self.context, active_terms(config.rewards))
        self.learner = GrpoLearner(*where, reward, self.settings, Accelerator(cpu=True))
        self.local = LocalRollouts(*where, self.settings, config.seed)
        shape = (size.step_queries, size.history + 1)
        rows: Any = torch.randint(size.items, shape, generator=generator).tolist()
        self.all = [Query(i, i, tuple(row[:-1]), row[-1]) for i, row in enumerate(rows)]
        self.queries = self.all[: size.queries]

    def update(self, queries: Sequence[Any]) -> None:
        """Rollouts, rewards, forward, backward and the optimizer's step."""
        self.learner.update(self.local.collect(self.local.submit(queries, self.learner.snapshot())))


def _updates(made: _RlSetup, bench: Bench) -> float:
    """GRPO beside SFT and the public design on the same queries; returns the learner's seconds per query."""
    import torch

    from genrec.learning.sft.batches import Rows
    from genrec.learning.sft.losses import SftLoss

    policy, queries = made.policy, made.queries
    loss = SftLoss(made.prompts, made.catalog)
    rows = Rows([query.history for query in queries], torch.tensor([query.target for query in queries]))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)

    def sft() -> None:
        (loss(policy, rows) / len(queries)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    alternatives = {
        "grpo": lambda: made.update(queries),
        "rollouts": lambda: made.local.submit(queries, made.learner.snapshot()),
        "sft_step": sft,
        "public": lambda: _public_update(made, optimizer),
    }
    seconds = interleaved_timings(alternatives, made.size.rounds)
    bench.figures |= {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
    bench.figures["grpo_prompts_per_s"] = len(queries) / bench.figures["grpo_s"]
    bench.figures["public_prompts_per_s"] = len(queries) / bench.figures["public_s"]
    bench.ratios["grpo_over_sft_step"] = ratio(seconds["grpo"], seconds["sft_step"])
    bench.ratios["vs_public_design"] = ratio(seconds["public"], seconds["grpo"])
    learn = [whole - part for whole, part in zip(seconds["grpo"], seconds["rollouts"], strict=True)]
    return max(statistics.median(learn), 1e-6) / len(queries)


def _public_update(made: _RlSetup, optimizer: Any) -> None:
    """The same update as public code makes it.

    ``generate`` under a Python prefix table, then each candidate as a sequence of its own, with gradients and once
    more for the reference. No supervised term, and the vocabulary holds nothing but SIDs: both in its favour.
    """
    import torch

    from genrec.learning.rl.advantages import advantages
    from genrec.learning.rl.objectives import PolicyBatch, grpo
    from genrec.policy.decoding.score import score

    policy, group = made.policy, made.settings.group
    tokens_BP, mask_BP = made.prompts.encode([query.history for query in made.queries])
    made_BGL = generate(policy, tokens_BP, mask_BP, made.catalog, group)
    codes_BGL = made_BGL - policy.sids.tokens(torch.zeros(made.catalog.levels, dtype=torch.long))
    targets_B1L = made.catalog.codes_NL[[query.target for query in made.queries]][:, None]
    rewards_BG = (codes_BGL == targets_B1L).all(-1).float()
    advantage_BG1 = advantages("group_std", rewards_BG)[..., None]

    def separate() -> torch.Tensor:
        alone = codes_BGL.flatten(0, 1)[:, None]
        tokens, mask = tokens_BP.repeat_interleave(group, 0), mask_BP.repeat_interleave(group, 0)
        return score(policy, tokens, mask, alone, made.catalog.trie).logp_BGL.view(codes_BGL.shape)

    logp_BGL = separate()
    batch = PolicyBatch(logp_BGL, logp_BGL.detach(), None, advantage_BG1, rewards_BG, torch.ones_like(rewards_BG))
    loss = grpo(batch, made.settings)
    if made.settings.kl:
        with torch.no_grad():
            gap_BGL = separate() - logp_BGL.detach()
        loss = loss + made.settings.kl * (gap_BGL.exp() * logp_BGL).mean()
    (loss / len(codes_BGL)).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _actors(made: _RlSetup, bench: Bench) -> tuple[float, list[float]]:
    """Two actors beside one, a thread each; returns a snapshot's way and the seconds of single requests."""
    import ray

    from cluster.rollouts import RayRollouts
    from cluster.session import connect

    connect(made.job.config)
    snapshot = made.learner.snapshot()
    alone, requests = RayRollouts(made.job, 1), made.all[: made.size.chunk]

    def ask(rollouts: Any, queries: Sequence[Any]) -> float:
        return timed(lambda: rollouts.collect(rollouts.submit(queries, snapshot)))

    def mail() -> float:
        return timed(lambda: ray.get(ray.put(snapshot)))

    ask(alone, requests)
    request_s = [ask(alone, requests) for _ in range(2 * made.size.rounds)]
    bench.figures["request_s"] = statistics.median(request_s)
    cores = len(os.sched_getaffinity(0))
    if cores > 1:
        pair, batch = RayRollouts(made.job, 2), made.all[: 8 * made.size.chunk]
        seconds = interleaved_timings(
            {"one": lambda: ask(alone, batch), "two": lambda: ask(pair, batch)}, made.size.rounds
        )
        bench.figures |= {f"rollouts_{name}_actor_s": statistics.median(v) for name, v in seconds.items()}
        bench.ratios["two_actors_over_one"] = ratio(seconds["one"], seconds["two"])
    mail()
    return statistics.median(mail() for _ in range(2 * made.size.rounds)), request_s


def _snapshots(made: _RlSetup, bench: Bench, mail_s: float) -> None:
    """Copy, digest, object store, adoption and its check, as a share of an update of ``step_queries``."""
    from genrec.types import Snapshot

    def snapshot() -> None:
        taken = made.policy.snapshot(0)
        made.policy.adopt(taken.tensors)
        own = {name: parameter.detach() for name, parameter in made.policy.trainable().items()}
        assert Snapshot(0, own).digest == taken.digest

    seconds = interleaved_timings({"snapshot": snapshot, "step": lambda: made.update(made.all)}, rounds=1)
    bench.figures["snapshot_s"] = seconds["snapshot"][0] + mail_s
    bench.figures["step_s"] = seconds["step"][0]
    bench.ratios["snapshot_share"] = bench.figures["snapshot_s"] / bench.figures["step_s"]


def _simulated(size: RlSize, bench: Bench, measured: Service) -> None:
    """Prompts/s against actors at staleness 1; each update asks for one request per actor of the largest count."""
    prompts = measured.requests * size.chunk
    slow = replace(measured, learn_s=measured.learn_s * prompts)
    for name, service in {"": slow, "fast_": replace(slow, learn_s=slow.learn_s / FAST)}.items():
        for actors in ACTORS:
            bench.figures[f"sim_{name}prompts_per_s_{actors}"] = service.prompts_per_s(prompts, actors, 1)
        bench.figures[f"sim_{name}learner_prompts_per_s"] = prompts / service.learn_s
        bench.figures[f"sim_{name}learner_saturated_at"] = service.saturating(prompts, range(1, 65), 1)
