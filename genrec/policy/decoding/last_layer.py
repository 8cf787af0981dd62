"""The last layer of a model at the positions whose states are read, and at no others.

Everything behind the last layer's keys and values works position by position, so where the states of a sequence's
first tokens are not wanted, its last layer owes them keys and values and nothing else: no attention of their own, no
output projection, no MLP. Behind a prompt that saves most of one layer in n, exactly.

The layer is that of the Hugging Face model, whatever its family: hooks around it hand its first tokens in alone, end
that call when their keys and values reach the cache, and then hand in the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass
class _SkipRequest:
    start: int
    granted: bool = False


_skip_request: ContextVar[_SkipRequest | None] = ContextVar("wish", default=None)
"""Of this thread; the hooks stay where they are, and do nothing without a wish."""


class _KeysCached(Exception):
    """The keys and values are in the cache: nothing else of the layer is wanted."""


class _KeyOnlyCache:
    """A cache that takes one layer's keys and values, and ends the layer."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, *arguments: Any, **settings: Any) -> None:
        """Hand on, and end."""
        self._cache.update(*arguments, **settings)
        raise _KeysCached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def prepare(body: nn.Module, layers: int) -> None:
    """Make ``body``, a model of so many layers, heed ``states_from``. A body of unknown shape is left alone."""
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            module[-1].register_forward_pre_hook(_pre_hook, with_kwargs=True)
            module[-1].register_forward_hook(_post_hook)
            return


@contextmanager
def states_from(start: int) -> Generator[None]:
    """Within, states before position ``start`` may come out as anything, where that saves time.

    Only in evaluation mode: training may wrap or recompute layers.
    """
    token = _skip_request.set(_SkipRequest(start) if start > 0 else None)
    try:
        yield
    finally:
        _skip_request.reset(token)


def _pre_hook(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
    wish = _skip_request.get()
    if wish is None or layer.training:
        return None
    call = inspect.signature(layer.forward).bind(*positional, **named)
    values = call.arguments
    if "past_key_values" not in call.signature.parameters:
        return None
    length, cache = next(iter(values.values())).shape[1], values.get("past_key_values")
    cache = DynamicCache() if cache is None else cache
    values["past_key_values"] = _KeyOnlyCache(cache)
    first, rest = _cut(values, length, slice(0, wish.start)), _cut(values, length, slice(wish.start, None))
    try:
        call.arguments = first
        layer.forward(*call.args, **call.kwargs)
    except _KeysCached:
        wish.granted = True
        rest["past_key_values"] = cache
        call.arguments = rest
        return call.args, call.kwargs
    return None


def _post_hook(layer: nn.Module, positional: tuple[Any, ...], output: Any) -> Any:
    """Zeros in the places that were left out: the model goes on with as many states as it began with."""
    wish = _skip_request.get()
    if wish is None or not wish.granted:
        return None
    if isinstance(output, tuple):
        return (F.pad(output[0], (0, 0, wish.start, 0)), *output[1:])
    return F.pad(output, (0, 0, wish.start, 0))


def _cut(value: Any, length: int, part: slice) -> Any:
    """The positions ``part`` of every tensor that has ``length`` of them: states, positions, rotations, masks."""
    if isinstance(value, dict):
        return {name: _cut(entry, length, part) for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(entry, length, part) for entry in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4:
        return value[:, :, part]
    return value[:, part] if value.ndim > 1 and value.shape[1] == length else value
