"""What the design documents claim of their recipes, and what a run says to each claim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Claim:
    """HR@10 and NDCG@10 after fine-tuning and after reinforcement learning; data, seeds and intervals are not named.

    ``itemcf``: relative gain of fine-tuning's HR@10 over item-based collaborative filtering. ``collisions``: share of
    items that share a SID. ``memory``: relative memory of fine-tuning, to LoRA's. ``trained``: share of the parameters.
    """

    sft: tuple[float, float]
    rl: tuple[float, float]
    itemcf: float | None = None
    collisions: float | None = None
    memory: float | None = None
    trained: float | None = None

    def gain(self, metric: str) -> float:
        """The relative gain of reinforcement learning in ``hr@10`` or ``ndcg@10``."""
        place = ("hr@10", "ndcg@10").index(metric)
        return self.rl[place] / self.sft[place] - 1


CLAIMS: Mapping[str, Claim] = {
    "v1": Claim((0.106, 0.083), (0.121, 0.094), trained=0.008),
    "v2": Claim((0.106, 0.083), (0.121, 0.094), itemcf=0.45, memory=-0.40),
    "v3": Claim((0.112, 0.089), (0.135, 0.108), trained=0.008),
    "v4": Claim((0.108, 0.086), (0.128, 0.102), collisions=0.023, memory=-0.40),
}
"""By recipe; the documents claim nothing of the others."""


def verdicts(
    name: str, own: Mapping[str, Any], itemknn: Mapping[str, float], found: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A line per claim of the recipe ``name``: the claim, and what was measured.

    Args:
        own: what was measured of it.
        itemknn: the metrics of ItemKNN, tuned on validation.
        found: what was measured of the recipes before it; one with LoRA is what memory is compared with.
    """
    claim = CLAIMS.get(name)
    return [] if claim is None else [*_gains(claim, own), *_others(claim, own, itemknn, found)]


def _gains(claim: Claim, own: Mapping[str, Any]) -> Iterator[str]:
    for metric in ("hr@10", "ndcg@10"):
        base, found, wanted = own["sft"][metric]["mean"], own["gain"].get(metric), claim.gain(metric)
        claimed = f"RL gains {wanted:+.1%} of {metric.upper()}"
        if found is None:
            gain = own["rl"][metric]["mean"] - base
            yield f"{claimed}: here {gain:+.4f}, without an interval (bootstrap=0, or few queries): not judged"
            continue
        shown = f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
        relative = f", {found['difference'] / base:+.1%}" if base else ""
        yield f"{claimed}: here {shown}{relative}: {_verdict(found, base, wanted)}"


def _verdict(found: Mapping[str, float], base: float, wanted: float) -> str:
    """A gain within its noise is not reproduced, however large it is."""
    if found["low"] <= 0:
        return "not reproduced"
    return "reached" if base > 0 and found["difference"] / base >= wanted else "positive"


def _others(
    claim: Claim, own: Mapping[str, Any], itemknn: Mapping[str, float], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    if claim.itemcf is not None and itemknn["hr@10"]:
        ratio = own["sft"]["hr@10"]["mean"] / itemknn["hr@10"] - 1
        yield f"SFT's HR@10 is {claim.itemcf:+.0%} over ItemCF's: here {ratio:+.1%} over tuned ItemKNN's"
    if claim.collisions is not None:
        yield f"{claim.collisions:.1%} of the items collide: here {own['collisions']:.1%}, before they are resolved"
    if claim.trained is not None:
        yield f"{claim.trained:.1%} of the parameters train: here {own['trained_share']:.2%}"
    lora = next((one for one in found.values() if one["method"]["sft"].startswith("lora")), None)
    if claim.memory is not None and lora is not None:
        change = own["sft_peak_mb"] / lora["sft_peak_mb"] - 1
        yield f"QLoRA changes LoRA's memory by {claim.memory:+.0%}: here {change:+.0%} of the process's peak"
