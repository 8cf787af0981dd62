"""The best items of many queries, computed shard by shard: one Parquet file per shard, so that a run can resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrec.baselines.itemknn import KnnSettings, Pairs, fit_itemknn
from genrec.baselines.sparse import Sparse, mask_seen_items
from genrec.baselines.train_log import read_train_log, recent_history
from genrec.config import Config
from genrec.data.files import write_json, write_parquet
from genrec.data.readers import read_query_rows
from genrec.data.shards import shard_path
from genrec.data.tables import contexts
from genrec.errors import InputError
from genrec.inference.prior import RankedItems, grown_knn
from genrec.metrics import IntArray
from genrec.policy.backbone import load
from genrec.policy.decoding.beam import HEAD_WEIGHT, Beams, beam, head_log_probabilities
from genrec.policy.decoding.node_prior import NodePrior
from genrec.policy.decoding.node_values import NodeValues, ValueGuide, members
from genrec.policy.decoding.prompt_cache import prefill
from genrec.policy.model import Policy
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

Split = Literal["valid", "test"]

SMOOTH = 0.1
"""The uniform share of a prior on the trie's nodes, see ``NodePrior``."""


@dataclass(frozen=True)
class KnnPrior:
    """ItemKNN as a prior on the trie's nodes, given by its settings: small enough to send, and fitted where it is used.

    ``mask_seen``: items of a query's own history get no score.
    """

    settings: KnnSettings
    mask_seen: bool

    def scorer(self, data: Path, catalog: Catalog) -> Callable[[IntArray], Sparse]:
        """Fit ItemKNN on the train log in ``data``; returns the function from histories (Q, H) to scores (Q, N)."""
        knn = fit_itemknn(Pairs(read_train_log(data, catalog.assigned)), self.settings)
        knn = grown_knn(knn, catalog)
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


@dataclass(frozen=True)
class Answering:
    """One way to answer a query.

    ``head_weight``: of the policy's item head in the search of its SIDs; ``prior_weight``: of ItemKNN; ``head_alone``:
    no search, the head's own best items; ``value_weight``: of the value network, None: it is not read.
    """

    head_weight: float = 0.0
    prior_weight: float = 0.0
    head_alone: bool = False
    value_weight: float | None = None


def own_answering(config: Config) -> Answering:
    """A policy's own search before anything is tuned: its item head, if it has one, weighs as in its validation."""
    return Answering(HEAD_WEIGHT if config.policy.items.head else 0.0)


@dataclass(frozen=True)
class PredictionSpec:
    """What to predict; small and picklable, since it is sent to every actor.

    ``data``, ``catalog``, ``policy``: the directories of the queries, of the SIDs and of the policy; ``split``: which
    queries; ``out``: holds a directory of shard files for each of ``answerings``; ``width``: items per query;
    ``prior``: what a ``prior_weight`` weighs; ``value``: the directory of the value network.
    """

    config: Config
    data: Path
    catalog: Path
    policy: Path
    split: Split
    out: Path
    width: int
    answerings: Mapping[str, Answering]
    prior: KnnPrior | None = None
    value: Path | None = None


class BatchPredictor:
    """Loads a policy once, then predicts one shard of queries per call and writes a file for each way of answering.

    The prompts of a batch run through the model once for all of them. Columns: ``id`` of the query; ``items``, its W
    best item rows in the order of the search; ``logp``, the log-probability of each item's SID (``head_alone``: of the
    item); ``head``, that of the item by the head, where it guided the search; ``value``, log σ(V) of the item, where a
    value network was read: on validation queries the member that has not learned from their user. A JSON file beside
    each has the seconds.

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
        uses_prior = any(way.prior_weight for way in spec.answerings.values())
        self._scorer = spec.prior.scorer(spec.data, self._catalog) if spec.prior and uses_prior else None
        self._values = None if spec.value is None else NodeValues.load(spec.value, self._policy)
        if self._values is None and any(way.value_weight is not None for way in spec.answerings.values()):
            raise InputError(
                "a search with a value network was asked for, and no stage made one; set decode.value=false, or take a "
                "command that makes the stage value, such as `genrec evaluate`"
            )

    def __call__(self, shard: int) -> dict[str, int]:
        """Predict shard ``shard``, write its files, and return the number of queries."""
        config = self._spec.config
        size = config.evaluation.shard_queries
        queries = read_query_rows(self._spec.data, self._spec.split, range(shard * size, (shard + 1) * size))
        found: dict[str, list[Beams]] = {name: [] for name in self._spec.answerings}
        self._seconds = dict.fromkeys(self._spec.answerings, 0.0)
        for start in range(0, len(queries), config.decode.batch_size):
            for name, beams in self._answer(queries.slice(start, config.decode.batch_size)).items():
                found[name].append(beams)
        for name, parts in found.items():
            file = shard_path(self._spec.out / name, shard)
            write_json({"queries": len(queries), "seconds": self._seconds[name]}, file.with_suffix(".json"))
            _write_shard(queries["id"], parts, file)
        return {"queries": len(queries)}

    def _answer(self, queries: pa.Table) -> dict[str, Beams]:
        shared = time.perf_counter()
        encoded = self._prompts.encode(queries["history"].to_pylist(), contexts(queries))
        tokens_BP, mask_BP = (part.to(self._device) for part in encoded)
        prefilled = prefill(self._policy, tokens_BP, mask_BP)
        scores = None
        if self._scorer is not None:
            scores = self._scorer(recent_history(queries, self._spec.config.data.max_history))
        shared = self._now() - shared
        found: dict[str, Beams] = {}
        for name, way in self._spec.answerings.items():
            start = self._now()
            if way.head_alone:
                hidden_BD = prefilled.hidden_B1D[:, 0]
                found[name] = best_by_head(self._policy, hidden_BD, tokens_BP, self._catalog, self._spec.width)
            else:
                found[name] = beam(
                    self._policy,
                    tokens_BP,
                    mask_BP,
                    self._trie,
                    self._spec.width,
                    prior=self._node_prior(scores, way.prior_weight),
                    head_weight=way.head_weight,
                    guide=self._guide(queries, way.value_weight),
                    prefilled=prefilled.copy(),
                )
            self._seconds[name] += shared + self._now() - start
        return found

    def _now(self) -> float:
        """Seconds, after the GPU has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _guide(self, queries: pa.Table, weight: float | None) -> ValueGuide | None:
        """The value network for one search; None where the way of answering does not read it."""
        if self._values is None or weight is None:
            return None
        user_B = torch.from_numpy(queries["user"].to_numpy().astype("int64"))
        member_B = members(user_B, learned_from=self._spec.split == "valid").to(self._device)
        return ValueGuide(self._values, self._policy, self._trie, member_B, weight)

    def _node_prior(self, scores: Sparse | None, weight: float) -> NodePrior | None:
        if scores is None or not weight:
            return None
        return make_node_prior(self._trie, self._catalog.codes_NL, scores, weight)


def best_by_head(policy: Policy, hidden_BD: Tensor, tokens_BP: Tensor, catalog: Catalog, width: int) -> Beams:
    """The ``width`` best items by the policy's item head alone, after the states of whole prompts (B, P).

    Raises:
        InputError: a policy without an item head.
    """
    logp_BN = head_log_probabilities(policy, hidden_BD, tokens_BP)
    best = logp_BN.topk(min(width, logp_BN.shape[1]), dim=-1)
    items_BW = best.indices.masked_fill(best.values == -torch.inf, -1)
    codes_BWL = catalog.codes_NL.to(items_BW.device)[items_BW.clamp(min=0)]
    return Beams(items_BW, codes_BWL, best.values[..., None])


def _write_shard(ids: pa.ChunkedArray, parts: Sequence[Beams], file: Path) -> None:
    rows = {"items": [part.items_BW for part in parts], "logp": [part.logp_BW for part in parts]}
    if parts and parts[0].head_BW is not None:
        rows["head"] = [cast("Tensor", part.head_BW) for part in parts]
    if parts and parts[0].value_BW is not None:
        rows["value"] = [cast("Tensor", part.value_BW) for part in parts]
    kinds = {"items": pa.int32()}
    lists = {name: [row for part in column for row in part.tolist()] for name, column in rows.items()}
    columns = {name: pa.array(values, pa.list_(kinds.get(name, pa.float32()))) for name, values in lists.items()}
    write_parquet(pa.table({"id": ids, **columns}), file)


def read_predictions(directory: Path) -> RankedItems:
    """The predictions of all shards in ``directory``, in query order."""
    table = pa.concat_tables(pq.read_table(file) for file in sorted(directory.glob("part-*.parquet")))
    more = (_matrix(table[name]) if name in table.column_names else None for name in ("head", "value"))
    return RankedItems(_matrix(table["items"]).astype(np.int64), _matrix(table["logp"]), *more)


def without_seen(beams: RankedItems, recent_QH: IntArray, width: int) -> RankedItems:
    """The ``width`` best items of each query that are not in its own history; -1 where there are fewer."""
    # Empty candidates go to the end too: those of a diverse search stand among the others.
    seen_QK = (beams.items_QK[:, :, None] == recent_QH[:, None, :]).any(-1) | (beams.items_QK < 0)
    kept_QK = np.argsort(seen_QK, axis=1, kind="stable")[:, :width]
    items_QK, logp_QK = np.where(seen_QK, -1, beams.items_QK), np.where(seen_QK, -np.inf, beams.logp_QK)
    given = (beams.head_QK, beams.value_QK)
    more = (None if one_QK is None else np.take_along_axis(one_QK, kept_QK, 1) for one_QK in given)
    return RankedItems(np.take_along_axis(items_QK, kept_QK, 1), np.take_along_axis(logp_QK, kept_QK, 1), *more)


def _matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists of equal length as an array (rows, length)."""
    width = len(column[0])
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False)).reshape(-1, width)
