"""The best items of many queries, computed shard by shard: one Parquet file per shard, so that a run can resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrec.baselines.itemknn import ItemKNN, KnnSettings, Pairs
from genrec.baselines.sparse import Sparse, mask_seen_items
from genrec.baselines.train_log import recent_history, train_log
from genrec.config import Config
from genrec.data.files import write_parquet
from genrec.data.tables import read_queries, read_sequences
from genrec.inference.prior import RankedItems
from genrec.metrics import IntArray
from genrec.policy.backbone import load
from genrec.policy.decoding.beam import Beams, beam
from genrec.policy.decoding.node_prior import NodePrior
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

Split = Literal["valid", "test"]

SMOOTH = 0.1
"""The uniform share of a prior on the trie's nodes, see ``NodePrior``."""


@dataclass(frozen=True)
class KnnPrior:
    """An ItemKNN prior on the trie's nodes, given by its settings: small enough to send, and fitted where it is used.

    ``mask_seen``: items of a query's own history get no score.
    """

    settings: KnnSettings
    weight: float
    mask_seen: bool

    def scorer(self, data: Path, n_items: int) -> Callable[[IntArray], Sparse]:
        """Fit ItemKNN on the train log in ``data``; returns the function from histories (Q, H) to scores (Q, N)."""
        knn = ItemKNN(Pairs(train_log(read_sequences(data), n_items)), self.settings)
        if not self.mask_seen:
            return knn.scores
        return lambda recent_QH: mask_seen_items(knn.scores(recent_QH), recent_QH)


def make_node_prior(trie: Trie, codes_NL: Tensor, scores: Sparse, weight: float) -> NodePrior:
    """A prior on the trie's nodes from the scores (B, N) of a batch of requests; a score of 0 is none."""
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
    """The file with the predictions of shard ``shard``."""
    return directory / f"part-{shard:05d}.parquet"


def missing_shards(directory: Path, queries: int, shard_queries: int) -> list[int]:
    """The shards of the first ``queries`` queries, ``shard_queries`` in each, that have no file yet."""
    shards = range(-(-queries // shard_queries))
    return [shard for shard in shards if not shard_file(directory, shard).is_file()]


@dataclass(frozen=True)
class PredictionSpec:
    """What to predict; small and picklable, since it is sent to every actor.

    ``data``, ``catalog``, ``policy``: the directories of the queries, of the SIDs and of the policy; ``split``: which
    queries; ``out``: the directory of the shard files; ``width``: items per query; ``prior``: guides the search.
    """

    config: Config
    data: Path
    catalog: Path
    policy: Path
    split: Split
    out: Path
    width: int
    prior: KnnPrior | None = None


class BatchPredictor:
    """Loads a policy once, then predicts one shard of queries per call and writes its file.

    Columns: ``id`` of the query; ``items``, its W best item rows in the order of the search (with a prior: by policy
    and prior together); ``logp``, the log-probability of each item's SID under the policy alone.

    Raises:
        InputError: data, catalogue or policy cannot be read, or do not fit each other.
    """

    def __init__(self, spec: PredictionSpec) -> None:
        config = spec.config
        torch.set_num_threads(config.compute.data_threads)
        cuda = config.compute.data_may_use_gpu and torch.cuda.is_available()
        self._spec, self._device = spec, torch.device("cuda" if cuda else "cpu")
        self._catalog = Catalog.load(spec.catalog)
        self._policy, self._prompts = load(
            config.policy,
            self._catalog,
            spec.policy,
            max_history=config.data.max_history,
            seed=config.seed,
            cache=config.backbones_path,
        )
        self._policy.to(self._device)
        self._trie = self._catalog.trie.to(self._device)
        self._queries = read_queries(spec.data, spec.split)
        self._prior_scores = spec.prior.scorer(spec.data, len(self._catalog)) if spec.prior is not None else None

    def __call__(self, shard: int) -> dict[str, int]:
        """Predict shard ``shard``, write ``shard_file``, and return the number of queries."""
        config = self._spec.config
        size = config.evaluation.shard_queries
        queries = self._queries.slice(shard * size, size)
        items: list[list[int]] = []
        logp: list[list[float]] = []
        for start in range(0, len(queries), config.decode.batch_size):
            beams = self._search(queries.slice(start, config.decode.batch_size))
            items += beams.items_BW.tolist()
            logp += beams.logp_BW.tolist()
        table = pa.table(
            {
                "id": queries["id"],
                "items": pa.array(items, pa.list_(pa.int32())),
                "logp": pa.array(logp, pa.list_(pa.float32())),
            }
        )
        write_parquet(table, shard_file(self._spec.out, shard))
        return {"queries": len(queries)}

    def _search(self, queries: pa.Table) -> Beams:
        tokens_BP, mask_BP = self._prompts.encode(queries["history"].to_pylist())
        inputs = (tokens_BP.to(self._device), mask_BP.to(self._device))
        return beam(self._policy, *inputs, self._trie, self._spec.width, prior=self._node_prior(queries))

    def _node_prior(self, queries: pa.Table) -> NodePrior | None:
        prior = self._spec.prior
        if prior is None or self._prior_scores is None:
            return None
        recent_BH = recent_history(queries, self._spec.config.data.max_history)
        return make_node_prior(self._trie, self._catalog.codes_NL, self._prior_scores(recent_BH), prior.weight)


def read_predictions(directory: Path) -> RankedItems:
    """The predictions of all shards in ``directory``, in query order."""
    table = pa.concat_tables(pq.read_table(file) for file in sorted(directory.glob("part-*.parquet")))
    return RankedItems(_matrix(table["items"]).astype(np.int64), _matrix(table["logp"]))


def without_seen(beams: RankedItems, recent_QH: IntArray, width: int) -> RankedItems:
    """The ``width`` best items of each query that are not in its own history; -1 where there are fewer."""
    seen_QK = (beams.items_QK[:, :, None] == recent_QH[:, None, :]).any(-1)
    order_QK = np.argsort(seen_QK, axis=1, kind="stable")
    items_QK = np.where(seen_QK, -1, beams.items_QK)
    kept_QK = order_QK[:, :width]
    return RankedItems(np.take_along_axis(items_QK, kept_QK, 1), np.take_along_axis(beams.logp_QK, kept_QK, 1))


def _matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists of equal length as an array (rows, length)."""
    width = len(column[0])
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False)).reshape(-1, width)
