"""The guard of an update: a version is kept if it is better on new queries and not worse on old ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from genrec.config import Update
from genrec.learning.rl.guard import significant_drop

Values = Mapping[str, Tensor]
"""NDCG@10 per query, (Q,), of the ``old`` and of the ``new`` validation queries."""


@dataclass
class UpdateGuard:
    """Judges versions by both sets of queries, each compared with the policy before the update, query by query.

    A version is refused if NDCG@10 of one set drops by more than ``guard_noise`` standard errors and by more than the
    share ``guard_drop``. Of the others the one with the best mean of both sets is kept, if that is above the start's.
    """

    settings: Update
    base: Values = field(default_factory=dict[str, Tensor])
    best_step: int = 0
    best_score: float = float("-inf")
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def judge(self, step: int, values: Values, tensors: Mapping[str, Tensor]) -> dict[str, float | str]:
        """Look at a version; returns its mean NDCG@10 of each set, and why it was refused, if it was."""
        means = {name: float(values_Q.nanmean()) for name, values_Q in values.items() if len(values_Q)}
        score = sum(means.values()) / max(1, len(means))
        if not self.base:
            self.base, self.best_score = dict(values), score
            return {**means}
        reason = self._reason(values)
        if not reason and score > self.best_score:
            self.best_step, self.best_score, self.best = step, score, dict(tensors)
        return {**means, **({"refused": reason} if reason else {})}

    def _reason(self, values: Values) -> str:
        noise, share = self.settings.guard_noise, self.settings.guard_drop
        for name, values_Q in values.items():
            drop = significant_drop(values_Q, self.base[name], noise=noise, share=share)
            if drop:
                return f"NDCG@10 of {name} queries fell by {drop:.4f}"
        return ""
