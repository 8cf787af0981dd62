"""The section of semantic IDs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from genrec.config.section import Section

READABLE = ("taxonomy", "title_words")
"""Quantizers whose codes are names."""

FIT_PARALLEL = ("rqkmeans", "rqkmeans_plus", "rqvae", "vq", "fsq")
"""Quantizers that several workers can fit together."""

VQ_SHARES = (
    "sid.quantizer=vq has one level, and k-means needs at least as many items as codes, so items share their codes and "
    "sid.collisions=resolve has no free ones for them; set sid.collisions=suffix (or none, to measure only)"
)


def cannot_share(quantizer: str, workers: int) -> str:
    """The message for a quantizer that is fitted in one process, where workers were asked for."""
    return (
        f"sid.fit_workers={workers}: {', '.join(FIT_PARALLEL)} can be fitted by workers, sid.quantizer={quantizer} "
        "cannot; set sid.fit_workers=0 (which learns from at most sid.fit_items) or another sid.quantizer"
    )


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
        "taxonomy",
        "title_words",
        "given",
    ] = Field(
        default="rqkmeans",
        description="'given' takes sid.column; 'random' and 'title' (hashed title words) are controls; 'taxonomy' and "
        "'title_words' give readable codes: categories and brand, or title words, then a number",
    )
    column: str = Field(default="sid", description="given: the item column with each item's codes")
    levels: int = Field(default=3, ge=1, le=8, description="vq: 1")
    codebook_size: int | tuple[int, ...] = Field(
        default=256,
        description="codes per level: one number for all, or a list with one per level; 2 to 65536. taxonomy, "
        "title_words: at most so many names per level, rarer ones are 'other'; the last level is as large as needed",
    )
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
    fit_workers: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Ray Train workers that fit the quantizer together, each reading its part of the items: for "
        "catalogues beyond one machine's memory; 0: fitted in this process",
    )
    fit_items: PositiveInt | None = Field(
        default=None,
        description="items that the quantizer learns from, at most; null: 262,144 in this process, all on fit_workers",
    )
    shard_items: PositiveInt = Field(default=65536, description="items per output file")

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """K per level."""
        return (self.codebook_size,) * self.levels if isinstance(self.codebook_size, int) else self.codebook_size

    @property
    def fit_limit(self) -> int | None:
        """Items that the quantizer learns from, at most; None: all."""
        return self.fit_items or (None if self.fit_workers else 262_144)

    def stage_settings(self) -> dict[str, Any]:
        """What SIDs depend on: whether workers share the fit, but not how many they are."""
        settings = self.model_dump(mode="json", exclude={"fit_workers"}) | {"fit_items": self.fit_limit}
        return settings | ({"fit_parallel": True} if self.fit_workers else {})

    @property
    def is_readable(self) -> bool:
        """Whether codes are names, from the items' categories and brands or titles."""
        return self.quantizer in READABLE

    @model_validator(mode="after")
    def _names_need_a_level(self) -> Sid:
        if self.is_readable and self.levels < 2:
            raise ValueError(
                f"sid.quantizer={self.quantizer} has levels of names and a last one of numbers, got sid.levels="
                f"{self.levels}; set sid.levels=2 or more"
            )
        return self

    @model_validator(mode="after")
    def _workers_can_share_the_fit(self) -> Sid:
        if self.fit_workers and self.quantizer not in FIT_PARALLEL:
            raise ValueError(cannot_share(self.quantizer, self.fit_workers))
        if self.fit_workers and self.sinkhorn:
            raise ValueError(
                f"sid.sinkhorn={self.sinkhorn:g} balances a whole batch, and sid.fit_workers={self.fit_workers} share "
                "it; set sid.sinkhorn=0 or sid.fit_workers=0"
            )
        return self

    @field_validator("codebook_size")
    @classmethod
    def _one_size_per_level(cls, codes: int | tuple[int, ...], info: ValidationInfo) -> int | tuple[int, ...]:
        sizes = (codes,) if isinstance(codes, int) else codes
        levels = info.data.get("levels", len(sizes))
        if not isinstance(codes, int) and len(codes) != levels:
            raise ValueError(f"a list of {levels} sizes was expected, one for each of sid.levels={levels}")
        if wrong := [size for size in sizes if not 2 <= size <= 65536]:
            raise ValueError(f"wanted: 2 to 65536 codes per level; got {wrong[0]}")
        return sizes[0] if len(set(sizes)) == 1 else codes
