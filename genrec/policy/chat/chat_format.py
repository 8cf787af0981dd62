"""Conversations as token ids: the model's chat template around messages of text and semantic IDs.

An item in a message is ``[[`` + its L SID tokens + ``]]``. The markers are ordinary text, tokenised alone, so they are
always the same ids and the model needs no rows for them; text never holds them, nor tokens that steer the template.
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

from genrec import config as settings
from genrec.errors import InputError
from genrec.policy.chat.byte_tokenizer import byte_tokenizer
from genrec.policy.chat.templates import Item, Message
from genrec.policy.pretrained import packaged_smollm2
from genrec.policy.prompts import SidTokens
from genrec.sid.catalog import Catalog

OPEN, CLOSE = "[[", "]]"


@dataclass(frozen=True)
class Encoded:
    """A conversation of S tokens: ``tokens_S`` int64, ``label_S`` True at what the assistant has to learn.

    Those are the tokens of its messages and the one that ends each, without the closing markers: they are forced.
    """

    tokens_S: Tensor
    label_S: Tensor


class ChatFormat:
    """Encodes conversations for one tokenizer and one catalogue.

    Args:
        tokenizer: one without a chat template gets the role and the text on lines of their own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sids: SidTokens, catalog: Catalog) -> None:
        self.tokenizer, self.sids = tokenizer, sids
        self._tokens_NL = sids.tokens(catalog.codes_NL)
        self._text = lru_cache(maxsize=2**16)(self._tokenised)
        self._frame = lru_cache(maxsize=256)(self._framed)
        self.open, self.close = self._text(OPEN), self._text(CLOSE)
        self.end = self._frame(("user", "assistant"), False)[-1][0]
        """The token that ends a turn of the assistant."""

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

    def prompt(self, messages: Sequence[Message]) -> Tensor:
        """The tokens (P,) after which the assistant speaks."""
        frame = self._frame(tuple(message.role for message in messages), True)
        tokens = list(frame[0])
        for message, after in zip(messages, frame[1:], strict=True):
            tokens += [*self._content(message)[0], *after]
        return torch.tensor(tokens)

    def writable(self) -> Tensor:
        """Text tokens that the assistant may write, (V,) bool over those before the SID block: no special ones."""
        may_V = torch.zeros(self.sids.base, dtype=torch.bool)
        may_V[: len(self.tokenizer)] = True
        may_V[[token for token in self.tokenizer.all_special_ids if token < self.sids.base]] = False
        may_V[self.end] = True
        return may_V

    def _content(self, message: Message) -> tuple[list[int], list[bool]]:
        """Tokens of a message, and which of them are closing markers."""
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

    def _tokenised(self, text: str) -> tuple[int, ...]:
        if text not in (OPEN, CLOSE):
            text = text.replace(OPEN, "[ [").replace(CLOSE, "] ]")
        ids: Any = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)

    def _framed(self, roles: tuple[str, ...], speak: bool) -> tuple[tuple[int, ...], ...]:
        """What the chat template writes before, between and after the contents of messages with these roles."""
        marks = [f"\x00{number}\x00" for number in range(len(roles))]
        text, pieces = self._templated(roles, marks, speak), list[str]()
        for role, mark in zip(roles, marks, strict=True):
            before, found, text = text.partition(mark)
            if not found:
                raise InputError(f"the tokenizer's chat template drops a message of the role {role!r} in {list(roles)}")
            pieces.append(before)
        pieces.append(text)
        ids = [tuple(self.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]
        if not ids[-1]:
            ids[-1] = (self._last_resort(),)
        return tuple(ids)

    def _templated(self, roles: tuple[str, ...], marks: list[str], speak: bool) -> str:
        if not self.tokenizer.chat_template:
            ends = {"assistant": f"{self.tokenizer.eos_token or ''}\n"}
            lines = (f"{role}:\n{mark}{ends.get(role, chr(10))}" for role, mark in zip(roles, marks, strict=True))
            return "".join(lines) + ("assistant:\n" if speak else "")
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": speak, "enable_thinking": False}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except Exception as error:  # jinja's own, raised by templates that refuse an order of roles
            raise InputError(f"the tokenizer's chat template refuses the roles {list(roles)}: {error}") from error

    def _last_resort(self) -> int:
        end: Any = self.tokenizer.eos_token_id
        if end is None:
            raise InputError(
                "the tokenizer has no end-of-text token, and its chat template ends no turn; set eos_token"
            )
        return int(end)


def load_tokenizer(policy: settings.PolicyConfig, cache: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy that knows text, from ``cache`` where ``backbone.build`` has kept a packaged one.

    Raises:
        InputError: a scratch policy without text, or no tokenizer at ``policy.path``.
    """
    if not policy.knows_text:
        raise InputError(
            "this policy knows semantic IDs only, no text; chat and tasks need policy.kind=pretrained or "
            "policy.tokenizer=bytes"
        )
    if policy.kind == "scratch":
        return byte_tokenizer()
    where: dict[str, Any] = {"pretrained_model_name_or_path": policy.path}
    if policy.path == "smollm2":
        kept = cache / "smollm2" if cache is not None else None
        where = {"pretrained_model_name_or_path": str(kept)} if kept and kept.is_dir() else packaged_smollm2()
    try:
        return AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of policy.path={policy.path!r} cannot be loaded: {error}") from error
