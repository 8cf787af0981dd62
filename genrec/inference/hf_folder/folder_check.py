"""Whether an exported folder, loaded as anyone would, gives the log-probabilities of the policy that it is from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from genrec.data.model_files import LOADING
from genrec.errors import InputError
from genrec.inference.catalog_view import CatalogView
from genrec.inference.hf_folder.catalog_logits import CatalogLogits, SidSpace
from genrec.policy.decoding.beam import beam
from genrec.policy.model import Policy

BEAMS = 8
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Largest difference of log-probabilities that rounding explains, by the precision of the policy's products."""


@dataclass(frozen=True)
class FolderCheck:
    """Differences of the folder's model from the policy, over the best items of some histories.

    ``largest``: of the log-probability of an item by its semantic ID; ``mean``: of its size; ``same_first``: share of
    the histories whose best of these items is the same.
    """

    histories: int
    largest: float
    mean: float
    same_first: float


@torch.no_grad()
def check_folder(folder: Path, policy: Policy, view: CatalogView, histories: Sequence[Sequence[int]]) -> FolderCheck:
    """Compare the plain model in ``folder`` with the policy on histories of item rows."""
    space = SidSpace(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **LOADING)
    model: Any = loaded.to(policy.device).eval()
    differences: list[Tensor] = []
    same = 0
    for history in histories:
        tokens_BP, mask_BP = (part.to(policy.device) for part in view.prompts.encode([history]))
        found = beam(policy, tokens_BP, mask_BP, view.trie, BEAMS)
        rows = found.items_BW[0][found.items_BW[0] >= 0].tolist()
        own_W = found.logp_BW[0, : len(rows)]
        prompt_1P = space.encode([view.ids[row] for row in history]).to(policy.device)
        plain_W = log_probabilities(model, space, prompt_1P, space.tokens_NL[rows].to(policy.device))
        differences.append((plain_W - own_W).abs())
        same += int(plain_W.argmax()) == int(own_W.argmax())
    all_E = torch.cat(differences)
    return FolderCheck(len(histories), float(all_E.max()), float(all_E.mean()), same / len(histories))


@torch.no_grad()
def log_probabilities(model: Any, space: SidSpace, prompt_1P: Tensor, sids_WL: Tensor) -> Tensor:
    """log p (W,) of semantic IDs (W, L), as tokens, after a prompt (1, P), within the catalogue."""
    whole_WS = torch.cat([prompt_1P.expand(len(sids_WL), -1), sids_WL], 1)
    start = prompt_1P.shape[1]
    logits_WLV = model(whole_WS).logits[:, start - 1 : -1]
    inside = CatalogLogits(space, start)
    steps = [inside(whole_WS[:, : start + level], logits_WLV[:, level]) for level in range(sids_WL.shape[1])]
    logp_WL = torch.stack([step.gather(1, sids_WL[:, [level]])[:, 0] for level, step in enumerate(steps)], 1)
    return logp_WL.sum(1)


def require_same(found: FolderCheck, policy: Policy) -> None:
    """Refuse a folder that should answer as the policy, and does not.

    Raises:
        InputError: a difference that rounding does not explain.
    """
    limit = TOLERANCE[policy.precision]
    if not math.isfinite(found.largest) or found.largest > limit:
        raise InputError(
            f"the exported model's log-probabilities differ from the policy's by up to {found.largest:.3g}, wanted at "
            f"most {limit:g}: this kind of model is not written correctly; nothing was exported"
        )
