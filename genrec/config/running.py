"""The sections of search, measurement and machines."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from genrec.config.baselines import COUNTED_BASELINES, BaselineName
from genrec.config.section import SPEED, Effect, Section


class Decode(Section):
    """How items are searched for."""

    width: PositiveInt = Field(default=50, le=512, description="beams")
    batch_size: PositiveInt = Field(default=64, json_schema_extra=SPEED, description="queries per forward")
    prompt_cache_mb: int = Field(
        default=256,
        ge=0,
        json_schema_extra=SPEED,
        description="serving: keys and values of the last prompts that are kept; 0 keeps none",
    )
    prior: Literal["none", "itemknn", "itemknn_nodes"] = Field(
        default="none",
        description="item scores added to the policy's: itemknn mixes them into its answers, (1 - w) p + w prior; "
        "itemknn_nodes steers its search on the trie's nodes, p * prior ^ w",
    )
    prior_weight: Annotated[float, Field(ge=0)] | Literal["tuned"] = Field(
        default="tuned", description="weight of the prior, at most 1 except for itemknn_nodes; tuned on validation"
    )

    head_weight: Annotated[float, Field(ge=0)] | Literal["tuned"] = Field(
        default="tuned",
        description="weight of the policy's item head in its search, p * head ^ w; tuned on validation, 0: none",
    )
    value: bool = Field(
        default=False,
        description="evaluate: a value network is trained on the policy's states and steers its search, "
        "p * value ^ w, with w tuned on validation, 0 among others",
    )
    event: str | None = Field(
        default=None,
        description="serving: the event type of a request that names none; null: the most frequent one of the targets",
    )

    @model_validator(mode="after")
    def _weight_is_a_share(self) -> Decode:
        if self.prior != "itemknn_nodes" and self.prior_weight != "tuned" and self.prior_weight > 1:
            raise ValueError(f"decode.prior_weight={self.prior_weight:g} must lie in [0, 1] for prior={self.prior}")
        return self

    def search_settings(self) -> dict[str, Any]:
        """``result_settings``, and ``value`` only where it is on: results from before there was one keep their keys."""
        settings = self.result_settings()
        return settings if self.value else {name: one for name, one in settings.items() if name != "value"}


class Evaluation(Section):
    """What is measured."""

    ks: tuple[PositiveInt, ...] = (1, 3, 5, 10, 20, 50)
    bootstrap: int = Field(default=1000, ge=0, description="resamples for the 95 % intervals")
    shard_queries: PositiveInt = Field(default=512, description="queries per Ray Data shard")
    baselines: tuple[BaselineName, ...] = Field(
        default=("popularity", "transition", "itemknn"),
        description="rows beside the model: popularity, transition and itemknn are counted in evaluate, the others are "
        "made by the stage baselines",
    )

    @field_validator("ks")
    @classmethod
    def _hold_ten(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if 10 not in ks:
            raise ValueError("must hold 10: NDCG@10 and HR@10 decide who is best")
        return ks

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {twice} twice")
        return names

    @property
    def made_baselines(self) -> tuple[str, ...]:
        """Those of ``baselines`` that the stage of this name makes."""
        return tuple(name for name in self.baselines if name not in COUNTED_BASELINES)


class BenchConfig(Section):
    """What ``genrec bench`` compares."""

    variants: tuple[str, ...] = Field(
        default=(),
        description="rows that are compared, of the benchmarks that train some (an unknown name is answered with those "
        "that exist); empty: none of the tokenizers, all of the others, but of rl-quality not those that learn from "
        "what is served",
    )
    seeds: PositiveInt = Field(
        default=3,
        description="policies or networks per row of a benchmark that trains some, from seed, seed + 1, …",
    )
    weights: tuple[float, ...] = Field(
        default=(), description="tradeoff: weights of the reward that are tried; empty: each variant's own"
    )
    parts: dict[str, dict[str, Any]] = Field(
        default={},
        description="rl-quality: rows of your own, by name the config keys that one changes and their values",
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        default={},
        description="rl-quality: config keys, each with the values among which validation chooses, for every row",
    )
    grid_seeds: PositiveInt = Field(
        default=1, description="rl-quality: of the seeds, those whose policies the settings of a row are chosen with"
    )
    metric: str = Field(
        default="ndcg@10",
        description="rl-quality: the metric that validation chooses by; ndcg@10/purchase: of the targets of this event "
        "type",
    )
    equal: Literal["steps", "exposure"] = Field(
        default="steps",
        description="tasks: what mixtures have in common: learning.sft.max_steps, or learning.sft.epochs over the "
        "train queries, to which other tasks add steps",
    )
    items: PositiveInt = Field(default=200, description="insert: items that are held out")
    item_counts: tuple[PositiveInt, ...] = Field(
        default=(), description="assign-scale: items of each catalogue; empty: 100,000 and 1,000,000"
    )
    requests: int = Field(default=20_000, ge=100, description="serve: over which a replica's memory must not grow")
    minutes: float = Field(default=30.0, gt=0, description="chaos: in which processes are killed")
    kills: float = Field(
        default=12.0,
        gt=0,
        description="chaos: moments to kill in the time of an undisturbed run, on average",
    )
    nodes: Literal[1, 2] = Field(
        default=1, description="chaos: 1 is a Ray of the command's own; 2 a cluster, whose second node is killed too"
    )
    silence_s: float = Field(
        default=180.0, gt=0, description="chaos: a command that wrote nothing for so many seconds hangs"
    )


class Compute(Section):
    """Where to run. ``workers: 0`` trains in this process; a Ray cluster is used otherwise."""

    default_effect: ClassVar[Effect] = "speed"

    address: str | None = Field(default=None, description="Ray cluster; null starts or joins a local one")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(default=1, ge=0, description="Ray Train workers")
    min_workers: PositiveInt | None = Field(
        default=None,
        description="workers with which sft and grpo begin, and go on when nodes are lost; more join, up to workers, "
        "when the cluster has room; null: always workers",
    )
    strategy: Literal["ddp", "zero2", "zero3"] = Field(
        default="ddp",
        description="of sft: whole copies, or optimizer state and gradients (2) and weights (3) sharded",
    )
    gradient_checkpointing: bool = Field(default=False, description="sft: recompute activations to save memory")
    threads: PositiveInt = Field(default=2, description="torch threads per training worker")
    rollout_actors: int = Field(default=1, ge=0, description="0 generates in the learner's process")
    rollout_threads: PositiveInt = 1
    rollout_cpus: float = Field(default=0.5, ge=0)
    rollout_gpus: float = Field(default=0.0, ge=0, description="share of a GPU per rollout actor")
    rollout_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="seconds in which a rollout actor with work must answer something, a new actor's start included; "
        "one that does not is started again and its requests go to the others, with twice the time",
    )
    rollout_resources: dict[str, PositiveFloat] = Field(
        default={},
        description="custom resources of Ray that a rollout actor takes, which place it: {spot: 0.001} puts it on "
        "nodes that were started with the resource spot",
    )
    worker_cpus: float = Field(default=1.0, gt=0)
    worker_gpus: float = Field(default=0.0, ge=0, le=1)
    worker_resources: dict[str, PositiveFloat] = Field(
        default={}, description="custom resources of Ray that a training worker takes"
    )
    data_actors: int = Field(
        default=1,
        ge=0,
        description="actors of prepare, embed, assign, evaluate; 0: in this process",
    )
    in_process_below_mb: int = Field(
        default=256,
        ge=0,
        description="a log with smaller files is prepared in this process: starting actors takes longer",
    )
    data_cpus: float = Field(default=1.0, gt=0)
    data_gpus: float = Field(default=0.0, ge=0)
    data_resources: dict[str, PositiveFloat] = Field(
        default={}, description="custom resources of Ray that a data actor takes"
    )
    max_failures: int = Field(default=2, ge=0, description="restarts of a training worker")
    object_store_mb: PositiveInt = 512
    cache: str = Field(
        default="~/.cache/genrec",
        min_length=1,
        description="directory of each node for what it has of a storage that is a URL",
    )
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=("tensorboard",),
        description="where the figures of GRPO runs, and of a search's trials, go; they need no server: TensorBoard "
        "writes into the run's directory, MLflow and Weights & Biases below `storage`",
    )
    mlflow_uri: str | None = Field(
        default=None, description="tracking server for the tracker mlflow; null: the database <storage>/mlflow.db"
    )

    @model_validator(mode="after")
    def _server_has_its_tracker(self) -> Compute:
        if self.mlflow_uri is not None and "mlflow" not in self.trackers:
            raise ValueError(
                f"compute.mlflow_uri={self.mlflow_uri} goes unused: put mlflow into compute.trackers, or take null"
            )
        return self

    @model_validator(mode="after")
    def _min_workers_are_fewer(self) -> Compute:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"compute.min_workers={self.min_workers} is above compute.workers={self.workers}")
        return self

    @property
    def worker_may_use_gpu(self) -> bool:
        """Whether training may use a card: not one that Ray gave to another, even where it is seen."""
        return self.device != "cpu" and (self.worker_gpus > 0 or not self.workers)

    @property
    def data_may_use_gpu(self) -> bool:
        """Whether the shards' work may use a card, by the same rule for ``data_actors``."""
        return self.device != "cpu" and (self.data_gpus > 0 or not self.data_actors)

    @property
    def data_threads(self) -> int:
        """Torch threads of a Ray Data actor, or of this process when there is none."""
        return max(1, int(self.data_cpus)) if self.data_actors else self.threads


class Serve(Section):
    """The HTTP service of a run (``genrec serve``): its size, its limits, and how long an answer may take."""

    default_effect: ClassVar[Effect] = "speed"

    host: str = Field(default="127.0.0.1", description="address to listen at; 0.0.0.0: of every network")
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: PositiveInt = Field(default=1, description="processes that answer; the fewest of them with max_replicas")
    max_replicas: PositiveInt | None = Field(
        default=None, description="as many replicas at most, by load; null: always as many as replicas"
    )
    ongoing_per_replica: PositiveInt = Field(
        default=16, description="requests in progress per replica that max_replicas aims at"
    )
    cpus: float = Field(default=1.0, ge=0, description="per replica")
    gpus: float = Field(default=0.0, ge=0, description="per replica; above 0 the model runs on CUDA")
    threads: PositiveInt = Field(default=1, description="torch threads per replica")
    batch: PositiveInt = Field(default=16, le=512, description="requests per search; 1: each by itself")
    gather_ms: float = Field(
        default=4.0,
        ge=0,
        description="a search waits so long for the clients of the one before, if they are likely to ask again",
    )
    max_queue: PositiveInt = Field(
        default=256, description="requests that wait for a search; beyond it, popular items are answered"
    )
    deadline_ms: float = Field(
        default=500.0, gt=0, description="an answer that would take longer is popular items within the constraint"
    )
    timeout_s: float = Field(default=30.0, gt=0, description="of any request but inserts and reloads, whole")
    cached_answers: int = Field(default=4096, ge=0, description="last answers that are kept; 0: none")
    max_k: PositiveInt = Field(default=100, le=512)
    max_history: PositiveInt = Field(default=10_000, description="item ids per history")
    max_batch_request: PositiveInt = Field(default=64, description="requests in one POST /v1/recommend/batch")
    max_body_kb: PositiveInt = Field(default=1024, description="of a request's body")
    rate_per_s: float = Field(
        default=0.0, ge=0, description="requests of one client address per replica and second, on average; 0: no limit"
    )
    key_for_reads: bool = Field(default=False, description="ask for the API key also where nothing is changed")

    @model_validator(mode="after")
    def _grows(self) -> Serve:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"serve.max_replicas={self.max_replicas} is below serve.replicas={self.replicas}")
        return self
