"""Arrow's compute functions, typed as Any: they are generated at import, so type checkers do not see them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute


def one_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The values in one piece; a chunked array of no chunk stays typed."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
