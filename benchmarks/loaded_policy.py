"""A trained policy with its catalogue, and queries in batches, as benchmarks ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.harness import chosen_variants, in_process, seeds_of
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.pipeline import run_stage
from genrec.config import Config
from genrec.data.tables import contexts
from genrec.policy.backbone import load
from genrec.sid.catalog import Catalog

SOFTMAXES = ("trie", "level", "vocabulary")

Measure = Callable[[Config, Path, Path, Path, Path], Mapping[str, Any]]


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


def measured_by_softmax(
    config: Config, artifacts: Mapping[str, Artifact], benchmark: str, settings: Mapping[str, Any], measure: Measure
) -> Iterator[dict[str, list[Mapping[str, Any]]]]:
    """What was measured so far, by softmax that policies are trained with, after each policy; kept as artifacts.

    Args:
        benchmark: module of the benchmark; its artifacts lie in a directory of its name.
        settings: what the figures depend on besides the policy.
        measure: the figures of a policy, from the config and the directories of data, catalogue, policy and result.
    """
    directory, found = benchmark.rpartition(".")[2].replace("_", "-"), dict[str, list[Mapping[str, Any]]]()
    data, catalog = artifacts["prepare"], artifacts["assign"]
    for name in chosen_variants(config, SOFTMAXES):
        for seed in seeds_of(config):
            own = in_process(config.replace({"learning.sft.softmax": name, "seed": seed}), directory)
            policy = run_stage(own, "sft", artifacts)
            work = partial(measure, own, data.path, catalog.path, policy.path)
            recipe = Recipe(directory, dict(settings), (benchmark,), [data, catalog, policy])
            found.setdefault(name, []).append(make_artifact(own, recipe, work).metrics)
            yield found


def drawn_queries(queries: pa.Table, count: int, seed: int) -> pa.Table:
    """A seeded sample of ``count`` queries, or all where there are fewer."""
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))[:count]
    return queries.take(order.sort().values.numpy())
