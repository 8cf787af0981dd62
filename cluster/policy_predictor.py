"""A trained policy in evaluation: its answers on Ray Data, and what its search is fused with, tuned on validation."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifacts import Artifact
from cluster.batch_inference import predict
from genrec.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

    from genrec.baselines.tuning import BaselineSuite
    from genrec.inference.batch import Answering, Split
    from genrec.inference.prior import RankedItems
    from genrec.metrics import FloatArray, IntArray

LOG = logging.getLogger(__name__)

PRIOR_WEIGHT = 1.0
"""Of ItemKNN in the search whose candidates the weights are tuned on."""

VALUE_WEIGHT = 1.0
"""Of the value network in the search whose candidates its weight is tuned on."""

OWN = "policy"
"""The name of a policy's answers without a prior."""


@dataclass(frozen=True)
class TunedSearch:
    """What validation chose.

    ``alone``: weight of the item head in the policy's own search; ``head_weight``: in the model's, with the prior of
    this ``kind``, ``weight`` and ``power`` (see ``ServedPrior``; weight 0 is none); ``ndcg``: the model's NDCG@10 on
    validation, None where nothing was tuned; ``value``: weight of the value network in the model's search, None where
    there is none, and then ``ndcg_without`` the NDCG@10 of the best weights without it.
    """

    alone: float
    head_weight: float
    kind: str = "none"
    weight: float = 0.0
    power: float = 1.0
    ndcg: float | None = None
    value: float | None = None
    ndcg_without: float | None = None

    @property
    def is_policy_alone(self) -> bool:
        """Whether the model is the policy's own search: neither a prior nor a value network has a weight."""
        return not self.weight and not self.value

    def as_json(self) -> dict[str, Any]:
        """For ``metrics.json`` and ``recommender.json``."""
        measured = {} if self.ndcg is None else {"valid_ndcg@10": self.ndcg}
        about = {"kind": self.kind, "weight": self.weight, "power": self.power, "head_weight": self.head_weight}
        if self.value is not None:
            measured |= {"value_weight": self.value, "valid_ndcg@10_without_value": self.ndcg_without}
        return about | measured


class PolicyPredictor:
    """The policy of stage ``name``, whose answers are kept under ``where``.

    Args:
        stages: the artifacts "prepare", "assign" and ``name``, or their directories; for ``decode.value`` "value",
            too, a network that was trained for this policy.
    """

    def __init__(
        self, config: Config, stages: Mapping[str, Artifact | Path], name: str, suite: BaselineSuite, where: Path
    ) -> None:
        self._config, self._name = config, name
        self._paths = {stage: one if isinstance(one, Path) else one.path for stage, one in stages.items()}
        self._suite, self._where = suite, where / name
        self.mixing_s = 0.0
        """Seconds in which ``tested`` mixed a prior with the answers of a search."""

    def answers(self, split: Split, ways: Mapping[str, Answering]) -> dict[str, RankedItems]:
        """Its ``decode.width`` best items per query, for each way; masked seen items come from a wider beam."""
        from genrec.inference.batch import KnnPrior

        return predict(
            self._config,
            self._paths["prepare"],
            self._paths["assign"],
            self._paths[self._name],
            self._where / split,
            ways,
            split=split,
            mask_seen=self._suite.mask_seen,
            prior=KnnPrior(self._suite.itemknn.settings, self._suite.mask_seen),
            value=self._paths.get("value") if any(way.value_weight is not None for way in ways.values()) else None,
            label=f"{self._name} on {split}",
        )

    def tuned(self, valid: pa.Table) -> TunedSearch:
        """The weights of the item head, the prior and the value network that answer the validation queries best.

        Of the value network's, the smallest of the best: 0 where it does not help.

        Raises:
            InputError: ``decode.value`` without the stage "value".
        """
        import numpy as np

        from genrec.baselines.train_log import recent_history
        from genrec.inference.batch import own_answering
        from genrec.inference.fusion import VALUE_WEIGHTS

        decode, head_weights = self._config.decode, self._head_weights
        if decode.prior == "none" and not decode.value and len(head_weights) == 1:
            return TunedSearch(head_weights[0], head_weights[0])
        ways = {"guided": own_answering(self._config)}
        if decode.prior == "itemknn_nodes":
            ways["guided-itemknn"] = replace(ways["guided"], prior_weight=PRIOR_WEIGHT)
        if decode.value:
            ways = {name: replace(way, value_weight=0.0) for name, way in ways.items()}
            ways |= {f"{name}-value": replace(way, value_weight=VALUE_WEIGHT) for name, way in ways.items()}
        found = self.answers("valid", ways)
        targets_Q = valid["target"].to_numpy().astype(np.int64)
        recent_QH = recent_history(valid, self._config.data.max_history)
        unsteered = [one for name, one in found.items() if not ways[name].value_weight]
        steered = [one for name, one in found.items() if ways[name].value_weight]
        plain = self._fused(unsteered, targets_Q, recent_QH)
        if not decode.value:
            return plain
        tried = [replace(plain, value=0.0)]
        for weight in VALUE_WEIGHTS[1:]:
            fused = self._fused([*steered, *unsteered], targets_Q, recent_QH, weight)
            tried.append(replace(fused, alone=plain.alone, value=weight))
        LOG.info(
            "value network: NDCG@10 on validation by its weight: %s",
            ", ".join(f"{one.value:g}: {one.ndcg:.4f}" for one in tried),
        )
        best = max(tried, key=lambda one: one.ndcg or 0.0)
        return replace(best, ndcg_without=plain.ndcg)

    @property
    def _head_weights(self) -> tuple[float, ...]:
        """The weights of the item head to try."""
        from genrec.inference.fusion import HEAD_WEIGHTS

        config = self._config
        return _grid(config.decode.head_weight, HEAD_WEIGHTS) if config.policy.items.head else (0.0,)

    def _fused(
        self, found: Sequence[RankedItems], targets_Q: IntArray, recent_QH: IntArray, value_weight: float = 0.0
    ) -> TunedSearch:
        """The best weights of item head and prior for the candidates of some searches; a mixture is of the first's."""
        from genrec.inference.fusion import PRIOR_WEIGHTS, tune_fusion
        from genrec.inference.prior import WEIGHTS, tune_weight

        decode, head_weights = self._config.decode, self._head_weights
        candidates = [one.valued(value_weight) for one in found]
        alone = tune_fusion(candidates, targets_Q, head_weights=head_weights)
        if decode.prior == "none":
            return TunedSearch(alone.head_weight, alone.head_weight, ndcg=alone.ndcg)
        if decode.prior == "itemknn_nodes":
            weights = {"head_weights": head_weights, "prior_weights": _grid(decode.prior_weight, PRIOR_WEIGHTS)}
            both = tune_fusion(candidates, targets_Q, self._prior_log(candidates, recent_QH), **weights)
            chosen = (both.head_weight, decode.prior, both.prior_weight)
            return TunedSearch(alone.head_weight, *chosen, ndcg=both.ndcg)
        policy, scores = found[0].fused(alone.head_weight, value_weight), self._suite.scores(recent_QH)
        mixed = tune_weight(
            policy.items_QK, policy.logp_QK, scores, targets_Q, weights=_grid(decode.prior_weight, WEIGHTS)
        )
        chosen = (decode.prior, mixed.weight, mixed.power, mixed.ndcg)
        return TunedSearch(alone.head_weight, alone.head_weight, *chosen)

    def tested(
        self, tuned: TunedSearch, recent_QH: IntArray, ways: Mapping[str, Answering] | None = None
    ) -> tuple[dict[str, RankedItems], IntArray]:
        """Its own answers to the test queries (``OWN``), those in further ``ways``, and the items of the model, (Q, K).

        Args:
            recent_QH: the histories of the test queries, newest item first.
        """
        from genrec.inference.batch import Answering

        all_ways, on_nodes = {OWN: Answering(tuned.alone), **(ways or {})}, tuned.kind == "itemknn_nodes"
        if (on_nodes and tuned.weight) or tuned.value:
            prior_weight = tuned.weight if on_nodes else 0.0
            all_ways["model"] = Answering(tuned.head_weight, prior_weight, value_weight=tuned.value or None)
        found = self.answers("test", all_ways)
        model = found.pop("model", found[OWN])
        if tuned.kind == "itemknn" and tuned.weight:
            start = time.perf_counter()
            mixed_QK = self._mixed(model.fused(tuned.head_weight, tuned.value or 0.0), recent_QH, tuned)
            self.mixing_s = time.perf_counter() - start
            return found, mixed_QK
        return found, model.items_QK

    def _mixed(self, policy: RankedItems, recent_QH: IntArray, tuned: TunedSearch) -> IntArray:
        """The items (Q, K) of queries under a prior that is mixed with the policy's own answers."""
        from genrec.inference.prior import mix

        scores, width = self._suite.scores(recent_QH), self._config.decode.width
        return mix(policy.items_QK, policy.logp_QK, scores, tuned.weight, power=tuned.power, k=width)

    def _prior_log(self, candidates: Sequence[RankedItems], recent_QH: IntArray) -> list[FloatArray]:
        from genrec.inference.batch import SMOOTH
        from genrec.inference.fusion import leaf_log_prior

        scores = self._suite.scores(recent_QH)
        return [leaf_log_prior(scores, found.items_QK, SMOOTH) for found in candidates]


def tuned_baselines(config: Config, data: Path) -> BaselineSuite:
    """The baselines that are counted, fitted on the train log in ``data`` and tuned on its validation queries."""
    from genrec.baselines.train_log import TRAIN_COLUMNS
    from genrec.baselines.tuning import fit_baselines
    from genrec.data.readers import read_items, read_queries, stream_sequences

    log, valid = stream_sequences(data, TRAIN_COLUMNS), read_queries(data, "valid")
    options: dict[str, Any] = {"seed": config.seed, "budget": config.baselines.counted}
    return fit_baselines(log, valid, read_items(data).num_rows, config.data.max_history, **options)


def _grid(fixed: float | str, tried: Sequence[float]) -> tuple[float, ...]:
    """The weights to try: all, or the one that the config gives."""
    return tuple(tried) if isinstance(fixed, str) else (float(fixed),)
