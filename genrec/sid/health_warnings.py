"""Warnings about semantic IDs whose health figures miss a threshold, each with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def find_warnings(health: Mapping[str, Any]) -> list[str]:
    """One line for each figure of ``health.measure`` that misses its threshold: what it is, and what to change."""
    found: list[str] = []
    before = health["collisions_before"]["rate"]
    if before > 0.1:
        found.append(
            f"{before:.1%} of the SIDs collided before resolution (wanted: below 10 %), so the last code of these "
            "items carries little information; raise sid.codebook_size or sid.levels, or embed more of the text"
        )
    found += [line for number, level in enumerate(health["levels"], 1) for line in _level_warnings(number, level)]
    forced = health["tree"][-1]["forced"]
    if forced > 0.9:
        found.append(
            f"the last code is forced for {forced:.0%} of the items (wanted: below 90 %), so it carries no "
            "information; lower sid.levels or sid.codebook_size to train faster without loss"
        )
    agreement = health.get("neighbour_agreement")
    if agreement and agreement[0] < 0.2:
        found.append(
            f"only {agreement[0]:.0%} of an item's nearest vectors share its first code (wanted: at least 20 %), so "
            "similar items cannot learn from each other; lower sid.codebook_size"
        )
    return found


def _level_warnings(number: int, level: Mapping[str, float]) -> list[str]:
    used, codes, perplexity = level["used"], level["codes"], level["perplexity"]
    if used < 0.5 * codes:
        return [
            f"level {number} uses {used:.0f} of {codes:.0f} codes (wanted: at least half): the codebook collapsed; use "
            "sid.quantizer=rqkmeans, more sid.epochs, or sid.codebook=ema"
        ]
    if perplexity < 0.25 * used:
        return [
            f"level {number} has perplexity {perplexity:.0f} over {used:.0f} used codes (wanted: at least a quarter): "
            "a few codes hold most items, the others hold outliers; use sid.quantizer=rqvae, or lower sid.codebook_size"
        ]
    return []
