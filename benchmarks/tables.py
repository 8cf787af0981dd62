"""What the tables of several benchmarks share: Markdown, estimates and gains as text, scores of policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def scores_table(label: str, policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a table of policies by name, which ``label`` heads: scores, and differences to the first."""
    first = next(iter(policies))
    heads = (label, "NDCG@10", "HR@10", f"NDCG@10 minus {first}", f"HR@10 minus {first}")
    body = (
        [
            name,
            estimate_text(row["ndcg@10"], ".4f"),
            estimate_text(row["hr@10"], ".4f"),
            *(
                "" if name == first else estimate_text(row[f"{metric}_difference"], "+.4f")
                for metric in ("ndcg@10", "hr@10")
            ),
        ]
        for name, row in policies.items()
    )
    seeds = min(len(row["seeds"]) for row in policies.values())
    note = f"Test split, item level: mean of {seeds} seeds [95 % t interval]; differences are paired by seed."
    return [*markdown(heads, body), "", note]


def popularity_table(policies: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """The lines of a table of ``metric`` by popularity of the target: the first row's, and the others' differences."""
    from genrec.baselines.buckets import BUCKETS

    first = next(iter(policies))
    buckets = [name for name in BUCKETS if f"{metric}/{name}" in policies[first]]
    body = (
        [
            name,
            *(
                estimate_text(row[f"{metric}/{bucket}"], ".4f")
                if name == first
                else estimate_text(row[f"{metric}/{bucket}_difference"], "+.4f")
                for bucket in buckets
            ),
        ]
        for name, row in policies.items()
    )
    heads = (f"{metric.upper()} by target", *buckets)
    return [
        *markdown(heads, body),
        "",
        f"The first row is {first}'s {metric.upper()}, the others' are differences to it.",
    ]


def gain_text(row: Mapping[str, Any], base: Mapping[str, Any], name: str) -> str:
    """The paired gain of a metric with its interval, and what share of the base's mean it is."""
    found = row["paired"].get(name)
    if found is None:
        return "–"
    before = base[name]["mean"]
    relative = f" ({found['difference'] / before:+.1%})" if before else ""
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]{relative}"


def estimate_text(estimate: Mapping[str, Any], form: str) -> str:
    """A mean over runs with its interval, if it has one."""
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    return f"{mean:{form}}" if low is None else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def or_dash(value: float | None, form: str) -> str:
    """The value, or a dash where there is none."""
    return "–" if value is None else f"{value:{form}}"


def markdown(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    rule = ["---", *("---:" for _ in heads[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *body)]
