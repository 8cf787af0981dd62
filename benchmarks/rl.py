"""A GRPO update compared with an SFT step and with public code; rollout actors, measured and simulated."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import WITHOUT_ROWS, Bench, interleaved_timings, random_catalog, ratio, timed
from benchmarks.throughput_model import Service
from cluster.artifacts import Artifact
from cluster.train import RunSpec
from genrec.config import Config, Learning, PolicyConfig

if TYPE_CHECKING:
    import torch

    from genrec.types import Query, Rollouts

NEEDS: tuple[str, ...] = ()
ACTORS = (1, 2, 4, 8, 16, 32, 64)
FASTER = 16
"""A second simulated learner is this many times as fast as the measured one, as a learner on an accelerator is."""
SHARDS = {"sharded_": 4, "wide_": 8}
"""Two more are so many of the second, which share each batch: a learner on several accelerators."""
LINEAR_AT = 32
"""Actors at which the throughput beside these is compared with that of one actor."""
STALENESS = (1, 2)
"""Of these comparisons."""


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


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """A 6-layer hidden-256 Qwen3, prompts of 100 tokens and the config's GRPO settings (G = 16)."""
    return measure(config, RlSize())


def measure(config: Config, size: RlSize) -> Bench:
    """Every figure and ratio at ``size``."""
    import torch

    torch.set_num_threads(config.compute.threads)
    with tempfile.TemporaryDirectory() as directory:
        setup = _RlSetup(_sized(config, size), size, Path(directory))
        bench = Bench("rl")
        learn_s = _updates(setup, bench)
        request_s = _actors(setup, bench)
        _snapshots(setup, bench)
        _simulated(size, bench, Service(request_s, max(ACTORS), learn_s, bench.figures["adopt_s"]))
    return bench


def _sized(config: Config, size: RlSize) -> Config:
    """The config with this size's policy and requests, and actors of one thread."""
    own = PolicyConfig(arch="qwen3", hidden=192, layers=3, heads=6, dropout=0.0, items=WITHOUT_ROWS)
    shape = own.replace(hidden=size.hidden, layers=size.layers, heads=8)
    changes = {"rollout_chunk": size.chunk, "lr": 1e-6, "min_lr": 0.0, "generation": "beam"}
    actors = {"compute.rollout_threads": 1, "compute.rollout_cpus": 0.5, "compute.rollout_gpus": 0.0}
    learning = Learning(rl=config.learning.rl.replace(changes))
    return config.replace({"policy": shape, "learning": learning, "data.max_history": size.history, **actors})


class _RlSetup:
    """A policy, its learner and its queries; ``spec`` builds the same policy on an actor."""

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
        self.spec = RunSpec(config, directory, directory, directory)
        self.policy, self.prompts, _ = self.spec.build()
        context = RewardContext(self.catalog.codes_NL, [""] * size.items)
        parts = (self.policy, self.prompts, self.catalog.trie)
        reward = RewardFunction(config.rewards, context, active_terms(config.rewards))
        self.learner = GrpoLearner(*parts, reward, self.settings, Accelerator(cpu=True))
        self.local = LocalRollouts(*parts, self.settings, config.seed)
        shape = (size.step_queries, size.history + 1)
        rows: list[list[int]] = torch.randint(size.items, shape, generator=generator).tolist()
        self.all = [Query(i, i, tuple(row[:-1]), row[-1]) for i, row in enumerate(rows)]
        self.queries = self.all[: size.queries]

    def update(self, queries: Sequence[Query]) -> None:
        """Rollouts, rewards, forward, backward and the optimizer's step."""
        self.learner.update(self.local.collect(self.local.submit(queries, self.learner.snapshot())))


def _updates(setup: _RlSetup, bench: Bench) -> float:
    """GRPO, SFT and public code on the same queries; returns the learner's seconds per query."""
    import torch

    from benchmarks.references.public_grpo import PublicGrpo

    policy, queries = setup.policy, setup.queries
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    public = PublicGrpo(policy, setup.prompts, setup.catalog, setup.settings, optimizer)
    alternatives: dict[str, Callable[[], object]] = {
        "grpo": lambda: setup.update(queries),
        "rollouts": lambda: setup.local.submit(queries, setup.learner.snapshot()),
        "sft_step": _sft_step(setup, optimizer),
        "public": lambda: public.update(queries),
    }
    seconds = interleaved_timings(alternatives, setup.size.rounds)
    bench.figures |= {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
    bench.figures["grpo_prompts_per_s"] = len(queries) / bench.figures["grpo_s"]
    bench.figures["public_prompts_per_s"] = len(queries) / bench.figures["public_s"]
    bench.ratios["grpo_over_sft_step"] = ratio(seconds["grpo"], seconds["sft_step"])
    bench.ratios["vs_public_design"] = ratio(seconds["public"], seconds["grpo"])
    learn_s = [update - rollouts for update, rollouts in zip(seconds["grpo"], seconds["rollouts"], strict=True)]
    return max(statistics.median(learn_s), 1e-6) / len(queries)


def _sft_step(setup: _RlSetup, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A supervised step on the targets of the same queries."""
    import torch

    from genrec.learning.sft.batches import Rows
    from genrec.learning.sft.losses import SftLoss

    policy, queries, loss = setup.policy, setup.queries, SftLoss(setup.prompts, setup.catalog)
    rows = Rows([query.history for query in queries], torch.tensor([query.target for query in queries]))

    def step() -> None:
        (loss(policy, rows) / len(queries)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _actors(setup: _RlSetup, bench: Bench) -> list[float]:
    """Two actors compared with one, a thread each, and what a new snapshot costs; returns seconds of single requests.

    ``put_s`` is the learner's part of a snapshot, ``adopt_s`` what a request takes longer with one that is new to its
    actor, ``transfer_s`` both without the actor's check.
    """
    import ray

    from cluster.rollouts import RayRollouts, start_actors
    from cluster.session import connect
    from genrec.types import Snapshot

    connect(setup.spec.config)
    snapshot = setup.learner.snapshot()
    other = Snapshot(1, {name: tensor + 1e-6 for name, tensor in snapshot.tensors.items()})
    one, requests = RayRollouts(setup.spec, start_actors(setup.spec, 1)), setup.all[: setup.size.chunk]

    def generate(rollouts: Rollouts, queries: Sequence[Query], policy: Snapshot = snapshot) -> float:
        return timed(lambda: rollouts.collect(rollouts.submit(queries, policy)))

    def transfer() -> float:
        return timed(lambda: ray.get(ray.put(snapshot)))

    generate(one, requests)
    request_s, put_s, new_s = list[float](), list[float](), list[float]()
    for _ in range(2 * setup.size.rounds):
        for policy in (other, snapshot):
            put_s.append(timed(lambda policy=policy: one.put(policy)))
            new_s.append(generate(one, requests, policy))
            request_s.append(generate(one, requests, policy))
    bench.figures |= {"request_s": statistics.median(request_s), "put_s": statistics.median(put_s)}
    bench.figures["adopt_s"] = max(statistics.median(new_s) - bench.figures["request_s"], 0.0)
    cores = len(os.sched_getaffinity(0))
    if cores > 1:
        two, batch = RayRollouts(setup.spec, start_actors(setup.spec, 2)), setup.all[: 8 * setup.size.chunk]
        seconds = interleaved_timings(
            {"one": lambda: generate(one, batch), "two": lambda: generate(two, batch)}, setup.size.rounds
        )
        bench.figures |= {f"rollouts_{name}_actor_s": statistics.median(v) for name, v in seconds.items()}
        bench.ratios["two_actors_over_one"] = ratio(seconds["one"], seconds["two"])
    transfer()
    bench.figures["transfer_s"] = statistics.median(transfer() for _ in range(2 * setup.size.rounds))
    return request_s


def _snapshots(setup: _RlSetup, bench: Bench) -> None:
    """Copy, digest, object store, adoption and its check, as a share of an update of ``step_queries``."""
    from genrec.types import Snapshot

    def snapshot() -> None:
        taken = setup.policy.snapshot(0)
        setup.policy.adopt(taken.tensors)
        own = {name: parameter.detach() for name, parameter in setup.policy.trainable().items()}
        assert Snapshot(0, own).digest == taken.digest

    seconds = interleaved_timings({"snapshot": snapshot, "step": lambda: setup.update(setup.all)}, rounds=1)
    bench.figures["snapshot_s"] = seconds["snapshot"][0] + bench.figures["transfer_s"]
    bench.figures["step_s"] = seconds["step"][0]
    bench.ratios["snapshot_share"] = bench.figures["snapshot_s"] / bench.figures["step_s"]


def _simulated(size: RlSize, bench: Bench, measured: Service) -> None:
    """Prompts/s by number of actors at staleness 1; an update makes as many requests as there are actors at most."""
    prompts = measured.requests * size.chunk
    shards = {name: FASTER * count for name, count in SHARDS.items()}
    for name, faster in {"": 1, "fast_": FASTER, **shards}.items():
        service = replace(measured, learn_s=measured.learn_s * prompts / faster + bench.figures["put_s"])
        for actors in ACTORS:
            bench.figures[f"sim_{name}prompts_per_s_{actors}"] = service.prompts_per_s(prompts, actors, 1)
        bench.figures[f"sim_{name}learner_prompts_per_s"] = prompts / service.learn_s
        bench.figures[f"sim_{name}learner_saturated_at"] = service.saturating(prompts, range(1, 65), 1)
        if name in SHARDS:
            for staleness in STALENESS:
                one, many = (service.prompts_per_s(prompts, actors, staleness) for actors in (1, LINEAR_AT))
                linear = f"sim_{name}linear_at_{LINEAR_AT}_staleness_{staleness}"
                bench.ratios[linear] = many / (LINEAR_AT * one)
