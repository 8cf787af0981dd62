"""The search that a run serves with, for queries whose user the prior may have counted.

It ranks items by log π(SID) + a · log p_head(item) + b · log p_prior(item), as the evaluation and the recommender do:
π is the policy, p_head its item head, p_prior ItemKNN on the nodes of the trie (``policy.decoding.node_prior``).

A train query's target follows its history in the train log, so an ItemKNN that counted this user would name the target
far more often than it does for a new query. The prior of train queries is therefore cross-fitted: users are divided
into folds, and the users of a fold are served by what the others did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genrec.baselines.itemknn import ItemKNN, KnnSettings, cross_fitted
from genrec.baselines.sparse import Sparse, csr, mask_seen_items, row_of_entry
from genrec.baselines.train_log import newest_first, read_train_log
from genrec.data.files import write_json
from genrec.data.readers import read_sequences
from genrec.inference.batch import KnnPrior, make_node_prior
from genrec.metrics import IntArray
from genrec.policy.decoding.beam import Beams, beam
from genrec.policy.decoding.node_prior import NodePrior, item_log_prior
from genrec.policy.decoding.trie_masks import LeafMasks, TrieMaskCache
from genrec.policy.model import Policy
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie
from genrec.types import Query

FOLDS = 4
"""Parts of the users, each with an ItemKNN of its own; all of them are kept in memory."""

FILE = "served.json"


@dataclass(frozen=True)
class ServedWeights:
    """What validation chose for a policy's search: a and b of the module's formula, and ItemKNN as it was tuned."""

    head_weight: float
    prior_weight: float
    prior: KnnPrior

    @property
    def adds_nothing(self) -> bool:
        """Whether the search is the policy's own."""
        return not self.head_weight and not self.prior_weight

    @property
    def digest(self) -> str:
        """SHA-256 over them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write them to ``FILE`` in ``directory``."""
        write_json(asdict(self), directory / FILE)

    @classmethod
    def read(cls, directory: Path) -> ServedWeights:
        """What ``write`` wrote."""
        content = json.loads((directory / FILE).read_text(encoding="utf-8"))
        prior = content.pop("prior")
        return cls(**content, prior=KnnPrior(KnnSettings(**prior["settings"]), prior["mask_seen"]))


class ServedSearch:
    """Searches as the run serves; ItemKNN is fitted here, for new queries and once for each fold of the train users.

    Args:
        data: directory with the train log.
        max_history: items of a history that ItemKNN reads, its last ones.
    """

    def __init__(self, weights: ServedWeights, data: Path, catalog: Catalog, max_history: int) -> None:
        self.weights, self._codes_NL, self._max_history = weights, catalog.codes_NL, max_history
        self._folds, self._whole = list[ItemKNN](), None
        if weights.prior_weight:
            self._whole = weights.prior.scorer(data, catalog)
            log, fold_U = read_train_log(data, len(catalog)), read_sequences(data, ["user"])["user"].to_numpy() % FOLDS
            self._folds = cross_fitted(log, fold_U, FOLDS, weights.prior.settings)

    def prior(self, trie: Trie, queries: Sequence[Query], *, seen_in_training: bool) -> NodePrior | None:
        """b · log p_prior on the nodes of ``trie``; None where the prior has no weight.

        Args:
            seen_in_training: the queries are of the train log, so their prior is cross-fitted.
        """
        if self._whole is None:
            return None
        recent_QH = newest_first([query.history for query in queries], self._max_history)
        scores = self._cross_fitted(queries, recent_QH) if seen_in_training else self._whole(recent_QH)
        return make_node_prior(trie, self._codes_NL, scores, self.weights.prior_weight)

    def beams(
        self, policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie, queries: Sequence[Query], width: int
    ) -> tuple[Beams, NodePrior | None]:
        """The ``width`` best items for train queries, without seen ones where the run leaves these out; and the prior.

        Their log-probabilities by the item head are there where it has a weight.
        """
        prior = self.prior(trie, queries, seen_in_training=True)
        masks, head_weight = self._masks(trie, queries), self.weights.head_weight
        found = beam(policy, tokens_BP, mask_BP, trie, width, masks=masks, prior=prior, head_weight=head_weight)
        return found, prior

    def added(self, beams: Beams, prior: NodePrior | None, trie: Trie) -> tuple[Tensor, Tensor]:
        """a · log p_head and b · log p_prior of the items of ``beams``, (B, W) each; 0 where it has no weight."""
        none_BW = torch.zeros_like(beams.logp_BW)
        head_BW = none_BW if beams.head_BW is None else self.weights.head_weight * beams.head_BW
        if prior is None:
            return head_BW, none_BW
        return head_BW, item_log_prior(prior, trie, beams.codes_BWL).to(head_BW)

    def _masks(self, trie: Trie, queries: Sequence[Query]) -> LeafMasks | None:
        if not self.weights.prior.mask_seen:
            return None
        allowed = torch.ones(len(queries), len(self._codes_NL), dtype=torch.bool)
        for row, query in enumerate(queries):
            allowed[row, list(query.history[-self._max_history :])] = False
        return TrieMaskCache(trie).masks(list(allowed))

    def _cross_fitted(self, queries: Sequence[Query], recent_QH: IntArray) -> Sparse:
        """Scores (Q, N), of each query by the ItemKNN that has not counted its user."""
        fold_Q = np.array([query.user for query in queries]) % FOLDS
        rows, columns, values = list[IntArray](), list[IntArray](), list[IntArray]()
        for fold in np.unique(fold_Q):
            (at_q,) = (fold_Q == fold).nonzero()
            scores = self._folds[fold].scores(recent_QH[at_q])
            scores = mask_seen_items(scores, recent_QH[at_q]) if self.weights.prior.mask_seen else scores
            rows.append(at_q[row_of_entry(scores)])
            columns.append(scores.indices)
            values.append(scores.data)
        shape = (len(queries), len(self._codes_NL))
        return csr(np.concatenate(values), np.concatenate(rows), np.concatenate(columns), shape)
