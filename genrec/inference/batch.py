"""A policy's answers to many queries, one Parquet file per shard of queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from genrec.baselines.itemknn import ItemKNN, KnnSettings, Pairs
from genrec.baselines.sparse import Sparse, mask_seen_items
from genrec.baselines.train_log import recent_history, train_log
from genrec.config import Config
from genrec.data.files import write_parquet
from genrec.data.tables import read_queries, read_sequences
from genrec.inference.prior import RankedItems
from genrec.metrics import IntArray
from genrec.policy.backbone import load
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.node_prior import NodePrior
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

Split = Literal["valid", "test"]

SMOOTH = 0.1
"""Share of a prior on the trie's nodes that all items have alike."""


@dataclass(frozen=True)
class KnnPrior:
    """An ItemKNN on the trie's nodes, by what makes it again from the train log: small enough to mail.

    ``mask_seen``: items of a query's own history get no score.
    """

    settings: KnnSettings
    weight: float
    mask_seen: bool

    def scorer(self, data: Path, n_items: int) -> Callable[[IntArray], Sparse]:
        """Scores (Q, N) of recent histories (Q, H), newest first."""
        knn = ItemKNN(Pairs(train_log(read_sequences(data), n_items)), self.settings)
        if not self.mask_seen:
            return knn.scores
        return lambda recent_QH: mask_seen_items(knn.scores(recent_QH), recent_QH)


def on_nodes(trie: Trie, codes_NL: torch.Tensor, scores: Sparse, weight: float) -> NodePrior:
    """The scores (B, N) of a batch's requests as a prior on the trie's nodes; a score of 0 is none."""
    scored, device = scores.tocoo(copy=True), trie.leaf_items.device
    scored.eliminate_zeros()
    return NodePrior(
        trie,
        codes_NL[torch.from_numpy(scored.col.astype("int64"))].to(device),
        torch.from_numpy(scored.row.astype("int64")).to(device),
        torch.from_numpy(scored.data).to(device),
        batch=scores.shape[0],
        weight=weight,
        smooth=SMOOTH,
    )


def shard_file(directory: Path, shard: int) -> Path:
    """Where the answers to shard ``shard`` lie."""
    return directory / f"part-{shard:05d}.parquet"


def missing(directory: Path, queries: int, shard_queries: int) -> list[int]:
    """The shards that are not written yet."""
    shards = range(-(-queries // shard_queries))
    return [shard for shard in shards if not shard_file(directory, shard).is_file()]


def make_predictor(
    config: Config,
    data: Path,
    catalog_dir: Path,
    policy_dir: Path,
    split: Split,
    out: Path,
    width: int,
    prior: KnnPrior | None = None,
) -> Callable[[int], Mapping[str, Any]]:
    """Load the policy once; the work that comes back answers a shard of ``split`` and writes ``shard_file``.

    Columns: ``id`` of the query, ``items`` (beam order, that of the ``prior`` where there is one) and ``logp`` of each
    item's SID under the policy alone.
    """
    torch.set_num_threads(config.compute.data_threads)
    cuda = torch.cuda.is_available() and config.compute.device != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    catalog = Catalog.load(catalog_dir)
    cache, history = Path(config.storage).absolute() / "backbones", config.data.max_history
    policy, prompts = load(config.policy, catalog, policy_dir, max_history=history, seed=config.seed, cache=cache)
    policy.to(device)
    trie = catalog.trie.to(device)
    queries = read_queries(data, split)
    size = config.evaluation.shard_queries
    scores_of = prior.scorer(data, len(catalog)) if prior is not None else None

    def steered(part: pa.Table) -> NodePrior | None:
        if prior is None or scores_of is None:
            return None
        return on_nodes(trie, catalog.codes_NL, scores_of(recent_history(part, history)), prior.weight)

    def answer(shard: int) -> Mapping[str, Any]:
        part = queries.slice(shard * size, size)
        items: list[list[int]] = []
        logp: list[list[float]] = []
        for start in range(0, len(part), config.decode.batch_size):
            batch = part.slice(start, config.decode.batch_size)
            tokens_BP, mask_BP = prompts.encode(batch["history"].to_pylist())
            beams = beam(policy, tokens_BP.to(device), mask_BP.to(device), trie, width, prior=steered(batch))
            items += beams.items_BW.tolist()
            logp += beams.logp_BW.tolist()
        table = pa.table(
            {
                "id": part["id"],
                "items": pa.array(items, pa.list_(pa.int32())),
                "logp": pa.array(logp, pa.list_(pa.float32())),
            }
        )
        write_parquet(table, shard_file(out, shard))
        return {"queries": len(part)}

    return answer


def read_predictions(directory: Path) -> RankedItems:
    """All shards' answers, in query order."""
    table = pa.concat_tables(pq.read_table(file) for file in sorted(directory.glob("part-*.parquet")))
    return RankedItems(_matrix(table["items"]).astype(np.int64), _matrix(table["logp"]))


def without_seen(beams: RankedItems, recent_QH: np.ndarray, width: int) -> RankedItems:
    """The ``width`` best answers that are not in their query's own history, -1 where there are fewer."""
    seen_QK = (beams.items_QK[:, :, None] == recent_QH[:, None, :]).any(-1)
    order_QK = np.argsort(seen_QK, axis=1, kind="stable")
    items_QK = np.where(seen_QK, -1, beams.items_QK)
    kept_QK = order_QK[:, :width]
    return RankedItems(np.take_along_axis(items_QK, kept_QK, 1), np.take_along_axis(beams.logp_QK, kept_QK, 1))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    width = len(column[0])
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False)).reshape(-1, width)
