"""Rewards side by side: the same SFT policies, each improved with every row's rewards, judged on the test queries.

The first row is the SFT policy itself. The others are GRPO stages of the config with other rewards or settings; those
of the recipes take rewards and objective of ``configs/versions``; ``supervised`` has no reward, but the same updates by
the supervised term and the KL: what rewards add is the difference to it. ``bench.variants`` chooses, ``bench.seeds`` says
how many SFT policies there are. See ``benchmarks.compare`` for what is kept; the page and all figures lie beside it as
``<name>.md`` and ``<name>.json``, written again after every policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.compare import QUERIES, Comparison, RunScore, Scores, Variant, compare, score_rows
from benchmarks.tables import rewards_page
from cluster.artifacts import Artifact
from cluster.stages import steps
from genrec.config import Config, Rewards, load_config
from genrec.errors import InputError

PLACE = "rewards"
FIRST = "sft"
GUARDED = ("ndcg@10", "hr@50")
"""What the paired bootstrap is drawn for, of all queries and of those for tail items."""

Change = tuple[Mapping[str, Any], Mapping[str, float] | Rewards]
"""What a row changes: keys of ``learning.rl``, and weights of the rewards or all of them."""


def run(config: Config, data: Artifact, catalog: Artifact, vectors: Artifact) -> Comparison:
    """Train and score the chosen rows.

    Raises:
        InputError: a row of ``bench.variants`` that does not exist.
    """
    known = changes(config)
    if unknown := [name for name in config.bench.variants if name not in known]:
        raise InputError(f"bench.variants names {unknown}; the rows are {list(known)}")
    chosen = [name for name in config.bench.variants or known if name != FIRST]
    rows = {FIRST: Variant(config, catalog)}
    for name in chosen:
        rows[name] = Variant(_changed(config, known[name]), catalog, partial(_reinforced, vectors))
    comparison = Comparison(PLACE)
    for scores in score_rows(PLACE, data, rows):
        comparison = _written(config, scores)
    return comparison


def changes(config: Config) -> dict[str, Change]:
    """What each row changes in the config, by name."""
    found: dict[str, Change] = {FIRST: ({}, {}), "config": ({}, {})}
    for name in ("v1", "v2", "v3", "v4"):
        recipe = load_config([f"versions/{name}"])
        found[name] = ({"objective": recipe.learning.rl.objective}, recipe.rewards)
    hit = Rewards(hit=1.0, rank_log=0.0, settings=config.rewards.settings)
    none = hit.weighted({"hit": 0.0})
    found |= {"hit": ({}, hit), "supervised": ({}, none)}
    for name in ("ndcg_rank", "prefix", "future", "collaborative", "semantic"):
        found[name] = ({}, hit.weighted({name: 1.0 if name == "ndcg_rank" else 0.5}))
    found |= {name: ({"generation": name}, {}) for name in ("sample", "stochastic_beam", "mixed")}
    found |= {name: ({"advantage": name}, {}) for name in ("group_mean", "leave_one_out", "rank")}
    return found | {"no_sft": ({"sft": 0.0}, {}), "no_kl": ({"kl": 0.0}, {}), "plain": ({"sft": 0.0, "kl": 0.0}, hit)}


def _changed(config: Config, change: Change) -> Config:
    settings, weights = change
    grpo = config.learning.rl.model_copy(update=dict(settings))
    rewards = weights if isinstance(weights, Rewards) else config.rewards.weighted(weights)
    learning = config.learning.model_copy(update={"rl": grpo})
    return config.model_copy(update={"learning": learning, "rewards": rewards})


def _reinforced(vectors: Artifact, config: Config, data: Artifact, catalog: Artifact) -> Artifact:
    return steps.grpo(config, data, catalog, steps.sft(config, data, catalog), vectors)


def _written(config: Config, scores: Scores) -> Comparison:
    """The comparison of what there is, once every row has a policy."""
    comparison = Comparison(PLACE)
    if not all(scores.values()):
        return comparison
    found = compare(scores)
    seeds = [seed for seed in scores[FIRST] if all(seed in by_seed for by_seed in scores.values())]
    base = [scores[FIRST][seed] for seed in seeds]
    for name, by_seed in scores.items():
        ours = [by_seed[seed] for seed in seeds]
        found[name]["paired"] = _paired(ours, base, config.evaluation.bootstrap, config.seed)
        if name != FIRST:
            found[name]["audit"] = _audit(ours)
    comparison.text = rewards_page(found)
    comparison.figures = {f"{name}.{metric}": row[metric]["mean"] for name, row in found.items() for metric in GUARDED}
    comparison.keep(config, found)
    return comparison


def _paired(ours: Sequence[RunScore], base: Sequence[RunScore], resamples: int, seed: int) -> dict[str, Any]:
    """The gain over ``base``, of the mean over seeds per query, with intervals by resampling queries."""
    from genrec.baselines.buckets import BUCKETS
    from genrec.evaluation.intervals import paired

    (values, bucket_Q), (base_values, _) = _per_query(ours), _per_query(base)
    found: dict[str, Any] = dict(paired(values, base_values, resamples, seed))
    tail_Q = bucket_Q == BUCKETS.index("tail")
    if tail_Q.any():
        tails = ({f"{name}/tail": column[tail_Q] for name, column in part.items()} for part in (values, base_values))
        found |= paired(*tails, resamples, seed)
    return found


def _per_query(scored: Sequence[RunScore]) -> tuple[dict[str, Any], Any]:
    """The ``GUARDED`` metrics of each test query, averaged over the policies, and the queries' buckets."""
    import numpy as np
    import pyarrow.parquet as pq

    from genrec.metrics import per_query

    tables = [pq.read_table(one.where / QUERIES) for one in scored]
    values = [per_query(table["rank"].to_numpy(), (10, 50)) for table in tables]
    means = {name: np.mean([one[name] for one in values], axis=0) for name in GUARDED}
    return means, tables[0]["bucket"].to_numpy()


def _audit(scored: Sequence[RunScore]) -> dict[str, float]:
    """Means over seeds of: the version that was kept, runs that the guard stopped, and figures of the updates."""
    curves = [json.loads((one.policy / "curve.json").read_text(encoding="utf-8")) for one in scored]
    records = [record for curve in curves for record in curve["curve"]]
    found = {
        "best_step": sum(curve["best_step"] for curve in curves) / len(curves),
        "stopped": sum(bool(curve["stopped"]) for curve in curves) / len(curves),
    }
    names = sorted(
        {
            name
            for record in records
            for name in record
            if name.startswith(("zero_advantage_groups", "advantage_share/", "prob_shift/"))
        }
    )
    for name in names:
        values = [record[name] for record in records if record.get(name) is not None and record[name] == record[name]]
        if values:
            found[name] = sum(values) / len(values)
    return found
