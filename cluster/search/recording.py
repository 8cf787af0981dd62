"""What a search has found so far, written after every report: ``search.json``, and the state of each experiment."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from cluster.search.trial import REPORT, SEED, point_of, read_report
from genrec.data.files import write_json
from genrec.evaluation.search_choice import with_front
from genrec.evaluation.search_page.live import log_search
from genrec.evaluation.search_record import BudgetRecord, DefaultRecord, SearchRecord, TrialRecord

LOG = logging.getLogger(__name__)

USED = "used.json"
"""Hours that a search has used, also before it was killed, and which budget ended it."""

FIELDS = ("metrics", "feasible", "audit", "curve", "steps", "seconds")
"""Of a trial's own report."""


def states_file(out: Path, name: str) -> Path:
    """Where the states of an experiment's trials are kept."""
    return out / "tune" / f"{name}.json"


def states(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """What Ray Tune knows of its trials, JSON-able; those that have not begun are left out."""
    return [
        {
            "id": trial.trial_id,
            "name": str(trial),
            "point": point_of(trial.config),
            "status": trial.status,
            "error": _last_line(trial) if trial.status == Trial.ERROR else None,
        }
        for trial in trials
        if trial.status != Trial.PENDING or trial.last_result
    ]


def _last_line(trial: Trial) -> str:
    lines = str(trial.get_error() or "it ended without an error of its own").strip().splitlines()
    return lines[-1]


def read_trials(out: Path, name: str, seed: int = 0) -> list[TrialRecord]:
    """The trials of the experiment ``name``, in the order in which they were made.

    Args:
        seed: of trials that have none of their own.
    """
    return [_trial(out, state, seed) for state in read_report(states_file(out, name)).get("trials", [])]


def _trial(out: Path, state: Mapping[str, Any], seed: int) -> TrialRecord:
    report, point = read_report(out / "runs" / state["id"] / REPORT), dict(state["point"])
    own_seed = point.pop(SEED, seed)
    found: dict[str, Any] = {name: report[name] for name in FIELDS if name in report}
    error = report.get("error") or state["error"]
    status = _status(state["status"], str(report.get("status", "")))
    ended_badly = status in ("failed", "diverged")
    found["feasible"] = bool(found.get("feasible")) and not ended_badly
    return TrialRecord(
        id=state["id"],
        name=state["name"],
        values=point,
        seed=own_seed,
        status=status,
        error=error if ended_badly else None,
        **found,
    )


def _status(tunes: str, own: str) -> Any:
    """Ray Tune's word for a trial, and the trial's own: one that ended without having said so was stopped."""
    if tunes == Trial.ERROR:
        return "diverged" if own == "diverged" else "failed"
    if tunes == Trial.TERMINATED:
        return "finished" if own == "finished" else "stopped"
    return "running"


class SearchWatch(Callback):
    """Writes the experiment's state, and the search's record where it has a ``head``, at every event.

    ``head`` is the record without its trials; ``own`` the config's own values. Without a head, each of the
    ``runs`` trials that ends is a line of the log with its ``metric``.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        seed: int,
        gpus: float,
        head: SearchRecord | None,
        own: Mapping[str, Any],
        metric: str,
        runs: int = 0,
    ) -> None:
        self._out, self._name, self._seed, self._gpus = out, name, seed, gpus
        self._head, self._own, self._metric, self._runs = head, dict(own), metric, runs
        self._since: float | None = None
        self._before = 0.0

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial began."""
        self._write(trials, trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial was validated."""
        self._write(trials, trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended, or was stopped."""
        self._write(trials, trial)
        if self._runs:
            ended = sum(one.status == Trial.TERMINATED for one in trials)
            found = read_report(self._out / "runs" / trial.trial_id / REPORT).get("metrics", {}).get(self._metric)
            figure = "no validation" if found is None else f"{self._metric} {found:.4f}"
            LOG.info("with fresh seeds: %d of %d runs have ended, %s: %s", ended, self._runs, trial, figure)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed."""
        self._write(trials, trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """All trials have ended."""
        self._write(trials)

    def _write(self, trials: list[Trial], changed: Trial | None = None) -> None:
        write_json({"trials": states(trials)}, states_file(self._out, self._name))
        if self._head is None:
            return
        found = read_trials(self._out, self._name, self._seed)
        used = read_report(self._out / USED)
        if self._since is None:
            self._since, self._before = time.monotonic(), used.get("hours", 0.0)
        hours = self._before + (time.monotonic() - self._since) / 3600
        gpu_hours = sum(one.seconds for one in found) * self._gpus / 3600
        write_json({**used, "hours": hours, "gpu_hours": gpu_hours}, self._out / USED)
        record = make_record(self._head, found, self._own, self._out)
        record.write(self._out)
        log_search(LOG, record, changed.trial_id if changed else None)


def make_record(
    head: SearchRecord, trials: Sequence[TrialRecord], own: Mapping[str, Any], out: Path, **parts: Any
) -> SearchRecord:
    """``head`` with the trials, the front, the config's own trial and what was used; ``parts`` are further fields."""
    placed, used = with_front(trials, head.objectives), read_report(out / USED)
    default = next((one for one in placed if _same(one.values, own)), None)
    budget: dict[str, Any] = {
        **head.budget.model_dump(),
        "used_trials": len(placed),
        "used_hours": round(used.get("hours", 0.0), 5),
        "used_gpu_hours": round(used.get("gpu_hours", 0.0), 5),
        "ended_by": used.get("ended_by"),
    }
    found: dict[str, Any] = {
        "trials": placed,
        "budget": BudgetRecord(**budget),
        "steps_total": sum(one.steps for one in placed),
        "default": DefaultRecord(id=default.id, metrics=default.metrics) if default else DefaultRecord(),
    }
    return SearchRecord.model_validate({**dict(head), **found, **parts})


def _same(values: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    return all(values.get(key) == value for key, value in own.items())


class BudgetStopper(Stopper):
    """Ends all trials where they are once the hours, or the hours of GPUs, are used (``used.json``).

    Without limits it stops nothing.
    """

    def __init__(self, out: Path, hours: float | None, gpu_hours: float | None) -> None:
        self._out, self._limits = out, {"hours": hours, "gpu_hours": gpu_hours}

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether a budget is used up."""
        if not any(self._limits.values()):
            return False
        used = read_report(self._out / USED)
        ended = [name for name, limit in self._limits.items() if limit and used.get(name, 0.0) >= limit]
        if ended and "ended_by" not in used:
            write_json({**used, "ended_by": ended[0]}, self._out / USED)
        return bool(ended)
