"""baselines: those of ``evaluation.baselines`` that take longer than counting, each trained, tuned and ranked once.

One that fails is told of, here and in the report, and the others go on.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact, shown_path
from cluster.baseline_rows import make_row_or_reason, row_settings
from cluster.progress import STAGE
from cluster.stages.plan import Plan, StageRun
from genrec.config import Config

LOG = logging.getLogger(__name__)


def plan(run: StageRun) -> Plan:
    """Make the baselines that are asked for."""
    settings = {name: row_settings(run.config, name) for name in run.config.evaluation.made_baselines}
    return Plan(settings, partial(_make, run.config, run.inputs))


def publish(run: StageRun, artifact: Artifact) -> None:
    """Say each time which baselines are missing, and how they are tried again."""
    for name, reason in artifact.metrics["failed"].items():
        about = (name, reason, shown_path(artifact.path))
        LOG.warning("no row of %s: %s (to try it again, delete %s)", *about, extra={STAGE: "baselines"})


def _make(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Mapping[str, Any]:
    from genrec.baselines.ranking_files import RANKING

    failed: dict[str, str] = {}
    rows: dict[str, Any] = {}
    for name in config.evaluation.made_baselines:
        row = make_row_or_reason(config, name, inputs)
        if isinstance(row, str):
            failed[name] = row
            LOG.warning("the baseline %s failed, the others go on: %s", name, row, extra={STAGE: "baselines"})
            continue
        (out / name).mkdir(exist_ok=True)
        shutil.copyfile(row.path / RANKING, out / name / RANKING)
        rows[name] = {key: row.metrics[key] for key in ("settings", "ms_per_query", "wall_s")} | {"key": row.key}
    return {"rows": rows, "failed": failed}
