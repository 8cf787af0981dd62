"""The vectors of a catalogue on disk in half precision, written block by block."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from genrec.data.files import write_atomically
from genrec.sid.distributed.vector_stream import Reader

BLOCK = 65536
"""Items that are in memory at once."""


def write_float16_vectors(reader: Reader, path: Path) -> None:
    """Write all vectors of ``reader`` as the float16 tensor ``vectors_NF`` (N, F) of a safetensors file, atomically.

    The library's own ``save_file`` wants the whole tensor in memory; the bytes are the same.
    """
    shape = [len(reader), reader.width]
    tensor = {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]}
    header = json.dumps({"vectors_NF": tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for start in range(0, len(reader), BLOCK):
                part_BF = reader.read(range(start, min(start + BLOCK, len(reader))))
                file.write(part_BF.astype(np.float16).data)

    write_atomically(path, write)
