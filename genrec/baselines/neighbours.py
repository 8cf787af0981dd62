"""The baselines that are counted or factorized beside popularity, transitions and ItemKNN: made and tuned by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from genrec.baselines.coordinate_ascent import Grid, coordinate_ascent
from genrec.baselines.factors import (
    ALS_GRID,
    BPR_GRID,
    AlsFactors,
    AlsSettings,
    BprFactors,
    BprSettings,
    require_implicit,
)
from genrec.baselines.material import Material
from genrec.baselines.ranking import Baseline
from genrec.baselines.repeat_last import RepeatLast
from genrec.baselines.star import Similarities, Star, StarSettings
from genrec.errors import InputError
from genrec.sid.vectors import VectorFiles

DECAYS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STAR_GRID: Grid = {"text": (0.0, 0.25, 0.5, 0.75, 1.0), "decay": DECAYS}
TEXT_GRID: Grid = {"decay": DECAYS}


@dataclass(frozen=True)
class TunedBaseline:
    """A baseline with the best settings found, as ``settings`` for a report: with NDCG@10 on validation."""

    model: Baseline
    settings: Mapping[str, float]


def tune_neighbours(name: str, material: Material, vectors: Path | None, budget: int) -> TunedBaseline:
    """The baseline ``name`` of ``TUNED``, its settings chosen on validation among at most ``budget``.

    Args:
        vectors: where the items' text vectors lie, for the baselines that compare texts.

    Raises:
        InputError: there are no vectors, or the package implicit is missing.
    """
    return TUNED[name](material, vectors, budget)


def _repeat_last(material: Material, vectors: Path | None, budget: int) -> TunedBaseline:
    if material.log.mask_seen:
        raise InputError(
            "no train target repeats an item of its history, so seen items are masked and repeat_last has nothing to "
            "say; take it out of evaluation.baselines"
        )
    model = RepeatLast(material.log)
    return TunedBaseline(model, {"valid_ndcg@10": material.ndcg(model)})


def _star(start: StarSettings, grid: Grid, material: Material, vectors: Path | None, budget: int) -> TunedBaseline:
    if vectors is None:
        raise InputError(
            "the baselines star and text compare item vectors, and this sid.quantizer has none; "
            "take them out of evaluation.baselines"
        )
    files = VectorFiles(vectors)
    files.require(material.log.n_items)
    similarities = Similarities.of(material.log, files.read().astype(np.float64))
    return _tuned(partial(Star, similarities), start, grid, material, budget)


def _als(material: Material, vectors: Path | None, budget: int) -> TunedBaseline:
    require_implicit()

    def make(settings: AlsSettings) -> Baseline:
        return AlsFactors(material.log, settings, material.seed)

    return _tuned(make, AlsSettings(), ALS_GRID, material, budget)


def _bpr(material: Material, vectors: Path | None, budget: int) -> TunedBaseline:
    require_implicit()

    def make(settings: BprSettings) -> Baseline:
        return BprFactors(material.log, settings, material.seed)

    return _tuned(make, BprSettings(), BPR_GRID, material, budget)


def _tuned(make: Callable[[Any], Baseline], start: Any, grid: Grid, material: Material, budget: int) -> TunedBaseline:
    best, tried = coordinate_ascent(lambda settings: material.ndcg(make(settings)), start, grid, budget)
    return TunedBaseline(make(best), {**asdict(best), "valid_ndcg@10": tried[best], "tried": len(tried)})


TUNED: Mapping[str, Callable[[Material, Path | None, int], TunedBaseline]] = MappingProxyType(
    {
        "repeat_last": _repeat_last,
        "star": partial(_star, StarSettings(), STAR_GRID),
        "text": partial(_star, StarSettings(text=1.0), TEXT_GRID),
        "als": _als,
        "bpr": _bpr,
    }
)
"""How each is made and tuned."""
