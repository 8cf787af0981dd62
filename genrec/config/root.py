"""The whole config: every section, and what does not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from genrec.config.baselines import Baselines
from genrec.config.data import Data, Embed
from genrec.config.learning import Learning, Rewards
from genrec.config.policy import EventContext, PolicyConfig
from genrec.config.running import BenchConfig, Compute, Decode, Evaluation, Serve, Tune
from genrec.config.section import SPEED, Section, UserPath
from genrec.config.sid import VQ_SHARES, Sid

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
        default="storage", json_schema_extra=SPEED, description="directory of all results; every node must see it"
    )
    seed: int = Field(default=0, ge=0, description="of all random draws")
    data: Data = Data()
    embed: Embed = Embed()
    sid: Sid = Sid()
    policy: PolicyConfig = PolicyConfig()
    learning: Learning = Learning()
    rewards: Rewards = Rewards()
    decode: Decode = Decode()
    baselines: Baselines = Baselines()
    evaluation: Evaluation = Evaluation()
    tune: Tune = Tune()
    bench: BenchConfig = BenchConfig()
    compute: Compute = Compute()
    serve: Serve = Serve()

    @property
    def storage_path(self) -> Path:
        """The directory of all results, absolute."""
        return Path(self.storage).absolute()

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

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        grpo, workers = self.learning.rl, max(1, self.compute.workers)
        dense, pretrained = self.learning.sft.example_format == "dense", self.policy.kind == "pretrained"
        unknown = sorted(set(self.tune.space) - set(self.rewards.weights()))
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
            **_strategy_fits(self),
            **_items_fit(self),
            **_context_fits(self.policy.context, self.decode.event),
            "policy.hidden must be a multiple of policy.heads": not pretrained
            and self.policy.hidden % self.policy.heads,
            f"learning.rl.queries must be a multiple of the {workers} workers": grpo.queries % workers,
            f"rewards.lists {sorted(self.rewards.lists.active)} are of lists; set learning.rl.generation=slate": (
                bool(self.rewards.lists.active) and grpo.generation != "slate"
            ),
            "sid.quantizer=vq has one level; set sid.levels=1": sid.quantizer == "vq" and sid.levels != 1,
            VQ_SHARES: sid.quantizer == "vq" and sid.collisions == "resolve",
            "sid.text_weight and sid.cf_weight cannot both be 0": not (sid.text_weight or sid.cf_weight),
            "decode.width must reach the largest of evaluation.ks": self.decode.width
            < max(self.evaluation.ks, default=0),
            f"tune.space names {unknown}; the reward terms are {sorted(self.rewards.weights())}": unknown,
            "tune.space: the low end must lie below the high end": any(a >= b for a, b in self.tune.space.values()),
            f"data: got the URL {_plain_http(self.data)}, which anyone on the way can change; wanted https": (
                _plain_http(self.data)
            ),
            "storage must be a path that every node sees; object stores are not supported": "://" in self.storage,
        }
        if found := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise ValueError("; ".join(found))
        return self


def _plain_http(data: Data) -> str | None:
    """The first URL of the data that is plain http and not of this machine."""
    urls = [url for url in (data.path, data.items, data.interactions) if url and url.startswith("http://")]
    return next((url for url in urls if urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")), None)


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
