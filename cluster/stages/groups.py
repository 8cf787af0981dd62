"""groups: candidates for the training queries, generated once, on Ray Data.

They are the SFT policy's, or for ``learning.rl.groups=crossfit`` those of the policies of stage "folds", each for the
users whom it never saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.data import parallel_map
from cluster.stages.folds import fold_directory
from cluster.stages.plan import Plan, StageRun
from cluster.train import RunSpec
from genrec.config import Rl
from genrec.config.learning import GROUP_KEYS

if TYPE_CHECKING:
    import pyarrow as pa

    from genrec.inference.served_search import ServedSearch
    from genrec.policy.model import Policy
    from genrec.sid.catalog import Catalog

SHARD_QUERIES = 1024
"""Groups in a file: what a killed run loses at most, per actor."""


def plan(run: StageRun) -> Plan:
    """Generate ``learning.rl.group`` candidates for every training query, or for ``learning.rl.fixed_queries``."""
    config, rl = run.config, run.config.learning.rl
    names = [name for name in GROUP_KEYS if name != "folds" or rl.groups == "crossfit"]
    settings = {name: getattr(rl, name) for name in names} | {"add_target": rl.adds_target, "seed": config.seed}
    start = run.path("folds" if rl.groups == "crossfit" else "sft")
    served = run.path_or_none("served")
    make_spec = partial(RunSpec, config, run.path("prepare"), run.path("assign"), start=start, served=served)
    return Plan(settings, partial(_generate, make_spec))


def origin_of(policy: Policy, catalog: Catalog, rl: Rl, served: ServedSearch | None = None) -> dict[str, str]:
    """What groups are of: the digests of a policy's trainable tensors, of its catalogue, and of what is served.

    Crossfit groups are of no one policy: they have the number of folds in its place.
    """
    own = f"crossfit/{rl.folds}" if rl.groups == "crossfit" else policy.snapshot(0).digest
    return {"policy": own, "catalog": catalog.digest, "served": "" if served is None else served.weights.digest}


def _generate(make_spec: partial[RunSpec], out: Path) -> Mapping[str, Any]:
    from genrec.data.shards import missing_shards

    spec = make_spec(out=out)
    shards = _shards(spec)
    parallel_map(spec.config, partial(GroupWriter, spec), missing_shards([out], len(shards), 1), label="groups")
    return {"groups": sum(shard.queries.num_rows for shard in shards)}


class _Shard(NamedTuple):
    """The queries of one file of groups, and the directory of the policy that generates them."""

    policy: Path
    queries: pa.Table


def _shards(spec: RunSpec) -> list[_Shard]:
    """All shards, in the order of their files."""
    import pyarrow as pa

    from genrec.data.folds import folds_of
    from genrec.data.readers import count_train_queries, read_queries, read_train_queries
    from genrec.learning.rl.fixed_groups import drawn_rows

    config, rl, start = spec.config, spec.config.learning.rl, spec.start
    assert start is not None
    rows = drawn_rows(count_train_queries(spec.data), rl.fixed_queries, config.seed)
    drawn = read_train_queries(spec.data, with_context=True, rows_R=rows)
    if rl.groups != "crossfit":
        return _cut(start, drawn)
    fold_Q = folds_of(read_queries(spec.data, "train", ["user"]), rl.folds, config.seed)[rows]
    parts = ((fold_directory(start, fold), drawn.filter(pa.array(fold_Q == fold))) for fold in range(rl.folds))
    return [shard for policy, queries in parts for shard in _cut(policy, queries)]


def _cut(policy: Path, queries: pa.Table) -> list[_Shard]:
    """The queries in shards."""
    starts = range(0, queries.num_rows, SHARD_QUERIES)
    return [_Shard(policy, queries.slice(start, SHARD_QUERIES)) for start in starts]


class GroupWriter:
    """Generates the groups of one shard of queries per call and writes them to a file; keeps the policy meanwhile."""

    def __init__(self, spec: RunSpec) -> None:
        import torch

        compute = spec.config.compute
        torch.set_num_threads(compute.data_threads)
        cuda = compute.data_may_use_gpu and torch.cuda.is_available()
        self._spec, self._shards = spec, _shards(spec)
        self._device = torch.device("cuda" if cuda else "cpu")
        self._load(self._shards[0].policy)

    def _load(self, policy: Path) -> None:
        self._loaded = policy
        self._policy, self._prompts, catalog = replace(self._spec, start=policy).build()
        self._served = self._spec.serving(catalog)
        self._origin = origin_of(self._policy, catalog, self._spec.config.learning.rl, self._served)
        self._policy.to(self._device)
        self._trie = catalog.trie.to(self._device)

    def __call__(self, shard: int) -> dict[str, int]:
        """Write the file of shard ``shard``; returns the number of its groups."""
        from genrec.data.shards import shard_path
        from genrec.data.tables import to_queries
        from genrec.learning.rl.fixed_groups import write_groups
        from genrec.learning.rl.rollout import chunks, generate

        rl, seed = self._spec.config.learning.rl, self._spec.config.seed
        directory, table = self._shards[shard]
        if directory != self._loaded:
            self._load(directory)
        queries, where = to_queries(table), (self._policy, self._prompts, self._trie)
        own: dict[str, Any] = {"version": 0, "seed": seed, "served": self._served}
        parts = [generate(*where, part, rl, **own) for part in chunks(queries, rl.rollout_chunk)]
        groups = [group for part in parts for group in part]
        write_groups(groups, self._origin, shard_path(self._spec.out, shard))
        return {"groups": len(groups)}
