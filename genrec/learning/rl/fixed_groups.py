"""Fixed groups: candidates that were generated once, kept in Parquet files, and learned from for many epochs.

Columns of ``part-*.parquet``: ``id`` of the train query; ``items``, G item rows, -1 for empty candidates; ``logp``, the
G · L log-probabilities of their codes; ``weights``, the G importance weights, null where there are none; ``head`` and
``prior``, what item head and prior add in groups of what is served, null in others. The schema's metadata name the
policy, the catalogue and what is served by their digests. Rewards are not kept: any can be paid on the groups.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from genrec.config import Rl
from genrec.data.files import write_parquet
from genrec.data.tables import to_queries
from genrec.errors import InputError
from genrec.learning.rewards import RewardFunction
from genrec.learning.rl.advantages import has_advantage
from genrec.learning.rl.difficulty import target_ranks
from genrec.metrics import IntArray
from genrec.seeds import generator_of
from genrec.types import Group, Query, Snapshot

LOG = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("logp", pa.list_(pa.float32()), nullable=False),
        *(pa.field(name, pa.list_(pa.float32())) for name in ("weights", "head", "prior")),
    ]
)

REWARDED_AT_ONCE = 1024
"""Groups whose rewards are computed at a time when those to learn from are chosen."""


def drawn_rows(queries: int, count: int, seed: int) -> IntArray:
    """The numbers of ``count`` of the train queries, drawn at random, in order; of all if ``count`` is 0."""
    if not 0 < count < queries:
        return np.arange(queries)
    return np.sort(generator_of("fixed groups", seed).permutation(queries)[:count])


def write_groups(groups: Sequence[Group], origin: Mapping[str, str], file: Path) -> None:
    """Write groups without rewards to a Parquet file, atomically.

    Args:
        origin: digests of the ``policy`` and the ``catalog``, and of what is ``served``.
    """
    rows = {
        "id": [group.query.id for group in groups],
        "items": [group.items_G.tolist() for group in groups],
        "logp": [group.logp_GL.flatten().tolist() for group in groups],
        "weights": [_listed(group.weights_G) for group in groups],
        "head": [_listed(group.head_G) for group in groups],
        "prior": [_listed(group.prior_G) for group in groups],
    }
    write_parquet(pa.table(rows, SCHEMA.with_metadata(dict(origin))), file)


def _listed(values_G: Tensor | None) -> list[float] | None:
    return None if values_G is None else values_G.tolist()


class FixedGroups:
    """The groups in ``directory`` in the place of rollouts (``Rollouts`` protocol): what is submitted is looked up.

    Args:
        codes_NL: SIDs of the items.
        origin: digests of the ``policy`` that starts to learn, of its ``catalog`` and of what is ``served``, which the
            groups must be of.
        version: the version of the policy that the groups are of; -1 if they are another policy's.

    Raises:
        InputError: there are no groups, or they are of another policy or catalogue.
    """

    def __init__(self, directory: Path, codes_NL: Tensor, origin: Mapping[str, str], *, version: int = 0) -> None:
        self._version = version
        table = pa.concat_tables(_read(directory, origin)).combine_chunks().sort_by("id")
        self._codes_NL, self._ids_Q, self._table = codes_NL, table["id"].to_numpy(), table

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> list[Group]:
        """The groups of ``queries``; they are of one version, whatever ``policy`` is."""
        rows = self._rows(np.array([query.id for query in queries]))
        return [self._group(query, row) for query, row in zip(queries, self._table.take(rows).to_pylist(), strict=True)]

    def collect(self, ticket: list[Group]) -> list[Group]:
        """The groups of ``submit``."""
        return ticket

    def informative(self, queries: pa.Table, reward: RewardFunction, settings: Rl) -> pa.Table:
        """Those of the train queries that have a group whose rewards differ: from the others there is nothing to learn.

        With ``gate`` also those whose group missed the target, and where ``sft`` is 0 none whose target has rank 1.

        Raises:
            InputError: there is none.
        """
        own = queries.filter(pa.array(np.isin(queries["id"].to_numpy(), self._ids_Q)))
        starts = range(0, own.num_rows, REWARDED_AT_ONCE)
        found = [self._teach(to_queries(own.slice(start, REWARDED_AT_ONCE)), reward, settings) for start in starts]
        kept = own.filter(pa.array([one for part in found for one in part], pa.bool_()))
        if kept.num_rows == 0:
            raise InputError(
                f"got {own.num_rows} fixed groups of which none has two different rewards, wanted some: raise "
                "learning.rl.group or learning.rl.fixed_queries, set learning.rl.add_target=true, or weigh a term of "
                "rewards that differs within a group"
            )
        LOG.info("fixed groups: %d of %d have rewards that differ", kept.num_rows, own.num_rows)
        return kept

    def _teach(self, queries: Sequence[Query], reward: RewardFunction, settings: Rl) -> list[bool]:
        groups = self.submit(queries, Snapshot(0, {}))
        reward(groups)
        real_BG = torch.stack([group.items_G for group in groups]) >= 0
        differ_B = has_advantage(torch.stack([group.rewards_G for group in groups]), real_BG)
        if settings.gate == "rank":
            ranks_B = target_ranks(groups)
            differ_B = (ranks_B == 0) | (differ_B & ((ranks_B > 1) | bool(settings.sft)))
        return differ_B.tolist()

    def _rows(self, ids_Q: IntArray) -> IntArray:
        """The rows of the table with these ids.

        Raises:
            InputError: an id without a group.
        """
        rows_Q = np.searchsorted(self._ids_Q, ids_Q).clip(max=len(self._ids_Q) - 1)
        if (missing := ids_Q[self._ids_Q[rows_Q] != ids_Q]).size:
            raise InputError(f"got query {missing[0]}, which has no fixed group; wanted one of those that were written")
        return rows_Q

    def _group(self, query: Query, row: Mapping[str, Any]) -> Group:
        items_G = torch.tensor(row["items"])
        names = ("weights", "head", "prior")
        weights_G, head_G, prior_G = (None if row[name] is None else torch.tensor(row[name]) for name in names)
        logp_GL = torch.tensor(row["logp"]).view(len(items_G), -1)
        codes_GL = self._codes_NL[items_G.clamp(min=0)]
        return Group(
            query, self._version, items_G, codes_GL, logp_GL, torch.empty(0), {}, weights_G, 0, None, head_G, prior_G
        )


def _read(directory: Path, origin: Mapping[str, str]) -> Iterator[pa.Table]:
    files = sorted(directory.glob("part-*.parquet"))
    if not files:
        raise InputError(f"{directory}: found no part-*.parquet with fixed groups; run the stage groups first")
    for file in files:
        table = pq.read_table(file)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if wrong := [name for name, digest in origin.items() if metadata.get(name) != digest]:
            got, wanted = (digests.get(wrong[0], "none")[:12] for digests in (metadata, origin))
            raise InputError(
                f"{file} holds groups of another {wrong[0]}: got digest {got}, wanted {wanted}; delete the directory "
                "and run the same command again, which generates them with this one"
            )
        yield table
