"""The vectors that are quantized: text vectors, collaborative vectors, or both concatenated, read by item row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from genrec.config import Sid
from genrec.errors import InputError
from genrec.sid.distributed.vector_stream import Reader
from genrec.sid.vectors import Floats, Longs, VectorFiles, check_vectors, unit_rows

BLOCK = 65536
"""Items that are read at once, so that all vectors are in memory once, not three times."""


def fuse(text_ND: Floats | None, cf_ND: Floats | None, text_weight: float, cf_weight: float) -> Floats:
    """Concatenate w_text · text / |text| and w_cf · cf / |cf|, (N, D_text + D_cf); a part of weight 0 is left out.

    So |x - y|² = w_text² |x_text - y_text|² + w_cf² |x_cf - y_cf|² for unit vectors of the parts.

    Raises:
        InputError: no part has a weight above 0.
    """
    parts = ((text_ND, text_weight), (cf_ND, cf_weight))
    used = [unit_rows(part, weight) for part, weight in parts if part is not None and weight > 0]
    if not used:
        raise InputError("sid.text_weight and sid.cf_weight are both 0: nothing is left to quantize; raise one of them")
    return used[0] if len(used) == 1 else np.concatenate(used, axis=1)


class TextFiles:
    """Text vectors as they were embedded, read by item row."""

    def __init__(self, vectors: Path) -> None:
        self._files = VectorFiles(vectors)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def width(self) -> int:
        """D, the dimensions of a text vector."""
        return self._files.width

    def read(self, rows: range | Longs) -> Floats:
        """The vectors (n, D) float32 of the items ``rows`` (ascending); InputError as ``FusedFiles.read``."""
        vectors_nD = np.empty((len(rows), self.width), np.float32)
        for place, text_bD, _, _ in _checked_blocks(self._files, rows):
            vectors_nD[place] = text_bD
        return vectors_nD


class FusedFiles:
    """Text vectors, collaborative vectors (``out/cf``, if they are used), or both concatenated, read by item row."""

    def __init__(self, vectors: Path, out: Path, settings: Sid) -> None:
        self._texts, self._weights = VectorFiles(vectors), (settings.text_weight, settings.cf_weight)
        self._factors = VectorFiles(out / "cf") if settings.cf_weight > 0 else None

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def width(self) -> int:
        """D_text + D_cf; a part of weight 0 is left out."""
        return (self._texts.width if self._weights[0] > 0 else 0) + (self._factors.width if self._factors else 0)

    def read(self, rows: range | Longs) -> Floats:
        """The vectors (n, D) float32 of the items ``rows`` (ascending).

        Raises:
            InputError: the files were changed, or a text vector is not finite or all zeros.
        """
        inputs_nD = np.empty((len(rows), self.width), np.float32)
        for place, text_bD, block, inside in _checked_blocks(self._texts, rows):
            cf_bD = self._factors.read(block.start, block.stop)[inside] if self._factors else None
            inputs_nD[place] = fuse(text_bD, cf_bD, *self._weights)
        return inputs_nD


def _checked_blocks(files: VectorFiles, rows: range | Longs) -> Iterator[tuple[slice, Floats, range, Longs]]:
    """The vectors of ascending ``rows``, block by block.

    Yields:
        The places of the block's rows in ``rows``, their vectors (b, D), the items of the block, and which of these the
        rows are.
    """
    row_n = np.asarray(rows)
    first, after = (int(row_n[0]), int(row_n[-1]) + 1) if len(row_n) else (0, 0)
    for start in range(first // BLOCK * BLOCK, after, BLOCK):
        block = range(max(start, first), min(start + BLOCK, after))
        low, high = np.searchsorted(row_n, (block.start, block.stop))
        if low < high:
            vectors_BD = files.read(block.start, block.stop)
            check_vectors(vectors_BD, block.start)
            inside = row_n[low:high] - block.start
            whole = len(inside) == len(block)
            yield slice(low, high), vectors_BD if whole else vectors_BD[inside], block, inside


class TitleFiles:
    """Hashed title words (``out/titles``), which the quantizer ``title`` takes as vectors, read by item row."""

    def __init__(self, out: Path) -> None:
        self._words = VectorFiles(out / "titles")

    def __len__(self) -> int:
        return len(self._words)

    @property
    def width(self) -> int:
        """L, one word per level."""
        return self._words.width

    def read(self, rows: range | Longs) -> Floats:
        """The hashed words (n, L) of the items ``rows``."""
        row_n = np.asarray(rows)
        if not len(row_n):
            return np.empty((0, self.width), np.float32)
        first = int(row_n.min())
        return self._words.read(first, int(row_n.max()) + 1)[row_n - first]


def open_inputs(vectors: Path, out: Path, settings: Sid) -> Reader:
    """A reader of the vectors that are quantized under these settings."""
    return TitleFiles(out) if settings.quantizer == "title" else FusedFiles(vectors, out, settings)
