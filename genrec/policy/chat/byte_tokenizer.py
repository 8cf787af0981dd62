"""The tokenizer of policies from scratch: every byte of UTF-8 is a token (ByT5, Xue et al. 2022).

It fits any language and any catalogue, and needs no corpus to be trained on.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, BOS, TURN, END = "<pad>", "<bos>", "<turn>", "<end>"
SPECIALS = (PAD, BOS, TURN, END)
"""Token ids from 0, in this order; the bytes follow."""

MARKERS = ("[[", "]]")
"""Around semantic IDs in text, one token each."""

TEMPLATE = (
    "{% for m in messages %}{{ '" + TURN + "' + m['role'][0] + m['content'] + '" + END + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + TURN + "a' }}{% endif %}"
)
"""A Jinja chat template: a turn is the first letter of its role and its text, between ``<turn>`` and ``<end>``."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; the SID block of the vocabulary begins at its length."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet, *MARKERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(marker[0], marker[1]) for marker in MARKERS]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=END)
    wrapped.add_special_tokens({"additional_special_tokens": [TURN]})
    wrapped.chat_template = TEMPLATE
    return wrapped
