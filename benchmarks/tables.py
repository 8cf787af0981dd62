"""Markdown tables of the benchmarks that compare policies: tokenizers, losses, tasks, rewards and searches."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
*collide*, *after*: 1 − distinct SIDs / items, before and after collisions are resolved. *codes used*, *perplexity*: per
level, after. *error*: squared error as a share of the variance of the quantized vectors (0: as without quantization),
before → after; text, cf and fused quantize different vectors. *neighbours*: share of the 10 items with the nearest text
vectors that have the same prefix, for each length of the prefix below the whole SID. *bought together*: the same share
of pairs bought one after the other. *assign s*: seconds to encode all items and to resolve collisions."""

SHARE = "advantage_share/"
BASELINE_SCORES = ("hr@10", "ndcg@10", "hr@50")
REWARD_SCORES = ("ndcg@10", "hr@10", "hr@50", "hr@50/tail", "coverage@10", "category_entropy@10")


def tokenizers_page(variants: Mapping[str, Mapping[str, Any]], policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables: the figures of every variant, and the policies of those that policies were trained on."""
    made = {name: one for name, one in variants.items() if "refused" not in one}
    lines = [*markdown(FIGURES, (_figures(name, one) for name, one in made.items())), "", NOTES]
    lines += [f"\n{name} is left out: {one['refused']}" for name, one in variants.items() if "refused" in one]
    if policies:
        lines += ["", *scores_table("tokenizer", policies)]
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


def rewards_page(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Three tables of policies by rewards: their scores, their gains over the first, and their audits."""
    first = next(iter(policies))
    base, seeds = policies[first], min(len(one["seeds"]) for one in policies.values())
    scores, gains = [name for name in REWARD_SCORES if name in base], list(base["paired"])
    scored = ([name, *(estimate_text(one[score], ".4f") for score in scores)] for name, one in policies.items())
    gained = (
        [name, *(gain_text(one, base, gain) for gain in gains)] for name, one in policies.items() if name != first
    )
    lines = [
        *markdown(("rewards", *scores), scored),
        "",
        f"Test split, item level: mean of {seeds} seeds [95 % t interval].",
        "",
        *markdown(("rewards", *gains), gained),
        "",
        f"Gains over {first}: mean over seeds [95 % paired bootstrap over queries] (relative).",
        "",
        *_audits({name: one["audit"] for name, one in policies.items() if "audit" in one}),
        "",
        "Means over updates and seeds; *best_step*: the step that was kept, *stopped*: share that the guard stopped.",
    ]
    return "\n".join(lines) + "\n"


def _audits(audits: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for audit in audits.values() for name in audit)
    columns = [name for name in names if not name.startswith(SHARE)]
    body = (
        [name, *(_or_dash(audit.get(column), ".3g") for column in columns), _shares(audit)]
        for name, audit in audits.items()
    )
    return markdown(("rewards", *columns, "shares of the advantages' variance"), body)


def searches_page(
    searches: Mapping[str, Mapping[str, Any]], validity: Mapping[str, Any], weights: Sequence[Mapping[str, Any]]
) -> str:
    """Two tables: searches by their scores, and how often a SID is in the catalogue without its constraint, by rank."""
    metrics = list(next(iter(searches.values())))
    tuned = "; ".join(", ".join(f"{name} {value:g}" for name, value in one.items()) for one in weights)
    lines = [
        *markdown(
            ("search", *metrics),
            ([name, *(estimate_text(one[metric], ".4f") for metric in metrics)] for name, one in searches.items()),
        ),
        "",
        f"Test split, item level: mean of {len(weights)} seeds [95 % t interval]. Tuned on validation: {tuned}.",
        "",
        *markdown(
            ("without constraint", *(f"rank {rank}" if rank.isdigit() else rank for rank in validity)),
            [["share in the catalogue", *(estimate_text(share, ".3f") for share in validity.values())]],
        ),
    ]
    return "\n".join(lines) + "\n"


def tradeoff_page(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """For each variant the curve over weights on validation, then the chosen weight on test."""
    lines: list[str] = []
    for name, one in variants.items():
        goal, points = one["goal"], one["points"]
        body = (
            [
                f"{point['weight']:g}",
                " ".join(map(str, point["best_step"])),
                f"{point['ndcg@10']['kept']:.4f} ({point['ndcg@10']['change']:+.1%})",
                f"{point[goal]['kept']:.4f} ({point[goal]['change']:+.1%})",
            ]
            for point in points
        )
        lines += [*markdown((f"{name}: weight", "kept step", "NDCG@10", goal), body), ""]
        lines += [f"Validation; NDCG@10 may lose {one['share']:.0%}. Tested: weight {one['chosen']:g}.", ""]
        tested = ([metric, *_traded(trade)] for metric, trade in one["test"].items())
        lines += [
            *markdown(("test", "SFT", "RL", "change [95 % paired bootstrap over queries]", "relative"), tested),
            "",
        ]
    return "\n".join(lines)


def _traded(trade: Mapping[str, Any]) -> list[str]:
    span = "" if trade["low"] is None else f" [{trade['low']:+.4f}, {trade['high']:+.4f}]"
    change = f"{trade['difference']:+.4f}{span}"
    return [f"{trade['sft']:.4f}", f"{trade['rl']:.4f}", change, f"{trade['relative']:+.1%}"]


POLICY_SCORES = ("hr@10", "ndcg@10", "hr@50", "hr@50/tail", "coverage@10")


def policy_page(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Three tables: how the first variant answers in each way, its differences to ItemKNN by seed, and all variants.

    Args:
        variants: by name and seed, what ``benchmarks.policy`` measured.
    """
    from genrec.evaluation.intervals import over_runs

    first, *others = variants.values()
    seeds = list(first.values())
    rows = [row for row in seeds[0]["rows"] if all(row in one["rows"] for one in seeds)]
    scores = [score for score in POLICY_SCORES if score in seeds[0]["rows"][rows[0]]]

    def mean(runs: Iterable[Mapping[str, Any]], row: str, score: str) -> str:
        return estimate_text(over_runs([one["rows"][row][score] for one in runs]), ".4f")

    answered = ([row, *(mean(seeds, row, score) for score in scores)] for row in rows)
    lines = [*markdown(("answered by", *(score.upper() for score in scores)), answered), ""]
    lines += [f"Test split, item level: mean of {len(seeds)} seeds [95 % t interval].", ""]
    compared = (
        [f"{row}, seed {seed}", *(_difference(one["minus_itemknn"][row], score) for score in ("hr@10", "ndcg@10"))]
        for seed, one in first.items()
        for row in ("policy", "model")
    )
    lines += [*markdown(("minus ItemKNN", "HR@10", "NDCG@10"), compared), ""]
    lines += ["Paired bootstrap over queries, 95 %.", ""]
    if others:
        shown = [(row, score) for row in ("sid_path", "item_head", "policy", "model") for score in ("hr@10", "ndcg@10")]
        body = (
            [
                name,
                *(
                    mean(runs.values(), row, score) if all(row in one["rows"] for one in runs.values()) else "–"
                    for row, score in shown
                ),
                f"{sum(one['train_s'] for one in runs.values()) / len(runs):.0f}",
            ]
            for name, runs in variants.items()
        )
        lines += [*markdown(("variant", *(f"{row} {score.upper()}" for row, score in shown), "training s"), body), ""]
    return "\n".join(lines) + "\n"


def recipes_page(
    recipes: Mapping[str, Mapping[str, Any]], itemknn: Mapping[str, float], claims: Mapping[str, Any]
) -> str:
    """The documents' table beside what was measured, the costs, and the recipes' claims one by one.

    Args:
        recipes: by name, what ``benchmarks.recipes`` measured.
        itemknn: the metrics of ItemKNN, tuned on validation.
        claims: ``benchmarks.claims.CLAIMS``.
    """
    seeds = len(next(iter(recipes.values()))["seeds"])
    heads = ("recipe", "SIDs", "SFT", "RL", *(f"{kind} {score}" for score in ("HR@10", "NDCG@10") for kind in KINDS))
    body = ([name, *one["method"].values(), *_recipe_scores(one, claims.get(name))] for name, one in recipes.items())
    shown = ", ".join(f"{name.upper()} {value:.4f}" for name, value in itemknn.items())
    lines = [*markdown(heads, body), ""]
    lines += [f"Test split, item level: mean of {seeds} seeds [95 % t interval]; *gain*: of RL over SFT, 95 % paired"]
    lines += [f"bootstrap over queries; *claimed*: SFT → RL (gain). ItemKNN, tuned on validation: {shown}.", ""]
    costs = ("trained_share", "collisions", "sft_s", "rl_s", "sft_peak_mb", "rl_peak_mb")
    forms = (".2%", ".1%", ".0f", ".0f", ".0f", ".0f")
    costed = ([name, *map(format, (one[cost] for cost in costs), forms)] for name, one in recipes.items())
    lines += [*markdown(("recipe", *costs), costed), ""]
    lines += [
        "*collisions*: before they are resolved. *peak_mb*: of the process, the earlier rows' pages included.",
        "",
    ]
    lines += [f"- {name}: {line}" for name, one in recipes.items() for line in one["claims"]]
    return "\n".join(lines).rstrip() + "\n"


KINDS = ("claimed", "SFT", "SFT + RL", "gain in")
"""What the recipes' table shows of each score."""


def _recipe_scores(one: Mapping[str, Any], claim: Any) -> Iterable[str]:
    for place, score in enumerate(("hr@10", "ndcg@10")):
        if claim is None:
            yield "–"
        else:
            yield f"{claim.sft[place]:.3f} → {claim.rl[place]:.3f} ({claim.gain(score):+.1%})"
        yield from (estimate_text(one[kind][score], ".4f") for kind in ("sft", "rl"))
        yield gain_text({"paired": one["gain"]}, one["sft"], score)


def events_page(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of NDCG@10 over all test queries and by event type, a row for each variant.

    Args:
        variants: by name and seed, what ``benchmarks.events`` measured.
    """
    from genrec.evaluation.intervals import over_runs

    first = next(iter(next(iter(variants.values())).values()))
    header = ("NDCG@10", *(f"{event} ({one['queries']:,})" for event, one in first.items()))
    body = (
        [name, *(estimate_text(over_runs([one[event]["ndcg@10"] for one in seeds.values()]), ".4f") for event in first)]
        for name, seeds in variants.items()
    )
    return "\n".join([*markdown(header, body), ""])


def _difference(found: Mapping[str, Any], name: str) -> str:
    one = found.get(name)
    return "–" if one is None else f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"


def gain_text(row: Mapping[str, Any], base: Mapping[str, Any], name: str) -> str:
    """The paired gain of a metric with its interval, and what share of the base's mean it is."""
    found = row["paired"].get(name)
    if found is None:
        return "–"
    before = base[name]["mean"]
    relative = f" ({found['difference'] / before:+.1%})" if before else ""
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]{relative}"


def _shares(audit: Mapping[str, float]) -> str:
    shares = {name.removeprefix(SHARE): share for name, share in audit.items() if name.startswith(SHARE)}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)


def estimate_text(estimate: Mapping[str, Any], form: str) -> str:
    """A mean over runs with its interval, if it has one."""
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    return f"{mean:{form}}" if low is None else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _each(values: Sequence[float] | None, form: str) -> str:
    return " / ".join(f"{value:{form}}" for value in values) if values else "–"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def markdown(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    rule = ["---", *("---:" for _ in heads[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *body)]


class Published(NamedTuple):
    """What was published of a baseline on the test queries: HR@10, NDCG@10, and where."""

    hr: float
    ndcg: float
    source: str


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
        _or_dash(statistics.median(epochs) if epochs else None, ".0f"),
        f"{statistics.median(one['seconds'] for one in settings):.0f}",
        f"{statistics.median(one['ms_per_query'] for one in seeds):.2f}",
    ]
