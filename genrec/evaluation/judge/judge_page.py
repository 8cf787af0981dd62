"""``judge.html``: what a judge found, and whether it can be trusted, on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrec.evaluation.judge.judgement import SCORE
from genrec.evaluation.judge.questions import CRITERIA
from genrec.pages.render import write_page

PACKAGE = "genrec.evaluation.judge"


def write_judge_page(directory: Path, found: Mapping[str, Any], names: Mapping[str, str]) -> Path:
    """Write the page for the content of a ``judge.json``; returns its path.

    Args:
        names: of systems, as people read them.
    """
    rows = [
        {"name": names.get(name, name), "mean": row["means"][SCORE], **_span(row["ci95"].get(SCORE))}
        for name, row in found["systems"].items()
    ]
    context = {"title": f"judge of {found['run']}", **found, "names": names, "criteria": CRITERIA, "rows": rows}
    return write_page(directory / "judge.html", PACKAGE, "judge.html.j2", context, scripts=("judge",))


def _span(span: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = span or (None, None)
    return {"low": low, "high": high}
