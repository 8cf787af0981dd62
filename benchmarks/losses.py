"""Supervised losses compared: the same fine-tuning with each of them, from several seeds.

Every variant is the config's ``learning.sft`` section with another ``loss`` or ``softmax``; ``bench.variants`` chooses
some of them, ``bench.seeds`` the number of policies of each. ``benchmarks.compare`` says what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.compare import Comparison, Variant, compare_variants
from benchmarks.harness import chosen_variants
from cluster.artifacts import Artifact
from genrec.config import Config, Sft

DIRECTORY = "losses"
NEEDS = ("prepare", "assign")


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Comparison:
    """Train and score the chosen variants.

    Raises:
        InputError: ``bench.variants`` names one that does not exist.
    """
    known = variants(config.learning.sft)
    chosen = {name: Variant(_with(config, known[name]), artifacts) for name in chosen_variants(config, known)}
    return compare_variants(DIRECTORY, "loss", config, chosen)


def variants(sft: Sft) -> dict[str, Sft]:
    """The ``learning.sft`` section of each variant, by name; the strength of the weights is the config's."""
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
    found = {name: sft.replace(loss=sft.loss.replace(plain | change)) for name, change in weights.items()}
    other = (name for name in ("trie", "level", "vocabulary") if name != sft.softmax)
    return found | {name: found["cross_entropy"].replace(softmax=name) for name in other}


def _with(config: Config, sft: Sft) -> Config:
    return config.replace({"learning.sft": sft})
