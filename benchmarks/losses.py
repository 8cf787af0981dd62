"""Supervised losses side by side: the same fine-tuning with each, from several seeds, judged on the test queries.

Every row is the config's ``learning.sft`` section with another ``loss`` or ``softmax``; ``bench.variants`` chooses some of
them, ``bench.seeds`` says how many policies each gets. See ``benchmarks.compare`` for what is kept; the page and all
figures lie beside it as ``<name>.md`` and ``<name>.json``, written again after every policy.
"""

from __future__ import annotations

from typing import Any

from benchmarks.compare import Comparison, Variant, compare_variants
from cluster.artifacts import Artifact
from genrec.config import Config, Sft
from genrec.errors import InputError

PLACE = "losses"


def run(config: Config, data: Artifact, catalog: Artifact) -> Comparison:
    """Train and score the chosen rows.

    Raises:
        InputError: a row of ``bench.variants`` that does not exist.
    """
    settings = sections(config.learning.sft)
    if unknown := [name for name in config.bench.variants if name not in settings]:
        raise InputError(f"bench.variants names {unknown}; the rows are {list(settings)}")
    rows = {name: Variant(_with(config, settings[name]), catalog) for name in config.bench.variants or settings}
    return compare_variants(PLACE, "loss", config, data, rows)


def sections(sft: Sft) -> dict[str, Sft]:
    """The ``learning.sft`` section of each row, by name; the numbers of the weights are the config's."""
    weights: dict[str, dict[str, Any]] = {
        "cross_entropy": {"weights": ()},
        "focal": {"weights": ("focal",)},
        "focal_item": {"weights": ("focal",), "unit": "item"},
        "hard": {"weights": ("hard",)},
        "hard_item": {"weights": ("hard",), "unit": "item"},
        "rare": {"weights": ("rare",)},
        "focal_rare": {"weights": ("focal", "rare")},
    }
    plain = {"unit": "token"}
    rows = {
        name: sft.model_copy(update={"loss": sft.loss.model_copy(update=plain | change)})
        for name, change in weights.items()
    }
    other = (name for name in ("trie", "level", "vocabulary") if name != sft.softmax)
    return rows | {name: rows["cross_entropy"].model_copy(update={"softmax": name}) for name in other}


def _with(config: Config, sft: Sft) -> Config:
    return config.model_copy(update={"learning": config.learning.model_copy(update={"sft": sft})})
