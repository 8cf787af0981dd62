"""genrec: generative recommendation. The method, without the machines; ``cluster`` and ``workflows`` build on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec.policy.rules import Constraint
    from genrec.recommender import load

__all__ = ["Constraint", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from genrec.recommender import load

        return load
    if name == "Constraint":
        from genrec.policy.rules import Constraint

        return Constraint
    raise AttributeError(f"module 'genrec' has no attribute {name!r}")
