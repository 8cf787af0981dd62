"""Validation during training: a fixed sample of the validation queries, with the beam search of inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor

from genrec import metrics
from genrec.baselines.buckets import popularity_bucket
from genrec.baselines.train_log import recent_history, train_log
from genrec.data.tables import to_queries
from genrec.evaluation.spread import category_entropy
from genrec.inference.batch import without_seen
from genrec.inference.prior import RankedItems
from genrec.metrics import IntArray
from genrec.policy.decoding.beam import HEAD_WEIGHT, beam
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.trie import Trie
from genrec.types import Query, Snapshot


@dataclass(frozen=True)
class Search:
    """How validation searches: the ``width`` best items, without the last ``masked`` of the history (0: with them).

    As in the evaluation, a beam that is wider by ``masked`` makes up for the items that are left out. The first
    ``listed`` items are part of the answer, for metrics of what is recommended besides the target's rank.
    """

    width: int
    masked: int = 0
    listed: int = 0

    @staticmethod
    def of(width: int, sequences: pa.Table, n_items: int, max_history: int) -> Search:
        """``width`` items, and seen ones masked where the evaluation of these ``sequences`` masks them."""
        return Search(width, max_history if train_log(sequences, n_items).mask_seen else 0)


def answers(policy: Policy, prompts: Prompts, trie: Trie, queries: Sequence[Query], search: Search) -> Tensor:
    """(Q, 1 + listed) on the CPU: the rank (from 1) of each query's target among the items of ``search``, 0 if it is
    missing, and the first ``search.listed`` items, -1 for none.
    """
    policy.eval()
    histories, targets_Q = [query.history for query in queries], np.array([query.target for query in queries])
    tokens_BP, mask_BP = (t.to(policy.device) for t in prompts.encode(histories, [query.context for query in queries]))
    head_weight = 0.0 if policy.item_head is None else HEAD_WEIGHT
    beams = beam(policy, tokens_BP, mask_BP, trie, search.width + search.masked, head_weight=head_weight)
    found = RankedItems(beams.items_BW.cpu().numpy(), beams.logp_BW.cpu().numpy())
    if search.masked:
        table = pa.table({"history": pa.array(histories, pa.list_(pa.int64()))})
        found = without_seen(found, recent_history(table, search.masked), search.width)
    ranks_Q = torch.from_numpy(metrics.target_ranks(found.items_QK, targets_Q))
    return torch.cat([ranks_Q[:, None], torch.from_numpy(found.items_QK[:, : search.listed]).long()], dim=1)


class Validator:
    """HR@10, HR@50 and NDCG@10 of a policy on ``count`` validation queries (item level, beam search).

    The queries are divided among the workers of ``accelerator`` and their answers are summed over workers, so every
    worker has the metrics of all queries.

    Args:
        search: the items that are searched for; with fewer than 50 there is no HR@50.
        train_counts_N: train events per item; adds HR@50 of tail and unseen targets (see ``BUCKETS``).
        category_N: number of each item's category, -1 for none; adds the entropy of the categories of the first 10
            items, in bits, where ``search`` lists them.
    """

    def __init__(
        self,
        queries: pa.Table,
        prompts: Prompts,
        trie: Trie,
        accelerator: Accelerator,
        *,
        count: int,
        search: Search,
        batch_size: int,
        train_counts_N: IntArray | None = None,
        category_N: IntArray | None = None,
    ) -> None:
        sample = to_queries(queries.take(np.sort(np.random.default_rng(0).permutation(queries.num_rows)[:count])))
        own = sample[accelerator.process_index :: accelerator.num_processes]
        self.requests = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        self.search = search
        self._count, self._accelerator, self._prompts = len(sample), accelerator, prompts
        self._trie = trie.to(accelerator.device)
        self._category_N = category_N if category_N is not None and (category_N >= 0).any() else None
        self._tail_Q: Tensor | None = None
        if train_counts_N is not None:
            bucket_Q = popularity_bucket(train_counts_N)[[query.target for query in sample]]
            self._tail_Q = torch.from_numpy(bucket_Q >= 2)

    def __call__(self, policy: Policy) -> dict[str, float]:
        """Mean metrics of ``policy`` as it stands."""
        return {name: float(values_Q.nanmean()) for name, values_Q in self.values(self.answers(policy)).items()}

    def answers(self, policy: Policy) -> list[Tensor]:
        """The function ``answers``, (Q, 1 + listed), of each of this worker's ``requests``."""
        return [answers(policy, self._prompts, self._trie, part, self.search) for part in self.requests]

    def values(self, found: Sequence[Tensor]) -> dict[str, Tensor]:
        """Metrics per query, (Q,), from the answers to all workers' ``requests``; NaN where one does not apply.

        Args:
            found: those of this worker's requests.
        """
        accelerator = self._accelerator
        all_QA = torch.zeros(self._count, 1 + self.search.listed, device=accelerator.device, dtype=torch.float64)
        if found:
            own_QA = torch.cat(list(found)).to(all_QA)
            all_QA[accelerator.process_index :: accelerator.num_processes] = own_QA
        reduced: Tensor = accelerator.reduce(all_QA, "sum")  # pyright: ignore[reportAssignmentType]
        ranks_Q, items_QA = reduced.cpu()[:, 0], reduced.cpu()[:, 1:].long()
        hit10_Q = ((ranks_Q > 0) & (ranks_Q <= 10)).double()
        values = {"hr@10": hit10_Q, "ndcg@10": hit10_Q / (ranks_Q + 1).clamp(min=2).log2()}
        if self._category_N is not None and self.search.listed:
            entropy_Q, _ = category_entropy(items_QA.numpy(), self._category_N)
            values[f"category_entropy@{self.search.listed}"] = torch.from_numpy(entropy_Q)
        if self.search.width < 50:
            return values
        values["hr@50"] = ((ranks_Q > 0) & (ranks_Q <= 50)).double()
        if self._tail_Q is not None and bool(self._tail_Q.any()):
            values["tail_hr@50"] = values["hr@50"].masked_fill(~self._tail_Q, torch.nan)
        return values


class LocalValidator:
    """Validates snapshots synchronously in this process, with the learner's own policy (``SnapshotValidator``)."""

    is_synchronous = True

    def __init__(self, validator: Validator, policy: Policy) -> None:
        self._validator, self._policy = validator, policy

    def submit(self, snapshot: Snapshot) -> list[Tensor]:
        """The answers to this worker's queries."""
        with self._policy.using(snapshot.tensors):
            return self._validator.answers(self._policy)

    def collect(self, ticket: list[Tensor]) -> Mapping[str, Tensor]:
        """Metrics per query, of all workers' queries."""
        return self._validator.values(ticket)
