"""Two processes that learn together, as workers of Ray Train do."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed


@contextmanager
def joined(rank: int, root: Path) -> Generator[None]:
    """In process ``rank`` of two: their group, over a file below ``root``; a port that is free may be taken by then."""
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    store = distributed.FileStore(str(root / "group"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    yield
    distributed.destroy_process_group()
