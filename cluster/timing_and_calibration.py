"""What an evaluation measures beside rankings: each system's time, and whether probabilities mean what they say."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec.baselines.tuning import BaselineSuite
    from genrec.inference.prior import RankedItems
    from genrec.metrics import FloatArray, IntArray

VECTORS_MB = 1024
"""Item vectors that fit into so much memory are read for the distance within lists."""


def rank_timed(suite: BaselineSuite, recent_QH: IntArray, k: int) -> tuple[dict[str, IntArray], dict[str, float]]:
    """The ranking (Q, k) of each baseline, and its seconds per query in batches, in this process."""
    from genrec.baselines.ranking import rank

    ranked: dict[str, IntArray] = {}
    seconds: dict[str, float] = {}
    for name, model in suite.models.items():
        start = time.perf_counter()
        ranked[name] = rank(model, recent_QH, k, mask_seen=suite.mask_seen)
        seconds[name] = (time.perf_counter() - start) / max(1, len(recent_QH))
    return ranked, seconds


def seconds_per_query(directory: Path) -> float | None:
    """The seconds per query in the predictions of a directory; None where they were not taken."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(directory.glob("part-*.json"))]
    queries = sum(one["queries"] for one in found)
    return sum(one["seconds"] for one in found) / queries if queries else None


def speeds(where: Path, best: str, own: str, baselines: Mapping[str, float], mixing: float = 0.0) -> dict[str, Any]:
    """Seconds per query by system: the searches under ``where``, and the baselines, whose times are given.

    A query's share of its batch; a way of searching has the whole time of the prompts that several ways share.

    Args:
        own: what the policy ``best`` is called: "model" where it is the model itself.
        baselines: seconds per query of each.
        mixing: seconds per query in which a prior is mixed with the answers of a search: part of the model's time.
    """
    places = {"model": where / best / "test" / "model", own: where / best / "test" / "policy"}
    if best != "sft":
        places["sft"] = where / "sft" / "test" / "policy"
    found = {name: seconds_per_query(place) for name, place in places.items()}
    if mixing and (searched := found["model"] or found[own]) is not None:
        found["model"] = searched + mixing
    rows = {**{name: one for name, one in found.items() if one is not None}, **baselines}
    return {name: {"per_query_s": seconds} for name, seconds in rows.items()}


def calibrations(
    answers: Mapping[str, RankedItems], parts: Mapping[str, RankedItems], targets_Q: IntArray
) -> dict[str, Any]:
    """Reliability of each policy's own beams, by its name.

    A policy with an item head ranks by a sum of two logarithms, which is no probability: then its ``parts``, semantic
    IDs and head, are asked apart, each with what it would answer alone.
    """
    from genrec.evaluation.calibration import calibration

    return {name: calibration(one.items_QK, one.logp_QK, targets_Q) for name, one in (parts or answers).items()}


def item_vectors(directory: Path) -> FloatArray | None:
    """The vectors (N, D) of the items; None where they are too many to be held."""
    from genrec.sid.vectors import VectorFiles

    files = VectorFiles(directory)
    return files.read() if len(files) * files.width * 4 <= VECTORS_MB * 2**20 else None
