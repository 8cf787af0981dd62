"""``<storage>/runs/<name>``: a link to the newest run of a name, which a reload without a name follows."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from cluster.artifacts import Artifact
from genrec.config import Config
from genrec.data.files import temporary_beside
from genrec.inference.run_record import RECORD

LOG = logging.getLogger(__name__)


def point_to(newest: Path, kept: Path) -> None:
    """Make the link ``newest`` point to its neighbour ``kept``, at one moment; a directory in its place is renamed."""
    if newest.is_dir() and not newest.is_symlink():
        newest.rename(newest.with_name(f"{newest.name}-{newest.stat().st_mtime_ns}"))
    link = temporary_beside(newest)
    link.symlink_to(kept.name)
    link.replace(newest)


def warn_if_not_served(config: Config, assigned: Artifact) -> None:
    """Warn where the newest run of the config's name serves another catalogue, and so sees no change of this one."""
    try:
        record = json.loads((config.storage_path / "runs" / config.name / RECORD).read_text(encoding="utf-8"))
        catalog = str(record["parts"]["catalog"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if catalog != f"assign/{assigned.key}":
        LOG.warning(
            "the run %s serves another catalogue (%s) and does not see this change; give the configs and keys that it "
            "was made with",
            config.name,
            catalog,
        )
