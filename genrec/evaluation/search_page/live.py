"""A search while it runs: a table in a terminal, a line per change elsewhere."""

from __future__ import annotations

import logging

from genrec.evaluation.search_page.tune_page import best_trial, counts, verdict
from genrec.evaluation.search_record import SearchRecord, TrialRecord
from genrec.progress import LiveTable, log_table


def log_search(logger: logging.Logger, record: SearchRecord, changed: str | None) -> None:
    """Show the state of a search after the trial with the id ``changed`` moved; None: its trials have ended."""
    trials = {trial.id: trial for trial in record.trials}
    line = trial_line(record, trials[changed]) if changed in trials else verdict(record)
    log_table(logger, line, search_table(record, ended=changed is None))


def trial_line(record: SearchRecord, trial: TrialRecord) -> str:
    """One trial in a line: ``03 kl=0.01: step 20 of 80, ndcg@10 0.0931, running``."""
    steps = f"step {trial.steps} of {record.steps_per_trial}" if record.steps_per_trial else f"step {trial.steps}"
    value = _metric(record, trial)
    reason = f" ({trial.error.splitlines()[0]})" if trial.error else ""
    return f"{trial.name}: {steps}, {record.metric} {_shown(value)}, {trial.status}{reason}"


def search_table(record: SearchRecord, *, ended: bool = False) -> LiveTable:
    """All trials: those that run first, then by their metric, best first."""
    keys = list(record.space)
    columns = ("trial", "status", "step", record.metric, "gain", *(key.rsplit(".", 1)[-1] for key in keys))
    start, best = record.sft.get(record.metric), best_trial(record)

    def order(trial: TrialRecord) -> tuple[bool, float]:
        return trial.status != "running", -(_metric(record, trial) or 0.0)

    rows: list[tuple[str, ...]] = []
    for trial in sorted(record.trials, key=order):
        value = _metric(record, trial)
        gain = f"{value - start:+.4f}" if value is not None and start is not None else "–"
        values = (_shown(trial.values.get(key)) for key in keys)
        mark = "*" if best is not None and trial.id == best.id else ""
        rows.append((trial.name, trial.status, str(trial.steps), _shown(value) + mark, gain, *values))
    used = f"{record.budget.used_trials} of {record.budget.trials} trials, {record.budget.used_hours:.2f} h"
    title = f"search: {record.searcher}, {record.scheduler}"
    return LiveTable(title, columns, rows, f"{counts(record)}; {used}; * best", ended=ended)


def _metric(record: SearchRecord, trial: TrialRecord) -> float | None:
    """The trial's metric: of the version that is kept, else of its last validation."""
    last = trial.curve[-1].get(record.metric) if trial.curve else None
    value = trial.metrics.get(record.metric)
    return last if value is None else value


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
