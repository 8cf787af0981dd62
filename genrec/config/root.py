"""The whole config, and how it is read: defaults < YAML files, left to right < ``dotted.key=value`` overrides."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, model_validator
from yaml import YAMLError

from genrec.config.data import Data, Embed
from genrec.config.learning import Learning, Rewards
from genrec.config.policy import PolicyConfig
from genrec.config.running import BenchConfig, Compute, Decode, Evaluation, Tune
from genrec.config.section import Section
from genrec.config.sid import VQ_SHARES, Sid
from genrec.errors import InputError


class Config(Section):
    """Everything a run is made from. Two axes of files: what to learn, and where to run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$")
    storage: str = "storage"
    seed: int = Field(default=0, ge=0)
    data: Data = Data()
    embed: Embed = Embed()
    sid: Sid = Sid()
    policy: PolicyConfig = PolicyConfig()
    learning: Learning = Learning()
    rewards: Rewards = Rewards()
    decode: Decode = Decode()
    evaluation: Evaluation = Evaluation()
    tune: Tune = Tune()
    bench: BenchConfig = BenchConfig()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        grpo, workers = self.learning.rl, max(1, self.compute.workers)
        dense, pretrained = self.learning.sft.example_format == "dense", self.policy.kind == "pretrained"
        unknown = sorted(set(self.tune.space) - set(self.rewards.weights()))
        sid = self.sid
        wrong = {
            "learning.sft.example_format=dense is for scratch policies; a pretrained one needs rows": dense
            and pretrained,
            **_tasks_fit(self.learning, self.policy.knows_text),
            "policy.tokenizer=bytes needs policy.arch=qwen3: conversations are longer than learned positions reach": (
                self.policy.tokenizer == "bytes" and not pretrained and self.policy.arch != "qwen3"
            ),
            "policy.finetuning=qlora is for pretrained policies": not pretrained and self.policy.finetuning == "qlora",
            **_strategy_fits(self),
            "policy.hidden must be a multiple of policy.heads": not pretrained
            and self.policy.hidden % self.policy.heads,
            f"learning.rl.queries must be a multiple of the {workers} workers": grpo.queries % workers,
            "sid.quantizer=vq has one level; set sid.levels=1": sid.quantizer == "vq" and sid.levels != 1,
            VQ_SHARES: sid.quantizer == "vq" and sid.collisions == "resolve",
            "sid.text_weight and sid.cf_weight cannot both be 0": not (sid.text_weight or sid.cf_weight),
            "decode.width must reach the largest of evaluation.ks": self.decode.width
            < max(self.evaluation.ks, default=0),
            f"tune.space names {unknown}; the reward terms are {sorted(self.rewards.weights())}": unknown,
            "tune.space: the low end must lie below the high end": any(a >= b for a, b in self.tune.space.values()),
            "storage must be a path that every node sees; object stores are not supported": "://" in self.storage,
        }
        if found := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise ValueError("; ".join(found))
        return self


def _strategy_fits(config: Config) -> dict[str, bool]:
    """What is wrong with how workers share a policy: message -> whether it applies."""
    strategy, workers = config.compute.strategy, config.compute.workers
    sharded = strategy == "zero3"
    return {
        f"compute.strategy={strategy} runs on Ray Train: compute.workers must be 1 or more": strategy != "ddp"
        and not workers,
        "compute.strategy=zero3 cannot shard the packed weights of policy.finetuning=qlora; take zero2 or ddp": sharded
        and config.policy.finetuning == "qlora",
        "compute.strategy=zero3 trains in one stage; take zero2 or ddp for learning.stages": sharded
        and bool(config.learning.stages.on()),
    }


def _tasks_fit(learning: Learning, knows_text: bool) -> dict[str, bool]:
    """What is wrong with instruction tuning: message -> whether it applies."""
    tasks, stages = learning.sft.example_format == "tasks", learning.stages.on()
    return {
        "learning.sft.example_format=tasks and learning.stages need policy.kind=pretrained or policy.tokenizer=bytes": bool(
            tasks or stages
        )
        and not knows_text,
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
    free = ("data.columns", "tune.space", "rewards.custom", "rewards.settings.events")
    for key in _dotted(layer):
        if key in known or key.startswith(tuple(f"{name}." for name in free)):
            continue
        leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        near = difflib.get_close_matches(key, leaf or known, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown config key {key!r} in {source}; the nearest known key is {near!r}")


def _dotted(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in layer.items():
        if isinstance(value, dict):
            yield from _dotted(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
