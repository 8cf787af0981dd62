"""The field's baselines beside the figures that were published for them, one row after the other.

A row is made from ``bench.seeds`` seeds, or once where nothing is drawn. Each is an artifact
(``cluster.baseline_rows``): a killed run goes on with the row, and the epoch, that it was at. ``bench.variants``
chooses some. One that fails is said, and the others go on.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from benchmarks.compare import Comparison
from benchmarks.harness import chosen_variants, seeds_of
from benchmarks.tables import estimate_text, markdown, or_dash
from cluster.artifacts import Artifact
from cluster.baseline_rows import is_drawn, make_row_or_reason
from cluster.progress import STAGE
from genrec.baselines.ranking_files import RANKING, read_ranking
from genrec.config import COUNTED_BASELINES, BaselineName, Config
from genrec.data.readers import read_queries

LOG = logging.getLogger(__name__)

DIRECTORY = "baselines"
NEEDS = ("prepare", "embed", "assign")

TIGER_TABLE = "TIGER, Rajput et al. 2023 (2305.05065), Table 1"
MINIONEREC_TABLE = "MiniOneRec, Table 1"


class Published(NamedTuple):
    """What was published of a baseline on the test queries: HR@10, NDCG@10, and where."""

    hr: float
    ndcg: float
    source: str


PUBLISHED: Mapping[str, Mapping[str, Published]] = MappingProxyType(
    {
        "beauty": {
            "sasrec": Published(
                0.0859,
                0.0503,
                "a public rerun with a softmax over all items, in no paper (eSASRec, 2508.06450, has 0.0921 / 0.0531 "
                "with a sampled softmax)",
            ),
            "sasrec_bce": Published(0.0605, 0.0318, TIGER_TABLE),
            "bsarec": Published(
                0.1008, 0.0611, "the log in its repository, yehjin-shin/BSARec, src/output/BSARec_Beauty_best.log"
            ),
            "gru4rec": Published(0.0283, 0.0137, TIGER_TABLE),
            "bert4rec": Published(0.0347, 0.0170, TIGER_TABLE),
            "tiger": Published(0.0648, 0.0384, TIGER_TABLE),
        },
        "industrial": {
            "sasrec": Published(0.1088, 0.0806, MINIONEREC_TABLE),
            "hstu": Published(0.1163, 0.0958, MINIONEREC_TABLE),
            "tiger": Published(0.1321, 0.0908, MINIONEREC_TABLE),
        },
    }
)
"""By ``config.name`` and baseline."""


BASELINE_SCORES = ("hr@10", "ndcg@10", "hr@50")


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Make and score the chosen baselines.

    Raises:
        InputError: ``bench.variants`` names one that does not exist.
    """
    names = chosen_variants(config, [name for name in get_args(BaselineName) if name not in COUNTED_BASELINES])
    comparison, rows = Comparison(DIRECTORY), dict[str, dict[str, Any]]()
    for number, name in enumerate(names, start=1):
        for seed in seeds_of(config) if is_drawn(name) else (config.seed,):
            found = _row(config.replace({"seed": seed}), name, artifacts)
            shown = "  ".join(f"{key} {value:.4f}" for key, value in found.get("test", {}).items())
            LOG.info(
                "%d/%d %s, seed %d: %s",
                number,
                len(names),
                name,
                seed,
                shown or found["failed"],
                extra={STAGE: DIRECTORY},
            )
            rows.setdefault(name, {})[str(seed)] = found
            comparison.text = baselines_page(rows, PUBLISHED.get(config.name, {}))
            comparison.figures = _figures(rows)
            comparison.write(config, rows)
    return comparison


def _figures(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean over seeds of each row's metrics on the test queries."""
    tests = {name: [one["test"] for one in seeds.values() if "test" in one] for name, seeds in rows.items()}
    return {
        f"{name}.{metric}": statistics.fmean(one[metric] for one in found)
        for name, found in tests.items()
        if found
        for metric in found[0]
    }


def _row(config: Config, name: str, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What a row measures: on validation, on test, and the seconds; or why there is none."""
    from genrec.metrics import measure

    made = make_row_or_reason(config, name, artifacts)
    if isinstance(made, str):
        return {"failed": made}
    test = read_queries(artifacts["prepare"].path, "test")
    ranked_QK = read_ranking(made.path / RANKING, len(test))
    scores = measure(ranked_QK, test["target"].to_numpy().astype("int64"), (10, 50))
    return {"test": scores, "settings": made.metrics["settings"], "ms_per_query": made.metrics["ms_per_query"]}


def baselines_page(rows: Mapping[str, Mapping[str, Any]], published: Mapping[str, Published]) -> str:
    """A table of baselines beside what was published of them, where that was, and the baselines that failed.

    Args:
        rows: by name and seed, what ``benchmarks.baselines`` measured.
    """
    heads = ("baseline", "HR@10", "NDCG@10", "published", "HR@50", "NDCG@10 on validation", "epoch", "s", "ms a query")
    made = {name: [one for one in seeds.values() if "test" in one] for name, seeds in rows.items()}
    body = ([name, *_baseline(found, published.get(name))] for name, found in made.items() if found)
    notes = (
        "Mean over seeds [95 % t interval]. *published*: HR@10 / NDCG@10. *s*: seconds to train or tune. *epoch*, *s*: "
        "medians."
    )
    lines = [*markdown(heads, body), "", notes, ""]
    lines += [f"- {name}, published: {published[name].source}" for name in rows if name in published]
    failed = {(name, one["failed"]) for name, seeds in rows.items() for one in seeds.values() if "failed" in one}
    lines += [f"- {name} failed: {reason}" for name, reason in sorted(failed)]
    return "\n".join(lines).rstrip() + "\n"


def _baseline(seeds: Sequence[Mapping[str, Any]], published: Published | None) -> list[str]:
    from genrec.evaluation.intervals import over_runs

    tests, settings = [one["test"] for one in seeds], [one["settings"] for one in seeds]
    hr, ndcg, deep = (estimate_text(over_runs([one[name] for one in tests]), ".4f") for name in BASELINE_SCORES)
    epochs = [one["best_epoch"] for one in settings if "best_epoch" in one]
    return [
        hr,
        ndcg,
        "–" if published is None else f"{published.hr:.4f} / {published.ndcg:.4f}",
        deep,
        estimate_text(over_runs([one["valid_ndcg@10"] for one in settings]), ".4f"),
        or_dash(statistics.median(epochs) if epochs else None, ".0f"),
        f"{statistics.median(one['seconds'] for one in settings):.0f}",
        f"{statistics.median(one['ms_per_query'] for one in seeds):.2f}",
    ]
