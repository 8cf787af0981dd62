"""A mixture of tasks as a training set: every example is a function of (seed, epoch, task, row, visit).

A task with weight w and repeat n uses each of its rows n times per epoch, each time with another template, and has the
share w of the loss: the factor of its examples is f = w / (its share of the examples), so that the mean of f is 1. With
``learning.instruction.balance=examples`` f is 1 for all: a task counts by its number of examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genrec.config import Tasks
from genrec.errors import InputError
from genrec.learning.sft.batches import Epochs, RowExamples, Rows
from genrec.learning.tasks.examples import ExampleBuilder
from genrec.policy.chat.chat_format import ChatFormat, Encoded
from genrec.policy.chat.task_schema import TASKS
from genrec.policy.chat.templates import Message
from genrec.seeds import generator_of

NEXT_ITEM = "next_item"
ORDER = (NEXT_ITEM, *TASKS)
"""All tasks."""

CACHE = 1024
"""Conversations whose tokens are cached: about those of one batch."""

SAMPLE = 64
"""Examples per task from which the statistics are estimated."""


@dataclass(frozen=True)
class MixedBatch:
    """Examples of several tasks.

    R next-item queries: ``rows`` and their factors ``factor_R`` (all equal). C conversations: ``tokens_CS``
    (right-padded), ``mask_CS`` (True at real tokens), ``label_CS`` (True at learned tokens) and ``factor_C``.
    ``place_B``: where each of them, queries first, stood among the examples that were asked for; None: in this order.
    """

    rows: Rows
    factor_R: Tensor
    tokens_CS: Tensor
    mask_CS: Tensor
    label_CS: Tensor
    factor_C: Tensor
    place_B: Tensor | None = None

    @property
    def targets(self) -> int:
        """Number of examples."""
        return len(self.factor_R) + len(self.factor_C)

    @property
    def targets_B(self) -> Tensor:
        """One per example."""
        return torch.ones(self.targets)


@dataclass(frozen=True)
class TaskShare:
    """A task's part of the mixture: its rows, visits per row and epoch, and the factor of its examples' loss."""

    name: str
    rows_R: np.ndarray
    repeat: int
    factor: float

    @property
    def count(self) -> int:
        """Examples per epoch."""
        return len(self.rows_R) * self.repeat


class Mixture:
    """The examples of the chosen tasks (``Examples`` protocol, with the epoch in the index; see ``MixtureEpochs``).

    Args:
        builder: of the conversations.
        queries: the training queries, in the order in which ``builder`` has them.
        chat_format: turns conversations into tokens.
        max_tokens: the positions of the model, the longest conversation allowed.
        balance: what a task's share of the loss is: its weight, or its share of the examples.

    Raises:
        InputError: a task has no usable row, or an example is longer than ``max_tokens``.
    """

    def __init__(
        self,
        tasks: Tasks,
        builder: ExampleBuilder,
        queries: RowExamples,
        chat_format: ChatFormat,
        *,
        seed: int,
        max_tokens: int,
        balance: Literal["weights", "examples"] = "weights",
    ) -> None:
        self._builder, self._queries, self._format = builder, queries, chat_format
        self._seed, self._max_tokens = seed, max_tokens
        # A batch is sorted by length before it is cut into pieces: without a cache it would be built twice.
        self._encoded = lru_cache(maxsize=CACHE)(self._encode)
        chosen = tasks.chosen
        rows = {name: self._rows(name) for name in chosen}
        counts = {name: len(rows[name]) * task.repeat for name, task in chosen.items()}
        weights = {name: task.weight if balance == "weights" else counts[name] for name, task in chosen.items()}
        scale = sum(counts.values()) / sum(weights.values())
        self.shares = tuple(
            TaskShare(name, rows[name], task.repeat, weights[name] / counts[name] * scale)
            for name, task in chosen.items()
        )
        self._starts = np.cumsum([0, *(share.count for share in self.shares)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def kinds(self) -> list[range]:
        """The numbers of each task's examples."""
        return [range(int(a), int(b)) for a, b in pairwise(self._starts)]

    def lengths(self) -> np.ndarray:
        """Items of history per example, 0 for examples about an item: the length of a conversation grows with it."""
        parts = [np.repeat(self._lengths(share.name, share.rows_R), share.repeat) for share in self.shares]
        return np.concatenate(parts)

    def take(self, index: np.ndarray) -> MixedBatch:
        """The examples ``index`` (B,), each ``epoch * len(self) + number``."""
        rows: list[int] = []
        factor_R: list[float] = []
        factor_C: list[float] = []
        encoded: list[tuple[Tensor, Tensor]] = []
        place_R: list[int] = []
        place_C: list[int] = []
        for place, one in enumerate(index):
            epoch, number = divmod(int(one), len(self))
            share, row, visit = self._locate(number)
            if share.name == NEXT_ITEM:
                rows.append(row)
                factor_R.append(share.factor)
                place_R.append(place)
                continue
            found = self._encoded(share.name, row, epoch, visit)
            self._require_fits(share.name, row, len(found.tokens_S))
            encoded.append((found.tokens_S, found.label_S))
            factor_C.append(share.factor)
            place_C.append(place)
        pieces = _padded(encoded)
        return MixedBatch(
            self._queries.take(np.array(rows, dtype=np.int64)),
            torch.tensor(factor_R),
            *pieces,
            torch.tensor(factor_C),
            torch.tensor(place_R + place_C, dtype=torch.long),
        )

    def targets(self, index: np.ndarray) -> int:
        """Number of the examples ``index`` (B,): B."""
        return len(index)

    def names(self, index: np.ndarray) -> list[str]:
        """The tasks and rows of the examples ``index`` (B,) of ``take``."""
        located = (self._locate(int(one) % len(self)) for one in index)
        return [f"{share.name} of row {row}" for share, row, _ in located]

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Tokens (B,) of the conversations among the examples ``index`` (B,) of ``take``, 0 for next items."""
        return np.array([int(self.take(index[at : at + 1]).mask_CS.sum()) for at in range(len(index))])

    def build(self, task: str, row: int, epoch: int, visit: int = 0) -> list[Message]:
        """The conversation of a task about a row, in the template of this epoch and visit."""
        rng = generator_of(f"task {task}", self._seed, epoch, row, visit)
        return self._builder.build(task, row, rng)

    def statistics(self) -> dict[str, Any]:
        """Per task: rows, examples per epoch, share of the loss, and estimates from ``SAMPLE`` examples.

        The estimates: the mean number of tokens and of learned tokens, and the share of SID tokens among the learned
        ones, which is also given over all tasks.
        """
        tasks: dict[str, dict[str, float]] = {}
        labels = sids = 0.0
        for share in self.shares:
            found = self._sampled(share)
            tasks[share.name] = {
                "rows": len(share.rows_R),
                "examples": share.count,
                "loss_share": round(share.factor * share.count / len(self), 4),
                "factor": round(share.factor, 4),
                **{name: round(value, 4) for name, value in found.items()},
            }
            labels += share.count * found["label_tokens"]
            sids += share.count * found["label_tokens"] * found["sid_share"]
        return {"examples": len(self), "sid_share": round(sids / labels, 4), "tasks": tasks}

    def _encode(self, task: str, row: int, epoch: int, visit: int) -> Encoded:
        built = self.build(task, row, epoch, visit)
        return self._format.encode_passage(built[0].parts) if TASKS[task].is_passage else self._format.encode(built)

    def _lengths(self, name: str, rows_R: np.ndarray) -> np.ndarray:
        return self._queries.lengths()[rows_R] if name == NEXT_ITEM else self._builder.lengths(name, rows_R)

    def _rows(self, name: str) -> np.ndarray:
        if name != NEXT_ITEM:
            return self._builder.rows(name)
        return np.arange(len(self._queries.lengths()))

    def _locate(self, number: int) -> tuple[TaskShare, int, int]:
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        share = self.shares[at]
        row, visit = divmod(number - int(self._starts[at]), share.repeat)
        return share, int(share.rows_R[row]), visit

    def _sampled(self, share: TaskShare) -> dict[str, float]:
        levels = len(self._format.sids.level_sizes)
        if share.name == NEXT_ITEM:
            tokens = self._queries.lengths().mean() * levels
            return {"tokens": float(tokens), "label_tokens": float(levels), "sid_share": 1.0}
        rows = share.rows_R[np.linspace(0, len(share.rows_R) - 1, min(SAMPLE, len(share.rows_R))).astype(int)]
        encoded = [self._encode(share.name, int(row), 0, 0) for row in rows]
        learned = torch.cat([one.tokens_S[one.label_S] for one in encoded])
        return {
            "tokens": sum(len(one.tokens_S) for one in encoded) / len(rows),
            "label_tokens": len(learned) / len(rows),
            "sid_share": float((learned >= self._format.sids.text_end).float().mean()),
        }

    def _require_fits(self, task: str, row: int, length: int) -> None:
        if length > self._max_tokens:
            raise InputError(
                f"{task} of row {row}: got {length} tokens, the model reads {self._max_tokens}; lower "
                "data.max_history, or window, text_words or turns in learning.instruction"
            )


class MixtureEpochs(Epochs):
    """Batches of a mixture whose examples are built anew each epoch; pieces of a batch hold similar lengths."""

    def __init__(self, mixture: Mixture, batch_size: int, seed: int, second_pass: float = 0.0) -> None:
        self._mixture, self._count = mixture, len(mixture)
        super().__init__(mixture, batch_size, seed, second_pass)

    def index(self, step: int) -> np.ndarray:
        """Example numbers of the batch of ``step``, with its epoch."""
        return super().index(step) + step // self.steps * self._count

    def _kinds(self) -> list[range]:
        return self._mixture.kinds()

    def _ordered(self, index: np.ndarray) -> np.ndarray:
        return index[np.argsort(self._mixture.sizes(index), kind="stable")]


def table(statistics: Mapping[str, Any]) -> str:
    """The statistics as lines of text."""
    names = ("examples", "loss_share", "tokens", "label_tokens", "sid_share")
    head = f"{'task':32}" + "".join(f"{name:>14}" for name in names)
    rows = [
        f"{task:32}" + "".join(f"{found[name]:>14g}" for name in names) for task, found in statistics["tasks"].items()
    ]
    last = f"{statistics['examples']} examples an epoch; {statistics['sid_share']:.1%} of the learned tokens are SIDs"
    return "\n".join([head, *rows, last])


def _padded(encoded: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max((len(tokens_S) for tokens_S, _ in encoded), default=0)
    tokens_CS = torch.zeros(len(encoded), width, dtype=torch.long)
    mask_CS, label_CS = (torch.zeros(len(encoded), width, dtype=torch.bool) for _ in range(2))
    for row, (tokens_S, label_S) in enumerate(encoded):
        tokens_CS[row, : len(tokens_S)] = tokens_S
        mask_CS[row, : len(tokens_S)] = True
        label_CS[row, : len(tokens_S)] = label_S
    return tokens_CS, mask_CS, label_CS
