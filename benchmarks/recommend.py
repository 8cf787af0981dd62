"""Where the time of a recommendation goes, and what one search for several requests saves.

The policy of ``sft`` answers test histories as ``genrec.load`` does: one by one, timed part by part, then in batches.
The alternatives take turns in one run; ItemKNN is untuned, since only its cost is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Bench
from cluster.artifacts import Artifact
from genrec.config import Config

if TYPE_CHECKING:
    from genrec.inference.recommender import Recommender
    from genrec.inference.request import RecommendRequest

NEEDS = ("prepare", "assign", "sft")
REQUESTS = 192
BATCHES = (8, 16)
PRIORS = ("none", "itemknn", "itemknn_nodes")
PRIOR_WEIGHT = 0.5


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """p50 and p95 in ms of each part, for each kind of prior; requests/s of batches over those one by one."""
    import torch

    torch.set_num_threads(config.compute.threads)
    bench = Bench("recommend")
    for kind in PRIORS:
        recommender = _recommender(config, artifacts, kind)
        requests = _requests(recommender)
        recommender.recommend_batch(requests[: max(BATCHES)])  # warm
        for size in BATCHES:
            recommender.recommend_batch(requests[:size])
        _time(bench, kind, recommender, requests)
    return bench


def _time(bench: Bench, kind: str, recommender: Recommender, requests: list[RecommendRequest]) -> None:
    """One by one and in batches, in turns of the largest batch's size."""
    parts: dict[str, list[float]] = {"whole": []}
    seconds = dict.fromkeys(BATCHES, 0.0)
    for start in range(0, len(requests), max(BATCHES)):
        turn = requests[start : start + max(BATCHES)]
        recommender.on_part(lambda name, s: parts.setdefault(name, []).append(s))
        for request in turn:
            parts["whole"].append(_timed(recommender, [request]))
        recommender.on_part(lambda name, s: None)
        for size in BATCHES:
            seconds[size] += sum(_timed(recommender, turn[at : at + size]) for at in range(0, len(turn), size))
    for name, heard in parts.items():
        median, late = np.quantile(heard, (0.5, 0.95))
        bench.figures[f"{kind}/{name}/p50_ms"] = 1000 * float(median)
        bench.figures[f"{kind}/{name}/p95_ms"] = 1000 * float(late)
    for size in BATCHES:
        bench.ratios[f"{kind}/batches_of_{size}/requests_per_s"] = sum(parts["whole"]) / seconds[size]


def _timed(recommender: Recommender, requests: list[RecommendRequest]) -> float:
    start = time.perf_counter()
    recommender.recommend_batch(requests)
    return time.perf_counter() - start


def _recommender(config: Config, artifacts: Mapping[str, Artifact], kind: str) -> Recommender:
    from genrec.baselines.itemknn import KnnSettings
    from genrec.inference.recommender import Recommender
    from genrec.inference.run_record import RunRecord, ServedPrior
    from genrec.policy.decoding.beam import HEAD_WEIGHT

    head = HEAD_WEIGHT if config.policy.items.head else 0.0
    weight = 0.0 if kind == "none" else PRIOR_WEIGHT
    prior = ServedPrior(kind, weight, settings=KnnSettings() if weight else None, head_weight=head)
    data, catalog, policy = (artifacts[stage].path for stage in NEEDS)
    return Recommender(RunRecord(config, data.parents[1], data, catalog, policy, prior, mask_seen=False), live=False)


def _requests(recommender: Recommender) -> list[RecommendRequest]:
    from genrec.data.readers import read_queries
    from genrec.inference.request import RecommendRequest

    view, queries = recommender.view, read_queries(recommender.run.data, "test").slice(0, REQUESTS)
    return [RecommendRequest([view.ids[row] for row in rows]) for rows in queries["history"].to_pylist()]
