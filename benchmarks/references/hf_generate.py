"""Constrained decoding by ``generate`` of Hugging Face transformers, in the two ways that public code does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.references.python_trie import PythonTrie
from genrec.policy.model import Policy
from genrec.sid.catalog import Catalog


def generate(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, catalog: Catalog, width: int) -> Tensor:
    """The ``width`` best SIDs after left-padded prompts, by ``prefix_allowed_tokens_fn``: tokens (B, W, L)."""
    prompt, trie = tokens_BP.shape[1], PythonTrie(policy.sids, catalog)

    def allowed(batch: int, ids_S: Tensor) -> list[int]:
        return trie.allowed(ids_S[prompt:].tolist())

    options = {"prefix_allowed_tokens_fn": allowed, "renormalize_logits": True}
    return _generate(policy, tokens_BP, mask_BP, catalog.levels, width, **options)


def generate_with_processor(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, catalog: Catalog, width: int) -> Tensor:
    """The same by a logits processor that looks each beam up in a Python dict, which is MiniOneRec's design."""
    processor = _TrieProcessor(PythonTrie(policy.sids, catalog), tokens_BP.shape[1])
    processors = LogitsProcessorList([processor])
    return _generate(policy, tokens_BP, mask_BP, catalog.levels, width, logits_processor=processors)


class _TrieProcessor(LogitsProcessor):
    """Log-probabilities over the tokens that ``trie`` allows after each beam's first ``prompt`` tokens."""

    def __init__(self, trie: PythonTrie, prompt: int) -> None:
        self._trie, self._prompt = trie, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Of the next token, (beams, V), from all tokens (beams, S) so far and the logits (beams, V)."""
        logp = scores.log_softmax(-1)
        mask = torch.full_like(logp, -torch.inf)
        for beam, ids in enumerate(input_ids[:, self._prompt :]):
            mask[beam, self._trie.allowed(ids.tolist())] = 0.0
        return (logp + mask).log_softmax(-1)


def _generate(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, levels: int, width: int, **options: Any) -> Tensor:
    """In the precision that the policy's own decoding has, else its speed would not be comparable."""
    model: Any = policy.model
    with torch.autocast(policy.device.type, policy.precision, enabled=policy.precision != torch.float32):
        out = model.generate(
            input_ids=tokens_BP,
            attention_mask=mask_BP.long(),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=levels,
            min_new_tokens=levels,
            do_sample=False,
            length_penalty=0.0,
            **options,
        )
    return out[:, tokens_BP.shape[1] :].view(len(tokens_BP), width, levels)
