"""The Markdown page of the tokenizer comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FIGURES = (
    "tokenizer",
    "collide",
    "after",
    "codes used",
    "perplexity",
    "error",
    "neighbours",
    "bought together",
    "fit s",
    "assign s",
)
NOTES = """\
*collide*, *after*: 1 − distinct SIDs / items, before and after collisions are settled. *codes used*, *perplexity*: per
level, after. *error*: squared error as a share of the variance of what is quantized (0: as without quantization),
before → after; inputs differ between text, cf and fused rows. *neighbours*: share of the 10 items with the nearest text
vectors under the same prefix, per length of the prefix short of the whole SID. *bought together*: the same share of
pairs bought one after the other. *assign s*: to encode all items and to settle collisions."""


def page(rows: Mapping[str, Mapping[str, Any]], policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables: the figures of every row, and the policies of those that were trained on."""
    lines = [*_table(FIGURES, (_figures(name, row) for name, row in rows.items() if "refused" not in row)), "", NOTES]
    lines += [f"\n{name} is left out: {row['refused']}" for name, row in rows.items() if "refused" in row]
    if policies:
        lines += ["", *_policies(policies)]
    return "\n".join(lines) + "\n"


def _figures(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{row['collisions_before']:.2%}",
        f"{row['collisions_after']:.2%}",
        _each(row["codes_used"], "d"),
        _each(row["perplexity"], ".0f"),
        "–" if row["error"] is None else f"{row['error_before']:.3f} → {row['error']:.3f}",
        _each(row["neighbours_of_text"][:-1], ".2f"),
        _each(row["bought_together"][:-1], ".2f"),
        _or_dash(row["fit_s"], ".2f"),
        _or_dash(row["assign_s"], ".2f"),
    ]


def _policies(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first = next(iter(policies))
    seeds = len(policies[first]["seeds"])
    heads = ("tokenizer", "NDCG@10", "HR@10", f"NDCG@10 less {first}", f"HR@10 less {first}")
    body = (
        [
            name,
            _estimate(row["ndcg@10"], ".4f"),
            _estimate(row["hr@10"], ".4f"),
            *(
                "" if name == first else _estimate(row[f"{metric}_difference"], "+.4f")
                for metric in ("ndcg@10", "hr@10")
            ),
        ]
        for name, row in policies.items()
    )
    note = f"Test split, item level: mean of {seeds} seeds [95 % t interval]; differences are paired by seed."
    return [*_table(heads, body), "", note]


def _estimate(estimate: Mapping[str, float | None], form: str) -> str:
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    return f"{mean:{form}}" if low is None else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _each(values: Sequence[float] | None, form: str) -> str:
    return " / ".join(f"{value:{form}}" for value in values) if values else "–"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in heads[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *body)]
