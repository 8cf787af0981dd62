"""Token loss against item loss: how often SFT policies say the next item of queries that they were trained on.

Per softmax of the training (``bench.variants``: trie, level, vocabulary) and seed: the mean loss per code, e^-L and its
powers, the share of draws that match the whole semantic ID, and the accuracy of each level after the true codes and
after the policy's own. Policies and figures are artifacts under ``<storage>/bench/exact-match``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import Comparison
from benchmarks.loaded_policy import LoadedPolicy, drawn_queries, measured_by_softmax
from benchmarks.tables import estimate_text, markdown
from cluster.artifacts import Artifact
from genrec.config import Config
from genrec.data.readers import read_queries
from genrec.evaluation.intervals import over_runs
from genrec.evaluation.recall_of_training import Recalled, RecallSampling, recall

DIRECTORY = "exact-match"
NEEDS = ("prepare", "assign")
QUERIES, DRAWS = 1000, 16
"""Train queries that are asked, and draws of each."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train the policies, and measure what each says of its own training queries."""
    comparison = Comparison(DIRECTORY)
    settings = {"queries": QUERIES, "draws": DRAWS, **vars(RecallSampling())}
    for found in measured_by_softmax(config, artifacts, __name__, settings, measure_recall):
        comparison = _written(config, found)
    return comparison


def measure_recall(config: Config, data: Path, catalog: Path, policy: Path, out: Path) -> Mapping[str, float]:
    """The figures of one policy."""
    loaded = LoadedPolicy(config, catalog, policy)
    generator = torch.Generator().manual_seed(config.seed)
    limits: dict[str, Any] = {"sampling": RecallSampling(), "draws": DRAWS, "generator": generator}
    parts = [
        recall(loaded.policy, tokens_BP, mask_BP, loaded.catalog.codes_NL[targets_B].long(), loaded.trie, **limits)
        for tokens_BP, mask_BP, targets_B in loaded.batches(
            drawn_queries(read_queries(data, "train"), QUERIES, config.seed)
        )
    ]
    return figures(Recalled(*(torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0]))))


def figures(found: Recalled) -> dict[str, float]:
    """Means over the queries, by name."""
    loss, levels = float(found.loss_BL.mean()), found.loss_BL.shape[1]
    per_level = {
        f"{name}, level {level + 1}": float(values_BL[:, level].float().mean())
        for name, values_BL in (("after true codes", found.true_BL), ("after own codes", found.own_BL))
        for level in range(levels)
    }
    return {
        "loss per code": loss,
        "e^-loss": math.exp(-loss),
        f"e^-(loss x {levels})": math.exp(-loss * levels),
        "mean of p(item)": float((-found.loss_BL.sum(1)).exp().mean()),
        "draws that match": float(found.match_B.mean()),
        "draws in the trie that match": float(found.match_trie_B.mean()),
        "greedy answers that match": float(found.own_BL.all(1).float().mean()),
        **per_level,
    }


def _written(config: Config, found: Mapping[str, list[Mapping[str, Any]]]) -> Comparison:
    means = {
        name: {figure: over_runs([float(one[figure]) for one in runs]) for figure in runs[0]}
        for name, runs in found.items()
    }
    rows = list(next(iter(means.values())))
    body = [[row, *(estimate_text(one[row], ".4f") for one in means.values())] for row in rows]
    first = RecallSampling()
    lines = [
        *markdown(("train queries", *means), body),
        "",
        f"{DRAWS} draws of each of at most {QUERIES} train queries: temperature {first.temperature}, "
        f"top-k {first.top_k}, top-p {first.top_p}. Mean over seeds [95 % t interval].",
    ]
    comparison = Comparison(DIRECTORY, text="\n".join(lines) + "\n")
    comparison.figures = {f"{name}.{row}": one[row]["mean"] for name, one in means.items() for row in rows}
    comparison.write(config, means)
    return comparison
