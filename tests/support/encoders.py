"""A text encoder whose neighbours are known."""

from collections.abc import Sequence

import numpy as np

from genrec.sid.vectors import Floats


class CircleEncoder:
    """Texts that name a number lie on a circle, so that items i and i + 1 are neighbours (``Encoder`` protocol)."""

    def encode(self, texts: Sequence[str]) -> Floats:
        angle = np.array([int("".join(c for c in text.split("\n")[0] if c.isdigit())) for text in texts]) / 6
        columns = [np.cos(angle), np.sin(angle), np.cos(3 * angle), np.sin(3 * angle)]
        return np.stack(columns, axis=1).astype(np.float32)
