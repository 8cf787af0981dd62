"""The last layer of a model at the positions whose hidden states are needed, and at no others.

After its keys and values a layer works position by position. So where the hidden states of the first tokens of a
sequence are not needed, its last layer has to compute only keys and values for them: no attention, no output
projection, no MLP. For a prompt before a search that saves most of one layer in n, and changes no result.

``install`` prepares a model once, ``skip_states_before`` asks for it around a call. Two hooks do the work on the last
layer of a Hugging Face model. The pre-hook runs the layer on the first tokens with a cache that raises ``_KeysCached``
as soon as it has their keys and values, and then passes the remaining tokens on to the ordinary call. The post-hook
pads the output with zeros to the full length.

This relies on the following in transformers; ``tests/policy/test_last_layer.py`` fails for each supported family when
a release changes it:

1. the body holds its layers in a ``ModuleList`` of ``num_hidden_layers`` modules and applies them in order;
2. a layer takes the hidden states (B, S, D) as its first argument, and the cache as ``past_key_values``;
3. it calls ``past_key_values.update`` once, and computes keys and values of a position from that position alone;
4. of its other arguments, a 4-D tensor is an attention mask with queries at axis 2, and any other tensor of S positions
   has them at axis 1;
5. it returns the hidden states, alone or first in a tuple.

Where 1 or 2 does not hold, every position is computed as usual. A layer that does not call ``update`` ends in an error:
its attention gets fewer keys than the mask has.
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
from transformers import Cache, DynamicCache


@dataclass
class _SkipRequest:
    """Skip the states before ``start``; ``granted`` once the layer's keys and values for them are cached."""

    start: int
    granted: bool = False


_skip_request: ContextVar[_SkipRequest | None] = ContextVar("skip_request", default=None)
"""The request of the current thread; without one the hooks do nothing."""


def install(body: nn.Module, layers: int) -> bool:
    """Add the hooks to the last of the ``layers`` layers of ``body``; False if no list of layers is found."""
    found = find_layers(body, layers)
    if found is None:
        return False
    found[-1].register_forward_pre_hook(_pre_hook, with_kwargs=True)
    found[-1].register_forward_hook(_post_hook)
    return True


def find_layers(body: nn.Module, count: int) -> nn.ModuleList | None:
    """The list of the ``count`` layers of ``body``; None if it has no such list."""
    lists = (module for module in body.modules() if isinstance(module, nn.ModuleList))
    return next((module for module in lists if len(module) == count), None)


@contextmanager
def skip_states_before(start: int) -> Generator[None]:
    """Inside this context the hidden states of positions before ``start`` may be anything.

    Only layers in evaluation mode make use of it: training may wrap or recompute them.
    """
    token = _skip_request.set(_SkipRequest(start) if start > 0 else None)
    try:
        yield
    finally:
        _skip_request.reset(token)


class _KeysCached(Exception):
    """Raised out of a layer's forward: the keys and values are cached, and the rest of the layer is not needed."""


class _KeyOnlyCache:
    """A cache that stores one layer's keys and values, and then raises ``_KeysCached``."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def update(self, *arguments: Any, **options: Any) -> None:
        """Store keys and values; never returns."""
        self._cache.update(*arguments, **options)
        raise _KeysCached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _pre_hook(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
    """Cache keys and values of the skipped positions, and return the layer's arguments for the others."""
    request = _skip_request.get()
    if request is None or layer.training:
        return None
    call = inspect.signature(layer.forward).bind(*positional, **named)
    arguments = call.arguments
    if "past_key_values" not in call.signature.parameters:
        return None
    length, cache = next(iter(arguments.values())).shape[1], arguments.get("past_key_values")
    cache = DynamicCache() if cache is None else cache
    arguments["past_key_values"] = _KeyOnlyCache(cache)
    skipped = _slice_positions(arguments, length, slice(0, request.start))
    needed = _slice_positions(arguments, length, slice(request.start, None))
    try:
        call.arguments = skipped
        layer.forward(*call.args, **call.kwargs)
    except _KeysCached:
        request.granted = True
    else:
        raise RuntimeError(
            f"{type(layer).__name__} cached no keys and values; wanted one call of past_key_values.update: "
            "use a version of transformers that genrec was tested with"
        )
    needed["past_key_values"] = cache
    call.arguments = needed
    return call.args, call.kwargs


def _post_hook(layer: nn.Module, positional: tuple[Any, ...], output: Any) -> Any:
    """Zeros at the skipped positions, so that the output is as long as the input of the model."""
    request = _skip_request.get()
    if request is None or not request.granted:
        return None
    if isinstance(output, tuple):
        return (F.pad(output[0], (0, 0, request.start, 0)), *output[1:])
    return F.pad(output, (0, 0, request.start, 0))


def _slice_positions(value: Any, length: int, part: slice) -> Any:
    """The positions ``part`` of every tensor in ``value`` that has ``length`` of them, inside dicts and tuples too."""
    if isinstance(value, dict):
        return {name: _slice_positions(entry, length, part) for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_slice_positions(entry, length, part) for entry in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4:
        return value[:, :, part]
    return value[:, part] if value.ndim > 1 and value.shape[1] == length else value
