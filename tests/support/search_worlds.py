"""Records of searches that no search has to be run for."""

from __future__ import annotations

from genrec.evaluation.search_record import (
    BudgetRecord,
    DefaultRecord,
    DimensionRecord,
    FinalistRecord,
    MeanDifference,
    SearchRecord,
    SeedRun,
    TrialRecord,
    WinnerRecord,
)

SPACE = {
    "rewards.prefix": DimensionRecord(kind="uniform", low=0.0, high=0.5),
    "learning.rl.kl": DimensionRecord(kind="loguniform", low=1e-4, high=1e-1),
    "learning.rl.objective": DimensionRecord(kind="choice", values=["grpo", "ppo"]),
}


def trial(number: int, status: str = "finished", name: str | None = None, error: str | None = None) -> TrialRecord:
    """A trial whose metric grows with ``rewards.prefix``, and with nothing else."""
    values = {
        "rewards.prefix": 0.04 * number,
        "learning.rl.kl": 10.0 ** (-1 - number * 7 % 4),
        "learning.rl.objective": ("grpo", "ppo")[number % 2],
    }
    ends = 0.08 + 0.1 * values["rewards.prefix"]
    checks = {"finished": 5, "stopped": 2}.get(status, 0)
    curve = [{"step": 10.0 * at, "ndcg@10": 0.08 + (ends - 0.08) * at / 4, "hr@50": 0.2} for at in range(checks)]
    metrics = {"ndcg@10": ends, "hr@50": 0.3 - 0.01 * number} if checks else {}
    return TrialRecord.model_validate(
        {
            "id": f"t{number}",
            "name": name or f"{number:02d} prefix={values['rewards.prefix']:.2f}",
            "values": values,
            "seed": number,
            "status": status,
            "error": error,
            "metrics": metrics,
            "feasible": bool(metrics) and metrics["hr@50"] >= 0.2,
            "on_front": number in (8, 6, 5, 3, 2),
            "audit": {"kl": 0.01 * number, "zero_advantage_groups": None},
            "curve": curve,
            "steps": 10 * max(0, checks - 1),
            "seconds": 30.0 + number,
        }
    )


def search_record(*more: TrialRecord, verdict: str | None = "Trial 8 beats the config's own weights.") -> SearchRecord:
    """Eight trials that finished or were stopped, one that failed, and ``more``."""
    trials = [trial(n, "stopped" if n in (1, 4) else "finished") for n in (8, 1, 7, 2, 6, 3, 5, 4)]
    trials += [trial(9, "failed", error="the worker died: out of memory"), *more]
    finalist = FinalistRecord(
        trial="t8",
        values=trials[0].values,
        seeds=[SeedRun(seed=71, metrics={"ndcg@10": 0.111}), SeedRun(seed=72, error="killed")],
        difference=MeanDifference(mean=0.003, low=0.001, high=0.005),
    )
    return SearchRecord(
        metric="ndcg@10",
        objectives=["ndcg@10", "hr@50"],
        constraints={"hr@50": 0.2},
        space=SPACE,
        searcher="optuna",
        scheduler="asha",
        sft={"ndcg@10": 0.08, "hr@50": 0.25},
        default=DefaultRecord(id="t1"),
        trials=trials,
        finalists=[finalist],
        winner=None if verdict is None else WinnerRecord(trial="t8", verdict=verdict),
        budget=BudgetRecord(trials=10, used_trials=9, used_hours=0.1),
        steps_total=300,
    )
