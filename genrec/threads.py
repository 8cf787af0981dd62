"""The number of threads of the numeric libraries: by default each of them uses every core."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def limit_threads(threads: int) -> None:
    """Limit torch, and the loaded BLAS and OpenMP pools (numpy's, faiss's), to ``threads`` threads each."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)
