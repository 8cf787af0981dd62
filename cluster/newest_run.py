"""``<storage>/runs/<name>``: a link to the newest run of a name, which a reload without a name follows."""

from __future__ import annotations

import os
from pathlib import Path


def point_to(newest: Path, kept: Path) -> None:
    """Make the link ``newest`` point to its neighbour ``kept``, at one moment; a directory in its place is renamed."""
    if newest.is_dir() and not newest.is_symlink():
        newest.rename(newest.with_name(f"{newest.name}-{newest.stat().st_mtime_ns}"))
    link = newest.with_name(f".{newest.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(kept.name)
    link.replace(newest)
