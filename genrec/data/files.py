"""Atomic writes: a reader sees the complete file, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path in the same folder, flush the file to disk, then rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    """Write ``table`` as Parquet, atomically; ``options`` are pyarrow's, with zstd compression by default."""
    chosen: dict[str, Any] = {"compression": "zstd"} | options
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, **chosen))


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(value: Any, path: Path) -> None:
    """Write indented JSON, atomically."""
    write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)
