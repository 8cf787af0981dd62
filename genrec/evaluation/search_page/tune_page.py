"""``tune.html``: what a search tried, what it found and what it cost, on one self-contained page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genrec.evaluation.search_page.importance import importance
from genrec.evaluation.search_record import SearchRecord, TrialRecord
from genrec.pages.render import write_page

FILE = "tune.html"
COUNTED = ("finished", "stopped", "running", "failed", "diverged")


def write_tune_page(record: SearchRecord, directory: Path, *, title: str = "search") -> Path:
    """Write ``directory/tune.html`` atomically and return its path; ``record`` may be of a search that still runs."""
    best = best_trial(record)
    context = {
        "title": f"{title} · search",
        "record": record,
        "verdict": verdict(record),
        "won": record.winner is not None and record.winner.trial is not None,
        "counts": counts(record),
        "importance": importance(record),
        "metrics": metric_names(record),
        "audits": list(_names(trial.audit for trial in record.trials)),
        "best": best.id if best else None,
        "names": {trial.id: trial.name for trial in record.trials},
        "data": _data(record),
    }
    return write_page(directory / FILE, "genrec.evaluation.search_page", "tune.html.j2", context, scripts=("tune",))


def verdict(record: SearchRecord) -> str:
    """The one sentence that the page begins with."""
    if record.winner is not None:
        return record.winner.verdict
    best = best_trial(record)
    if best is None:
        return "The search has no result yet: no trial has a figure."
    return f"The search is not over: {best.name} leads so far with {record.metric} {best.metrics[record.metric]:.4f}."


def best_trial(record: SearchRecord) -> TrialRecord | None:
    """The trial with the highest metric, a feasible one where there is any."""
    known = [trial for trial in record.trials if trial.metrics.get(record.metric) is not None]
    return max(known, key=lambda trial: (trial.feasible, trial.metrics[record.metric]), default=None)


def counts(record: SearchRecord) -> str:
    """How the trials ended, in words: ``5 finished, 2 stopped``."""
    ended = [trial.status for trial in record.trials]
    return ", ".join(f"{ended.count(status)} {status}" for status in COUNTED if status in ended) or "no trial yet"


def metric_names(record: SearchRecord) -> list[str]:
    """The metrics that the page shows: what ranks, the objectives, the constrained ones, then the others."""
    first = [record.metric, *record.objectives, *record.constraints]
    found = list(_names(trial.metrics for trial in record.trials))
    return list(dict.fromkeys([name for name in first if name in found or name == record.metric] + found))


def _names(tables: Iterable[dict[str, Any]]) -> dict[str, None]:
    return {name: None for table in tables for name in table}


def _data(record: SearchRecord) -> dict[str, Any]:
    """What the page's script draws from."""
    shown = {"metric", "objectives", "constraints", "space", "sft", "default", "trials", "finalists"}
    return {**record.model_dump(mode="json", include=shown), "names": metric_names(record)}
