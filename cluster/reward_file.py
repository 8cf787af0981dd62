"""A file of reward terms as part of a stage: its content is in the stage's key, and a copy lies beside the result."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from genrec.errors import InputError


def terms_settings(file: str | None) -> dict[str, str]:
    """What a stage's key needs to know of the file; nothing where there is none.

    Raises:
        InputError: the file does not exist.
    """
    if file is None:
        return {}
    if not Path(file).is_file():
        raise InputError(f"--rewards {file}: no such file; a Python file with a mapping TERMS was expected")
    return {"terms": hashlib.sha256(Path(file).read_bytes()).hexdigest()}


def kept_terms(file: str | None, out: Path) -> Path | None:
    """The copy under ``out``, which every worker sees, or None."""
    return None if file is None else Path(shutil.copyfile(file, out / "rewards.py"))
