"""Sparse matrices in files: written once, and read from the disk as far as they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

Sparse: TypeAlias = Any
"""A ``scipy.sparse.csr_matrix``. scipy has no usable types, so this name is all that a signature can say."""

PARTS = ("data", "indices", "indptr")
"""What a matrix consists of, in the order in which scipy takes it."""


def write_matrix(matrix: Sparse, folder: Path) -> None:
    """Put a matrix into files of ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        np.save(folder / f"{part}.npy", getattr(matrix, part))


def map_matrix(folder: Path, columns: int) -> Sparse:
    """The matrix (R, ``columns``) that ``write_matrix`` put there; its entries stay on the disk until they are used."""
    parts = [np.asarray(np.load(folder / f"{part}.npy", mmap_mode="r")) for part in PARTS]
    return sparse.csr_matrix(tuple(parts), (len(parts[-1]) - 1, columns))
