"""The pipeline, declared once: which stages there are, what each reads, what its result depends on, who does the work.

    prepare ─ embed ─ assign ─ sft ─ grpo ─ evaluate        (tune searches the rewards of grpo, from the same sft;
                                                             refit repeats sft before evaluate; fixed groups are
                                                             generated before grpo and tune, by the sft policy or
                                                             by the policies of folds; served says how the sft policy
                                                             would be served, for rewards of that; value trains a
                                                             value network for the search that evaluate tests)

Adding a stage is one entry in ``STAGES`` and one file in ``cluster/stages/``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.baseline_rows import COMPARES_TEXTS
from cluster.content import require_models
from cluster.node_files import explaining_failed_storage, require_storage
from cluster.ray_failures import explaining_ray_failures
from cluster.stages import (
    assign,
    baselines,
    embed,
    evaluate,
    folds,
    groups,
    grpo,
    prepare,
    refit,
    served,
    sft,
    tune,
    value,
)
from cluster.stages.plan import Plan, StageRun
from genrec.config import SID_BASELINES, Config
from genrec.data.files import explaining_failed_writes
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

Condition = Callable[[Config], bool]


def always(config: Config) -> bool:
    """Whatever the config says."""
    return True


def fits_a_quantizer(config: Config) -> bool:
    """Unless the semantic IDs are given, they are made from item vectors."""
    return config.sid.quantizer != "given"


def rewards_similarity(config: Config) -> bool:
    """``rewards.semantic`` and ``rewards.lists.distance`` compare item vectors."""
    return bool(config.rewards.semantic or config.rewards.lists.distance)


def searches_similarity(config: Config) -> bool:
    """The search, or the config that it starts from, uses ``rewards.semantic`` or ``rewards.lists.distance``."""
    searched = {"semantic", "rewards.semantic", "rewards.lists.distance"} & set(config.tune.space)
    return rewards_similarity(config) or bool(searched)


def fixes_groups(config: Config) -> bool:
    """``learning.rl.groups`` is fixed or crossfit."""
    return config.learning.rl.fixes_groups


def crossfits(config: Config) -> bool:
    """``learning.rl.groups`` is crossfit."""
    return config.learning.rl.groups == "crossfit"


def does_not_crossfit(config: Config) -> bool:
    """Unless ``learning.rl.groups`` is crossfit."""
    return not crossfits(config)


def learns_what_is_served(config: Config) -> bool:
    """``learning.rl.served`` is on."""
    return config.learning.rl.served


def refits(config: Config) -> bool:
    """``learning.refit`` is on."""
    return config.learning.refit


def searches_by_value(config: Config) -> bool:
    """``decode.value`` is on."""
    return config.decode.value


def has_made_baselines(config: Config) -> bool:
    """``evaluation.baselines`` names some that are not counted in ``evaluate``."""
    return bool(config.evaluation.made_baselines)


def compares_texts(config: Config) -> bool:
    """The baselines ``star`` or ``text`` compare item vectors, where there are some."""
    return fits_a_quantizer(config) and bool(set(COMPARES_TEXTS) & set(config.evaluation.baselines))


def writes_sids(config: Config) -> bool:
    """A baseline of ``evaluation.baselines`` writes semantic IDs."""
    return bool(set(SID_BASELINES) & set(config.evaluation.baselines))


@dataclass(frozen=True)
class Stage:
    """One stage: ``plan(run)`` checks its input and says what the result depends on and how it is made.

    ``reads`` names the stages whose artifacts it needs, each with the condition under which it does. ``writes`` says in
    words what lies in its directory. ``publish(run, artifact)`` is called each time, also when the artifact was there.
    ``require(config)`` refuses what the stage cannot do, before the first stage is made, and ``require_data(config,
    data)`` what it cannot do with the prepared log in ``data``, before the stage after ``prepare`` is.
    """

    name: str
    about: str
    writes: str
    plan: Callable[[StageRun], Plan]
    reads: Mapping[str, Condition] = field(default_factory=dict[str, Condition])
    publish: Callable[[StageRun, Artifact], None] | None = None
    require: Callable[[Config], None] | None = None
    require_data: Callable[[Config, Path], None] | None = None

    @property
    def code(self) -> str:
        """The module whose code, with all of ``genrec`` that it imports, makes the result."""
        return self.plan.__module__


def _rl_reads(similarity: Condition) -> Mapping[str, Condition]:
    """What a stage that learns from rewards reads; item vectors under the condition ``similarity``."""
    start = dict.fromkeys(("prepare", "assign", "sft"), always)
    return {**start, "embed": similarity, "served": learns_what_is_served, "groups": fixes_groups}


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            about="raw log to tables and splits",
            writes="items.parquet, sequences/, queries/{train,valid,test}/, train_counts.parquet, stats.json",
            plan=prepare.plan,
        ),
        Stage(
            "embed",
            about="item texts to vectors",
            writes="vectors, one Parquet file per shard of items",
            reads={"prepare": always},
            plan=embed.plan,
        ),
        Stage(
            "assign",
            about="vectors to semantic IDs",
            writes="sids.parquet, the trie, the quantizer, sid_health.json and .html",
            reads={"prepare": always, "embed": fits_a_quantizer},
            plan=assign.plan,
            require_data=assign.require_data,
        ),
        Stage(
            "sft",
            about="the policy learns from the log",
            writes="policy.safetensors, curve.json",
            reads={"prepare": always, "assign": always},
            plan=sft.plan,
        ),
        Stage(
            "folds",
            about="policies that are each trained without a fold of the users",
            writes="fold-0/, fold-1/, …: policy.safetensors, curve.json, data/",
            reads={"prepare": always, "assign": always},
            plan=folds.plan,
        ),
        Stage(
            "served",
            about="what the SFT policy's search is fused with where it is served, tuned on validation",
            writes="served.json: the weights of item head and prior, and ItemKNN's settings",
            reads={"prepare": always, "assign": always, "sft": always},
            plan=served.plan,
        ),
        Stage(
            "groups",
            about="candidates for the training queries, generated once",
            writes="groups, one Parquet file per shard of queries",
            reads={
                "prepare": always,
                "assign": always,
                "sft": does_not_crossfit,
                "folds": crossfits,
                "served": learns_what_is_served,
            },
            plan=groups.plan,
        ),
        Stage(
            "grpo",
            about="the policy learns from rewards",
            writes="policy.safetensors, curve.json with the audit of every update",
            reads=_rl_reads(rewards_similarity),
            plan=grpo.plan,
            require_data=grpo.require_data,
        ),
        Stage(
            "tune",
            about="a search over config keys, each trial a short GRPO run",
            writes="search.json, tuned.yaml, tune.html, trials.json, trials.txt",
            reads=_rl_reads(searches_similarity),
            plan=tune.plan,
            publish=tune.publish,
            require=tune.require,
            require_data=grpo.require_data,
        ),
        Stage(
            "refit",
            about="the policy learns from the log and the validation events",
            writes="policy.safetensors, curve.json, data/",
            reads={"prepare": always, "assign": always, "sft": always},
            plan=refit.plan,
        ),
        Stage(
            "value",
            about="a value network for the policy's search",
            writes="value.safetensors, value.json: its loss on users that it has not seen",
            reads={"prepare": always, "assign": always, "grpo": always},
            plan=value.plan,
        ),
        Stage(
            "baselines",
            about="baselines that take longer than counting, trained and tuned",
            writes="the ranking of the test queries by each baseline; why one failed",
            reads={"prepare": always, "embed": compares_texts, "assign": writes_sids},
            plan=baselines.plan,
            publish=baselines.publish,
        ),
        Stage(
            "evaluate",
            about="the test compared with the baselines",
            writes="metrics.json, report.html (.md, .json), answers.parquet, recommender.json; copied to "
            "<storage>/runs/<name>-<key>/",
            reads={
                "prepare": always,
                "embed": fits_a_quantizer,
                "assign": always,
                "sft": always,
                "grpo": always,
                "refit": refits,
                "baselines": has_made_baselines,
                "value": searches_by_value,
            },
            plan=evaluate.plan,
            publish=evaluate.publish,
        ),
    )
}


def run(config: Config, *until: str, reward_file: Path | None = None) -> dict[str, Artifact]:
    """Make the stages ``until`` and everything that they need; finished stages are found and skipped.

    Args:
        reward_file: Python file with a mapping ``TERMS`` of own reward terms.

    Returns:
        The artifacts by stage name, in the order in which they were made.

    Raises:
        InputError: bad input of any stage.
    """
    found: dict[str, Artifact] = {}
    if config.tune.in_full and "evaluate" in until:
        _require(config, stages_needed(config, *until))  # Hours of search come before them.
        found = run(config, "tune", reward_file=reward_file)
        config = tune.tuned(config, found["tune"])
    return found | _run(config, until, reward_file)


def _run(config: Config, until: Sequence[str], reward_file: Path | None) -> dict[str, Artifact]:
    order = stages_needed(config, *until)
    require_storage(config)
    _require(config, order)
    made: dict[str, Artifact] = {}
    for number, stage in enumerate(order, start=1):
        later = ", ".join(other.name for other in order[number:]) or "nothing"
        LOG.info("── %d/%d %s: %s (then: %s)", number, len(order), stage.name, stage.about, later)
        made[stage.name] = run_stage(config, stage.name, made, reward_file=reward_file)
        if stage.name == "prepare":
            _require_data(config, order, made[stage.name].path)
    return made


def _require(config: Config, order: Sequence[Stage]) -> None:
    """Refuse what one of the stages could not do, before the first is made."""
    for stage in order:
        if stage.require is not None:
            stage.require(config)
    require_models(config, [stage.name for stage in order])


def _require_data(config: Config, order: Sequence[Stage], data: Path) -> None:
    """Refuse what one of the stages could not do with the prepared log, before the next is made."""
    for stage in order:
        if stage.require_data is not None:
            stage.require_data(config, data)


def stages_needed(config: Config, *until: str) -> list[Stage]:
    """The stages of ``run(config, *until)``, in their order."""
    names = set[str]()

    def need(name: str) -> None:
        names.add(name)
        for other in reads(STAGES[name], config):
            need(other)

    for name in until:
        need(name)
    return [stage for name, stage in STAGES.items() if name in names]


def run_stage(
    config: Config, name: str, inputs: Mapping[str, Artifact], *, reward_file: Path | None = None
) -> Artifact:
    """Make one stage from the artifacts in ``inputs``, which may come from anywhere; others in there are left alone.

    Raises:
        InputError: bad input, an artifact that the stage reads is missing in ``inputs``, or a disk that takes no more.
    """
    stage = STAGES[name]
    needed = list(reads(stage, config))
    if missing := [other for other in needed if other not in inputs]:
        raise InputError(f"the stage {name} reads {needed}, and {missing} are missing; make them first")
    stage_run = StageRun(config, {other: inputs[other] for other in needed}, reward_file, run)
    what = f"the stage {name}"
    with (
        explaining_ray_failures(what),
        explaining_failed_writes(what, config.storage_path),
        explaining_failed_storage(config),
    ):
        plan = stage.plan(stage_run)
        recipe = Recipe(name, plan.settings, (stage.code,), list(stage_run.inputs.values()))
        artifact = make_artifact(config, recipe, plan.work)
        if stage.publish is not None:
            stage.publish(stage_run, artifact)
    return artifact


def reads(stage: Stage, config: Config) -> Iterator[str]:
    """The names of the stages that ``stage`` reads under ``config``."""
    return (name for name, condition in stage.reads.items() if condition(config))
