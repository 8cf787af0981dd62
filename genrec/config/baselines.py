"""The section of the baselines: how each is trained, and how much is tried before validation chooses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from genrec.config.section import Section

BaselineName = Literal[
    "popularity",
    "transition",
    "itemknn",
    "repeat_last",
    "star",
    "text",
    "als",
    "bpr",
    "sasrec",
    "sasrec_bce",
    "bsarec",
    "gru4rec",
    "bert4rec",
    "hstu",
    "tiger",
]
COUNTED_BASELINES = ("popularity", "transition", "itemknn")
"""Counted in seconds, wherever they are needed."""

SID_BASELINES = ("tiger",)
"""They write semantic IDs, so they need those of the catalogue."""

Share = Annotated[float, Field(ge=0, lt=1)]


class NetworkSettings(Section):
    """A network that is trained on sequences of items."""

    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    dropout: Share = 0.5
    lr: PositiveFloat = Field(default=1e-3, description="of Adam, constant")
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: PositiveInt = Field(default=256, description="sequences of a step")
    epochs: PositiveInt = Field(default=200, description="at most")
    patience: PositiveInt = Field(default=10, description="validations without a better one, one after each epoch")


class SequentialSettings(NetworkSettings):
    """A network with a row for each item. Its loss is over the items, full or with some negatives."""

    loss: Literal["full", "sampled", "bce"] = Field(
        default="full", description="softmax over all items, over the target and shared negatives, or binary"
    )
    negatives: PositiveInt = Field(default=512, description="of a batch (sampled) or of each prediction (bce)")

    @model_validator(mode="after")
    def _heads_divide(self) -> SequentialSettings:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} must be a multiple of heads={self.heads}")
        return self


class SasrecSettings(SequentialSettings):
    """SASRec with a softmax."""


class SasrecBceSettings(SequentialSettings):
    """SASRec as it was published: binary cross-entropy, one negative for each position."""

    loss: Literal["full", "sampled", "bce"] = "bce"
    negatives: PositiveInt = 1


class BsarecSettings(SequentialSettings):
    """BSARec, with the settings of its published log of Beauty."""

    heads: PositiveInt = 1
    lr: PositiveFloat = 5e-4
    alpha: float = Field(default=0.7, ge=0, le=1, description="weight of the frequency rescaler beside attention")
    causal: bool = Field(
        default=False, description="the rescaler reads only what is before a position: all are trained at once"
    )
    cutoff: PositiveInt = Field(default=5, description="the rescaler keeps the cutoff // 2 + 1 lowest frequencies")


class Gru4recSettings(SequentialSettings):
    """GRU4Rec, with a softmax. It ranks by popularity for a dozen epochs before it learns order, so it has patience."""

    layers: PositiveInt = 1
    patience: PositiveInt = Field(default=20, description="validations without a better one, one after each epoch")


class Bert4recSettings(SequentialSettings):
    """BERT4Rec; ``masked`` is the share of items that are hidden and predicted."""

    masked: float = Field(default=0.2, gt=0, lt=1, description="share of items that are hidden and predicted")


class HstuSettings(SequentialSettings):
    """HSTU, without times."""


class TigerSettings(NetworkSettings):
    """TIGER: an encoder-decoder that writes the semantic ID of the next item, in the published shape."""

    hidden: PositiveInt = 128
    layers: PositiveInt = Field(default=4, description="of the encoder, and of the decoder")
    heads: PositiveInt = 6
    dropout: Share = 0.1
    head_size: PositiveInt = Field(default=64, description="width of a head; heads · head_size need not be hidden")
    inner: PositiveInt = Field(default=1024, description="inner width of the feed-forward parts")
    history: PositiveInt = Field(default=20, description="newest items that the encoder reads, at most")
    users: int = Field(default=2000, ge=0, description="tokens that user numbers are hashed to; 0: none")
    softmax: Literal["trie", "vocabulary"] = Field(
        default="trie", description="over the codes that exist under a prefix, or over every token, as published"
    )
    beam: PositiveInt = Field(default=100, description="prefixes kept at each level; other items have no rank")


class Baselines(Section):
    """How the baselines of ``evaluation.baselines`` are made."""

    counted: PositiveInt = Field(default=40, description="settings tried at most of itemknn, star and text")
    factored: PositiveInt = Field(default=12, description="settings tried at most of als and bpr")
    trained: PositiveInt = Field(
        default=1, description="trainings of each network: its settings below, then others near them"
    )
    eval_queries: PositiveInt = Field(
        default=5000, description="validation queries that choose, at most; itemknn and popularity take about 5,000"
    )
    sasrec: SasrecSettings = SasrecSettings()
    sasrec_bce: SasrecBceSettings = SasrecBceSettings()
    bsarec: BsarecSettings = BsarecSettings()
    gru4rec: Gru4recSettings = Gru4recSettings()
    bert4rec: Bert4recSettings = Bert4recSettings()
    hstu: HstuSettings = HstuSettings()
    tiger: TigerSettings = TigerSettings()
