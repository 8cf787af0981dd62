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
from genrec.baselines.train_log import newest_first
from genrec.data.tables import to_queries
from genrec.errors import InputError
from genrec.evaluation.goals import Goals
from genrec.inference.batch import without_seen
from genrec.inference.prior import RankedItems
from genrec.inference.served_search import ServedSearch
from genrec.metrics import IntArray
from genrec.policy.decoding.beam import HEAD_WEIGHT, beam
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.trie import Trie
from genrec.types import Query, Snapshot


@dataclass(frozen=True)
class Search:
    """How validation searches: the ``width`` best items, without the last ``masked`` of the history (0: with them).

    As in the evaluation, a beam that is wider by ``masked`` makes up for the items that are left out.
    """

    width: int
    masked: int = 0

    @staticmethod
    def of(width: int, max_history: int, *, mask_seen: bool) -> Search:
        """``width`` items, without those of the history where ``mask_seen``, as the evaluation decides by the log."""
        return Search(width, max_history if mask_seen else 0)


def ranked_items(
    policy: Policy,
    prompts: Prompts,
    trie: Trie,
    queries: Sequence[Query],
    search: Search,
    served: ServedSearch | None = None,
) -> Tensor:
    """The items of ``search`` for each query, best first, -1 for none; (Q, width) on the CPU.

    With ``served`` they are fused with item head and prior as it says; without, with the item head alone.
    """
    policy.eval()
    histories = [query.history for query in queries]
    tokens_BP, mask_BP = (t.to(policy.device) for t in prompts.encode(histories, [query.context for query in queries]))
    head_weight, prior = 0.0 if policy.item_head is None else HEAD_WEIGHT, None
    if served is not None:
        head_weight, prior = served.weights.head_weight, served.prior(trie, queries, seen_in_training=False)
    width = search.width + search.masked
    beams = beam(policy, tokens_BP, mask_BP, trie, width, head_weight=head_weight, prior=prior)
    found = RankedItems(beams.items_BW.cpu().numpy(), beams.logp_BW.cpu().numpy())
    if search.masked:
        found = without_seen(found, newest_first(histories, search.masked), search.width)
    items_QK = torch.from_numpy(found.items_QK[:, : search.width])
    return torch.nn.functional.pad(items_QK, (0, search.width - items_QK.shape[1]), value=-1)


class Validator:
    """HR@10, HR@50 and NDCG@10 of a policy on ``count`` validation queries (item level, beam search).

    The queries are divided among the workers of ``accelerator`` and their rankings are summed over workers, so every
    worker has the metrics of all queries.

    Args:
        search: the items that are searched for; with fewer than 50 there is no HR@50.
        train_counts_N: train events per item; adds HR@50 of tail and unseen targets (see ``BUCKETS``).
        goals: adds the metrics of a shop's goals.
        served: how the policy is served; without, its own answers are validated.
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
        goals: Goals | None = None,
        served: ServedSearch | None = None,
    ) -> None:
        rows = queries.take(np.sort(np.random.default_rng(0).permutation(queries.num_rows)[:count]))
        sample, self._goals = to_queries(rows), goals
        self._targets_Q = rows["target"].to_numpy().astype(np.int64)
        self._events: list[str | None] = rows["event"].to_pylist() if goals is not None else []
        own = sample[accelerator.process_index :: accelerator.num_processes]
        self.requests = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        self.search, self._served = search, served
        self._count, self._accelerator, self._prompts = len(sample), accelerator, prompts
        self._trie = trie.to(accelerator.device)
        self._tail_Q: Tensor | None = None
        if train_counts_N is not None:
            bucket_Q = popularity_bucket(train_counts_N)[[query.target for query in sample]]
            self._tail_Q = torch.from_numpy(bucket_Q >= 2)

    def __call__(self, policy: Policy) -> dict[str, float]:
        """Mean metrics of ``policy`` as it stands."""
        return {name: float(values_Q.nanmean()) for name, values_Q in self.values(self.rankings(policy)).items()}

    def rankings(self, policy: Policy) -> list[Tensor]:
        """The items that are found, (Q, width) for each of this worker's ``requests``."""
        where = (policy, self._prompts, self._trie)
        return [ranked_items(*where, part, self.search, self._served) for part in self.requests]

    def require(self, names: Sequence[str]) -> None:
        """Refuse a metric that ``values`` will not have.

        Raises:
            InputError: the queries, or the items, have nothing that one of ``names`` measures.
        """
        known = list(self._hits(torch.zeros(self._count, dtype=torch.float64)))
        known += [] if self._goals is None else self._goals.names(self._events)
        if missing := [name for name in names if name not in known]:
            raise InputError(
                f"learning.rl.guard reads {missing}, which the validation queries do not have; wanted some of "
                f"{', '.join(known)}"
            )

    def values(self, rankings: Sequence[Tensor]) -> dict[str, Tensor]:
        """Metrics per query, (Q,), from the rankings of all workers' ``requests``; NaN where one does not apply.

        Args:
            rankings: those of this worker's requests.
        """
        items_QK = self._gathered(rankings)
        ranks_Q = torch.from_numpy(metrics.target_ranks(items_QK, self._targets_Q)).double()
        values = self._hits(ranks_Q)
        if self._goals is None:
            return values
        goals = self._goals.values(items_QK, self._targets_Q, self._events)
        return values | {name: torch.from_numpy(values_Q) for name, values_Q in goals.items()}

    def _gathered(self, rankings: Sequence[Tensor]) -> IntArray:
        """The rankings of all workers' queries, (Q, width)."""
        accelerator = self._accelerator
        all_QK = torch.zeros(self._count, self.search.width, dtype=torch.long, device=accelerator.device)
        if rankings:
            own_QK = torch.cat(list(rankings)).to(all_QK)
            all_QK[accelerator.process_index :: accelerator.num_processes] = own_QK
        reduced: Tensor = accelerator.reduce(all_QK, "sum")  # pyright: ignore[reportAssignmentType]
        return reduced.cpu().numpy()

    def _hits(self, ranks_Q: Tensor) -> dict[str, Tensor]:
        hit10_Q = ((ranks_Q > 0) & (ranks_Q <= 10)).double()
        values = {"hr@10": hit10_Q, "ndcg@10": hit10_Q / (ranks_Q + 1).clamp(min=2).log2()}
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
        """The rankings of this worker's queries."""
        with self._policy.using(snapshot.tensors):
            return self._validator.rankings(self._policy)

    def collect(self, ticket: list[Tensor]) -> Mapping[str, Tensor]:
        """Metrics per query, of all workers' queries."""
        return self._validator.values(ticket)
