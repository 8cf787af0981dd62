"""groups: candidates of the SFT policy for the training queries, generated once, on Ray Data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data import parallel_map
from cluster.stages.plan import Plan, StageRun
from cluster.train import RunSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from genrec.policy.model import Policy
    from genrec.sid.catalog import Catalog

SHARD_QUERIES = 1024
"""Groups in a file: what a killed run loses at most, per actor."""


def plan(run: StageRun) -> Plan:
    """Generate ``learning.rl.group`` candidates for every training query, or for ``learning.rl.fixed_queries``."""
    config, rl = run.config, run.config.learning.rl
    names = ("group", "generation", "temperature", "add_target", "fixed_queries")
    settings = {name: getattr(rl, name) for name in names} | {"seed": config.seed}
    make_spec = partial(RunSpec, config, run.path("prepare"), run.path("assign"), start=run.path("sft"))
    return Plan(settings, partial(_generate, make_spec))


def origin_of(policy: Policy, catalog: Catalog) -> dict[str, str]:
    """The digests of a policy's trainable tensors as they stand, and of its catalogue."""
    return {"policy": policy.snapshot(0).digest, "catalog": catalog.digest}


def _generate(make_spec: partial[RunSpec], out: Path) -> Mapping[str, Any]:
    from genrec.inference.batch import missing_shards

    spec = make_spec(out=out)
    queries = _queries(spec).num_rows
    parallel_map(spec.config, partial(GroupWriter, spec), missing_shards([out], queries, SHARD_QUERIES), label="groups")
    return {"groups": queries}


def _queries(spec: RunSpec) -> pa.Table:
    from genrec.data.readers import read_queries
    from genrec.learning.rl.fixed_groups import drawn_queries

    config = spec.config
    return drawn_queries(read_queries(spec.data, "train"), config.learning.rl.fixed_queries, config.seed)


class GroupWriter:
    """Loads the policy once, then generates the groups of one shard of queries per call and writes them to a file."""

    def __init__(self, spec: RunSpec) -> None:
        import torch

        compute = spec.config.compute
        torch.set_num_threads(compute.data_threads)
        cuda = compute.data_may_use_gpu and torch.cuda.is_available()
        self._spec, self._queries = spec, _queries(spec)
        self._policy, self._prompts, catalog = spec.build()
        self._origin = origin_of(self._policy, catalog)
        device = torch.device("cuda" if cuda else "cpu")
        self._policy.to(device)
        self._trie = catalog.trie.to(device)

    def __call__(self, shard: int) -> dict[str, int]:
        """Write the file of shard ``shard``; returns the number of its groups."""
        from genrec.data.tables import to_queries
        from genrec.inference.batch import shard_file
        from genrec.learning.rl.fixed_groups import write_groups
        from genrec.learning.rl.rollout import chunks, generate

        rl, seed = self._spec.config.learning.rl, self._spec.config.seed
        queries = to_queries(self._queries.slice(shard * SHARD_QUERIES, SHARD_QUERIES))
        where = (self._policy, self._prompts, self._trie)
        parts = [generate(*where, part, rl, version=0, seed=seed) for part in chunks(queries, rl.rollout_chunk)]
        groups = [group for part in parts for group in part]
        write_groups(groups, self._origin, shard_file(self._spec.out, shard))
        return {"groups": len(groups)}
