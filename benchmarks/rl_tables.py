"""The page of ``benchmarks.rl_quality``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.tables import estimate_text, gain_text, markdown

SCORES = (
    *("ndcg@10", "hr@10", "hr@50", "hr@50/tail", "ndcg@10/purchase"),
    *("unique_categories@10", "new_items@10", "coverage@10"),
)


def rl_quality_page(about: Mapping[str, Any]) -> str:
    """Four tables: the rows' test scores, their gains over SFT, their costs, and what was tried on validation."""
    rows: Mapping[str, Mapping[str, Any]] = about["rows"]
    base, metric, best, served = rows["sft"], about["metric"], about["best"], about.get("served", False)
    scores, gains = [name for name in SCORES if name in base], list(base["paired"])
    scored = (
        [_name(name, best), f"{one['valid']:.4f}", *(estimate_text(one[score], ".4f") for score in scores)]
        for name, one in rows.items()
    )
    gained = ([name, *(gain_text(one, base, gain) for gain in gains)] for name, one in rows.items() if name != "sft")
    lines = [
        *markdown(("row", f"validation {metric}", *scores), scored),
        "",
        *(["Answers as they are served: with item head and prior, weighed on validation for each policy."] * served),
        f"Test split, item level: mean of {len(base['seeds'])} seeds [95 % t interval]. Settings of each row, and the",
        f"**best** row, were chosen by {metric} on validation; the test was looked at after that.",
        "",
        *markdown(("row", *gains), gained),
        "",
        "Gains over sft: mean over seeds [95 % paired bootstrap over queries] (relative).",
        "",
        *markdown(
            ("row", "settings", "step kept", "stopped", "zero-advantage groups", "seconds", "SFT times", "SFT steps"),
            (_cost(name, one) for name, one in rows.items() if name != "sft"),
        ),
        "",
        "Means over seeds; *stopped*: share of runs that the guard ended; *SFT times*, *SFT steps*: the seconds of",
        "what a row adds (groups, updates, validations), divided by those of SFT, and in its steps.",
        "",
        *markdown(("row", "settings", f"validation {metric}", "seeds"), _tried(about["tried"])),
    ]
    return "\n".join(lines) + "\n"


def _name(name: str, best: str) -> str:
    return f"**{name}**" if name == best else name


def _cost(name: str, row: Mapping[str, Any]) -> list[str]:
    audit, cost = row["audit"], row["cost"]
    kept = [f"{audit['best_step']:.0f}", f"{audit['stopped']:.0%}", f"{audit.get('zero_advantage_groups', 0):.1%}"]
    return [
        name,
        row["settings"],
        *kept,
        f"{cost['seconds']:.0f}",
        f"{cost['sft_time']:.2f}",
        f"{cost['sft_steps']:.0f}",
    ]


def _tried(tried: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[list[str]]:
    for row, choices in tried.items():
        for settings, one in choices.items():
            yield [row, settings, f"{one['valid']:.4f}", str(one["seeds"])]
