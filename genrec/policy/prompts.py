"""Prompts: training, rollouts, evaluation and serving all encode a history here.

A prompt is ``prefix + the history's SID tokens, oldest first + suffix``, with tokens of event types and time gaps among
them where the policy has those (``genrec.policy.context``). For a policy from scratch the prefix is
``<bos>``; a pretrained one gets an instruction in its chat template, which is tokenised once: encoding a query is a
table lookup. The instruction asks a question about the history (``policy.prompt=question``), or the history is the
model's own answer, which goes on (``sequence``, no suffix): then one sequence holds a target after each of its items.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.policy.context import NO_TOKENS, UNKNOWN, ContextTokens
from genrec.policy.sid_text import SidStyle
from genrec.sid.catalog import Catalog
from genrec.types import NO_CONTEXT, HistoryContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DENSE_WINDOW = 2
"""Dense training reads windows of this many times ``max_history`` items, so positions reach that far."""

SYSTEM = "You recommend the next item to a customer."
BEFORE = "The customer chose these items, oldest first: "
AFTER = "\nWhich item comes next? Answer with its semantic ID."

ASK_SEQUENCE = "Which items does the customer choose, oldest first? Answer with their semantic IDs."
"""The question that a whole history answers."""

ITEM_TOKEN = 2**32
"""Token ids from here on stand for items: ``ITEM_TOKEN`` + row. Policies with ``ItemRows`` read them."""

ItemTokens = Literal["codes", "last", "whole"]
"""An item in a prompt: its L codes; the same with the item's own token as the last one; or its own token alone."""

TEMPLATE_DATE = datetime(2025, 1, 1)
"""What a chat template that asks for today's date is told."""

CLOCK = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")
"""A template's call for today's date, with its format."""


@dataclass(frozen=True)
class SidTokens:
    """The block of SID tokens in the vocabulary: code c of level l is token ``base + offset_l + c``.

    The block begins with the two markers of a ``style`` that has tokens for them: the start of a SID, then its end.
    The tokens of a history's ``context`` are the last ones of the block.
    """

    base: int
    level_sizes: tuple[int, ...]
    style: SidStyle = "letters"
    context: ContextTokens = NO_TOKENS

    @property
    def markers(self) -> int:
        """Number of marker tokens: 0 or 2."""
        return 2 if self.style == "numbered" else 0

    @property
    def text_end(self) -> int:
        """The tokens below are those of text: the model's own, and the marker that starts a SID."""
        return self.base + self.markers // 2

    @property
    def offsets(self) -> tuple[int, ...]:
        """offset_l: where the codes of each level begin inside the block."""
        return tuple(self.markers + sum(self.level_sizes[:level]) for level in range(len(self.level_sizes)))

    @property
    def count(self) -> int:
        """Number of tokens in the block."""
        return self.markers + sum(self.level_sizes) + self.context.count

    @property
    def context_base(self) -> int:
        """The first token of the context."""
        return self.base + self.markers + sum(self.level_sizes)

    def token(self, level: int, codes: Tensor) -> Tensor:
        """Token ids of ``codes`` of one ``level``, in any shape."""
        return codes + (self.base + self.offsets[level])

    def tokens(self, codes_xL: Tensor) -> Tensor:
        """Token ids of whole SIDs, (…, L)."""
        return codes_xL + self.base + torch.tensor(self.offsets, device=codes_xL.device)


def item_tokens(sids: SidTokens, codes_NL: Tensor, form: ItemTokens) -> Tensor:
    """The tokens (N, T) of each item in a prompt."""
    own_N1 = ITEM_TOKEN + torch.arange(len(codes_NL))[:, None]
    if form == "whole":
        return own_N1
    tokens_NL = sids.tokens(codes_NL)
    return tokens_NL if form == "codes" else torch.cat([tokens_NL[:, :-1], own_N1], dim=1)


class Prompts:
    """Encodes histories for one model and one catalogue.

    Args:
        prefix, suffix: token ids before and after the history.
        pad: token id of the padding.
        max_items: the most items of a history that are used, its last ones.
        form: of an item; what the policy's rows of items need.
    """

    def __init__(
        self,
        catalog: Catalog,
        sids: SidTokens,
        prefix: Sequence[int],
        suffix: Sequence[int],
        pad: int,
        max_items: int,
        form: ItemTokens = "codes",
    ) -> None:
        if sids.level_sizes != catalog.level_sizes:
            raise InputError(
                f"got SID tokens with levels {sids.level_sizes} and a catalogue with levels {catalog.level_sizes}; "
                "train a policy for this catalogue"
            )
        self.sids = sids
        self.pad = pad
        self.max_items = max_items
        self.prefix_P = torch.tensor(prefix, dtype=torch.long)
        """Token ids before the history, (P,)."""
        self._suffix = torch.tensor(suffix, dtype=torch.long)
        self.form: ItemTokens = form
        self.tokens_NT = item_tokens(sids, catalog.codes_NL, form)
        """The tokens of each item in a prompt."""

    def for_catalog(self, catalog: Catalog) -> Prompts:
        """The same prompts for another catalogue with equal level sizes, such as this one after an insert."""
        ends = (self.prefix_P.tolist(), self._suffix.tolist())
        return Prompts(catalog, self.sids, *ends, self.pad, self.max_items, self.form)

    @property
    def max_tokens(self) -> int:
        """P, the number of tokens, of the longest possible prompt."""
        ends = len(self.prefix_P) + self.sids.context.before + len(self._suffix)
        return ends + self.max_items * self.tokens_per_item

    @property
    def tokens_per_item(self) -> int:
        """W, the number of tokens of an item of the history, those of its context included."""
        return self.tokens_NT.shape[1] + self.sids.context.per_item

    def items_in_context(self, items_xI: Tensor, event_xI: Tensor | None, time_xI: Tensor | None) -> Tensor:
        """The tokens (…, I, W) of items: rows of the catalogue.

        Args:
            event_xI: numbers of their event types (``ContextTokens.numbers``); None: all unknown.
            time_xI: of the events, in s, oldest first; None: all unknown.
        """
        unknown_xI = torch.full_like(items_xI, UNKNOWN)
        event_xI, time_xI = (unknown_xI if part is None else part for part in (event_xI, time_xI))
        return self.sids.context.around(self.tokens_NT[items_xI], event_xI, time_xI, self.sids.context_base)

    def encode(
        self, histories: Sequence[Sequence[int]], contexts: Sequence[HistoryContext] = ()
    ) -> tuple[Tensor, Tensor]:
        """Left-padded prompts of item histories: rows of the catalogue, oldest first.

        Args:
            contexts: of the histories, read where the policy has tokens for them; without, all is unknown.

        Returns:
            tokens_BP int64 and mask_BP bool (True at real tokens).
        """
        known = contexts or [NO_CONTEXT] * len(histories)
        rows = [self._encode_one(history, context) for history, context in zip(histories, known, strict=True)]
        width = max(map(len, rows))
        tokens_BP = torch.full((len(rows), width), self.pad)
        mask_BP = torch.zeros(len(rows), width, dtype=torch.bool)
        for index, row in enumerate(rows):
            tokens_BP[index, width - len(row) :] = row
            mask_BP[index, width - len(row) :] = True
        return tokens_BP, mask_BP

    def _encode_one(self, history: Sequence[int], context: HistoryContext) -> Tensor:
        items_I = torch.as_tensor(history[-self.max_items :], dtype=torch.long)
        tokens = self.sids.context
        if not tokens.count:
            return torch.cat([self.prefix_P, self.tokens_NT[items_I].flatten(), self._suffix])
        recent = context.last(self.max_items)
        event_I = tokens.numbers(recent.events) if recent.events else None
        time_I = torch.tensor(recent.times) if recent.times else None
        parts = [self.prefix_P, self.items_in_context(items_I, event_I, time_I).flatten()]
        if tokens.before:
            parts.append(self.sids.context_base + 1 + tokens.numbers([context.wanted]))
        return torch.cat([*parts, self._suffix])


def instruction(
    tokenizer: PreTrainedTokenizerBase, form: Literal["question", "sequence"] = "question"
) -> tuple[list[int], list[int]]:
    """Token ids before and after the history, in the model's chat template (plain text when it has none).

    Args:
        form: ``sequence``: none come after it.

    Raises:
        InputError: the template cannot be rendered, or drops the history.
    """
    if form == "sequence":
        asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASK_SEQUENCE}]
        plain = f"{SYSTEM}\n{ASK_SEQUENCE}\n"
        text = apply_template(tokenizer, asked, add_generation_prompt=True) if tokenizer.chat_template else plain
        return token_ids(tokenizer, text), []
    history = "\x00"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{BEFORE}{history}{AFTER}"}]
    plain = f"{SYSTEM}\n{BEFORE}{history}{AFTER}\n"
    text = apply_template(tokenizer, messages, add_generation_prompt=True) if tokenizer.chat_template else plain
    before, _, after = text.partition(history)
    return token_ids(tokenizer, before), token_ids(tokenizer, after)


def apply_template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], **options: bool) -> str:
    """The messages in the tokenizer's chat template; ``options`` are the template's own, as ``add_generation_prompt``.

    A template that rejects or drops the system message gets its text before that of the user's first message. Today's
    date in a template is ``TEMPLATE_DATE``, so that a prompt is the same on every day.

    Raises:
        InputError: the template cannot be rendered, drops a message, or differs from one rendering to the next.
    """
    given: dict[str, Any] = {"chat_template": _without_clock(tokenizer), "tokenize": False, **options}

    def render(chat: Sequence[Mapping[str, str]]) -> str:
        text = str(tokenizer.apply_chat_template([dict(turn) for turn in chat], **given))
        if dropped := [turn["role"] for turn in chat if turn["content"].strip() not in text]:
            raise ValueError(f"it drops the message of the role {dropped[0]!r}")
        return text

    first, *rest = messages
    try:
        try:
            return render(messages)
        except Exception:  # of Jinja: templates raise it themselves for roles that they reject
            if first["role"] != "system" or not rest or rest[0]["role"] != "user":
                raise
            merged = {"role": "user", "content": f"{first['content']}\n\n{rest[0]['content']}"}
            return render([merged, *rest[1:]])
    except Exception as error:
        roles = [turn["role"] for turn in messages]
        raise InputError(
            f"the tokenizer's chat template cannot write messages of the roles {roles}: {error}; use another template"
        ) from error


def _without_clock(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template with ``TEMPLATE_DATE`` in place of each ``strftime_now("…")``."""
    template = str(tokenizer.get_chat_template())
    fixed = CLOCK.sub(lambda found: repr(TEMPLATE_DATE.strftime(found[2])), template)
    if changing := re.search(r"strftime_now\s*\(|\|\s*random\b|\blipsum\s*\(", fixed):
        raise InputError(
            f"the tokenizer's chat template has {changing[0]!r}, which would write another prompt tomorrow; wanted "
            "strftime_now with the format as text, or a fixed text in its place"
        )
    return fixed


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text alone, without the special tokens that some tokenizers add around it."""
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)
