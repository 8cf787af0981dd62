"""A finished run as a recommender: ``genrec.load(run).recommend(history, k=10)``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.config import Config
from genrec.data.tables import read_items, read_sequences
from genrec.errors import InputError
from genrec.evaluation.baselines import train_log
from genrec.evaluation.itemknn import ItemKNN, KnnSettings, Pairs
from genrec.evaluation.predict import strike_seen, without_seen
from genrec.evaluation.prior import Beams, normalise
from genrec.policy.backbone import load as load_policy
from genrec.policy.decode import beam
from genrec.sid.catalog import Catalog


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; ``score`` is its probability under the model, prior included where the run uses one."""

    id: str
    title: str
    score: float


class Recommender:
    """The policy, catalogue and prior of a run, on the decoder that evaluated it."""

    def __init__(self, about: dict[str, Any], storage: Path) -> None:
        parts = {name: storage / place for name, place in about["parts"].items()}
        self._config = config = Config.model_validate(about["config"])
        items = read_items(parts["data"])
        self._ids: list[str] = items["id"].to_pylist()
        self._titles: list[str] = items["title"].to_pylist()
        self._rows = {item_id: row for row, item_id in enumerate(self._ids)}
        self._catalog = Catalog.load(parts["catalog"])
        history = config.data.max_history
        places: dict[str, Any] = {"max_history": history, "seed": config.seed, "cache": storage / "backbones"}
        self._policy, self._prompts = load_policy(config.policy, self._catalog, parts["policy"], **places)
        self._prior, self._mask_seen = about["prior"], bool(about["mask_seen"])
        self._knn: ItemKNN | None = None
        if self._prior["weight"]:
            log = train_log(read_sequences(parts["data"]), len(self._ids))
            self._knn = ItemKNN(Pairs(log), KnnSettings(**self._prior["settings"]))

    def recommend(self, history: Sequence[str], k: int = 10) -> list[Recommendation]:
        """The ``k`` items that most probably come next.

        Args:
            history: item ids of the shop, oldest first; the last ``data.max_history`` of them count.

        Raises:
            InputError: an empty history, an item that is not in the catalogue, or k below 1.
        """
        unknown = [item for item in history if item not in self._rows]
        if unknown or not history or k < 1:
            raise InputError(
                f"cannot recommend {k} items after {len(history)} items, of which {len(unknown)} are unknown "
                f"({unknown[:3]}); wanted: k >= 1 and a history of at least one item of the catalogue"
            )
        rows = [self._rows[item] for item in history][-self._config.data.max_history :]
        return [Recommendation(self._ids[row], self._titles[row], score) for row, score in self._ranked(rows, k)]

    def _ranked(self, rows: list[int], k: int) -> list[tuple[int, float]]:
        tokens_BP, mask_BP = self._prompts.encode([rows])
        width = max(k + (len(rows) if self._mask_seen else 0), self._config.decode.width)
        found = beam(self._policy, tokens_BP, mask_BP, self._catalog.trie, width)
        beams = Beams(found.items_BW.numpy(), found.logp_BW.numpy())
        recent_QH = np.array([rows[::-1]])
        if self._mask_seen:
            beams = without_seen(beams, recent_QH, width - len(rows))
        probabilities = beams.probabilities(len(self._ids))
        if self._knn is not None:
            scores = self._knn.scores(recent_QH)
            scores = strike_seen(scores, recent_QH) if self._mask_seen else scores
            weight = self._prior["weight"]
            probabilities = (1 - weight) * probabilities + weight * normalise(scores, self._prior["power"])
        row: Any = probabilities.tocsr()
        best = np.argsort(-row.data, kind="stable")[:k]
        return [(int(row.indices[i]), float(row.data[i])) for i in best]


def load(run: str | Path) -> Recommender:
    """The recommender of a finished run.

    Args:
        run: the directory of its report, ``<storage>/runs/<name>``.

    Raises:
        InputError: no finished run is there, or one of its parts is missing.
    """
    directory = Path(run)
    try:
        about = json.loads((directory / "recommender.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory} holds no finished run ({error}); make one with `python -m workflows.full`"
        ) from error
    return Recommender(about, directory.resolve().parent.parent)
