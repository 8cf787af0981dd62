"""Runs side by side: one page, with its Markdown and JSON twins, for the reports of several runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from genrec.data.files import require_directory_at, write_json, write_text
from genrec.errors import InputError
from genrec.evaluation.intervals import over_runs
from genrec.evaluation.report.page import PACKAGE, TITLES, main_columns, policies, show_report
from genrec.evaluation.summary import HEADLINE_METRICS
from genrec.pages.render import finite, page_environment, write_page

FILE = "report.json"
SEEDED = re.compile(r"^(?:name|seed|storage):.*$", re.MULTILINE)
"""Lines of a config in which runs with other seeds may differ."""
SEED = re.compile(r"^seed:.*$", re.MULTILINE)
NEEDED = ("title", "verdict", "in_plain_words", "metrics", "curves", "sid_stats", "users", "catalog", "config")


def report_runs(runs: Sequence[Path], out: Path) -> Path:
    """Write ``report.html``, ``.md`` and ``.json`` of one or several runs into ``out``; returns the page's path.

    Args:
        runs: directories that hold a ``report.json``.

    Raises:
        InputError: no run is given, a directory is none of a run, the runs were not tested on the same queries, or
            ``out`` is a file.
    """
    if not runs:
        raise InputError("got no run, wanted the directory of a report at least, such as storage/runs/demo")
    reports = [read_report(run) for run in runs]
    require_directory_at(out, f"--out {out}")
    out.mkdir(parents=True, exist_ok=True)
    if len(reports) == 1:
        write_json(reports[0], out / FILE)
        return show_report(out, reports[0])
    return _show(compared(reports, [str(run) for run in runs]), out)


def read_report(run: Path) -> dict[str, Any]:
    """The content of a run's ``report.json``.

    Raises:
        InputError: there is none, or it is none.
    """
    path = run / FILE
    try:
        about: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"{run} holds no {FILE}: wanted the directory of a finished run's report, such as storage/runs/demo; "
            "reports of older versions are made again by genrec evaluate, and what genrec update publishes has none"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}; make the report again with genrec evaluate") from None
    missing = [name for name in NEEDED if not isinstance(about, dict) or name not in about]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: make the report again with genrec evaluate")
    return cast("dict[str, Any]", about)


def compared(reports: Sequence[dict[str, Any]], places: Sequence[str]) -> dict[str, Any]:
    """What the page of several runs shows: a row per run and ranking, and the figures of every run's training.

    Raises:
        InputError: the runs have other test queries or another catalogue: their figures cannot be compared.
    """
    tests = [(report["metrics"]["queries"], report["metrics"]["items"]) for report in reports]
    if len(set(tests)) > 1:
        told = ", ".join(
            f"{place} {queries} of {items} items" for place, (queries, items) in zip(places, tests, strict=True)
        )
        raise InputError(f"the runs were tested on different queries ({told}): their figures cannot be compared")
    labels = _labels([report["title"] for report in reports], places)
    columns = [
        c for c in main_columns(reports[0]["metrics"]) if all(c in r["metrics"]["model"]["item"] for r in reports)
    ]
    runs: list[dict[str, Any]] = [
        {
            "label": label,
            "place": place,
            "verdict": report["verdict"],
            "rows": _rows(report["metrics"], columns),
            "spread": report["metrics"]["spread"]["model"],
            "curves": report["curves"],
        }
        for label, place, report in zip(labels, places, reports, strict=True)
    ]
    seeds = over_seeds([report["config"] for report in reports], runs, columns)
    about = {"title": "runs", "verdict": _best_run(runs), "columns": columns, "runs": runs, "queries": tests[0][0]}
    return {**about, "seeds": seeds}


def over_seeds(configs: Sequence[str], runs: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Runs whose configs differ in the seed alone: the mean of each ranking's figures, with Student's t interval.

    Returns:
        Per group of two runs or more ``{"labels", "rows": {name: {column: Estimate}}, "minus"}``, of rankings that all
        have; ``minus`` has the model minus each other one, paired by seed, in the form of ``rows``.
    """
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for config, run in zip(configs, runs, strict=True):
        if config:  # A seed that is there already is the same run, or one of other code.
            groups.setdefault(SEEDED.sub("", config), {}).setdefault("".join(SEED.findall(config)), run)
    found: list[dict[str, Any]] = []
    for group in (list(runs_by_seed.values()) for runs_by_seed in groups.values()):
        tables = [{row["name"]: row["values"] for row in run["rows"]} for run in group]
        names = [name for name in tables[0] if all(name in table for table in tables)]
        rows = {name: {c: over_runs([table[name][c] for table in tables]) for c in columns} for name in names}
        minus = {
            other: {c: over_runs([table[names[0]][c] - table[other][c] for table in tables]) for c in HEADLINE_METRICS}
            for other in names[1:]
        }
        if len(group) > 1:
            found.append({"labels": [run["label"] for run in group], "rows": rows, "minus": minus})
    return found


def _best_run(runs: Sequence[Mapping[str, Any]]) -> str:
    """The sentence that the page of several runs begins with."""
    figures: list[float] = [run["rows"][0]["values"]["ndcg@10"] for run in runs]
    own, following = sorted(figures, reverse=True)[:2]
    if own == following:
        return f"Of {len(runs)} runs, none is best: the highest NDCG@10, {own:.4f}, is that of several."
    best = runs[figures.index(own)]["label"]
    return f"Of {len(runs)} runs, {best} has the highest NDCG@10: {own:.4f} against {following:.4f} of the next."


def _rows(metrics: dict[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The model's row, then those of the other policies and the baselines."""
    names = policies(metrics)
    spans = {name: metrics["ci95"].get(name, {}).get("item", {}) for name in names} | metrics["ci95"]["baselines"]
    rows = {name: metrics[name]["item"] for name in names} | metrics["baselines"]
    return [
        {
            "key": name,
            "name": TITLES.get(name, name),
            "values": {c: row.get(c) for c in columns},
            "spans": {c: spans.get(name, {}).get(c) for c in columns},
        }
        for name, row in rows.items()
    ]


def _labels(titles: Sequence[str], places: Sequence[str]) -> list[str]:
    """Each run's name; where names are used twice, with the directory, the whole path where that is used twice, too."""
    names = list(zip(titles, (Path(place).name for place in places), strict=True))
    return [
        t if titles.count(t) == 1 else f"{t} ({name if names.count((t, name)) == 1 else place})"
        for (t, name), place in zip(names, places, strict=True)
    ]


def _show(about: dict[str, Any], out: Path) -> Path:
    write_json(finite(about), out / FILE)
    write_text(page_environment(PACKAGE).get_template("compare.md.j2").render(about), out / "report.md")
    return write_page(out / "report.html", PACKAGE, "compare.html.j2", about, scripts=("compare",))
