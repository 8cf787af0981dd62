"""genrec: generative recommendation with semantic IDs. The method; ``cluster`` and ``workflows`` run it on Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genrec.inference.recommender import load
    from genrec.inference.request import Diversity, RecommendRequest
    from genrec.policy.decoding.request_constraints import Constraint

__all__ = ["Constraint", "Diversity", "RecommendRequest", "load"]

_MODULES = {
    "load": "genrec.inference.recommender",
    "Diversity": "genrec.inference.request",
    "RecommendRequest": "genrec.inference.request",
    "Constraint": "genrec.policy.decoding.request_constraints",
}


def __getattr__(name: str) -> object:
    # Imported on first use: torch and transformers take seconds to load.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'genrec' has no attribute {name!r}")
