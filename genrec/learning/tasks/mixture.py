"""A mixture of tasks as a training set: every example is a function of (seed, epoch, task, row, visit).

A task with weight w and repeat n shows each of its rows n times an epoch, each time in other words, and gets w of the
loss: its examples count by w / (share of the examples that are its own), so that the mean over an epoch stays one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec.config import Tasks
from genrec.errors import InputError
from genrec.learning.sft.batches import Epochs, RowExamples, Rows
from genrec.learning.tasks.examples import ExampleBuilder
from genrec.policy.chat.chat_format import ChatFormat, Encoded
from genrec.policy.chat.templates import TASKS, Message

NEXT_ITEM = "next_item"
ORDER = (NEXT_ITEM, *TASKS)
"""A task's number in the seeds of its examples is its place here."""

KEPT = 1024
"""Conversations that are kept as tokens: those of the batch at hand."""

SAMPLE = 64
"""Examples per task that the statistics look at."""


@dataclass(frozen=True)
class Mixed:
    """Examples of several tasks.

    ``rows``: next-item queries, ``factor_R`` what each counts (the same for all). ``tokens_CS`` (right-padded),
    ``mask_CS`` (real tokens), ``label_CS`` (learned tokens), ``factor_C``: conversations.
    """

    rows: Rows
    factor_R: Tensor
    tokens_CS: Tensor
    mask_CS: Tensor
    label_CS: Tensor
    factor_C: Tensor

    @property
    def targets(self) -> int:
        """How many examples."""
        return len(self.factor_R) + len(self.factor_C)


@dataclass(frozen=True)
class Share:
    """A task's part of the mixture: its rows, visits per row and epoch, and what an example of it counts."""

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
        queries: the training queries, in the rows that ``writer`` knows them by.
        max_tokens: conversations must fit the positions of the model.

    Raises:
        InputError: a task without a usable row, or an example that is longer than the model reads.
    """

    def __init__(
        self,
        tasks: Tasks,
        writer: ExampleBuilder,
        queries: RowExamples,
        form: ChatFormat,
        *,
        seed: int,
        max_tokens: int,
    ) -> None:
        self._writer, self._queries, self._form, self._seed = writer, queries, form, seed
        self._max_tokens = max_tokens
        # A batch is measured before it is cut into pieces: its conversations are written once all the same.
        self._encoded = lru_cache(maxsize=KEPT)(self._encode)
        chosen = tasks.chosen
        rows = {name: self._rows(name) for name in chosen}
        total = sum(len(rows[name]) * task.repeat for name, task in chosen.items())
        weights = sum(task.weight for task in chosen.values())
        self.shares = tuple(
            Share(name, rows[name], task.repeat, task.weight / weights * total / (len(rows[name]) * task.repeat))
            for name, task in chosen.items()
        )
        self._starts = np.cumsum([0, *(share.count for share in self.shares)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def lengths(self) -> np.ndarray:
        """Items of history per example, 0 for examples about an item: what the length of a conversation goes by."""
        history = self._queries.lengths()
        parts = [
            np.repeat(
                history[share.rows_R] if _about_queries(share.name) else np.zeros_like(share.rows_R), share.repeat
            )
            for share in self.shares
        ]
        return np.concatenate(parts)

    def take(self, index: np.ndarray) -> Mixed:
        """The examples ``epoch * len(self) + number``."""
        rows: list[int] = []
        factor_R: list[float] = []
        factor_C: list[float] = []
        encoded: list[tuple[Tensor, Tensor]] = []
        for one in index:
            epoch, number = divmod(int(one), len(self))
            share, row, visit = self._place(number)
            if share.name == NEXT_ITEM:
                rows.append(row)
                factor_R.append(share.factor)
                continue
            found = self._encoded(share.name, row, epoch, visit)
            self._refuse_long(share.name, row, len(found.tokens_S))
            encoded.append((found.tokens_S, found.label_S))
            factor_C.append(share.factor)
        pieces = _padded(encoded)
        return Mixed(
            self._queries.take(np.array(rows, dtype=np.int64)),
            torch.tensor(factor_R),
            *pieces,
            torch.tensor(factor_C),
        )

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Tokens of the conversations among the examples of ``take``, 0 for next items."""
        return np.array([int(self.take(index[at : at + 1]).mask_CS.sum()) for at in range(len(index))])

    def write(self, task: str, row: int, epoch: int, visit: int = 0) -> list[Message]:
        """The conversation of a task about a row, in the words of this epoch and visit."""
        rng = np.random.default_rng([self._seed, epoch, ORDER.index(task), row, visit])
        return self._writer.write(task, row, rng)

    def statistics(self) -> dict[str, Any]:
        """Per task: rows, examples per epoch, share of the loss, and from a sample of ``SAMPLE`` examples the mean
        number of tokens, of label tokens, and the share of SID tokens among these; the last also over all tasks.
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
        return self._form.encode(self.write(task, row, epoch, visit))

    def _rows(self, name: str) -> np.ndarray:
        if name != NEXT_ITEM:
            return self._writer.rows(name)
        return np.arange(len(self._queries.lengths()))

    def _place(self, number: int) -> tuple[Share, int, int]:
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        share = self.shares[at]
        row, visit = divmod(number - int(self._starts[at]), share.repeat)
        return share, int(share.rows_R[row]), visit

    def _sampled(self, share: Share) -> dict[str, float]:
        levels = len(self._form.sids.level_sizes)
        if share.name == NEXT_ITEM:
            tokens = self._queries.lengths().mean() * levels
            return {"tokens": float(tokens), "label_tokens": float(levels), "sid_share": 1.0}
        rows = share.rows_R[np.linspace(0, len(share.rows_R) - 1, min(SAMPLE, len(share.rows_R))).astype(int)]
        encoded = [self._form.encode(self.write(share.name, int(row), 0)) for row in rows]
        learned = torch.cat([one.tokens_S[one.label_S] for one in encoded])
        return {
            "tokens": sum(len(one.tokens_S) for one in encoded) / len(rows),
            "label_tokens": len(learned) / len(rows),
            "sid_share": float((learned >= self._form.sids.base).float().mean()),
        }

    def _refuse_long(self, task: str, row: int, length: int) -> None:
        if length > self._max_tokens:
            raise InputError(
                f"{task} of row {row} takes {length} tokens, the model reads {self._max_tokens}; lower "
                "data.max_history, learning.instruction.text_words or learning.instruction.turns"
            )


class MixtureEpochs(Epochs):
    """Batches of a mixture whose examples are written anew each epoch; pieces of a batch are alike in length."""

    def __init__(self, mixture: Mixture, batch_size: int, seed: int) -> None:
        super().__init__(mixture, batch_size, seed)
        self._mixture, self._count = mixture, len(mixture)

    def index(self, step: int) -> np.ndarray:
        """Example numbers of the batch of ``step``, with its epoch."""
        return super().index(step) + step // self.steps * self._count

    def _arranged(self, index: np.ndarray) -> np.ndarray:
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


def _about_queries(name: str) -> bool:
    return name == NEXT_ITEM or TASKS[name].source == "queries"


def _padded(encoded: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max((len(tokens_S) for tokens_S, _ in encoded), default=0)
    tokens_CS = torch.zeros(len(encoded), width, dtype=torch.long)
    mask_CS, label_CS = (torch.zeros(len(encoded), width, dtype=torch.bool) for _ in range(2))
    for row, (tokens_S, label_S) in enumerate(encoded):
        tokens_CS[row, : len(tokens_S)] = tokens_S
        mask_CS[row, : len(tokens_S)] = True
        label_CS[row, : len(tokens_S)] = label_S
    return tokens_CS, mask_CS, label_CS
