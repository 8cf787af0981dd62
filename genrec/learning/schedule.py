"""Learning rates as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, *, peak: float, low: float, warmup: float) -> float:
    """Linear warm-up over ``warmup * total`` steps, then a cosine from ``peak`` to ``low`` (Loshchilov & Hutter 2017).

    ``step`` counts from 0; the last step, ``total - 1``, ends next to ``low``.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return peak * (step + 1) / rising
    share = (step - rising) / max(1, total - rising)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
