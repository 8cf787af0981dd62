"""The section of supervised learning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from genrec.config.section import SPEED, Section


class Loss(Section):
    """Weights of the cross-entropy of supervised examples: several are multiplied, none leaves it plain."""

    weights: tuple[Literal["focal", "hard", "rare"], ...] = Field(
        default=(),
        description="focal: easy targets count less; hard: the largest losses of a micro batch count, the others do "
        "not; rare: rare targets count more",
    )
    unit: Literal["token", "item"] = Field(
        default="token", description="a weight per code, or one per item, from the product of its codes' probabilities"
    )
    focal_gamma: float = Field(default=2.0, ge=0)
    focal_alpha: float = Field(default=1.0, gt=0)
    hard_share: float = Field(default=0.3, gt=0, le=1, description="share of a micro batch's units that counts")
    second_pass: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of an epoch's samples (of each task's), those with the largest loss, that are trained a "
        "second time at its end; 0: none",
    )
    rare_weight: float = Field(default=1.5, ge=0)
    rare_share: float = Field(
        default=0.2, gt=0, le=1, description="the least frequent items that make up this share of the train targets"
    )

    @model_validator(mode="after")
    def _mines_once(self) -> Loss:
        if self.second_pass and "hard" in self.weights:
            raise ValueError("second_pass and the weight hard both mine hard examples; choose one")
        return self


class Sft(Section):
    """Supervised fine-tuning: next-item prediction."""

    example_format: Literal["auto", "dense", "rows", "tasks"] = Field(
        default="auto",
        description="whole sequences, a prompt per row, or the mixture of learning.tasks; auto: dense, or rows for "
        "pretrained policies with policy.prompt=question",
    )
    ingest: Literal["memory", "stream"] = Field(
        default="memory",
        description="dense examples: memory: every worker holds all sequences; stream: Ray Data reads the files while "
        "the workers train, for logs of more than some 10^9 events",
    )
    pool: PositiveInt = Field(
        default=1 << 17, description="ingest=stream: windows of sequences that are shuffled together"
    )
    epochs: int = Field(
        default=0,
        ge=0,
        description="passes over the examples; 0: as many as 1,100 optimizer steps need, at least 8 and at most 60",
    )
    lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=0.0, ge=0, description="where the cosine ends")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of steps with rising rate")
    batch_size: PositiveInt = Field(
        default=128, description="users (dense) or rows per optimizer step, over all workers"
    )
    micro_batch: PositiveInt = Field(
        default=256, json_schema_extra=SPEED, description="users or rows per forward; fewer means accumulation"
    )
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="gradient norm")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    distill: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="item head: weight of what ItemKNN knows from other users as soft targets, beside 1 - it of the "
        "target's",
    )
    softmax: Literal["trie", "level", "vocabulary"] = Field(
        default="trie", description="over the codes that exist, all K of a level, or every token of the model"
    )
    loss: Loss = Loss()
    max_steps: int = Field(default=0, ge=0, description="optimizer steps after which training stops; 0 = all epochs")
    ema_decay: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay of a running mean of the weights, which is validated and kept; 0: no mean",
    )
    eval_every: PositiveInt = Field(default=1, description="epochs between validations")
    eval_steps: int = Field(default=0, ge=0, description="optimizer steps between validations instead; 0 = eval_every")
    eval_queries: PositiveInt = Field(default=1000, description="validation queries per check")
    checkpoint_every: PositiveInt = Field(
        default=100, json_schema_extra=SPEED, description="optimizer steps between checkpoints"
    )
    patience: PositiveInt = Field(default=8, description="checks without a better validation NDCG@10 before stopping")
