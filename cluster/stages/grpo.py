"""grpo: reinforcement learning of the SFT policy on rewards, with rollout actors next to a Ray Train learner."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import reward_file
from cluster.session import configure_process
from cluster.stages.plan import Plan, StageRun
from cluster.telemetry import Telemetry, TimedRollouts, metric_loggers
from cluster.train import RunSpec, make_accelerator, make_checkpoints, run_training, save_result, training_summary
from genrec.config import Config

if TYPE_CHECKING:
    import pyarrow as pa
    from accelerate import Accelerator
    from torch import Tensor

    from genrec.evaluation.validate import Validator
    from genrec.inference.served_search import ServedSearch
    from genrec.learning.rewards import RewardFunction
    from genrec.learning.rl.guard import SnapshotValidator
    from genrec.learning.rl.learner import GrpoLearner
    from genrec.learning.rl.query_sampler import Draws, QueryStream
    from genrec.learning.rl.trainer import OnValidation
    from genrec.metrics import IntArray
    from genrec.policy.model import Policy
    from genrec.policy.prompts import Prompts
    from genrec.sid.catalog import Catalog
    from genrec.types import Rollouts

VALIDATION_WIDTH = 50
"""Items that a validation searches for: HR@50 is guarded."""


def plan(run: StageRun) -> Plan:
    """Improve the SFT policy, an input that stands for ``policy``, with the reward terms of the user's file too."""
    settings = rl_settings(run.config) | reward_file.settings(run.reward_file)
    return Plan(settings, partial(_improve, spec_of(run), run.reward_file))


def require_data(config: Config, data: Path) -> None:
    """Refuse lists that are longer than the catalogue, before the policy is trained that would write them.

    Raises:
        InputError: the catalogue has fewer items than a list.
    """
    from genrec.data.readers import count_items
    from genrec.learning.rl.slate_advantages import require_room

    if config.learning.rl.generation == "slate":
        require_room(config.learning.rl.slate, count_items(data))


def rl_settings(config: Config) -> dict[str, Any]:
    """What a policy that rewards improve depends on, besides where it starts."""
    rl = config.learning.rl
    settings = {"rl": rl.result_settings(), "rewards": config.rewards.result_settings(), "seed": config.seed}
    if config.rewards.custom:
        from genrec.learning.rewards.plugins import packages_of

        settings["reward_packages"] = packages_of(config.rewards.custom)
    # Each learner chooses among its own queries.
    return settings | ({"workers": max(1, config.compute.workers)} if rl.oversample > 1 else {})


def spec_of(run: StageRun) -> partial[RunSpec]:
    """A run from the SFT policy among the stage's inputs; where it leaves its result (``out``) is still to be said."""
    return partial(
        RunSpec,
        run.config,
        run.path("prepare"),
        run.path("assign"),
        start=run.path("sft"),
        vectors=run.path_or_none("embed"),
        groups=run.path_or_none("groups"),
        served=run.path_or_none("served"),
    )


def _improve(make_spec: partial[RunSpec], terms: Path | None, out: Path) -> Mapping[str, Any]:
    run_training(grpo_loop, make_spec(out=out, rewards=reward_file.keep(terms, out)), "grpo")
    return training_summary(out)


@dataclass(frozen=True)
class _RlParts:
    """What every learner builds for itself from the run's directories."""

    policy: Policy
    prompts: Prompts
    catalog: Catalog
    reward: RewardFunction
    accelerator: Accelerator
    served: ServedSearch | None


def grpo_loop(spec: RunSpec, on_validation: OnValidation | None = None) -> None:
    """What every GRPO learner runs, all of them with the same rollout actors; rank 0 writes the result.

    Args:
        on_validation: told by rank 0 of every version that is validated.
    """
    configure_process(spec.config)
    from genrec.learning.rl.trainer import GrpoTrainer

    config, settings = spec.config, spec.config.learning.rl
    accelerator = make_accelerator(config)
    rank = accelerator.process_index
    built, learner = _make_learner(spec, accelerator)
    rollouts, validator = _make_rollouts(spec, built, _make_validator(spec, built))
    if spec.groups is None:
        queries = _drawn_queries(spec, accelerator)
    else:
        rollouts, queries = _fixed_groups(spec, spec.groups, built)
    timed = TimedRollouts(rollouts)
    telemetry = Telemetry(timed, metric_loggers(config, spec.out, rank=rank))
    trainer = GrpoTrainer(
        learner,
        timed,
        queries,
        settings=settings,
        accelerator=accelerator,
        checkpoints=make_checkpoints(spec),
        validator=validator,
        callback=telemetry,
        on_validation=on_validation if rank == 0 else None,
    )
    with closing(telemetry):
        state = trainer.run()
    save_result(spec, built.policy, built.catalog, state, accelerator)


def validated_start(spec: RunSpec) -> dict[str, Tensor]:
    """Metrics per validation query, (Q,), of the policy that a run begins with."""
    configure_process(spec.config)
    from genrec.evaluation.validate import LocalValidator

    built, _ = _make_learner(spec, make_accelerator(spec.config))
    validator = LocalValidator(_make_validator(spec, built), built.policy)
    return dict(validator.collect(validator.submit(built.policy.snapshot(0))))


def _make_learner(spec: RunSpec, accelerator: Accelerator) -> tuple[_RlParts, GrpoLearner]:
    from genrec.learning.rewards import RewardFunction, active_terms, load_terms
    from genrec.learning.rewards.read_context import read_reward_context
    from genrec.learning.rl.learner import GrpoLearner
    from genrec.learning.rl.slate_advantages import require_room

    rewards, settings = spec.config.rewards, spec.config.learning.rl
    policy, prompts, catalog = spec.build()
    centred = settings.objective != "ppo" and settings.generation != "slate"
    terms = active_terms(rewards, load_terms(rewards.custom, spec.rewards), centred=centred)
    if settings.generation == "slate":
        require_room(settings.slate, len(catalog))
    active = {*terms, *rewards.lists.active}
    context = read_reward_context(spec.data, catalog.codes_NL, active, rewards.settings, spec.vectors)
    reward = RewardFunction(rewards, context, terms)
    served = spec.serving(catalog)
    head_weight = 0.0 if served is None else served.weights.head_weight
    learner = GrpoLearner(
        policy,
        prompts,
        catalog.trie,
        reward,
        settings,
        accelerator,
        head_weight=head_weight,
        seed=spec.config.seed,
    )
    return _RlParts(policy, prompts, catalog, reward, accelerator, served), learner


def _drawn_queries(spec: RunSpec, accelerator: Accelerator) -> QueryStream:
    """The train queries; of a large log those alone that this learner draws in its run."""
    from genrec.data.readers import count_train_queries
    from genrec.learning.rl.query_sampler import QueryStream

    draws = _draws(spec, count_train_queries(spec.data), accelerator)
    rows = draws.rows_until(spec.config.learning.rl.steps)
    return QueryStream(_train_queries(spec, rows), draws, rows)


def _fixed_groups(spec: RunSpec, directory: Path, built: _RlParts) -> tuple[Rollouts, QueryStream]:
    """The groups of the stage "groups", and the queries of those from which the rewards teach something."""
    from cluster.stages.groups import origin_of
    from genrec.learning.rl.fixed_groups import FixedGroups
    from genrec.learning.rl.query_sampler import QueryStream

    settings = spec.config.learning.rl
    # Groups of policies that cross-fitting trained are of no version of this one.
    origin, version = (
        origin_of(built.policy, built.catalog, settings, built.served),
        -1 if settings.groups == "crossfit" else 0,
    )
    fixed = FixedGroups(directory, built.catalog.codes_NL, origin, version=version)
    train = fixed.informative(_train_queries(spec), built.reward, settings)
    return fixed, QueryStream(train, _draws(spec, train.num_rows, built.accelerator))


def _train_queries(spec: RunSpec, rows: IntArray | None = None) -> pa.Table:
    from genrec.data.readers import read_train_queries

    config = spec.config
    with_context = config.policy.context.is_on or bool(config.rewards.custom)  # a reward of the user's may read it
    return read_train_queries(spec.data, with_context=with_context, rows_R=rows)


def _draws(spec: RunSpec, queries: int, accelerator: Accelerator) -> Draws:
    from genrec.learning.rl.query_sampler import Draws

    settings, rank, world = spec.config.learning.rl, accelerator.process_index, accelerator.num_processes
    return Draws(queries, settings.queries * settings.oversample, seed=spec.config.seed, rank=rank, world=world)


def _make_validator(spec: RunSpec, built: _RlParts) -> Validator:
    from genrec.data.readers import read_items, read_queries
    from genrec.data.train_counts import read_train_counts
    from genrec.evaluation.goals import Goals
    from genrec.evaluation.validate import Search, Validator

    config = spec.config
    items = read_items(spec.data)
    counts = read_train_counts(spec.data, items.num_rows)
    validator = Validator(
        read_queries(spec.data, "valid"),
        built.prompts,
        built.catalog.trie,
        built.accelerator,
        count=config.learning.rl.eval_queries,
        search=Search.of(VALIDATION_WIDTH, config.data.max_history, mask_seen=counts.mask_seen),
        batch_size=config.decode.batch_size,
        train_counts_N=counts.events_N,
        goals=Goals(items, counts.events_N, config.rewards.settings),
        served=built.served,
    )
    validator.require(config.learning.rl.guard.metrics)
    return validator


def _make_rollouts(spec: RunSpec, built: _RlParts, validator: Validator) -> tuple[Rollouts, SnapshotValidator]:
    """Rollouts and validation: for all learners on the run's actors, or for all of them in their own processes.

    Which of the two is a property of the run: learners that validate at different steps would mix their collectives.
    """
    from genrec.evaluation.validate import LocalValidator
    from genrec.learning.rl.rollout import LocalRollouts

    config, accelerator = spec.config, built.accelerator
    if config.compute.workers and config.compute.rollout_actors:
        from cluster.rollouts import RayRollouts, shared_actors

        remote = RayRollouts(spec, shared_actors(spec, accelerator))
        return remote, remote.validator(validator)
    trie = built.catalog.trie.to(accelerator.device)
    local = LocalRollouts(built.policy, built.prompts, trie, config.learning.rl, config.seed, built.served)
    return local, LocalValidator(validator, built.policy)
