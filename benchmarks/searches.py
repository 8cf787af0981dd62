"""Searches of the same SFT policies compared: beams with and without priors, diverse beams, draws, no constraint.

Every search finds ``decode.width`` candidates per test query, with policies of ``bench.seeds`` seeds; weights of priors
are tuned on validation. Policies and figures are artifacts under ``<storage>/bench/searches``, so a killed run
continues; the page and all figures lie there as ``<config.name>.md`` and ``.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.compare import Comparison
from benchmarks.harness import in_process, seeds_of
from benchmarks.tables import estimate_text, markdown
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.pipeline import run_stage
from genrec.baselines.sparse import Sparse
from genrec.baselines.train_log import recent_history
from genrec.baselines.tuning import fit_baselines
from genrec.config import Config
from genrec.data.readers import read_items, read_queries, read_sequences
from genrec.data.tables import contexts
from genrec.evaluation.intervals import over_runs
from genrec.evaluation.slices import category_numbers
from genrec.evaluation.spread import spread
from genrec.inference.batch import Split, make_node_prior, without_seen
from genrec.inference.prior import RankedItems, mix, tune_weight
from genrec.metrics import FloatArray, IntArray, measure
from genrec.policy.backbone import load
from genrec.policy.decoding.beam import HEAD_WEIGHT, Beams, beam
from genrec.policy.decoding.sampling import diverse_beam, sample, stochastic_beam, unconstrained, validity_by_rank
from genrec.sid.catalog import Catalog

DIRECTORY = "searches"
NEEDS = ("prepare", "assign")
GROUPS, PENALTY = 5, 1.0
RANKS = (1, 5, 10, 20, 50)
NODE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
NODE_QUERIES = 1000
"""Validation queries that a weight of the prior on the trie's nodes is tuned on: each weight is a search of its own."""

Search = Callable[[Tensor, Tensor, slice], Beams]
"""From left-padded prompts (B, P), their mask, and which queries they are, to candidates."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train the policies, and measure every search with each."""
    comparison, measured = Comparison(DIRECTORY), list[Mapping[str, Any]]()
    data, catalog = artifacts["prepare"], artifacts["assign"]
    for seed in seeds_of(config):
        own = in_process(config.replace(seed=seed), DIRECTORY)
        policy = run_stage(own, "sft", artifacts)
        recipe = Recipe("searches", {"width": config.decode.width}, (__name__,), [data, catalog, policy])
        work = partial(measure_searches, own, data.path, catalog.path, policy.path)
        measured.append(make_artifact(own, recipe, work).metrics)
        comparison = _written(config, measured)
    return comparison


def _written(config: Config, measured: Sequence[Mapping[str, Any]]) -> Comparison:
    """The comparison so far, over the policies that were ``measured``; its page and all figures are written."""
    first, searches = measured[0], dict[str, Any]()
    for name, metrics in first["searches"].items():
        searches[name] = {metric: over_runs([one["searches"][name][metric] for one in measured]) for metric in metrics}
    validity = {rank: over_runs([one["validity"][rank] for one in measured]) for rank in first["validity"]}
    weights = [one["weights"] for one in measured]
    comparison = Comparison(DIRECTORY, text=searches_page(searches, validity, weights))
    comparison.figures = {f"{name}.{m}": value["mean"] for name, one in searches.items() for m, value in one.items()}
    comparison.write(config, {"searches": searches, "validity": validity, "weights": weights})
    return comparison


def measure_searches(config: Config, data: Path, catalog: Path, policy: Path, out: Path) -> Mapping[str, Any]:
    """Metrics of each search, the tuned weights, and the share of valid SIDs at ranks without the constraint."""
    evaluation = _SearchEvaluation(config, data, catalog, policy)
    answers, weights = {"beam": evaluation.answers("test", evaluation.beam)}, dict[str, float]()
    answers["beam, prior on items"], weights["items"], weights["power"] = evaluation.with_item_prior(answers["beam"])
    answers["beam, prior on nodes"], weights["nodes"] = evaluation.with_node_prior()
    answers |= {name: evaluation.answers("test", search) for name, search in _other_searches(evaluation).items()}
    searches = {name: evaluation.metrics(found) for name, found in answers.items()}
    return {"searches": searches, "weights": weights, "validity": _validity(evaluation)}


def _other_searches(evaluation: _SearchEvaluation) -> dict[str, Search]:
    policy, trie, width = evaluation.policy, evaluation.trie, evaluation.width
    generator = torch.Generator().manual_seed(evaluation.seed)

    def diverse(tokens_BP: Tensor, mask_BP: Tensor, _: slice) -> Beams:
        return diverse_beam(policy, tokens_BP, mask_BP, trie, width, groups=GROUPS, penalty=PENALTY)

    def stochastic(tokens_BP: Tensor, mask_BP: Tensor, _: slice) -> Beams:
        return stochastic_beam(policy, tokens_BP, mask_BP, trie, width, generator=generator).beams

    def samples(tokens_BP: Tensor, mask_BP: Tensor, _: slice) -> Beams:
        return sample(policy, tokens_BP, mask_BP, trie, width, generator=generator).beams

    def guided(tokens_BP: Tensor, mask_BP: Tensor, _: slice) -> Beams:
        return beam(policy, tokens_BP, mask_BP, trie, width, head_weight=HEAD_WEIGHT)

    own: dict[str, Search] = {"diverse beam": diverse, "stochastic beam": stochastic, "samples": samples}
    return own | ({} if policy.item_head is None else {"beam, item head on nodes": guided})


def _validity(evaluation: _SearchEvaluation) -> dict[str, float]:
    """The share of SIDs that are in the catalogue, at some ranks and over all, of a beam search without its trie."""
    valid_W: list[Tensor] = []

    def free(tokens_BP: Tensor, mask_BP: Tensor, _: slice) -> Beams:
        found = unconstrained(evaluation.policy, tokens_BP, mask_BP, evaluation.trie, evaluation.width)
        valid_W.append(validity_by_rank(found) * len(tokens_BP))
        return found

    queries = len(evaluation.answers("test", free).items_QK)
    share_W = torch.stack(valid_W).sum(0) / queries
    shares = {str(rank): float(share_W[rank - 1]) for rank in RANKS if rank <= len(share_W)}
    return {**shares, "all": float(share_W.mean())}


class _SearchEvaluation:
    """A policy, and the queries of both splits, which any search answers in batches."""

    def __init__(self, config: Config, data: Path, catalog: Path, policy: Path) -> None:
        torch.set_num_threads(config.compute.threads)
        self.width, self.seed, self._batch = config.decode.width, config.seed, config.decode.batch_size
        self._catalog, history = Catalog.load(catalog), config.data.max_history
        self.policy, self._prompts = load(
            config.policy, self._catalog, policy, max_history=history, seed=config.seed, cache=config.backbones_path
        )
        self.trie, self._items = self._catalog.trie, read_items(data)
        splits: tuple[Split, ...] = ("valid", "test")
        self._queries = {split: read_queries(data, split) for split in splits}
        self._recent = {split: recent_history(table, history) for split, table in self._queries.items()}
        count = self._items.num_rows
        self._suite = fit_baselines(read_sequences(data), self._queries["valid"], count, history, seed=config.seed)

    def answers(self, split: Split, search: Search, count: int | None = None) -> RankedItems:
        """Candidates of the first ``count`` queries; items of the history are masked where the log never repeats."""
        queries = self._queries[split].slice(0, count)
        histories, known = queries["history"].to_pylist(), contexts(queries)
        items: list[IntArray] = []
        logp: list[FloatArray] = []
        for start in range(0, len(histories), self._batch):
            part = slice(start, min(start + self._batch, len(histories)))
            found = search(*self._prompts.encode(histories[part], known[part]), part)
            items.append(found.items_BW.numpy())
            logp.append(found.logp_BW.numpy())
        beams = RankedItems(np.concatenate(items), np.concatenate(logp))
        if not self._suite.mask_seen:
            return beams
        return without_seen(beams, self._recent[split][:count], beams.items_QK.shape[1])

    def beam(self, tokens_BP: Tensor, mask_BP: Tensor, part: slice) -> Beams:
        """The plain beam search (``Search``)."""
        return beam(self.policy, tokens_BP, mask_BP, self.trie, self.width)

    def with_item_prior(self, found: RankedItems) -> tuple[RankedItems, float, float]:
        """``found`` mixed with ItemKNN's scores of items, and the weight and power that validation chose."""
        valid = self.answers("valid", self.beam)
        tuned = tune_weight(valid.items_QK, valid.logp_QK, self._scores("valid"), self._targets("valid"))
        scores = self._scores("test")
        mixed_QK = mix(found.items_QK, found.logp_QK, scores, tuned.weight, power=tuned.power, k=self.width)
        return RankedItems(mixed_QK, found.logp_QK), tuned.weight, tuned.power

    def with_node_prior(self) -> tuple[RankedItems, float]:
        """Answers with ItemKNN's scores on the trie's nodes as a prior, and the weight that validation chose."""

        def ndcg(weight: float) -> float:
            found = self.answers("valid", self._node_search("valid", weight), NODE_QUERIES)
            return self.metrics(found, "valid")["ndcg@10"]

        tried = {weight: ndcg(weight) for weight in NODE_WEIGHTS}
        best = max(tried, key=lambda weight: (tried[weight], -weight))
        return self.answers("test", self._node_search("test", best)), best

    def metrics(self, found: RankedItems, split: Split = "test") -> dict[str, float]:
        """Item-level metrics of the queries that ``found`` answers, and what is recommended."""
        metrics = measure(found.items_QK, self._targets(split)[: len(found.items_QK)], (10, 50))
        return metrics | spread(found.items_QK, self._suite.log.counts_N, category_numbers(self._items))

    def _node_search(self, split: Split, weight: float) -> Search:
        scores = self._scores(split)

        def search(tokens_BP: Tensor, mask_BP: Tensor, part: slice) -> Beams:
            prior = make_node_prior(self.trie, self._catalog.codes_NL, scores[part], weight)
            return beam(self.policy, tokens_BP, mask_BP, self.trie, self.width, prior=prior)

        return search

    def _scores(self, split: Split) -> Sparse:
        return self._suite.scores(self._recent[split])

    def _targets(self, split: Split) -> IntArray:
        return self._queries[split]["target"].to_numpy().astype("int64")


def searches_page(
    searches: Mapping[str, Mapping[str, Any]], validity: Mapping[str, Any], weights: Sequence[Mapping[str, Any]]
) -> str:
    """Two tables: searches by their scores, and how often a SID is in the catalogue without its constraint, by rank."""
    metrics = list(next(iter(searches.values())))
    tuned = "; ".join(", ".join(f"{name} {value:g}" for name, value in one.items()) for one in weights)
    lines = [
        *markdown(
            ("search", *metrics),
            ([name, *(estimate_text(one[metric], ".4f") for metric in metrics)] for name, one in searches.items()),
        ),
        "",
        f"Test split, item level: mean of {len(weights)} seeds [95 % t interval]. Tuned on validation: {tuned}.",
        "",
        *markdown(
            ("without constraint", *(f"rank {rank}" if rank.isdigit() else rank for rank in validity)),
            [["share in the catalogue", *(estimate_text(share, ".3f") for share in validity.values())]],
        ),
    ]
    return "\n".join(lines) + "\n"
