"""A tokenizer without a vocabulary of words: every byte of UTF-8 is a token (ByT5, Xue et al. 2022).

What a policy from scratch reads and writes text with: it fits any language and any catalogue, and has nothing to learn
from a corpus first.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, BOS, TURN, END = "<pad>", "<bos>", "<turn>", "<end>"
SPECIALS = (PAD, BOS, TURN, END)
"""Token ids from 0, in this order; the bytes follow."""

MARKERS = ("[[", "]]")
"""Around semantic IDs in text; two bytes would do, one token is shorter."""

TEMPLATE = (
    "{% for m in messages %}{{ '" + TURN + "' + m['role'][0] + m['content'] + '" + END + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + TURN + "a' }}{% endif %}"
)
"""A turn is its role's first letter and its text."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; its length is where the SID block begins."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet, *MARKERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(marker[0], marker[1]) for marker in MARKERS]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=END)
    wrapped.add_special_tokens({"additional_special_tokens": [TURN]})
    wrapped.chat_template = TEMPLATE
    return wrapped
