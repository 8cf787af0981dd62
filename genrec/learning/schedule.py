"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from genrec.config import Sft

STEPS, FEWEST, MOST = 1100, 8, 60
"""Optimizer steps that a policy from scratch needs (docs/results/policy.md), and the epochs that they may take."""


def epochs_for(wanted: int, steps_per_epoch: int) -> int:
    """``wanted`` epochs, or as many as make ``STEPS`` steps if it is 0: at least ``FEWEST``, at most ``MOST``."""
    return wanted or min(max(FEWEST, math.ceil(STEPS / steps_per_epoch)), MOST)


def total_steps(settings: Sft, steps_per_epoch: int) -> int:
    """Optimizer steps of a whole training."""
    total = epochs_for(settings.epochs, steps_per_epoch) * steps_per_epoch
    return min(total, settings.max_steps) if settings.max_steps else total


def learning_rate(step: int, total: int, *, peak: float, low: float, warmup: float) -> float:
    """peak · (step + 1) / W during W = warmup · total steps, then low + (peak - low) · ½ (1 + cos(π x)).

    x rises from 0 to 1 over the remaining steps (Loshchilov & Hutter 2017, eq. 5). ``step`` counts from 0.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return peak * (step + 1) / rising
    x = (step - rising) / max(1, total - rising)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, x)))
