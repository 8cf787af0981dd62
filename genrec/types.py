"""Types that several packages share.

Items are rows of the catalogue (0 … N-1) everywhere inside genrec; the shop's own item ids (strings) are in the item
table alone. Tensor names end in their shape: B queries, G candidates per query, W beams, L levels,
K codes per level, P prompt tokens, N items, D dimensions.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Codes = tuple[int, ...]
"""A semantic ID, coarse to fine, e.g. ``(17, 3, 250)``."""


@dataclass(frozen=True, slots=True)
class HistoryContext:
    """What is known of a history besides its items, and what is asked for.

    ``HistoryContext(("view", "cart"), (1470000000, 1470000040), "purchase")``: a view, 40 s later a cart event; which
    item will be bought next? ``events`` and ``times`` (as in the sequences) have one entry per item, oldest first, or
    none at all; an event type that is not known is None.
    """

    events: tuple[str | None, ...] = ()
    times: tuple[int, ...] = ()
    wanted: str | None = None

    def last(self, count: int) -> HistoryContext:
        """That of the last ``count`` items, 1 or more."""
        return HistoryContext(self.events[-count:], self.times[-count:], self.wanted)


NO_CONTEXT = HistoryContext()

DIGEST_BYTES = 1 << 25
"""Bytes of a tensor that one thread hashes at a time."""


@dataclass(frozen=True, slots=True)
class Query:
    """A user's history and the item that followed it.

    ``Query(id=7, user=3, history=(12, 40, 12), target=99)``: user 3 touched items 12, 40, 12 (oldest first)
    and then 99. Rewards and metrics look up a query by its ``id``, never by the text of its prompt. ``draw`` is its
    place in a run's stream of queries: the same query gets other random numbers when it comes again. ``context`` has
    the history's events and times, and the event type of the target as the one that is asked for.
    """

    id: int
    user: int
    history: tuple[int, ...]
    target: int
    draw: int = 0
    context: HistoryContext = NO_CONTEXT


@dataclass(frozen=True)
class Snapshot:
    """The trainable tensors of a policy at one version, on the CPU, by name.

    It is sent with its sender's digest: a receiver that computes its own detects a changed tensor.
    """

    version: int
    tensors: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and of the SHA-256 of each ``DIGEST_BYTES`` of the tensors, in name order.

        Parts are hashed by as many threads as there are cores: one hashes a gigabyte in a second, and the weights of a
        large policy are hashed twice in every update.
        """
        parts = list[memoryview]()
        total = hashlib.sha256()
        for name in sorted(self.tensors):
            raw = _bytes_of(self.tensors[name]).data
            total.update(f"{name}:{len(raw)};".encode())
            parts += [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for digest in pool.map(_sha256, parts):
                total.update(digest)
        return total.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tensors travel as NumPy arrays of their bytes, which Ray keeps in shared memory and maps without a copy.

        As tensors they would be pickled, which takes longer (``genrec bench transport``). So those that arrive may be
        read-only.
        """
        parts = {name: (tensor.dtype, tensor.shape, _bytes_of(tensor)) for name, tensor in self.tensors.items()}
        return _received_snapshot, (self.version, parts, self.digest)


def _bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor on the CPU, a NumPy array (n,) of uint8; its own memory where that is contiguous."""
    import torch

    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy()


def _sha256(part: memoryview) -> bytes:
    return hashlib.sha256(part).digest()


def _received_snapshot(version: int, parts: Mapping[str, tuple[Any, Any, Any]], digest: str) -> Snapshot:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = {
            name: torch.from_numpy(bytes_).view(dtype).reshape(shape) for name, (dtype, shape, bytes_) in parts.items()
        }
    snapshot = Snapshot(version, tensors)
    snapshot.__dict__["digest"] = digest
    return snapshot


@dataclass(slots=True)
class Group:
    """The G candidates that one policy version generated for one query, best beam first.

    ``items_G``: items, -1 for empty candidates. ``logp_GL``: log-probabilities of the trie-renormalised policy, one per
    level (0 for a forced step). ``rewards_G``: empty until ``compute_rewards`` fills it, as is ``terms``, each term's
    weighted values (G,). ``weights_G``: importance weights of candidates drawn without replacement; None: all equal.

    With ``slate`` = J > 0 a candidate is an ordered list of J items: items, codes and log-probabilities then have
    G · J rows, list after list, and ``gains_GJ`` what each position adds to the reward of its list.

    In a group of what is served (``learning.rl.served``), ``head_G`` holds weight · log p_head(item) of the policy that
    generated it, and ``prior_G`` weight · log p_prior(item), a constant; None in others.
    """

    query: Query
    version: int
    items_G: torch.Tensor
    codes_GL: torch.Tensor
    logp_GL: torch.Tensor
    rewards_G: torch.Tensor
    terms: dict[str, torch.Tensor]
    weights_G: torch.Tensor | None = None
    slate: int = 0
    gains_GJ: torch.Tensor | None = None
    head_G: torch.Tensor | None = None
    prior_G: torch.Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tensors travel as bytes: a batch has hundreds of them, and each would take longer to pickle than to send."""
        return _received_group, tuple(_packed(getattr(self, one.name)) for one in fields(self))

    @property
    def score_G(self) -> torch.Tensor:
        """What the search ranked the candidates by, (G,): log π(item), with item head and prior where it is served."""
        score_G = self.logp_GL.sum(-1)
        return score_G if self.head_G is None or self.prior_G is None else score_G + self.head_G + self.prior_G

    @property
    def real_G(self) -> torch.Tensor:
        """False for empty candidates, (G,): those without an item, or lists in which one is missing."""
        real_G = self.items_G >= 0
        return real_G.view(-1, self.slate).all(-1) if self.slate else real_G


class _TensorBytes(NamedTuple):
    dtype: Any
    shape: tuple[int, ...]
    raw: bytes


def _packed(value: object) -> Any:
    """A tensor as bytes, also in a dict; anything else as it is."""
    import torch

    if isinstance(value, dict):
        return {name: _packed(one) for name, one in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    return _TensorBytes(value.dtype, tuple(value.shape), _bytes_of(value).tobytes())


def _unpacked(value: Any) -> Any:
    """What ``_packed`` was given; its tensors have memory of their own."""
    import torch

    if isinstance(value, dict):
        return {name: _unpacked(one) for name, one in value.items()}
    if not isinstance(value, _TensorBytes):
        return value
    if not value.raw:
        return torch.empty(value.shape, dtype=value.dtype)
    return torch.frombuffer(bytearray(value.raw), dtype=value.dtype).reshape(value.shape)


def _received_group(*values: Any) -> Group:
    return Group(*map(_unpacked, values))


class Rollouts(Protocol):
    """Where candidates are generated: in this process or on actors."""

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> Any:
        """Start to generate one group per query with ``policy``; returns a ticket for ``collect``."""
        ...

    def collect(self, ticket: Any) -> list[Group]:
        """Wait for the groups of a ticket, in the order of its queries."""
        ...
