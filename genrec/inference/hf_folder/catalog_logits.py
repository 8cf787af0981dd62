"""Keeps ``generate`` inside the catalogue of this folder. Needs torch, transformers and safetensors, not genrec.

    space = SidSpace("the folder")
    tokens = space.encode(["820352", "820752"])
    found = model.generate(
        tokens, logits_processor=[CatalogLogits(space, tokens.shape[1])], max_new_tokens=space.levels,
        num_beams=10, num_return_sequences=10, length_penalty=0.0, eos_token_id=None, do_sample=False,
    )
    print([space.item(row) for row in found])

Shapes: N items, L codes of a semantic ID, W tokens of an item in a prompt, B rows of ``generate``, V tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LogitsProcessor


class SidSpace:
    """The items of an exported folder: their semantic IDs, and how a history of them is written as a prompt."""

    def __init__(self, folder: str | Path) -> None:
        about: dict[str, Any] = json.loads((Path(folder) / "sid_space.json").read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / "sid_space.safetensors")
        self.ids: list[str] = json.loads((Path(folder) / "items.json").read_text(encoding="utf-8"))["ids"]
        self.tokens_NL, self._prompt_NW = tensors["tokens_NL"].long(), tensors["prompt_NW"].long()
        self.present_N = tensors["present_N"]
        self.levels = self.tokens_NL.shape[1]
        self._prefix, self._suffix, self._most = about["prefix"], about["suffix"], int(about["max_history"])
        self._row_of = {item: row for row, item in enumerate(self.ids)}
        self._item_of = {tuple(row): item for row, item in zip(self.tokens_NL.tolist(), self.ids, strict=True)}

    def encode(self, history: Sequence[str]) -> Tensor:
        """The prompt (1, P) of a history of item ids, oldest first; KeyError for an id that no item has."""
        rows = [self._row_of[item] for item in history][-self._most :]
        items = [token for row in self._prompt_NW[rows].tolist() for token in row]
        return torch.tensor([[*self._prefix, *items, *self._suffix]])

    def item(self, tokens: Tensor) -> str | None:
        """The item whose semantic ID is at the end of ``tokens`` (S,); None if there is none."""
        return self._item_of.get(tuple(tokens[-self.levels :].tolist()))


class CatalogLogits(LogitsProcessor):
    """Log-probabilities over the codes that go on to an item: a softmax over these tokens, -inf at all others.

    Args:
        prompt: P, the number of tokens of the (padded) prompts.
    """

    def __init__(self, space: SidSpace, prompt: int) -> None:
        self._tokens_NL, self._prompt = space.tokens_NL[space.present_N], prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (B, V) of the next code, after the tokens ``input_ids`` (B, S)."""
        known_NL, written_BD = self._tokens_NL.to(scores.device), input_ids[:, self._prompt :]
        depth = written_BD.shape[1]
        row_E, item_E = (known_NL[None, :, :depth] == written_BD[:, None]).all(-1).nonzero(as_tuple=True)
        allowed_BV = torch.zeros_like(scores, dtype=torch.bool)
        allowed_BV[row_E, known_NL[item_E, depth]] = True
        dead_B1 = ~allowed_BV.any(-1, keepdim=True)  # A beam that was given up already: it may end in anything.
        return scores.float().masked_fill(~(allowed_BV | dead_B1), -torch.inf).log_softmax(-1)
