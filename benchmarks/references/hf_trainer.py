"""Supervised fine-tuning by the ``Trainer`` of Hugging Face transformers, on the same rows as ``SftTrainer``."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from genrec.learning.sft.batches import RowExamples
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog

IGNORED = -100
"""The label of a token that is not learned."""

Row = dict[str, list[int]]
"""``input_ids`` and ``labels`` of a prompt and the target's SID behind it."""


def hf_step_seconds(
    policy: Policy, prompts: Prompts, catalog: Catalog, examples: RowExamples, *, batch_size: int, steps: int
) -> list[float]:
    """Seconds from the start of each optimizer step to that of the next; trains ``policy`` in place.

    The loss is the model's own: the cross-entropy of the SID's tokens over the whole vocabulary.
    """
    clock = _StepClock()
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            learning_rate=1e-3,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=policy.device.type == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        rows = _HfRows(prompts, catalog, examples)
        Trainer(policy.model, arguments, data_collator=_collate, train_dataset=rows, callbacks=[clock]).train()
    return [after - before for before, after in pairwise(clock.starts)]


class _StepClock(TrainerCallback):
    """Notes when each step starts."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_step_begin(self, *arguments: Any, **options: Any) -> None:
        """Called by the ``Trainer``."""
        self.starts.append(time.perf_counter())


class _HfRows(Dataset[Row]):
    """The examples as the ``Trainer`` reads them."""

    def __init__(self, prompts: Prompts, catalog: Catalog, examples: RowExamples) -> None:
        batch = examples.take(np.arange(len(examples.lengths())))
        self._rows: list[Row] = []
        for history, target in zip(batch.histories, batch.target_B.tolist(), strict=True):
            prompt = prompts.encode([history])[0][0].tolist()
            answer = prompts.sids.tokens(catalog.codes_NL[target]).tolist()
            self._rows.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def _collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """The rows of a batch are of one length here: no padding."""
    tokens_BS = torch.tensor([row["input_ids"] for row in rows])
    return {
        "input_ids": tokens_BS,
        "attention_mask": torch.ones_like(tokens_BS),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
