"""A trained policy in evaluation: its answers on Ray Data, and the ItemKNN prior that it is served with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifacts import Artifact
from cluster.batch_inference import predict
from genrec.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

    from genrec.baselines.tuning import BaselineSuite
    from genrec.inference.batch import KnnPrior, Split
    from genrec.inference.prior import RankedItems
    from genrec.metrics import IntArray

NODE_WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0)
NODE_QUERIES = 1000
"""Validation queries that a weight of the prior on the trie's nodes is tuned on: each weight is a search of its own."""


def tune_node_weight(
    ndcg: Callable[[float], float], weights: Sequence[float] = (0.0, *NODE_WEIGHTS)
) -> tuple[float, float]:
    """The weight of a prior on the trie's nodes with the best NDCG@10, and that NDCG@10. Ties: the smaller weight.

    Args:
        ndcg: from a weight to the NDCG@10 of ``NODE_QUERIES`` validation queries.
    """
    tried = {weight: ndcg(weight) for weight in weights}
    best = max(tried, key=lambda weight: (tried[weight], -weight))
    return best, tried[best]


class PolicyPredictor:
    """The policy of stage ``name``, whose answers are kept under ``where``."""

    def __init__(
        self, config: Config, stages: Mapping[str, Artifact], name: str, suite: BaselineSuite, where: Path
    ) -> None:
        self._config, self._stages, self._name = config, stages, name
        self._suite, self._where = suite, where / name

    def answers(self, split: Split, prior: KnnPrior | None = None, count: int | None = None) -> RankedItems:
        """Its ``decode.width`` best items per query; masked seen items come from a wider beam."""
        steered = f" with a prior of {prior.weight:g}" if prior is not None else ""
        return predict(
            self._config,
            self._stages["prepare"].path,
            self._stages["assign"].path,
            self._stages[self._name].path,
            self._where / (split if prior is None else f"{split}-nodes-{prior.weight:g}"),
            split=split,
            mask_seen=self._suite.mask_seen,
            prior=prior,
            count=count,
            label=f"{self._name} on {split}{steered}",
        )

    def tuned_prior(self, valid: pa.Table) -> dict[str, Any]:
        """The kind and weight of the prior that the model is served with; weight 0 when there is none."""
        import numpy as np

        from genrec.baselines.train_log import recent_history
        from genrec.inference.prior import WEIGHTS, tune_weight

        decode = self._config.decode
        targets_Q = valid["target"].to_numpy().astype(np.int64)
        if decode.prior == "none":
            return {"kind": "none", "weight": 0.0, "power": 1.0}
        if decode.prior == "itemknn_nodes":
            return self._tuned_on_nodes(targets_Q)
        beams, scores = self.answers("valid"), self._suite.scores(recent_history(valid, self._config.data.max_history))
        weights = WEIGHTS if decode.prior_weight == "tuned" else (float(decode.prior_weight),)
        found = tune_weight(beams.items_QK, beams.logp_QK, scores, targets_Q, weights=weights)
        return {"kind": "itemknn", "weight": found.weight, "power": found.power, "valid_ndcg@10": found.ndcg}

    def with_prior(self, beams: RankedItems, recent_QH: IntArray, prior: Mapping[str, Any]) -> IntArray:
        """The items (Q, K) of the test queries under the prior; ``beams`` are the policy's own answers."""
        from genrec.inference.prior import mix

        if prior["kind"] == "itemknn_nodes":
            return self.answers("test", self._on_nodes(prior["weight"])).items_QK
        width, scores = self._config.decode.width, self._suite.scores(recent_QH)
        return mix(beams.items_QK, beams.logp_QK, scores, prior["weight"], power=prior["power"], k=width)

    def _tuned_on_nodes(self, targets_Q: IntArray) -> dict[str, Any]:
        from genrec.metrics import measure

        def ndcg(weight: float) -> float:
            prior = self._on_nodes(weight) if weight else None
            items_QK = self.answers("valid", prior, NODE_QUERIES).items_QK
            return measure(items_QK, targets_Q[: len(items_QK)], (10,))["ndcg@10"]

        fixed = self._config.decode.prior_weight
        weights = (0.0, *NODE_WEIGHTS) if fixed == "tuned" else (float(fixed),)
        best, found = tune_node_weight(ndcg, weights)
        return {"kind": "itemknn_nodes", "weight": best, "valid_ndcg@10": found}

    def _on_nodes(self, weight: float) -> KnnPrior:
        from genrec.inference.batch import KnnPrior

        return KnnPrior(self._suite.itemknn.settings, weight, self._suite.mask_seen)
