"""The section of semantic IDs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from genrec.config.section import Section


class Sid(Section):
    """Vectors to semantic IDs."""

    quantizer: Literal[
        "rqkmeans",
        "rqkmeans_balanced",
        "rqkmeans_plus",
        "rqvae",
        "vq",
        "pq",
        "opq",
        "hierarchical",
        "fsq",
        "lfq",
        "random",
        "title",
        "given",
    ] = Field(default="rqkmeans", description="'given' takes sid.column; 'random' and 'title' are controls")
    column: str = Field(default="sid", description="given: the item column with each item's codes")
    levels: int = Field(default=3, ge=1, le=8, description="vq: 1")
    codes: int = Field(default=256, ge=2, le=65536, description="codes per level")
    iterations: PositiveInt = Field(default=25, description="k-means iterations per level")
    balance: tuple[float, float] = Field(
        default=(0.5, 2.0), description="rqkmeans_balanced: smallest and largest cluster, in mean cluster sizes"
    )
    epochs: PositiveInt = Field(default=200, description="rqvae, rqkmeans_plus, fsq, lfq: training epochs")
    batch_size: PositiveInt = Field(default=1024, description="rqvae: items per step")
    latent: PositiveInt = Field(default=32, description="rqvae: width of the quantized vector")
    hidden: tuple[PositiveInt, ...] = Field(
        default=(512, 256, 128), description="rqvae: widths of the encoder's layers"
    )
    lr: float = Field(default=1e-3, gt=0)
    beta: float = Field(default=0.25, ge=0, description="rqvae: commitment weight")
    codebook: Literal["gradient", "ema"] = Field(default="gradient", description="rqvae: how the codebooks learn")
    decay: float = Field(default=0.99, gt=0, lt=1, description="rqvae: decay of EMA codebooks")
    estimator: Literal["straight_through", "rotation"] = Field(
        default="straight_through", description="rqvae: gradient path"
    )
    sinkhorn: float = Field(
        default=0.0, ge=0, description="rqvae: entropy of balanced training assignment; 0 = nearest code"
    )
    entropy: float = Field(default=0.1, ge=0, description="lfq: weight of the entropy loss")
    collisions: Literal["resolve", "suffix", "none"] = Field(
        default="resolve",
        description="items that share codes: move to free ones nearby; get one more level that counts them; or stay "
        "(to measure only: no trie)",
    )
    text_weight: float = Field(default=1.0, ge=0, description="weight of the text vector in what is quantized")
    cf_weight: float = Field(default=0.0, ge=0, description="weight of collaborative factors from the train log")
    cf_dims: PositiveInt = Field(default=64, description="width of the collaborative factors")
    cf_window: PositiveInt = Field(default=5, description="positions of a sequence that count as bought together")
    fit_items: PositiveInt = Field(default=262_144, description="items that the quantizer learns from, at most")
    shard_items: PositiveInt = Field(default=65536, description="items per output file")

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """K per level."""
        return (self.codes,) * self.levels
