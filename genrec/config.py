"""The typed configuration: defaults < YAML files, left to right < ``dotted.key=value`` overrides.

Merging is OmegaConf's; types and ranges are pydantic's. An unknown key is an error that names the file it came
from and the nearest key that exists. Nothing here imports torch, so ``--show`` answers at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from yaml import YAMLError

from genrec.errors import InputError


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Filters(Section):
    """Which interactions and items survive ``prepare``. Zero or null switches a filter off."""

    user_core: int = Field(default=0, ge=0, description="k-core: users with fewer interactions go, repeatedly")
    item_core: int = Field(default=0, ge=0, description="k-core: items with fewer interactions go, repeatedly")
    item_users: int = Field(
        default=0, ge=0, description="items bought by fewer distinct users go, once, before the k-core"
    )
    last_per_user: int = Field(default=0, ge=0, description="keep only each user's most recent n interactions")
    first_only: bool = Field(default=False, description="keep only the first interaction of each user with each item")
    start: str | None = Field(default=None, description="ISO date; interactions before it go")
    end: str | None = Field(default=None, description="ISO date; interactions from it on go")
    title_words: int = Field(default=0, ge=0, description="items whose title has more words go (MiniOneRec: 20)")
    require_title: bool = Field(default=False, description="items without a title go")


class Data(Section):
    """Where the catalogue and the log come from, and how the log is split."""

    source: Literal["parquet", "complete_journey", "amazon", "minionerec"] = "parquet"
    path: str | None = Field(default=None, description="directory (or URL prefix) with the source's files")
    items: str | None = Field(
        default=None, description="item file or URL, when it is not at its default place under path"
    )
    interactions: str | None = Field(default=None, description="log file or URL, likewise")
    columns: dict[str, str] = Field(default_factory=dict, description="canonical column -> the file's column")
    departments: tuple[str, ...] = Field(default=("DRUG GM",), description="complete_journey: the departments to keep")
    filters: Filters = Filters()
    split: Literal["leave_one_out", "chronological", "given"] = "leave_one_out"
    max_history: PositiveInt = Field(default=10, le=512, description="items of history a query carries")
    eval_queries: int = Field(default=0, ge=0, description="cap on valid and test queries each (hash sample); 0 = all")
    shards: PositiveInt = Field(default=4, description="user shards that prepare writes")


class Embed(Section):
    """Item text to vectors."""

    model: str = Field(default="minilm", description="'minilm' (packaged), or a model name or path")
    kind: Literal["sentence", "causal"] = Field(
        default="sentence", description="sentence-transformers, or causal LM states"
    )
    pooling: Literal["mean", "last", "cls"] = "mean"
    fields: tuple[str, ...] = ("title", "brand", "categories", "description")
    max_tokens: PositiveInt = 256
    batch_size: PositiveInt = 64
    shard_items: PositiveInt = Field(default=2048, description="items per output file")


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
        "given",
    ] = Field(default="rqkmeans", description="'given' takes sid.column; 'random' and 'title' are controls")
    column: str = Field(default="sid", description="given: the item column with each item's codes")
    levels: int = Field(default=3, ge=1, le=8, description="vq: 1")
    codes: int | tuple[int, ...] = Field(
        default=256, description="codes per level: one number for all, or a list with one per level; 2 to 65536"
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
        return (self.codes,) * self.levels if isinstance(self.codes, int) else self.codes

    @property
    def fit_limit(self) -> int | None:
        """Items that the quantizer learns from, at most; None: all."""
        return self.fit_items or (None if self.fit_workers else 262_144)

    def stage_settings(self) -> dict[str, Any]:
        """What SIDs depend on: whether workers share the fit, but not how many they are."""
        settings = self.model_dump(mode="json", exclude={"fit_workers"}) | {"fit_items": self.fit_limit}
        return settings | ({"fit_parallel": True} if self.fit_workers else {})

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

    @field_validator("codes")
    @classmethod
    def _one_size_per_level(cls, codes: int | tuple[int, ...], info: ValidationInfo) -> int | tuple[int, ...]:
        sizes = (codes,) if isinstance(codes, int) else codes
        levels = info.data.get("levels", len(sizes))
        if not isinstance(codes, int) and len(codes) != levels:
            raise ValueError(f"a list of {levels} sizes was expected, one for each of sid.levels={levels}")
        if wrong := [size for size in sizes if not 2 <= size <= 65536]:
            raise ValueError(f"2 to 65536 codes per level were expected, {wrong[0]} came")
        return sizes[0] if len(set(sizes)) == 1 else codes


class Lora(Section):
    """Low-rank adapters on a pretrained backbone."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Policy(Section):
    """The language model that writes semantic IDs."""

    kind: Literal["scratch", "pretrained"] = "scratch"
    arch: Literal["gpt2", "qwen3"] = Field(default="gpt2", description="scratch: architecture")
    hidden: PositiveInt = 192
    layers: PositiveInt = 3
    heads: PositiveInt = 6
    dropout: float = Field(
        default=0.3, ge=0, lt=1, description="scratch: embeddings, attention, residuals (qwen3: attention)"
    )
    path: str = Field(default="smollm2", description="pretrained: 'smollm2' (packaged), or a model name or path")
    lora: Lora = Lora()
    dtype: Literal["float32", "bfloat16"] = "float32"


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
    guard_drop: float = Field(
        default=0.05, ge=0, description="relative loss of validation NDCG@10 or HR@50 that stops the run"
    )


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


class Decode(Section):
    """How items are searched for."""

    width: PositiveInt = Field(default=50, le=512, description="beams")
    batch_size: PositiveInt = Field(default=64, description="queries per forward")
    prior: Literal["none", "itemknn"] = Field(default="none", description="item scores mixed with the policy's")
    prior_weight: Annotated[float, Field(ge=0, le=1)] | Literal["tuned"] = Field(
        default="tuned", description="lambda in [0, 1]; tuned on validation"
    )


class Evaluation(Section):
    """What is measured."""

    ks: tuple[PositiveInt, ...] = (1, 3, 5, 10, 20, 50)
    bootstrap: int = Field(default=1000, ge=0, description="resamples for the 95 % intervals")
    shard_queries: PositiveInt = Field(default=512, description="queries per Ray Data shard")


class Tune(Section):
    """The search over reward weights. ``space`` maps a reward to its low and high end."""

    space: dict[str, tuple[float, float]] = {"rank_log": (-0.3, 0.0), "prefix": (0.0, 0.5), "diversity": (0.0, 0.3)}
    trials: PositiveInt = 4
    steps: PositiveInt = 40
    max_concurrent: PositiveInt = 1


class Compute(Section):
    """Where to run. ``workers: 0`` trains in this process; a Ray cluster is used otherwise."""

    address: str | None = Field(default=None, description="Ray cluster; null starts or joins a local one")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(default=1, ge=0, description="Ray Train workers")
    threads: PositiveInt = Field(default=2, description="torch threads per training worker")
    rollout_actors: int = Field(default=1, ge=0, description="0 generates in the learner's process")
    rollout_threads: PositiveInt = 1
    rollout_cpus: float = Field(default=0.5, ge=0)
    rollout_gpus: float = Field(default=0.0, ge=0, description="share of a GPU per rollout actor")
    worker_cpus: float = Field(default=1.0, gt=0)
    worker_gpus: float = Field(default=0.0, ge=0, le=1)
    data_actors: int = Field(
        default=1, ge=0, description="actors of prepare, embed, assign, evaluate; 0: in this process"
    )
    local_mb: int = Field(
        default=256,
        ge=0,
        description="a log with smaller files is prepared in this process: starting actors takes longer",
    )
    data_cpus: float = Field(default=1.0, gt=0)
    data_gpus: float = Field(default=0.0, ge=0)
    max_failures: int = Field(default=2, ge=0, description="restarts of a training worker")
    object_store_mb: PositiveInt = 512

    @property
    def data_threads(self) -> int:
        """Torch threads of a Ray Data actor, or of this process when there is none."""
        return max(1, int(self.data_cpus)) if self.data_actors else self.threads


class Config(Section):
    """Everything a run is made from. Two axes of files: what to learn, and where to run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$")
    storage: str = "storage"
    seed: int = Field(default=0, ge=0)
    data: Data = Data()
    embed: Embed = Embed()
    sid: Sid = Sid()
    policy: Policy = Policy()
    learning: Learning = Learning()
    rewards: Rewards = Rewards()
    decode: Decode = Decode()
    evaluation: Evaluation = Evaluation()
    tune: Tune = Tune()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        grpo, workers = self.learning.grpo, max(1, self.compute.workers)
        dense, pretrained = self.learning.sft.form == "dense", self.policy.kind == "pretrained"
        unknown = sorted(set(self.tune.space) - set(Rewards.model_fields))
        sid = self.sid
        wrong = {
            "learning.sft.form=dense is for scratch policies; a pretrained one needs rows": dense and pretrained,
            "policy.dtype=bfloat16 is for pretrained policies": not pretrained and self.policy.dtype == "bfloat16",
            "policy.hidden must be a multiple of policy.heads": not pretrained
            and self.policy.hidden % self.policy.heads,
            f"learning.grpo.queries must be a multiple of the {workers} workers": grpo.queries % workers,
            "sid.quantizer=vq has one level; set sid.levels=1": sid.quantizer == "vq" and sid.levels != 1,
            VQ_SHARES: sid.quantizer == "vq" and sid.collisions == "resolve",
            "sid.text_weight and sid.cf_weight cannot both be 0": not (sid.text_weight or sid.cf_weight),
            "decode.width must reach the largest of evaluation.ks": self.decode.width
            < max(self.evaluation.ks, default=0),
            f"tune.space names {unknown}; the reward terms are {sorted(Rewards.model_fields)}": unknown,
            "tune.space: the low end must lie below the high end": any(a >= b for a, b in self.tune.space.values()),
            "storage must be a path that every node sees; object stores are not supported": "://" in self.storage,
        }
        if found := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise ValueError("; ".join(found))
        return self


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Merge ``files`` left to right, then ``overrides`` (``dotted.key=value``), into a validated ``Config``.

    Raises InputError for a missing file, broken YAML, an unknown key (with the nearest one) or a bad value.
    """
    merged = OmegaConf.create()
    for source, layer in _layers(files, overrides):
        _refuse_unknown_keys(layer, source)
        merged = OmegaConf.merge(merged, OmegaConf.create(dict(layer)))
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
        return Config.model_validate(plain)
    except ValidationError as error:
        lines = [_line(e["loc"], e["msg"], e["input"]) for e in error.errors()]
        raise InputError("invalid config:\n  " + "\n  ".join(lines)) from None
    except OmegaConfBaseException as error:
        raise InputError(f"invalid config: {error}") from None


def _line(location: tuple[int | str, ...], message: str, value: object) -> str:
    named = f"{'.'.join(map(str, location))}: {message}" if location else message
    return named if isinstance(value, dict) else f"{named} (got {value!r})"


def to_yaml(config: Section) -> str:
    """The resolved section as YAML, readable back by ``load_config``."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _layers(files: Sequence[str | Path], overrides: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in files:
        if not Path(file).is_file():
            raise InputError(f"config file not found: {file}")
        try:
            layer = OmegaConf.to_container(OmegaConf.load(file))
        except (YAMLError, OmegaConfBaseException, OSError) as error:
            raise InputError(f"{file} is not valid YAML: {error}") from None
        yield str(file), _mapping(layer or {}, str(file))
    for text in overrides:
        key, separator, _ = text.partition("=")
        if not separator or not key:
            raise InputError(f"override {text!r} is not of the form dotted.key=value")
        try:
            layer = OmegaConf.to_container(OmegaConf.from_dotlist([text]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"override {text!r} cannot be read: {error}") from None
        yield f"the command line ({text})", _mapping(layer, text)


def _mapping(layer: object, source: str) -> Mapping[str, Any]:
    if not isinstance(layer, dict):
        raise InputError(f"{source} holds a {type(layer).__name__}, a mapping of config keys was expected")
    return cast("Mapping[str, Any]", layer)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the config, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _refuse_unknown_keys(layer: Mapping[str, Any], source: str) -> None:
    known = list(known_keys())
    free = ("data.columns", "tune.space")
    for key in _dotted(layer):
        if key in known or key.startswith(tuple(f"{name}." for name in free)):
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        raise InputError(f"unknown config key {key!r} in {source}; the nearest known key is {(leaf or [near])[0]!r}")


def _dotted(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in layer.items():
        if isinstance(value, dict):
            yield from _dotted(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
