"""The sections of learning: from the log, and from rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from genrec.config.section import SPEED, Section
from genrec.config.supervised import Sft
from genrec.config.tasks import Instruction, Stages, Tasks

GROUP_KEYS = ("group", "generation", "temperature", "fixed_queries", "folds")
"""Keys of ``learning.rl`` that say how fixed groups are generated, as they stand; see also ``Rl.adds_target``."""

OFF_POLICY = ("dpo", "s_dpo", "listwise", "lambdarank", "recast")
"""Objectives that may learn from groups of an older policy: they have no ratio to the policy that generated them."""


OF_LISTS = ("group_std", "group_mean", "leave_one_out")
"""Advantages that lists may have."""

VALIDATED = ("ndcg@10", "hr@10", "hr@50", "tail_hr@50", "value@10", "categories@10", "new_items@10")
"""Validation metrics that the guard may read, with ndcg@10/<event type>."""


class GuardedMetrics(Section):
    """What reinforcement learning is to raise, and what may not fall, on validation, compared with the SFT policy."""

    goal: str = Field(
        default="ndcg@10",
        description="the version with the best one is kept: ndcg@10, hr@10, hr@50, tail_hr@50, ndcg@10/<event type>, "
        "value@10, categories@10 or new_items@10",
    )
    keep: dict[str, float] = Field(
        default_factory=dict,
        description="metrics and the relative loss of each that is allowed, such as {ndcg@10: 0.01}: versions that "
        "lose more are not kept, and one that loses more than noise explains (guard_noise) ends the run; empty: "
        "ndcg@10, hr@50 and tail_hr@50 end it, at guard_drop",
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that are read."""
        return tuple(dict.fromkeys((self.goal, *self.keep)))

    @model_validator(mode="after")
    def _exist(self) -> GuardedMetrics:
        events = [name for name in self.metrics if name.startswith("ndcg@10/") and name != "ndcg@10/"]
        if unknown := [name for name in self.metrics if name not in (*VALIDATED, *events)]:
            raise ValueError(f"no metrics {unknown}; choose from {', '.join(VALIDATED)} and ndcg@10/<event type>")
        if wrong := {name: share for name, share in self.keep.items() if not 0 <= share <= 1}:
            raise ValueError(f"keep wants a share from 0 to 1 of each metric, got {wrong}")
        return self


class Rl(Section):
    """Reinforcement learning on groups of candidates (GRPO, Shao et al. 2024, and its kin)."""

    objective: Literal[
        "grpo", "dr_grpo", "dapo", "gspo", "reinforce", "ppo", "dpo", "s_dpo", "listwise", "lambdarank", "recast"
    ] = "grpo"
    groups: Literal["fresh", "fixed", "crossfit"] = Field(
        default="fresh",
        description="fresh: generated for each update by the policy as it stands; fixed: generated once by the SFT "
        "policy, those whose rewards differ are learned from again and again; crossfit: fixed groups of policies that "
        "never saw the user",
    )
    folds: int = Field(
        default=2, ge=2, description="groups=crossfit: parts of the users, each with a policy trained without it"
    )
    fixed_queries: int = Field(
        default=0,
        ge=0,
        description="groups=fixed, crossfit: training queries, drawn at random, that get a group; 0 = all",
    )
    steps: PositiveInt = 300
    queries: PositiveInt = Field(default=128, description="queries per update, over all workers")
    oversample: PositiveInt = Field(
        default=1, description="x queries are generated for; groups with an advantage come first (DAPO)"
    )
    group: int = Field(default=16, ge=2, description="candidates per query")
    generation: Literal["beam", "sample", "stochastic_beam", "mixed", "slate"] = Field(
        default="beam",
        description="mixed: the first half beams, the rest drawn without replacement; slate: a candidate is a list of "
        "distinct items, drawn without replacement, and rewards.lists count",
    )
    served: bool = Field(
        default=False,
        description="candidates, rewards, loss and validation are of what is served: the search with the item head and "
        "the prior of decode, weighed as validation weighs them for the SFT policy",
    )
    slate: PositiveInt = Field(default=10, description="generation=slate: items per list")
    temperature: float = Field(default=1.0, gt=0, description="sample: of sampling")
    candidate_weight: Literal["uniform", "probability"] = Field(
        default="uniform",
        description="probability: candidates weigh as the policy that generated them weighs them, which is the "
        "gradient of the expected reward over an enumerated set such as beams (minimum risk)",
    )
    add_target: bool = Field(
        default=False,
        description="the target replaces the last candidate of a group that missed it; always so with objective=recast",
    )
    gate: Literal["none", "rank"] = Field(
        default="none",
        description="rank: queries whose target has rank 1 in the group are not learned from by rewards, and those "
        "whose group missed it by the supervised term alone",
    )
    gate_sft: float = Field(
        default=1.0, ge=0, description="gate=rank: weight of the supervised term where the group missed the target"
    )
    hint: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of queries, at first, whose candidates are searched among the items with the target's first "
        "code",
    )
    hint_share: float = Field(
        default=0.5, gt=0, le=1, description="share of the updates in which hint falls linearly to 0"
    )
    lr: float = Field(default=3e-4, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0, description="gradient norm")
    ratio_clip: float = Field(default=0.2, gt=0, lt=1, description="epsilon of the clipped ratio; gspo: 3e-4 is usual")
    ratio_clip_high: float = Field(default=0.28, gt=0, description="dapo: epsilon above 1")
    kl: float = Field(default=0.1, ge=0, description="weight of the exact KL to the SFT policy")
    prefix_weight: Literal["probability", "uniform"] = Field(
        default="probability",
        description="weight of each visited prefix in KL and entropy: its probability, once, or equal for all "
        "candidates",
    )
    sft: float = Field(default=0.3, ge=0, description="weight of the supervised term on the target")
    entropy: float = Field(default=0.0, ge=0, description="weight of the exact entropy bonus")
    advantage: Literal["auto", "group_std", "group_mean", "batch_std", "leave_one_out", "rank", "sibling"] = Field(
        default="auto",
        description="auto: dr_grpo group_mean, reinforce leave_one_out, else group_std; ppo has its value head's; "
        "sibling: half group_std, half the same among the candidates of one parent node",
    )
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="ppo: lambda of the advantages")
    value_weight: float = Field(default=0.5, ge=0, description="ppo: weight of the value loss")
    value_lr: float = Field(default=1e-3, gt=0, description="ppo: learning rate of the critic")
    critic: Literal["linear", "layers"] = Field(
        default="linear",
        description="ppo: values from a linear head on the policy's last states, or from last layers of the critic's "
        "own, which takes another forward pass of the policy",
    )
    critic_layers: PositiveInt = Field(default=1, description="critic=layers: number of them")
    contrast_temperature: float = Field(
        default=1.0, gt=0, description="recast: temperature of the contrast of log-probabilities"
    )
    dpo_beta: float = Field(default=0.1, gt=0, description="dpo, s_dpo: inverse temperature of the preference")
    max_staleness: int = Field(default=0, ge=0, le=16)
    micro_queries: PositiveInt = Field(
        default=64, json_schema_extra=SPEED, description="queries per forward of the learner"
    )
    rollout_chunk: PositiveInt = Field(
        default=32,
        json_schema_extra=SPEED,
        description="queries per rollout request; fixed, so results do not depend on the number of actors",
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of a running mean of the weights, which is validated and kept; 0: no mean",
    )
    eval_every: PositiveInt = Field(default=50, description="updates between validations (the guard)")
    eval_queries: PositiveInt = 1000
    checkpoint_every: PositiveInt = Field(
        default=25, json_schema_extra=SPEED, description="updates between checkpoints"
    )
    guard_noise: float = Field(
        default=2.0,
        ge=0,
        description="standard errors (paired, over queries) that NDCG@10, HR@50 or the tail's HR@50 may fall below "
        "the SFT policy's on validation before the run stops and rolls back",
    )
    guard_drop: float = Field(
        default=0.01, ge=0, description="relative loss of these metrics that is allowed, noise or not"
    )

    guard: GuardedMetrics = GuardedMetrics()

    @property
    def fixes_groups(self) -> bool:
        """Whether groups are generated once: ``groups`` is fixed or crossfit."""
        return self.groups != "fresh"

    @property
    def adds_target(self) -> bool:
        """Whether groups that missed the target get it: ``add_target``, or the repair that recast begins with."""
        return self.add_target or self.objective == "recast"

    @model_validator(mode="after")
    def _fits_together(self) -> Rl:
        wrong = {
            **_slates_fit(self),
            **_served_fits(self),
            "add_target leaves stochastic_beam's importance weights undefined; use generation=mixed": (
                self.adds_target and self.generation == "stochastic_beam"
            ),
            "add_target leaves the importance weights of samples at another temperature undefined; set temperature=1": (
                self.adds_target and self.generation == "sample" and self.temperature != 1
            ),
            f"candidate_weight=probability is for enumerated candidates, and those of generation={self.generation} are "
            "drawn by their probability already; take generation=beam or mixed": (
                self.candidate_weight == "probability" and self.generation in ("sample", "stochastic_beam", "slate")
            ),
            f"candidate_weight=probability changes nothing for objective={self.objective}, which compares candidates": (
                self.candidate_weight == "probability" and self.objective in OFF_POLICY
            ),
            f"advantage=sibling differs by level, and objective={self.objective} has one advantage per item": (
                self.advantage == "sibling" and self.objective == "gspo"
            ),
            f"objective={self.objective} needs groups of the policy as it stands, and groups={self.groups} are of an "
            f"older one; take groups=fresh, or one of {', '.join(OFF_POLICY)}": (
                self.fixes_groups and self.objective not in OFF_POLICY
            ),
            f"oversample chooses among fresh groups, and groups={self.groups} are chosen already; set oversample=1": (
                self.fixes_groups and self.oversample > 1
            ),
            "gate=rank tells queries apart by whether the group holds the target, and with add_target (or "
            "objective=recast) all do; take one of the two": self.gate == "rank" and self.adds_target,
            f"hint restricts a beam search, and generation={self.generation} draws; take generation=beam": (
                bool(self.hint) and self.generation != "beam"
            ),
            f"hint falls from update to update, and groups={self.groups} are generated once; take groups=fresh": (
                bool(self.hint) and self.fixes_groups
            ),
            "fixed_queries is about groups=fixed": bool(self.fixed_queries) and not self.fixes_groups,
        }
        if found := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise ValueError("; ".join(found))
        return self


def _served_fits(rl: Rl) -> dict[str, bool]:
    """What rollouts of what is served exclude: message -> whether it applies."""
    return {
        f"served takes the best candidates of the search, and generation={rl.generation} draws from the policy alone; "
        "take generation=beam": rl.served and rl.generation != "beam",
        "served has one step per item, and objective=ppo a value per code; take grpo, dr_grpo, reinforce or another": (
            rl.served and rl.objective == "ppo"
        ),
        "advantage=sibling differs by level, and served has one step per item; take another advantage": (
            rl.served and rl.advantage == "sibling"
        ),
        "hint forces a code, which no search does that is served; set hint=0": rl.served and bool(rl.hint),
    }


def _slates_fit(rl: Rl) -> dict[str, bool]:
    """What lists of items exclude: message -> whether it applies."""
    slate = rl.generation == "slate"
    return {
        "generation=slate draws lists from the policy as it stands; take groups=fresh": slate and rl.fixes_groups,
        "add_target (and objective=recast) is about items; with generation=slate a candidate is a list": (
            slate and rl.adds_target
        ),
        "gate=rank sorts queries by the target's rank among items; with generation=slate a candidate is a list": (
            slate and rl.gate == "rank"
        ),
        "objective=ppo has a value per code, and generation=slate one advantage per item; take grpo or reinforce": (
            slate and rl.objective == "ppo"
        ),
        f"advantage={rl.advantage} is not defined for lists; generation=slate wants auto, {', '.join(OF_LISTS)}": (
            slate and rl.advantage not in ("auto", *OF_LISTS)
        ),
    }


class Update(Section):
    """How a finished policy goes on learning from new events (``genrec update``)."""

    steps: PositiveInt = Field(default=100, description="optimizer steps")
    batch_size: PositiveInt = Field(default=128, description="queries of a step")
    replay: float = Field(default=0.5, ge=0, lt=1, description="share of a batch that are old train queries")
    kl: float = Field(default=0.3, ge=0, description="weight of KL(policy before the update || policy)")
    lr: float = Field(default=5e-4, gt=0, description="peak learning rate")
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps in which it rises")
    weight_decay: float = Field(default=0.01, ge=0, description="of matrices")
    clip: float = Field(default=1.0, gt=0, description="largest norm of a gradient")
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="share of the users whose last new event is for validation"
    )
    eval_every: PositiveInt = Field(default=25, description="steps between two looks of the guard")
    eval_queries: PositiveInt = Field(default=1000, description="validation queries, of old and of new ones each")
    guard_noise: float = Field(
        default=2.0, ge=0, description="a drop of NDCG@10 counts from this number of standard errors on"
    )
    guard_drop: float = Field(default=0.01, ge=0, description="and from this share of its value on")
    micro_batch: PositiveInt = Field(
        default=64, json_schema_extra=SPEED, description="queries of a forward pass; lower it if memory runs out"
    )


class Learning(Section):
    """How the policy learns: first from the log, then from rewards."""

    stages: Stages = Stages()
    sft: Sft = Sft()
    tasks: Tasks = Tasks()
    instruction: Instruction = Instruction()
    rl: Rl = Rl()
    update: Update = Update()
    refit: bool = Field(
        default=False,
        description="the SFT policy is trained again, on train and validation events, for the steps that validation "
        "chose, and served; the report shows it beside the others",
    )


class RewardSettings(Section):
    """Settings of the reward terms; their weights are the fields of ``rewards``."""

    ground_truth: Literal["target", "future"] = Field(
        default="target",
        description="what a hit of hit, rank_log, rank_linear and ndcg_rank is: the target, or any of the user's next "
        "training items within the horizon",
    )
    horizon: PositiveInt = Field(
        default=5, description="future, event: how many items count: the target and the user's next training items"
    )
    discount: float = Field(default=0.5, ge=0, le=1, description="future, event: factor per step after the target")
    events: dict[str, float] = Field(
        default={"click": 1.0, "purchase": 3.0, "unknown": 1.0},
        description="event, lists.dcg and value@10: value of an event of this type; 'unknown' where the log has none. "
        "What is given replaces these defaults as a whole",
    )
    other_events: float = Field(default=1.0, description="the same, of an event of any other type")
    delayed: tuple[str, ...] | None = Field(
        default=None, description="event: the types that also count after the target; null: all"
    )
    purchases: tuple[str, ...] = Field(
        default=("purchase",),
        description="unwanted_repeat: types of events that make an item of the history a wanted one",
    )
    rare: int = Field(
        default=4,
        ge=0,
        description="novelty: items with more train events have reward 0; lists.new_items and new_items@10: items with "
        "more are not new",
    )
    value_column: str = Field(
        default="",
        description="event, lists.dcg and value@10: column of the item table, such as price, that multiplies the value "
        "of an event; empty: none",
    )


class ListRewards(Section):
    """Weights of rewards of whole lists, for ``learning.rl.generation=slate``."""

    dcg: float = Field(
        default=0.0, description="DCG of the list over the user's next items, with gains by event type as in event"
    )
    categories: float = Field(default=0.0, description="number of distinct categories in the list; 0.1 is usual")
    distance: float = Field(default=0.0, description="mean of 1 - cosine over pairs of the list's item vectors")
    new_items: float = Field(default=0.0, description="share of items with at most settings.rare train events")

    @property
    def active(self) -> dict[str, float]:
        """The weights that are not 0, by name."""
        return {name: weight for name, weight in self.model_dump().items() if weight}


class Rewards(Section):
    """Weights of the reward terms; zero switches a term off. ``genrec tune`` searches them."""

    hit: float = Field(default=1.0, description="the candidate is the target")
    rank_log: float = Field(default=-0.15, description="x ln(rank) of a hit, rank from 1")
    rank_linear: float = Field(default=0.0, description="x rank of a hit, rank from 1; -0.1 is usual")
    ndcg_rank: float = Field(
        default=0.0, description="a miss in a group with a hit loses by its rank (MiniOneRec); 1 is usual"
    )
    prefix: float = Field(default=0.0, description="share of leading levels that agree with the target")
    future: float = Field(default=0.0, description="one of the user's next training items, discounted by distance")
    event: float = Field(default=0.0, description="the same, times the value of its event type")
    semantic: float = Field(default=0.0, description="cosine of the item's vector and the target's")
    collaborative: float = Field(default=0.0, description="ItemKNN's score for the history, 1 for its best item")
    diversity: float = Field(default=0.0, description="1 for the first candidate of a category, in rank order")
    category_count: float = Field(
        default=0.0, description="share of distinct categories in the list; cancels wherever groups are centred"
    )
    repeat: float = Field(default=0.0, description="the item is in the history; -0.5 is usual")
    unwanted_repeat: float = Field(
        default=0.0, description="the item is in the history, and the user does not buy it within the horizon"
    )
    novelty: float = Field(default=0.0, description="new or rarely seen items")
    popularity_penalty: float = Field(default=0.0, description="x -ln(1 + train events), scaled to at most 1")
    custom: dict[str, float] = Field(
        default_factory=dict, description="weights of terms from entry points (genrec.rewards) or a --rewards file"
    )
    lists: ListRewards = ListRewards()
    settings: RewardSettings = RewardSettings()
    control: bool = Field(
        default=False,
        description="no reward on purpose: what the supervised term and the KL do alone, to compare rewards with",
    )

    @model_validator(mode="after")
    def _names_are_free(self) -> Rewards:
        if taken := sorted(set(self.custom) & set(type(self).model_fields)):
            raise ValueError(f"rewards.custom holds {taken}, which are names of built-in terms; choose others")
        return self

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> Rewards:
        if not any(self.weights().values()) and not self.lists.active and not self.control:
            raise ValueError(
                "every weight of rewards is 0, so nothing is learned; set one, such as rewards.hit=1, "
                "or rewards.control=true to see what training without rewards does"
            )
        return self

    def weights(self) -> dict[str, float]:
        """The weight of every term of items, switched off or not, by name."""
        return {**self.model_dump(exclude={"custom", "lists", "settings", "control"}), **self.custom}

    def weighted(self, weights: Mapping[str, float]) -> Rewards:
        """These rewards with some weights replaced."""
        own = {name: weight for name, weight in weights.items() if name not in self.custom}
        custom = {name: weights.get(name, weight) for name, weight in self.custom.items()}
        return self.replace(own, custom=custom)
