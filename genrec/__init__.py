"""genrec: generative recommendation. The method, without the machines; ``cluster`` and ``workflows`` build on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec.inference.recommender import load
    from genrec.policy.decoding.request_constraints import Constraint

__all__ = ["Constraint", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from genrec.inference.recommender import load

        return load
    if name == "Constraint":
        from genrec.policy.decoding.request_constraints import Constraint

        return Constraint
    raise AttributeError(f"module 'genrec' has no attribute {name!r}")
