"""Conversations as token ids: the model's chat template around messages of text and semantic IDs.

An item in a message is a marker, its L SID tokens, and a marker (``genrec.policy.sid_text``). The markers ``[[`` and
``]]`` are ordinary text, tokenised by themselves, so their ids are always the same and need no new embeddings; those of
``policy.sid_tokens=numbered`` are tokens of the SID block. Text of a message never contains them, nor special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from genrec.config import PolicyConfig
from genrec.data.model_files import require_model
from genrec.errors import InputError
from genrec.policy.chat.byte_tokenizer import byte_tokenizer
from genrec.policy.chat.templates import Item, Message, Parts
from genrec.policy.pretrained import packaged_smollm2, require_vocabulary
from genrec.policy.prompts import ItemTokens, SidTokens, apply_template, item_tokens
from genrec.policy.sid_text import MARKERS, without_markers
from genrec.sid.catalog import Catalog

OPEN, CLOSE = MARKERS["letters"]


@dataclass(frozen=True)
class Encoded:
    """An example of S tokens: ``tokens_S`` int64, and ``label_S`` bool, True at the tokens to learn.

    In a conversation those are the tokens of the assistant's messages and the one that ends each, without the closing
    markers, which generation forces; in a passage all of them, but for the first, which only begins it, and the end
    tokens of SIDs.
    """

    tokens_S: Tensor
    label_S: Tensor


class ChatFormat:
    """Encodes conversations for one tokenizer and one catalogue.

    ``open`` and ``close`` are the token ids of the markers, ``end`` is the token that ends an assistant's turn.

    Args:
        tokenizer: if it has no chat template, role and text of a message are written on lines of their own.
        form: of an item, that of the policy's prompts; with ``last`` the last of its tokens is the item's own.
        kept_texts: texts whose tokens are kept. Training reads the same ones again and again; talk does not.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sids: SidTokens,
        catalog: Catalog,
        form: ItemTokens = "codes",
        kept_texts: int = 2**16,
    ) -> None:
        self.tokenizer, self.sids, self.form = tokenizer, sids, form
        self._tokens_NL = item_tokens(sids, catalog.codes_NL, form)
        self._text = lru_cache(maxsize=kept_texts)(self._tokenise)
        self._frame = lru_cache(maxsize=256)(self._tokenise_frame)
        self.open, self.close = self._text(OPEN), self._text(CLOSE)
        if sids.markers:
            self.open, self.close = (sids.base,), (sids.base + 1,)
        self.end = self._frame(("user", "assistant"), False)[-1][0]

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """A whole conversation, for training."""
        frame = self._frame(tuple(message.role for message in messages), False)
        tokens, label = list(frame[0]), [False] * len(frame[0])
        for message, after in zip(messages, frame[1:], strict=True):
            learns = message.role == "assistant"
            own, closes = self._content(message)
            tokens += own
            label += [learns and not close for close in closes]
            tokens += after
            label += [learns, *[False] * (len(after) - 1)] if after else []
        return Encoded(torch.tensor(tokens), torch.tensor(label, dtype=torch.bool))

    def encode_passage(self, parts: Parts) -> Encoded:
        """Running text between the beginning-of-text token (else that of its end) and the end-of-text token."""
        end = self._eos()
        start = self.tokenizer.bos_token_id
        own, _ = self._content(Message("assistant", parts))
        tokens_S = torch.tensor([end if start is None else start, *own, end])
        learned_S = torch.arange(len(tokens_S)) > 0
        if self.sids.markers:  # The end of a SID is no text: it is forced, and its logit is in no softmax.
            learned_S &= tokens_S != self.close[0]
        return Encoded(tokens_S, learned_S)

    def prompt(self, messages: Sequence[Message]) -> Tensor:
        """The tokens (P,) int64 up to where the assistant's next message begins."""
        frame = self._frame(tuple(message.role for message in messages), True)
        tokens = list(frame[0])
        for message, after in zip(messages, frame[1:], strict=True):
            tokens += [*self._content(message)[0], *after]
        return torch.tensor(tokens)

    def text_token_mask(self) -> Tensor:
        """(V,) bool over the tokens up to ``sids.text_end``: True at those that text of the assistant may contain.

        These are all but the special ones, ``end``, and the marker that starts a SID.
        """
        allowed_V = torch.zeros(self.sids.text_end, dtype=torch.bool)
        allowed_V[: len(self.tokenizer)] = True
        allowed_V[[token for token in self.tokenizer.all_special_ids if token < self.sids.base]] = False
        allowed_V[[self.end, *range(self.sids.base, self.sids.text_end)]] = True
        return allowed_V

    def _content(self, message: Message) -> tuple[list[int], list[bool]]:
        """Tokens of a message, and for each whether it belongs to a closing marker."""
        tokens: list[int] = []
        closes: list[bool] = []
        for part in message.parts:
            if isinstance(part, Item):
                span = [*self.open, *self._tokens_NL[part.row].tolist()]
                tokens += [*span, *self.close]
                closes += [False] * len(span) + [True] * len(self.close)
            else:
                own = self._text(part)
                tokens += own
                closes += [False] * len(own)
        return tokens, closes

    def _tokenise(self, text: str) -> tuple[int, ...]:
        if text not in (OPEN, CLOSE):
            text = without_markers(text)
        ids: Any = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)

    def _tokenise_frame(self, roles: tuple[str, ...], add_reply: bool) -> tuple[tuple[int, ...], ...]:
        """Tokens that the chat template writes before, between and after the contents of messages with these roles."""
        marks = [f"\x00{index}\x00" for index in range(len(roles))]
        text, pieces = self._apply_template(roles, marks, add_reply), list[str]()
        for role, mark in zip(roles, marks, strict=True):
            before, found, text = text.partition(mark)
            if not found:
                raise InputError(
                    f"the tokenizer's chat template drops a message of the role {role!r} in {list(roles)}; "
                    "use another template"
                )
            pieces.append(before)
        pieces.append(text)
        ids = [tuple(self.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]
        if not ids[-1]:
            ids[-1] = (self._eos(),)
        return tuple(ids)

    def _apply_template(self, roles: tuple[str, ...], marks: list[str], add_reply: bool) -> str:
        if not self.tokenizer.chat_template:
            ends = {"assistant": f"{self.tokenizer.eos_token or ''}\n"}
            lines = (f"{role}:\n{mark}{ends.get(role, chr(10))}" for role, mark in zip(roles, marks, strict=True))
            return "".join(lines) + ("assistant:\n" if add_reply else "")
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        return apply_template(self.tokenizer, messages, add_generation_prompt=add_reply, enable_thinking=False)

    def _eos(self) -> int:
        end: Any = self.tokenizer.eos_token_id
        if end is None:
            raise InputError(
                "the tokenizer has no end-of-text token and its chat template ends no turn; set its eos_token"
            )
        return int(end)


def load_tokenizer(settings: PolicyConfig, cache: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy that knows text; a packaged one is read from ``cache`` if ``backbone.build`` kept it.

    Raises:
        InputError: a policy of semantic IDs only, or no tokenizer at ``policy.path``.
    """
    if not settings.knows_text:
        raise InputError(
            "this policy knows semantic IDs only, not text; chat and tasks need policy.kind=pretrained or "
            "policy.tokenizer=bytes"
        )
    if settings.kind == "scratch":
        return byte_tokenizer()
    where: dict[str, Any] = {}
    if settings.path != "smollm2":
        where["pretrained_model_name_or_path"] = require_model(settings.path, "policy.path")
    else:
        kept = cache / "smollm2" if cache is not None else None
        where = {"pretrained_model_name_or_path": str(kept)} if kept and kept.is_dir() else packaged_smollm2()
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of policy.path={settings.path!r} cannot be loaded: {error}") from error
    require_vocabulary(tokenizer, settings.path)
    return tokenizer
