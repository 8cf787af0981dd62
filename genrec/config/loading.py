"""How a config is read: defaults < YAML files, left to right < ``dotted.key=value`` overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from genrec.config.packaged import find_config
from genrec.config.root import Config
from genrec.config.section import Section, describe, dotted_keys, nearest_key
from genrec.config.tune import flattened
from genrec.errors import InputError

RENAMED = {
    "bench.rows": "bench.variants",
    "compute.local_mb": "compute.in_process_below_mb",
    "compute.mlflow": "compute.mlflow_uri",
    "learning.grpo": "learning.rl",
    "learning.grpo.average": "learning.rl.ema_decay",
    "learning.sft.form": "learning.sft.example_format",
    "learning.stages.rows": "learning.stages.sid_embeddings",
    "policy.form": "policy.finetuning",
    "policy.text": "policy.tokenizer",
    "sid.codes": "sid.codebook_size",
}
"""Old keys, and sections, with their new names: a config that was written for them is told what to write."""


UNREADABLE = (YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, AssertionError, RecursionError)
"""What the YAML reader raises for text that it cannot make sense of: bad dates and keys are not its own errors."""


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Merge ``files`` left to right, then ``overrides``, into a validated ``Config``.

    Args:
        files: paths of YAML files, or names of packaged ones (``demo``, ``versions/v1``).
        overrides: ``dotted.key=value``.

    Raises:
        InputError: a missing file, broken YAML, an unknown key (with the nearest one) or a bad value.
    """
    merged = OmegaConf.create()
    for source, layer in _layers(files, overrides):
        _refuse_unknown_keys(layer, source)
        try:
            merged = OmegaConf.merge(merged, OmegaConf.create(_with_flat_space(layer, merged)))
        except UNREADABLE as error:
            raise InputError(f"{source} does not fit what came before it: {error}") from None
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
        return Config.model_validate(plain)
    except ValidationError as error:
        raise InputError(describe(error)) from None
    except OmegaConfBaseException as error:
        raise InputError(f"invalid config: {error}") from None


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``dotted.key=value`` texts as keys and values, for ``Config.replace``.

    Raises:
        InputError: as ``load_config``, for a key that does not exist or a text that is no override.
    """
    found: dict[str, Any] = {}
    for source, layer in _layers([], overrides):
        _refuse_unknown_keys(layer, source)
        found |= {key: OmegaConf.select(OmegaConf.create(dict(layer)), key) for key in _dotted(layer)}
    return found


def to_yaml(config: Section) -> str:
    """The resolved section as YAML, readable back by ``load_config``."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _layers(files: Sequence[str | Path], overrides: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in map(find_config, files):
        text = _text(file)
        try:
            layer = OmegaConf.to_container(OmegaConf.create(text))
        except UNREADABLE as error:
            why = " ".join(str(error).split()) or repr(text[:40])
            raise InputError(f"{file} is not valid YAML of config keys: {why}") from None
        yield str(file), _mapping(layer or {}, str(file))
    for text in overrides:
        key, separator, _ = text.partition("=")
        if not separator or not key:
            raise InputError(f"override {text!r} is not of the form dotted.key=value")
        try:
            layer = OmegaConf.to_container(OmegaConf.from_dotlist([text]))
        except UNREADABLE as error:
            raise InputError(f"override {text!r} cannot be read: {error}") from None
        yield f"the command line ({text})", _mapping(layer, text)


def _text(file: Path) -> str:
    """A file's text; the mark that some editors begin UTF-8 with is left out."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"config file {file} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"config file {file} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; save it as "
            "UTF-8, or write `iconv -f LATIN1 -t UTF-8` over it"
        ) from None


def _with_flat_space(layer: Mapping[str, Any], before: Container) -> dict[str, Any]:
    """``layer``, whose whole dimensions of ``tune.space`` take the place of those ``before``, whatever their kinds.

    A mapping without a kind, or of nothing else, is a part of one, as in ``tune.space.prefix.values=[0,1]``.
    """
    tune = layer.get("tune")
    space = tune.get("space") if isinstance(tune, dict) else None
    if not isinstance(space, dict):
        return dict(layer)
    flat = dict(flattened(cast("Mapping[str, Any]", space)))
    old = OmegaConf.select(before, "tune.space", default=OmegaConf.create())
    for name, one in flat.items():
        is_part = isinstance(one, dict) and ("kind" not in one or len(cast("dict[str, Any]", one)) == 1)
        if not (is_part and isinstance(old.get(name), DictConfig)):
            old.pop(name, None)
    return {**layer, "tune": {**cast("dict[str, Any]", tune), "space": flat}}


def _mapping(layer: object, source: str) -> Mapping[str, Any]:
    if not isinstance(layer, dict):
        raise InputError(f"{source} holds a {type(layer).__name__}, a mapping of config keys was expected")
    return cast("Mapping[str, Any]", layer)


def known_keys() -> Iterator[str]:
    """Every dotted key of the config, sections included."""
    return dotted_keys(Config)


def _refuse_unknown_keys(layer: Mapping[str, Any], source: str) -> None:
    known = list(known_keys())
    free = ("data.columns", "tune.space", "rewards.custom", "rewards.settings.events", "learning.rl.guard.keep")
    free += ("bench.parts", "bench.grid")
    free += tuple(f"compute.{name}_resources" for name in ("worker", "rollout", "data"))
    for key in _dotted(layer):
        if key in known or key.startswith(tuple(f"{name}." for name in free)):
            continue
        if new := renamed(key):
            raise InputError(f"config key {key!r} in {source} has a new name: {new!r}")
        near = nearest_key(key, known)
        raise InputError(f"unknown config key {key!r} in {source}; the nearest known key is {near!r}")


def _dotted(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in layer.items():
        if isinstance(value, dict):
            yield from _dotted(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def renamed(key: str) -> str | None:
    """The new name of a key that was renamed, alone or with its section; None for any other key."""
    for old in sorted(RENAMED, key=len, reverse=True):
        if key == old or key.startswith(f"{old}."):
            return RENAMED[old] + key.removeprefix(old)
    return None
