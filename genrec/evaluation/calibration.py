"""Do a policy's probabilities mean what they say? Reliability of the first answer, and of every beam.

A policy that gives its first answer 30% should be right in 30% of such queries (Guo et al. 2017, "On calibration of
modern neural networks"): the expected calibration error is Σ_b n_b / n · |hits_b - p_b| over bins of queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec.metrics import FloatArray, IntArray

BINS = 10


def calibration(ranked_QK: IntArray, logp_QK: FloatArray, targets_Q: IntArray) -> dict[str, Any]:
    """Reliability curves of beams (Q, K), -1 for none, whose log-probabilities are ``logp_QK``.

    Returns:
        ``first``: of the most probable item, ``{"bins": [{"queries", "probability", "hits"}], "error"}`` in bins of
        equally many queries; ``beams``: the same over all beams. ``mass``: mean probability of all of a query's beams
        together, and ``found``, the share of targets among them: equal for a calibrated policy.
    """
    real_QK = ranked_QK >= 0
    p_QK = np.where(real_QK, np.exp(np.minimum(logp_QK, 0.0)), 0.0)
    hit_QK = real_QK & (ranked_QK == targets_Q[:, None])
    best_Q1 = p_QK.argmax(axis=1)[:, None]
    first_Q, hit_Q = (np.take_along_axis(one_QK, best_Q1, 1)[:, 0] for one_QK in (p_QK, hit_QK))
    return {
        "first": reliability(first_Q, hit_Q),
        "beams": reliability(p_QK[real_QK], hit_QK[real_QK]),
        "mass": float(p_QK.sum(axis=1).mean()),
        "found": float(hit_QK.any(axis=1).mean()),
    }


def reliability(p_S: FloatArray, hit_S: IntArray, bins: int = BINS) -> dict[str, Any]:
    """Mean probability and share of hits in bins of equally many of the S predictions, and the calibration error."""
    order_S = np.argsort(p_S, kind="stable")
    parts = [part for part in np.array_split(order_S, bins) if len(part)]
    table = [
        {"queries": len(part), "probability": float(p_S[part].mean()), "hits": float(hit_S[part].mean())}
        for part in parts
    ]
    gaps = [abs(row["hits"] - row["probability"]) * row["queries"] for row in table]
    return {"bins": table, "error": sum(gaps) / len(p_S) if len(p_S) else 0.0}
