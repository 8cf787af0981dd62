"""A policy goes on learning from new events for some steps, with a share of old ones in each batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.config import Update
from genrec.learning.divergence import require_finite
from genrec.learning.schedule import learning_rate
from genrec.learning.sft.batches import RowExamples, Rows
from genrec.learning.sft.trainer import parameter_groups
from genrec.learning.update.drift_loss import DriftLoss
from genrec.learning.update.update_guard import UpdateGuard, Values
from genrec.policy.model import Policy
from genrec.seeds import generator_of, seed_of

LOG = logging.getLogger(__name__)

Measure = Callable[[Policy], Values]
"""NDCG@10 per validation query of the policy as it stands; see ``Values``."""


@dataclass(frozen=True)
class UpdateResult:
    """The tensors of the version that was kept, empty where none was; its step; what was seen at each validation."""

    tensors: Mapping[str, Tensor]
    best_step: int
    curve: list[dict[str, float | str]]


class UpdateTrainer:
    """Trains ``policy`` in place on batches of which the share ``replay`` are old queries.

    The batch of a step is a function of the seed and the step alone.

    Args:
        new, old: the queries to learn from; without old ones all of a batch is new.
        loss: with the policy's former self.
        judge: measures a version; the guard decides which is kept.
    """

    def __init__(
        self,
        policy: Policy,
        new: RowExamples,
        old: RowExamples | None,
        loss: DriftLoss,
        settings: Update,
        *,
        judge: Measure,
        seed: int,
    ) -> None:
        self._policy, self._new, self._old, self._loss = policy, new, old, loss
        self._settings, self._judge, self._seed = settings, judge, seed
        self._optimizer = torch.optim.AdamW(
            parameter_groups(policy, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98), fused=True
        )

    def run(self) -> UpdateResult:
        """Train for ``steps`` steps; the version that the guard kept, if it kept one.

        Raises:
            InputError: a loss or gradient that is not finite.
        """
        guard, settings = UpdateGuard(self._settings), self._settings
        curve = [self._judged(guard, 0)]
        for step in range(settings.steps):
            figures = self._step(step)
            if (step + 1) % settings.eval_every == 0 or step + 1 == settings.steps:
                curve.append({**figures, **self._judged(guard, step + 1)})
        return UpdateResult(guard.best, guard.best_step, curve)

    def _judged(self, guard: UpdateGuard, step: int) -> dict[str, float | str]:
        self._policy.eval()
        values = self._judge(self._policy)
        found = {"step": step, **guard.judge(step, values, self._policy.snapshot(step).tensors)}
        LOG.info("step %d/%d: %s", step, self._settings.steps, _shown(found))
        return found

    def _step(self, step: int) -> dict[str, float]:
        settings, policy = self._settings, self._policy.train()
        rate = learning_rate(step, settings.steps, peak=settings.lr, low=0.1 * settings.lr, warmup=settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed_of("dropout", self._seed, step))
        targets, losses, drifts = 0, 0.0, 0.0
        self._optimizer.zero_grad(set_to_none=True)
        pieces = list(self._pieces(step))
        total = sum(piece.targets for piece in pieces)
        for piece in pieces:
            loss_B, drift_B = self._loss(policy, piece)
            ((loss_B + self._loss.kl_weight * drift_B).sum() / total).backward()
            targets += piece.targets
            losses, drifts = losses + float(loss_B.detach().sum()), drifts + float(drift_B.detach().sum())
        parameters = [one for one in policy.trainable().values() if one.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
        remedy = f"lower learning.update.lr={settings.lr:g}"
        require_finite(step + 1, ["the new events"], remedy, loss=losses, gradient_norm=norm)
        self._optimizer.step()
        return {"loss": losses / targets, "kl": drifts / targets, "lr": rate}

    def _pieces(self, step: int) -> Generator[Rows]:
        """The batch of a step in pieces of ``micro_batch`` queries: new ones, then old ones."""
        rng, settings = generator_of("update", self._seed, step), self._settings
        replayed = 0 if self._old is None else round(settings.replay * settings.batch_size)
        for examples, count in ((self._new, settings.batch_size - replayed), (self._old, replayed)):
            if examples is None or not count:
                continue
            index = rng.choice(len(examples.lengths()), min(count, len(examples.lengths())), replace=False)
            for part in np.array_split(index, -(-len(index) // settings.micro_batch)):
                yield examples.take(part)


def _shown(found: Mapping[str, float | str]) -> str:
    return "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items() if k != "step")
