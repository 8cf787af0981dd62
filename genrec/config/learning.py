"""The sections of learning: from the log, and from rewards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from genrec.config.section import Section


class Sft(Section):
    """Supervised fine-tuning: next-item prediction."""

    form: Literal["dense", "rows"] = Field(
        default="dense", description="whole sequences (scratch only) or a prompt per row"
    )
    epochs: PositiveInt = 24
    lr: float = Field(default=2e-3, gt=0)
    min_lr: float = Field(default=0.0, ge=0, description="where the cosine ends")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of steps with rising rate")
    batch_size: PositiveInt = Field(
        default=256, description="users (dense) or rows per optimizer step, over all workers"
    )
    micro_batch: PositiveInt = Field(default=256, description="users or rows per forward; fewer means accumulation")
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="gradient norm")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    softmax: Literal["trie", "level"] = Field(
        default="trie", description="over the codes that exist, or all K of a level"
    )
    max_steps: int = Field(default=0, ge=0, description="stop after so many optimizer steps; 0 = all epochs")
    eval_every: PositiveInt = Field(default=1, description="epochs between validations")
    eval_queries: PositiveInt = Field(default=1000, description="validation queries per check")
    checkpoint_every: PositiveInt = Field(default=100, description="optimizer steps between checkpoints")
    patience: PositiveInt = Field(default=8, description="checks without a better validation NDCG@10 before stopping")


class Grpo(Section):
    """Group-relative policy optimisation (Shao et al. 2024) on the trie-renormalised policy."""

    steps: PositiveInt = 300
    queries: PositiveInt = Field(default=128, description="queries per update, over all workers")
    group: int = Field(default=16, ge=2, description="candidates per query")
    generation: Literal["beam", "sample"] = "beam"
    temperature: float = Field(default=1.0, gt=0, description="of sampling")
    lr: float = Field(default=3e-4, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0, description="gradient norm")
    ratio_clip: float = Field(default=0.2, gt=0, lt=1, description="epsilon of the clipped ratio")
    kl: float = Field(default=0.1, ge=0, description="weight of the exact KL to the SFT policy")
    sft: float = Field(default=0.3, ge=0, description="weight of the supervised term on the target")
    advantage: Literal["group_std", "group_mean", "batch_std"] = "group_std"
    max_staleness: int = Field(default=0, ge=0, le=16)
    micro_queries: PositiveInt = Field(default=64, description="queries per forward of the learner")
    rollout_chunk: PositiveInt = Field(
        default=32, description="queries per rollout request; fixed, so results do not depend on the number of actors"
    )
    eval_every: PositiveInt = Field(default=50, description="updates between validations (the guard)")
    eval_queries: PositiveInt = 1000
    checkpoint_every: PositiveInt = 25
    guard_noise: float = Field(
        default=2.0,
        ge=0,
        description="standard errors (paired, over queries) that NDCG@10, HR@50 or the tail's HR@50 may fall below "
        "the SFT policy's on validation before the run stops and rolls back",
    )
    guard_drop: float = Field(default=0.01, ge=0, description="relative loss of them that is let pass, noise or not")


class Learning(Section):
    """How the policy learns: first from the log, then from rewards."""

    sft: Sft = Sft()
    grpo: Grpo = Grpo()


class Rewards(Section):
    """Weights of the reward terms; zero switches a term off. Searched by ``workflows.tune``."""

    hit: float = Field(default=1.0, description="the candidate is the target")
    rank_log: float = Field(default=-0.15, description="x ln(rank) of a hit, rank from 1")
    prefix: float = Field(default=0.0, description="share of leading levels that agree with the target")
    diversity: float = Field(default=0.0, description="1 for the first candidate of a category, in rank order")
