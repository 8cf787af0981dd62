"""``report.html``: one self-contained page that begins with the headline, and its main figures as a text table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from genrec.data.files import write_text
from genrec.evaluation.report import plots

TITLES = {
    "model": "Model",
    "sft": "SFT policy",
    "policy": "Policy without prior",
    "sid_path": "… its semantic IDs alone",
    "item_head": "… its item head alone",
    "popularity": "Popularity",
    "transition": "Last-item transitions",
    "itemknn": "ItemKNN, tuned",
    "repeat_last": "Repeat-last",
    "star": "STAR",
    "text": "Text neighbours",
    "als": "ALS",
    "bpr": "BPR",
    "sasrec": "SASRec",
    "sasrec_bce": "SASRec, binary loss",
    "bsarec": "BSARec",
    "gru4rec": "GRU4Rec",
    "bert4rec": "BERT4Rec",
    "hstu": "HSTU",
    "refit_model": "Model, trained on train + valid",
    "refit_policy": "Policy without prior, train + valid",
    "refit_itemknn": "ItemKNN, tuned, train + valid",
}
REFITTED = "refit_"
CHART = ("hr@10", "ndcg@10", "hr@50")
SFT_PANELS = (("loss", "Training loss"), ("ndcg@10", "Validation NDCG@10"), ("lr", "Learning rate"))
GRPO_PANELS = (
    ("reward", "Mean reward"),
    ("zero_advantage_groups", "Share of zero-advantage groups"),
    ("kl", "KL to the SFT policy"),
    ("prob_shift/head", "Probability gained by head items"),
    ("prob_shift/tail", "Probability gained by tail items"),
    ("ndcg@10", "Validation NDCG@10"),
    ("hr@50", "Validation HR@50"),
)
RESERVED = {"baselines", "ci95", "stages", "paired", "buckets", "spread", "prefix", "grpo_minus_sft"}
PREFIX_KS = (10, 50)
"""Cut-offs of Prefix@l@k in the report; ``metrics.json`` has all of ``evaluation.ks``."""


def write_report(
    directory: Path,
    metrics: Mapping[str, Any],
    *,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    sid_stats: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    config_text: str = "",
    title: str = "genrec",
) -> Path:
    """Write ``directory/report.html`` atomically and return its path.

    Args:
        metrics: the result of ``summarise``.
        curves: "sft" and "grpo" to points with "step" and any of the panels' keys; a panel without values is left out.
        sid_stats: the result of ``sid_use``.
        samples: each has "history" and "recommended" (titles, oldest and best first), and may have "target" and "rank"
            (from 1, 0: not found).
        config_text: the resolved configuration, shown as it is.
    """
    curves = curves or {}
    context = {
        "title": title,
        "metrics": metrics,
        "lost": bool(metrics.get("baseline_wins")),
        "led": str(metrics["headline"]).startswith("The model leads"),
        "spans": metrics["ci95"]["model"]["item"],
        "item_table": item_table(metrics),
        "sid_table": _rows(metrics, "sid"),
        "prefix_table": prefix_table(metrics),
        "columns": list(metrics["model"]["item"]),
        "titles": TITLES,
        "shown_name": shown_name,
        "chart": Markup(_chart(metrics)),
        "training": _training(curves),
        "codes": Markup(plots.code_use(sid_stats["levels"])) if sid_stats else None,
        "sid_stats": sid_stats,
        "samples": samples,
        "config_text": config_text,
    }
    path = Path(directory) / "report.html"
    write_text(_template().render(context), path)
    return path


def item_table(metrics: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Item level: ``{"value", "span", "best"}`` by ranking and metric; the policies first, then the baselines.

    Rankings that were refitted have seen more events than the others: they come last, with a best one of their own.
    """
    rows = _rows(metrics, "item")
    for name, values in metrics["baselines"].items():
        spans = metrics["ci95"]["baselines"].get(name, {})
        rows[name] = {metric: {"value": value, "span": spans.get(metric)} for metric, value in values.items()}
    refitted = {name: row for name, row in rows.items() if name.startswith(REFITTED)}
    strict = {name: row for name, row in rows.items() if name not in refitted}
    for metric in metrics["model"]["item"]:
        for group in filter(None, (strict, refitted)):
            top = max(row[metric]["value"] for row in group.values())
            for row in group.values():
                row[metric]["best"] = row[metric]["value"] == top > 0
    return strict | refitted


def prefix_table(metrics: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Prefix@l@k of every level at 10 and 50, in the form of ``item_table`` and in the order of its rows."""
    found, spans = metrics["prefix"], metrics["ci95"]["prefix"]
    shown = [name for k in PREFIX_KS for name in found["model"] if name.endswith(f"@{k}")]
    return {
        name: {metric: {"value": found[name][metric], "span": spans[name].get(metric)} for metric in shown}
        for name in item_table(metrics)
    }


def text_table(metrics: Mapping[str, Any]) -> str:
    """The headline and the main figures as fixed-width text; a star marks the best of a column at item level."""
    columns = [
        name for name in ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10", "ndcg@50") if name in metrics["model"]["item"]
    ]
    rows = {TITLES.get(name, name): row for name, row in item_table(metrics).items()}
    sid = {f"{TITLES.get(name, name)} (SID level)": row for name, row in _rows(metrics, "sid").items()}
    width = max(len(name) for name in [*rows, *sid])
    lines = [metrics["headline"], "", " " * width + "".join(f"{name.upper():>10}" for name in columns)]
    for name, row in {**rows, **sid}.items():
        cells = (f"{row[column]['value']:.4f}{'*' if row[column].get('best') else ' '}" for column in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
    lines += [f"no row of {TITLES.get(name, name)}: {why}" for name, why in metrics.get("baselines_failed", {}).items()]
    return "\n".join(lines)


def shown_name(metric: str) -> str:
    """A metric's name as a table shows it; an event type keeps its spelling: NDCG@10/purchase."""
    name, *event = metric.split("/", 1)
    accuracy = name.removeprefix("tail_").startswith(("ndcg", "hr"))
    shown = name.upper().replace("TAIL_", "Tail ") if accuracy else name.capitalize().replace("_", " ")
    return "/".join([shown, *event])


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("genrec.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _policies(metrics: Mapping[str, Any]) -> list[str]:
    """The model, and every further policy that was evaluated at item and semantic-ID level."""
    others = [name for name, value in metrics.items() if name not in RESERVED and name != "model" and _is_policy(value)]
    return ["model", *others]


def _is_policy(value: object) -> bool:
    return isinstance(value, Mapping) and "item" in value and "sid" in value


def _rows(metrics: Mapping[str, Any], level: str) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        name: {
            metric: {"value": value, "span": metrics["ci95"].get(name, {}).get(level, {}).get(metric)}
            for metric, value in metrics[name][level].items()
        }
        for name in _policies(metrics)
    }


def _chart(metrics: Mapping[str, Any]) -> str:
    table = item_table(metrics)
    shown = [metric for metric in CHART if metric in metrics["model"]["item"]]
    values = {name: {metric: cell["value"] for metric, cell in row.items()} for name, row in table.items()}
    spans = {name: {m: cell["span"] for m, cell in row.items() if cell["span"]} for name, row in table.items()}
    return plots.bars(values, spans, TITLES, shown)


def _training(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, Markup]]:
    """(heading, figure) of each training stage that has points."""
    stages = (("sft", "Supervised fine-tuning", SFT_PANELS), ("grpo", "GRPO", GRPO_PANELS))
    figures: list[tuple[str, Markup]] = []
    for stage, heading, panels in stages:
        figure = plots.curves(curves.get(stage, ()), panels)
        if figure:
            figures.append((heading, Markup(figure)))
    return figures
