"""How many threads the numeric libraries take: each of them would otherwise take every core."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def limit_threads(threads: int) -> None:
    """Let torch, and the BLAS and OpenMP pools that are loaded (numpy's, faiss's), use so many threads from now on."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)
