"""Searches of the same SFT policies side by side: beams with and without priors, diverse beams, draws, no constraint.

Every search gives ``decode.width`` candidates per test query, from policies of ``bench.seeds`` seeds; weights of priors
are tuned on validation. Policies and figures are stages under ``<storage>/bench/searches``, so a killed run goes on;
the page and all figures lie there as ``<name>.md`` and ``<name>.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare import Comparison
from benchmarks.harness import in_process
from benchmarks.tables import searches_page
from cluster.artifacts import Artifact, run_stage
from cluster.policy_predictor import NODE_QUERIES, NODE_WEIGHTS
from cluster.stages import steps
from genrec.config import Config
from genrec.data.tables import read_items, read_queries, read_sequences

if TYPE_CHECKING:
    from genrec.inference.prior import RankedItems

PLACE = "searches"
VERSION = 2
GROUPS, PENALTY = 5, 1.0
RANKS = (1, 5, 10, 20, 50)

Search = Callable[[Any, Any, slice], Any]
"""Left-padded prompts, their mask and which queries they are → ``genrec.policy.decoding.beam.Beams``."""


def run(config: Config, data: Artifact, catalog: Artifact) -> Comparison:
    """Train the policies, and judge every search of each."""
    comparison, measured = Comparison(PLACE), list[Mapping[str, Any]]()
    for seed in range(config.seed, config.seed + config.bench.seeds):
        own = in_process(config.model_copy(update={"seed": seed}), PLACE)
        policy = steps.sft(own, data, catalog)
        work = partial(_judge, own, data.path, catalog.path, policy.path)
        inputs, settings = [data, catalog, policy], {"width": config.decode.width}
        stage = run_stage(own, "searches", version=VERSION, settings=settings, inputs=inputs, work=work)
        measured.append(stage.metrics)
        comparison = _written(config, measured)
    return comparison


def _written(config: Config, measured: list[Mapping[str, Any]]) -> Comparison:
    from genrec.evaluation.intervals import over_runs

    comparison, rows = Comparison(PLACE), dict[str, Any]()
    for name, metrics in measured[0]["rows"].items():
        rows[name] = {metric: over_runs([one["rows"][name][metric] for one in measured]) for metric in metrics}
    validity = {rank: over_runs([one["validity"][rank] for one in measured]) for rank in measured[0]["validity"]}
    found = {"rows": rows, "validity": validity, "weights": [one["weights"] for one in measured]}
    comparison.text = searches_page(rows, validity, found["weights"])
    comparison.figures = {f"{row}.{name}": value["mean"] for row, part in rows.items() for name, value in part.items()}
    comparison.keep(config, found)
    return comparison


def _judge(config: Config, data: Path, catalog: Path, policy: Path, out: Path) -> Mapping[str, Any]:
    """Metrics of each search, the tuned weights, and the share of valid SIDs at ranks without a constraint."""
    import torch

    from genrec.policy.decoding.beam import beam, sample
    from genrec.policy.decoding.sampling import diverse_beam, stochastic_beam, unconstrained, validity_by_rank

    asked = _SearchEvaluation(config, data, catalog, policy)
    where, width = asked.trie, config.decode.width
    generator = torch.Generator().manual_seed(config.seed)
    answers = {"beam": asked.answers("test", lambda tokens, mask, _: beam(asked.policy, tokens, mask, where, width))}
    answers["beam, prior on items"], weights = asked.with_item_prior(answers["beam"])
    answers["beam, prior on nodes"], weights["nodes"] = asked.with_node_prior()
    others: dict[str, Search] = {
        "diverse beam": lambda tokens, mask, _: diverse_beam(
            asked.policy, tokens, mask, where, width, groups=GROUPS, penalty=PENALTY
        ),
        "stochastic beam": lambda tokens, mask, _: (
            stochastic_beam(asked.policy, tokens, mask, where, width, generator=generator).beams
        ),
        "samples": lambda tokens, mask, _: sample(asked.policy, tokens, mask, where, width, generator=generator),
    }
    answers |= {name: asked.answers("test", search) for name, search in others.items()}
    valid: list[torch.Tensor] = []

    def free(tokens: Any, mask: Any, _: slice) -> Any:
        found = unconstrained(asked.policy, tokens, mask, where, width)
        valid.append(validity_by_rank(found) * len(tokens))
        return found

    queries = len(asked.answers("test", free).items_QK)
    share_W = torch.stack(valid).sum(0) / queries
    validity = {str(rank): float(share_W[rank - 1]) for rank in RANKS if rank <= len(share_W)}
    rows = {name: asked.metrics(beams) for name, beams in answers.items()}
    return {"rows": rows, "weights": weights, "validity": {**validity, "all": float(share_W.mean())}}


class _SearchEvaluation:
    """A policy and the queries of both splits, asked in batches by any search."""

    def __init__(self, config: Config, data: Path, catalog: Path, policy: Path) -> None:
        import torch

        from genrec.baselines.train_log import recent_history
        from genrec.baselines.tuning import fit_baselines
        from genrec.policy.backbone import load
        from genrec.sid.catalog import Catalog

        torch.set_num_threads(config.compute.threads)
        self._config, self._catalog = config, Catalog.load(catalog)
        history = config.data.max_history
        cache = Path(config.storage) / "backbones"
        self.policy, self._prompts = load(
            config.policy, self._catalog, policy, max_history=history, seed=config.seed, cache=cache
        )
        self.trie, self._items = self._catalog.trie, read_items(data)
        self._queries = {"valid": read_queries(data, "valid"), "test": read_queries(data, "test")}
        self._recent = {split: recent_history(table, history) for split, table in self._queries.items()}
        count = self._items.num_rows
        self._lineup = fit_baselines(read_sequences(data), self._queries["valid"], count, history, seed=config.seed)

    def answers(self, split: str, search: Search, count: int | None = None) -> RankedItems:
        """Candidates of the first ``count`` queries; items of the history are struck where the log never repeats."""
        import numpy as np

        from genrec.inference.batch import without_seen
        from genrec.inference.prior import RankedItems

        histories = self._queries[split]["history"].to_pylist()[:count]
        items: list[Any] = []
        logp: list[Any] = []
        for start in range(0, len(histories), self._config.decode.batch_size):
            part = slice(start, min(start + self._config.decode.batch_size, len(histories)))
            found = search(*self._prompts.encode(histories[part]), part)
            items.append(found.items_BW.numpy())
            logp.append(found.logp_BW.numpy())
        beams = RankedItems(np.concatenate(items), np.concatenate(logp))
        if not self._lineup.mask_seen:
            return beams
        return without_seen(beams, self._recent[split][:count], beams.items_QK.shape[1])

    def with_item_prior(self, found: RankedItems) -> tuple[RankedItems, dict[str, Any]]:
        """``found`` mixed with ItemKNN's scores per item, and the weight and power that validation chose."""
        from genrec.inference.prior import RankedItems, mix, tune_weight
        from genrec.policy.decoding.beam import beam

        width = self._config.decode.width
        valid = self.answers("valid", lambda tokens, mask, _: beam(self.policy, tokens, mask, self.trie, width))
        tuned = tune_weight(valid.items_QK, valid.logp_QK, self._scores("valid"), self._targets("valid"))
        mixed_QK = mix(found.items_QK, found.logp_QK, self._scores("test"), tuned.weight, power=tuned.power, k=width)
        return RankedItems(mixed_QK, found.logp_QK), {"items": tuned.weight, "power": tuned.power}

    def with_node_prior(self) -> tuple[RankedItems, float]:
        """RankedItems under ItemKNN's scores on the trie's nodes, and the weight that validation chose."""
        found = {
            weight: self.metrics(self.answers("valid", self._node_search("valid", weight), NODE_QUERIES), "valid")
            for weight in (0.0, *NODE_WEIGHTS)
        }
        best = max(found, key=lambda weight: (found[weight]["ndcg@10"], -weight))
        return self.answers("test", self._node_search("test", best)), best

    def metrics(self, beams: RankedItems, split: str = "test") -> dict[str, float]:
        """Item-level metrics, coverage and category entropy of the first candidates' queries."""
        from genrec.evaluation.slices import category_entropy, category_numbers, coverage
        from genrec.metrics import measure

        found = measure(beams.items_QK, self._targets(split)[: len(beams.items_QK)], (10, 50))
        found["coverage@10"] = coverage(beams.items_QK, self._items.num_rows)
        entropy = category_entropy(beams.items_QK, category_numbers(self._items))
        return found if entropy is None else {**found, "category_entropy@10": entropy}

    def _node_search(self, split: str, weight: float) -> Search:
        from genrec.inference.batch import make_node_prior
        from genrec.policy.decoding.beam import beam

        scores = self._scores(split)

        def search(tokens: Any, mask: Any, part: slice) -> Any:
            prior = make_node_prior(self.trie, self._catalog.codes_NL, scores[part], weight)
            return beam(self.policy, tokens, mask, self.trie, self._config.decode.width, prior=prior)

        return search

    def _scores(self, split: str) -> Any:
        return self._lineup.scores(self._recent[split])

    def _targets(self, split: str) -> Any:
        return self._queries[split]["target"].to_numpy().astype("int64")
