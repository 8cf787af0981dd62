"""``report.html``: one self-contained page that begins with the verdict; its twins are ``report.md`` and ``.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from genrec.data.files import write_json, write_text
from genrec.evaluation.report import plots
from genrec.evaluation.report.audit import training_panels
from genrec.evaluation.verdict import plain_words, standing_of, verdict
from genrec.pages.render import finite, page_environment, write_page

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
    "tiger": "TIGER",
    "refit_model": "Model, trained on train + valid",
    "refit_policy": "Policy without prior, train + valid",
    "refit_itemknn": "ItemKNN, tuned, train + valid",
}
PACKAGE = "genrec.evaluation.report"
REFITTED = "refit_"
CHART = ("hr@10", "ndcg@10", "hr@50")
SLICES = {"day": "time since the last event", "repeat": "repetition", "session": "place in the session"}
"""Names of slices in headings, where another one says more."""
PREFIX_KS = (10, 50)
"""Cut-offs of Prefix@l@k in the report; ``metrics.json`` has all of ``evaluation.ks``."""


def write_report(
    directory: Path,
    metrics: Mapping[str, Any],
    *,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    sid_stats: Mapping[str, Any] | None = None,
    users: Sequence[Mapping[str, Any]] = (),
    catalog: Mapping[str, Any] | None = None,
    config_text: str = "",
    title: str = "genrec",
) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json`` into ``directory``; returns the path of the page.

    Args:
        metrics: the result of ``summarise``.
        curves: "sft" and "grpo" to points with "step" and any figures; a panel without values is left out.
        sid_stats: the result of ``sid_use``.
        users: the result of ``user_answers``.
        catalog: the result of ``catalog_view``.
        config_text: the resolved configuration, shown as it is.
    """
    about = {
        "title": title,
        "verdict": verdict(metrics),
        "in_plain_words": plain_words(metrics),
        "metrics": metrics,
        "curves": curves or {},
        "sid_stats": sid_stats,
        "users": users,
        "catalog": catalog,
        "config": config_text,
    }
    write_json(finite(about), directory / "report.json")
    return show_report(directory, about)


def show_report(directory: Path, about: Mapping[str, Any]) -> Path:
    """Write the page and its Markdown twin for the content of a ``report.json``; returns the path of the page."""
    metrics, sid_stats = about["metrics"], about["sid_stats"]
    context = {
        **about,
        "stands": standing_of(metrics, "model") if metrics["baselines"] else "level",
        "spans": metrics["ci95"]["model"]["item"],
        "item_table": item_table(metrics),
        "sid_table": _rows(metrics, "sid"),
        "prefix_table": prefix_table(metrics),
        "columns": list(metrics["model"]["item"]),
        "titles": TITLES,
        "slice_names": SLICES,
        "shown_name": shown_name,
        "chart": chart(metrics),
        "training": training_panels(about["curves"]),
        "codes": plots.code_use(sid_stats["levels"]) if sid_stats else None,
    }
    write_text(markdown(about), Path(directory) / "report.md")
    scripts = ("report",)
    return write_page(Path(directory) / "report.html", PACKAGE, "report.html.j2", context, scripts=scripts)


def markdown(about: Mapping[str, Any]) -> str:
    """The report as Markdown: the verdict, the main tables, the slices, and the configuration."""
    metrics = about["metrics"]
    tables = {"columns": main_columns(metrics), "item_table": item_table(metrics), "slices": slices(metrics)}
    template = page_environment(PACKAGE).get_template("report.md.j2")
    return template.render(about, titles=TITLES, shown_name=shown_name, **tables)


def slices(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """By what the queries are divided by: ranking to part to figures. Those of one part alone are left out."""
    others: Mapping[str, Any] = metrics.get("slices", {})
    found: dict[str, Any] = {"popularity of the target": metrics["buckets"]}
    found |= {SLICES.get(name, name): rows for name, rows in others.items()}
    if len(metrics.get("events", {}).get("model", ())) > 1:
        found["event type of the target"] = metrics["events"]
    return found


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
    """The verdict and the main figures as fixed-width text; a star marks the best of a column at item level."""
    columns = main_columns(metrics)
    rows = {TITLES.get(name, name): row for name, row in item_table(metrics).items()}
    sid = {f"{TITLES.get(name, name)} (SID level)": row for name, row in _rows(metrics, "sid").items()}
    width = max(len(name) for name in [*rows, *sid])
    lines = [
        verdict(metrics),
        *wrap(plain_words(metrics), 100),
        "",
        " " * width + "".join(f"{name.upper():>10}" for name in columns),
    ]
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


def main_columns(metrics: Mapping[str, Any]) -> list[str]:
    """The cut-offs that every form of the report shows."""
    wanted = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10", "ndcg@50")
    return [name for name in wanted if name in metrics["model"]["item"]]


def policies(metrics: Mapping[str, Any]) -> list[str]:
    """The model, and every further policy that was evaluated at item and semantic-ID level."""
    found = [name for name, value in metrics.items() if isinstance(value, Mapping) and {"item", "sid"} <= value.keys()]
    return ["model", *(name for name in found if name != "model")]


def _rows(metrics: Mapping[str, Any], level: str) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        name: {
            metric: {"value": value, "span": metrics["ci95"].get(name, {}).get(level, {}).get(metric)}
            for metric, value in metrics[name][level].items()
        }
        for name in policies(metrics)
    }


def chart(metrics: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The bars of the first figure: metrics to ``{"key", "name", "mean", "low", "high"}`` of every ranking."""
    shown = [metric for metric in CHART if metric in metrics["model"]["item"]]
    return {metric: [_bar(name, row[metric]) for name, row in item_table(metrics).items()] for metric in shown}


def _bar(name: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    low, high = cell["span"] or (None, None)
    return {"key": name, "name": TITLES.get(name, name), "mean": cell["value"], "low": low, "high": high}
