"""Numbers that are not finite stop a run before they reach the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genrec.errors import InputError

SHOWN = 8
"""Examples of a batch that a message names."""


DIVERGED = "wanted finite numbers"
"""What the message of a run that diverged says, and no other."""


def require_finite(step: int, batch: Sequence[str], remedy: str, **figures: float) -> None:
    """Refuse a step whose loss or gradient norm is not finite.

    Args:
        step: from 1; the weights are those after the step before.
        batch: what the batch's examples are called.
        remedy: what to do, as in ``lower learning.sft.lr=1``.
        figures: the measurements by name, equal on all workers, so that all of them stop.

    Raises:
        InputError: one of ``figures`` is NaN or infinite.
    """
    wrong = {name.replace("_", " "): value for name, value in figures.items() if not math.isfinite(value)}
    if not wrong:
        return
    found = " and ".join(f"a {name} of {value:g}" for name, value in wrong.items())
    more = f" and {len(batch) - SHOWN} more" if len(batch) > SHOWN else ""
    raise InputError(
        f"step {step}: got {found}, {DIVERGED}, on the batch of {', '.join(batch[:SHOWN])}{more}; "
        f"{remedy}; if it happens at any setting, look at these examples"
    )
