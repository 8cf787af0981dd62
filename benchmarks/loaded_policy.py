"""A trained policy with its catalogue, and queries in batches, as benchmarks ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from genrec.config import Config
from genrec.data.tables import contexts
from genrec.policy.backbone import load
from genrec.sid.catalog import Catalog


class LoadedPolicy:
    """The policy in a directory, ready to answer, and what belongs to it."""

    def __init__(self, config: Config, catalog: Path, policy: Path) -> None:
        torch.set_num_threads(config.compute.threads)
        self._batch, self.catalog = config.decode.batch_size, Catalog.load(catalog)
        self.policy, self._prompts = load(
            config.policy,
            self.catalog,
            policy,
            max_history=config.data.max_history,
            seed=config.seed,
            cache=config.backbones_path,
        )
        self.trie = self.catalog.trie

    def batches(self, queries: pa.Table) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Left-padded prompts (B, P), their masks, and the target items (B,)."""
        histories, known, targets = queries["history"].to_pylist(), contexts(queries), queries["target"].to_pylist()
        for start in range(0, len(histories), self._batch):
            part = slice(start, start + self._batch)
            tokens_BP, mask_BP = self._prompts.encode(histories[part], known[part])
            yield tokens_BP, mask_BP, torch.tensor(targets[part])


def drawn_queries(queries: pa.Table, count: int, seed: int) -> pa.Table:
    """A seeded sample of ``count`` queries, or all where there are fewer."""
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))[:count]
    return queries.take(order.sort().values.numpy())
