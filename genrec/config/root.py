"""The whole config: every section, and what does not fit together."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, model_validator

from genrec.config.baselines import Baselines
from genrec.config.data import Data, Embed
from genrec.config.judge import Judge
from genrec.config.learning import Learning, Rewards
from genrec.config.policy import EventContext, PolicyConfig
from genrec.config.running import BenchConfig, Compute, Decode, Evaluation, Serve
from genrec.config.section import SPEED, Section, UserPath, dotted_keys, nearest_key, sections_of
from genrec.config.sid import VQ_SHARES, Sid
from genrec.config.tune import Tune

SEARCHABLE = ("rewards.", "learning.", "sid.", "embed.", "policy.")
"""Sections whose keys a search may change: what GRPO, SFT and the semantic IDs are made from. Other ones would change
the queries that trials are compared on, or nothing."""

FIXED = (
    *("learning.rl.steps", "learning.rl.eval_every", "learning.rl.eval_queries", "learning.rl.groups"),
    "learning.rl.served",
    *("learning.rl.guard_noise", "learning.rl.guard_drop", "learning.refit", "rewards.control"),
)
"""Keys in them that say how long a trial is and how it is measured, or that make other stages than grpo."""

FILE = "file://"
SCHEMES = ("s3://", "gs://", "hdfs://", FILE)
STORE_OPTIONS = ("region", "endpoint_override", "scheme")
"""What the URL of an S3 storage may say of its server: s3://BUCKET/PATH?endpoint_override=http://HOST:PORT."""

TASKS_NEED_TEXT = (
    "learning.sft.example_format=tasks and learning.stages need policy.kind=pretrained or policy.tokenizer=bytes"
)


class Config(Section):
    """Everything a run is made from. Two axes of files: what to learn, and where to run."""

    name: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="of the run: its newest report is <storage>/runs/<name>",
    )
    storage: UserPath = Field(
        default="storage",
        json_schema_extra=SPEED,
        description="of all results: a directory that every node sees, or a URL: s3://BUCKET/PATH, gs://BUCKET/PATH, "
        "hdfs://HOST:PORT/PATH",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of all random draws")
    data: Data = Data()
    embed: Embed = Embed()
    sid: Sid = Sid()
    policy: PolicyConfig = PolicyConfig()
    learning: Learning = Learning()
    rewards: Rewards = Rewards()
    decode: Decode = Decode()
    baselines: Baselines = Baselines()
    evaluation: Evaluation = Evaluation()
    judge: Judge = Judge()
    tune: Tune = Tune()
    bench: BenchConfig = BenchConfig()
    compute: Compute = Compute()
    serve: Serve = Serve()

    @property
    def storage_path(self) -> Path:
        """The directory of all results, absolute; where storage is a URL, its cache on this machine."""
        if self.is_remote:
            return cache_of(self.storage, self.compute.cache)
        return Path(self.storage.removeprefix(FILE)).absolute()

    @property
    def is_remote(self) -> bool:
        """Whether ``storage`` is the URL of an object store or of HDFS, not a directory."""
        return is_url(self.storage)

    def with_workers(self, workers: int) -> Config:
        """The config of the same work on exactly so many training workers, each with the whole model: 0 or 1."""
        return self.replace({"compute.workers": workers, "compute.min_workers": None, "compute.strategy": "ddp"})

    @property
    def backbones_path(self) -> Path:
        """The folder of converted packaged models, shared by all runs of a storage."""
        return self.storage_path / "backbones"

    @property
    def example_format(self) -> Literal["dense", "rows", "tasks"]:
        """What the policy's supervised examples are: ``learning.sft.example_format`` with auto resolved."""
        named = self.learning.sft.example_format
        if named != "auto":
            return named
        return "rows" if self.policy.kind == "pretrained" and self.policy.prompt == "question" else "dense"

    @property
    def learns_tasks(self) -> bool:
        """Whether the policy learns tasks, or stages of them, and not next items alone."""
        return self.learning.sft.example_format == "tasks" or bool(self.learning.stages.on())

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        grpo = self.learning.rl
        dense, pretrained = self.learning.sft.example_format == "dense", self.policy.kind == "pretrained"
        sid = self.sid
        wrong = {
            "learning.sft.example_format=dense needs policy.prompt=sequence for a pretrained policy, since no question "
            "can follow each item of a history; take that, or rows": dense
            and pretrained
            and self.policy.prompt == "question",
            **_tasks_fit(self.learning, self.policy.knows_text),
            "policy.tokenizer=bytes needs policy.arch=qwen3: conversations are longer than learned positions reach": (
                self.policy.tokenizer == "bytes" and not pretrained and self.policy.arch != "qwen3"
            ),
            "policy.sid_tokens=numbered is about SIDs in text, which this policy does not know": (
                self.policy.sid_tokens == "numbered" and not self.policy.knows_text
            ),
            "policy.finetuning=qlora is for pretrained policies": not pretrained and self.policy.finetuning == "qlora",
            "policy.weights=random is for policy.kind=pretrained with policy.finetuning=full: adapters of rank "
            "policy.lora.rank cannot teach a model that knows nothing": self.policy.weights == "random"
            and not (pretrained and self.policy.finetuning == "full"),
            **_stream_fits(self),
            **_strategy_fits(self),
            **_items_fit(self),
            **_served_fits(self),
            **_value_fits(self),
            **_context_fits(self.policy.context, self.decode.event),
            "policy.hidden must be a multiple of policy.heads": not pretrained
            and self.policy.hidden % self.policy.heads,
            **_workers_fit(self),
            f"rewards.lists {sorted(self.rewards.lists.active)} are of lists; set learning.rl.generation=slate": (
                bool(self.rewards.lists.active) and grpo.generation != "slate"
            ),
            "sid.quantizer=vq has one level; set sid.levels=1": sid.quantizer == "vq" and sid.levels != 1,
            VQ_SHARES: sid.quantizer == "vq" and sid.collisions == "resolve",
            "sid.text_weight and sid.cf_weight cannot both be 0": not (sid.text_weight or sid.cf_weight),
            "decode.width must reach the largest of evaluation.ks": self.decode.width
            < max(self.evaluation.ks, default=0),
            **_space_fits(self),
            f"data: got the URL {_plain_http(self.data)}, which anyone on the way can change; wanted https": (
                _plain_http(self.data)
            ),
            **_storage_fits(self.storage),
            **_secrets_fit(self),
        }
        if found := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise ValueError("; ".join(found))
        return self


def is_url(place: str | Path) -> bool:
    """Whether ``place``, of a storage or in one, is the URL of an object store or of HDFS, not a path."""
    return "://" in str(place) and not str(place).startswith(FILE)


def cache_of(storage: str, caches: str) -> Path:
    """Where the directories of the URL ``storage`` lie on this machine, below ``caches``."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", storage.partition("?")[0]).strip("-")
    return Path(caches).expanduser().absolute() / f"{plain}-{hashlib.sha256(storage.encode()).hexdigest()[:8]}"


def _storage_fits(storage: str) -> dict[str, bool]:
    """What is wrong with a storage that is a URL: message -> whether it applies."""
    scheme, separator, rest = storage.partition("://")
    if not separator:
        return {}
    parts = urlsplit(storage)
    options = set(parse_qs(parts.query)) - set(STORE_OPTIONS)
    return {
        f"storage={storage}: wanted a directory, or a URL that begins with {', '.join(SCHEMES)}": (
            f"{scheme}://" not in SCHEMES or not rest
        ),
        f"storage of {scheme}:// has a password or key in it, which would be kept in every artifact; give it in the "
        "environment (AWS_ACCESS_KEY_ID and its kin)": "@" in parts.netloc,
        f"storage={storage}: unknown options {sorted(options)}; wanted {', '.join(STORE_OPTIONS)}": scheme == "s3"
        and bool(options),
    }


def _plain_http(data: Data) -> str | None:
    """The first URL of the data that is plain http and not of this machine."""
    urls = [url for url in (data.path, data.items, data.interactions) if url and url.startswith("http://")]
    return next((url for url in urls if urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")), None)


def _secrets_fit(config: Config) -> dict[str, bool]:
    """URLs that have a password in them: message -> whether it applies."""
    data = config.data
    urls = {f"data.{name}": getattr(data, name) or "" for name in ("path", "items", "interactions")}
    urls["compute.mlflow_uri"] = config.compute.mlflow_uri or ""
    return {
        f"{key} has a password or key in it, which would be kept in every artifact and report; give it in the "
        "environment (MLFLOW_TRACKING_USERNAME, AWS_ACCESS_KEY_ID and their kin)": "@" in urlsplit(url).netloc
        for key, url in urls.items()
    }


def _space_fits(config: Config) -> dict[str, bool]:
    """What is wrong with the keys that are searched: message -> whether it applies."""
    weights, tune = config.rewards.weights(), config.tune
    known = {key for key in dotted_keys(Config) if key.startswith(SEARCHABLE)} - {*sections_of(Config), *FIXED}
    names = [name.removeprefix("rewards.custom.") for name in tune.space]
    unknown = sorted(name for name in names if name not in weights and name not in known)
    near = {name: nearest_key(name, [*weights, *sorted(known)]) for name in unknown}
    keys = [name.removeprefix("rewards.") for name in names]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    gpus = config.compute.worker_gpus + config.compute.rollout_gpus
    return {
        f"tune.space names {unknown}, which cannot be searched; the nearest are {list(near.values())}; wanted: a "
        f"reward ({', '.join(sorted(weights))}) or a dotted key of {', '.join(SEARCHABLE)}, except "
        f"{', '.join(FIXED)}": bool(unknown),
        f"tune.space names {twice} twice, with and without its section": bool(twice),
        f"tune.gpu_hours={tune.gpu_hours} is a budget of GPUs, and compute.worker_gpus is 0; take tune.hours": (
            tune.gpu_hours is not None and not gpus
        ),
    }


def _workers_fit(config: Config) -> dict[str, bool]:
    """What is wrong with the number of workers, or with its range: message -> whether it applies."""
    compute, rl = config.compute, config.learning.rl
    most = max(1, compute.workers)
    uneven = [count for count in range(compute.min_workers or most, most + 1) if rl.queries % count]
    by_worker = {
        "learning.rl.oversample above 1": rl.oversample > 1,
        "learning.rl.advantage=batch_std": rl.advantage == "batch_std",
        "learning.rl.objective=ppo": rl.objective == "ppo",
        "the loss weight hard": "hard" in config.learning.sft.loss.weights,
    }
    named = ", ".join(name for name, is_on in by_worker.items() if is_on)
    return {
        f"learning.rl.queries={rl.queries} must be a multiple of the workers, which may be {uneven}": bool(uneven),
        f"compute.min_workers lets the number of workers change, on which results depend with {named}; take null": (
            compute.min_workers is not None and bool(named)
        ),
    }


def _stream_fits(config: Config) -> dict[str, bool]:
    """What is wrong with examples that are streamed: message -> whether it applies."""
    learning, streamed = config.learning, config.learning.sft.ingest == "stream"
    pool, size = learning.sft.pool, learning.sft.batch_size
    return {
        "learning.sft.ingest=stream reads whole sequences (dense examples); take ingest=memory for rows, tasks and "
        "stages": streamed and (config.example_format != "dense" or bool(learning.stages.on())),
        "learning.sft.ingest=stream has no second pass, which compares all windows; set "
        "learning.sft.loss.second_pass=0, or take ingest=memory": streamed and bool(learning.sft.loss.second_pass),
        "learning.refit joins whole tables; set learning.refit=false, or take learning.sft.ingest=memory": streamed
        and learning.refit,
        f"learning.sft.pool={pool} is smaller than a batch of learning.sft.batch_size={size}": streamed and pool < size,
    }


def _strategy_fits(config: Config) -> dict[str, bool]:
    """What is wrong with how workers share a policy: message -> whether it applies."""
    strategy, workers = config.compute.strategy, config.compute.workers
    sharded = strategy == "zero3"
    return {
        f"compute.strategy={strategy} runs on Ray Train: compute.workers must be 1 or more": strategy != "ddp"
        and not workers,
        "compute.strategy=zero3 cannot shard the packed weights of policy.finetuning=qlora; take zero2 or ddp": sharded
        and config.policy.finetuning == "qlora",
        "compute.strategy=zero3 shards the weights and keeps no average of them: set learning.sft.ema_decay=0": sharded
        and bool(config.learning.sft.ema_decay),
        "compute.strategy=zero3 trains in one stage; take zero2 or ddp for learning.stages": sharded
        and bool(config.learning.stages.on()),
    }


def _items_fit(config: Config) -> dict[str, bool]:
    """What is wrong with the rows of items: message -> whether it applies."""
    items, policy = config.policy.items, config.policy
    one_position = items.tokens == "item"
    return {
        "policy.items.tokens=item needs policy.items.input: an item's one position is made of its row": one_position
        and items.input == "none",
        "policy.items.tokens=item is for policies of semantic IDs alone; text has the codes of an item": one_position
        and policy.knows_text,
        f"policy.items.input={items.input}: sid.quantizer={config.sid.quantizer} has no vectors; take own": (
            items.input in ("vectors", "both") and config.sid.quantizer in ("given", "title")
        ),
    }


def _served_fits(config: Config) -> dict[str, bool]:
    """What is wrong with learning from what is served: message -> whether it applies."""
    wanted, decode = config.learning.rl.served, config.decode
    head = config.policy.items.head and decode.head_weight != 0
    on_nodes = decode.prior == "itemknn_nodes" and decode.prior_weight != 0
    return {
        "learning.rl.served: decode.prior=itemknn is mixed into the answers after the search, which knows nothing of "
        "it; set decode.prior=itemknn_nodes, or none to serve with the item head alone": wanted
        and decode.prior == "itemknn",
        "learning.rl.served: got neither a prior nor an item head, so what is served is the policy alone; set "
        "decode.prior=itemknn_nodes or policy.items.head=true (with a weight above 0), or "
        "learning.rl.served=false": wanted and decode.prior != "itemknn" and not (head or on_nodes),
    }


def _value_fits(config: Config) -> dict[str, bool]:
    """What is wrong with a search by values: message -> whether it applies."""
    wanted, learning = config.decode.value, config.learning
    return {
        "decode.value=true: learning.refit trains another policy, whose states the value network does not read, on the "
        "validation events that it learned from; set learning.refit=false or decode.value=false": wanted
        and learning.refit,
        "decode.value=true: learning.rl.served learns from a search without a value network, which is trained "
        "afterwards; set learning.rl.served=false or decode.value=false": wanted and learning.rl.served,
    }


def _context_fits(context: EventContext, default: str | None) -> dict[str, bool]:
    """What is wrong with event types in prompts: message -> whether it applies."""
    typed = context.events != "none"
    return {
        f"policy.context.events={context.events} needs the log's event types in policy.context.types": typed
        and not context.types,
        f"policy.context.types has a type twice: {list(context.types)}": len(set(context.types)) < len(context.types),
        f"decode.event={default} is none of policy.context.types {list(context.types)}": default is not None
        and default not in context.types,
    }


def _tasks_fit(learning: Learning, knows_text: bool) -> dict[str, bool]:
    """What is wrong with instruction tuning: message -> whether it applies."""
    tasks, stages = learning.sft.example_format == "tasks", learning.stages.on()
    return {
        TASKS_NEED_TEXT: bool(tasks or stages) and not knows_text,
        "learning.sft.example_format=tasks needs a weight above 0 in learning.tasks": tasks
        and not learning.tasks.chosen,
        "learning.tasks has weights that nothing reads: they need learning.sft.example_format=tasks": bool(
            learning.tasks.chosen
        )
        and not tasks,
        **{f"learning.stages.{n} needs a weight above 0 in its tasks": not s.tasks.chosen for n, s in stages.items()},
        "learning.instruction.teacher.url needs learning.instruction.teacher.model": bool(
            learning.instruction.teacher.url and not learning.instruction.teacher.model
        ),
    }
