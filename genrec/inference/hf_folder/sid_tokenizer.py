"""The tokenizer of an exported policy: its own tokens, then the SID block, then a token for each item."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from genrec.policy.prompts import SidTokens
from genrec.policy.sid_text import MARKERS, sid_names

SPECIALS = ("<pad>", "<bos>")
"""The first tokens of a policy of semantic IDs alone (``genrec.policy.scratch``)."""


def block_names(sids: SidTokens) -> list[str]:
    """The names of the tokens of the SID block, in its order."""
    markers = MARKERS[sids.style] if sids.markers else ()
    context = [f"<context_{number}>" for number in range(sids.context.count)]
    return [*markers, *sid_names(sids.level_sizes, sids.style), *context]


def sid_tokenizer(own: PreTrainedTokenizerBase | None, sids: SidTokens, n_items: int) -> PreTrainedTokenizerBase:
    """``own`` with the tokens of the SID block and ``<item_0>``, … added at their places in the model's vocabulary.

    Args:
        own: of the model before it knew items; it is changed. None: a policy that knows semantic IDs alone, whose
            tokenizer leaves out any other text.
    """
    names = [*block_names(sids), *(f"<item_{row}>" for row in range(n_items))]
    if own is None:
        return _of_names([*SPECIALS, *names])
    padding = [f"<unused_{number}>" for number in range(sids.base - len(own))]
    added: Any = [AddedToken(name, normalized=False) for name in (*padding, *names)]
    own.add_tokens(added)
    return own


def _of_names(names: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("<[^<>]+>"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0], bos_token=SPECIALS[1])
