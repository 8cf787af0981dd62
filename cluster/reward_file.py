"""A file of reward terms as part of a stage: its content is in the stage's key, and a copy lies next to the result."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from genrec.data.files import write_atomically
from genrec.errors import InputError


def settings(file: Path | None) -> dict[str, str]:
    """What a stage's key needs to know of the file; nothing where there is none.

    Raises:
        InputError: the file does not exist.
    """
    if file is None:
        return {}
    if not file.is_file():
        raise InputError(f"--rewards {file}: no such file; wanted: a Python file with a mapping TERMS")
    return {"terms": hashlib.sha256(file.read_bytes()).hexdigest()}


def keep(file: Path | None, out: Path) -> Path | None:
    """The copy under ``out``, which every worker sees, or None."""
    if file is None:
        return None
    write_atomically(out / "rewards.py", lambda temporary: shutil.copyfile(file, temporary))
    return out / "rewards.py"
