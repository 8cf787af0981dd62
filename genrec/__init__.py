"""genrec: generative recommendation with semantic IDs. The method; ``cluster`` and ``workflows`` run it on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genrec.inference.recommender import load
    from genrec.policy.decoding.request_constraints import Constraint

__all__ = ["Constraint", "load"]


def __getattr__(name: str) -> object:
    # Imported on first use: torch and transformers take seconds to load.
    if name == "load":
        from genrec.inference.recommender import load

        return load
    if name == "Constraint":
        from genrec.policy.decoding.request_constraints import Constraint

        return Constraint
    raise AttributeError(f"module 'genrec' has no attribute {name!r}")
