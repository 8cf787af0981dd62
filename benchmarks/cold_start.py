"""Beams by rank, with and without the catalogue's trie: semantic IDs that do not exist, rare items, and the time.

Per softmax of the training (``bench.variants``: trie, level, vocabulary) and seed, for ranks 1 … 10 of the test
queries. A search without the trie takes its probabilities from the softmax that the policy was trained with. Policies
and figures are artifacts under ``<storage>/bench/cold-start``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.compare import Comparison
from benchmarks.harness import timed
from benchmarks.loaded_policy import LoadedPolicy, drawn_queries, measured_by_softmax
from benchmarks.tables import estimate_text, markdown
from cluster.artifacts import Artifact
from genrec.config import Config
from genrec.data.readers import read_queries
from genrec.data.train_counts import read_train_counts
from genrec.evaluation.intervals import over_runs
from genrec.policy.decoding.beam import Beams, Scale, beam
from genrec.policy.decoding.sampling import unconstrained

DIRECTORY = "cold-start"
NEEDS = ("prepare", "assign")
RANKS, FEW, QUERIES = 10, 2, 1000
"""Ranks that are shown, train events of a rare item at most, and test queries that are asked."""

ABSENT, RARE, RARE_FREE = "no such item, free", "rare item, trie", "rare item, free"


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train the policies, and look at the beams of each."""
    comparison = Comparison(DIRECTORY)
    settings = {"width": config.decode.width, "ranks": RANKS, "few": FEW, "queries": QUERIES}
    for found in measured_by_softmax(config, artifacts, __name__, settings, measure_beams):
        comparison = _written(config, found)
    return comparison


def measure_beams(config: Config, data: Path, catalog: Path, policy: Path, out: Path) -> dict[str, Any]:
    """The figures of one policy: shares by rank, and milliseconds of a query with and without the trie.

    Both searches answer each batch in turn, so a drift of the machine's speed hits both alike.
    """
    loaded, width = LoadedPolicy(config, catalog, policy), max(RANKS, config.decode.width)
    scale: Scale = "vocabulary" if config.learning.sft.softmax == "vocabulary" else "trie"
    counts_N = torch.from_numpy(read_train_counts(data, len(loaded.catalog.codes_NL)).events_N)
    shares: list[dict[str, Tensor]] = []
    seconds: dict[str, list[float]] = {"trie": [], "free": []}
    queries = drawn_queries(read_queries(data, "test"), QUERIES, config.seed)
    for tokens_BP, mask_BP, _ in loaded.batches(queries):
        made: dict[str, Beams] = {}

        def constrained(prompts: tuple[Tensor, Tensor] = (tokens_BP, mask_BP), into: dict[str, Beams] = made) -> None:
            into["trie"] = beam(loaded.policy, *prompts, loaded.trie, width)

        def free(prompts: tuple[Tensor, Tensor] = (tokens_BP, mask_BP), into: dict[str, Beams] = made) -> None:
            into["free"] = unconstrained(loaded.policy, *prompts, loaded.trie, width, scale=scale)

        for name, search in (("trie", constrained), ("free", free)):
            seconds[name].append(timed(search) / len(tokens_BP))
        shares.append(shares_by_rank(made["trie"].items_BW, made["free"].items_BW, counts_N))
    ranks = {name: torch.cat([one[name] for one in shares]).float().mean(0).tolist() for name in shares[0]}
    times = {f"ms_{name}": 1000 * statistics.median(one) for name, one in seconds.items()}
    ratio = float(np.median(np.array(seconds["trie"]) / np.array(seconds["free"])))
    return {"ranks": ranks, **times, "trie / free, time": ratio}


def shares_by_rank(trie_BW: Tensor, free_BW: Tensor, counts_N: Tensor) -> dict[str, Tensor]:
    """Whether the item at each of the first ranks is absent or rare, (B, 10) each, with items (B, W), -1 for none.

    A SID of no item is absent; a beam that the trie leaves empty, because there are fewer items, is not rare.
    """

    def rare(items_BW: Tensor) -> Tensor:
        return (items_BW >= 0) & (counts_N[items_BW.clamp(min=0)] <= FEW)

    trie_BR, free_BR = trie_BW[:, :RANKS], free_BW[:, :RANKS]
    return {ABSENT: free_BR < 0, RARE: rare(trie_BR), RARE_FREE: rare(free_BR)}


def _written(config: Config, found: Mapping[str, list[Mapping[str, Any]]]) -> Comparison:
    summary: dict[str, Any] = {}
    for softmax, runs in found.items():
        by_rank = {
            name: [over_runs([one["ranks"][name][rank] for one in runs]) for rank in range(len(shares))]
            for name, shares in runs[0]["ranks"].items()
        }
        times = {name: over_runs([one[name] for one in runs]) for name in runs[0] if name != "ranks"}
        summary[softmax] = {"ranks": by_rank, "times": times}
    ranks = [f"rank {rank}" for rank in range(1, RANKS + 1)]
    body = [
        [f"{softmax}: {name}", *(f"{100 * share['mean']:.1f} %" for share in shares)]
        for softmax, one in summary.items()
        for name, shares in one["ranks"].items()
    ]
    time_names = list(next(iter(summary.values()))["times"])
    times = [
        [softmax, *(estimate_text(one["times"][name], ".3f") for name in time_names)]
        for softmax, one in summary.items()
    ]
    lines = [
        *markdown(("softmax: share of answers", *ranks), body),
        "",
        f"At most {QUERIES} test queries. A rare item has at most {FEW} train events; free: without the trie.",
        "",
        *markdown(("softmax", *time_names), times),
    ]
    comparison = Comparison(DIRECTORY, text="\n".join(lines) + "\n")
    comparison.figures = {
        f"{softmax}.{name}@{RANKS}": one["ranks"][name][-1]["mean"]
        for softmax, one in summary.items()
        for name in one["ranks"]
    } | {f"{softmax}.{name}": one["times"][name]["mean"] for softmax, one in summary.items() for name in time_names}
    comparison.write(config, summary)
    return comparison
