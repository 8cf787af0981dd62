"""A conversation with the policy about items of the catalogue."""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from genrec.config import Config
from genrec.errors import InputError
from genrec.inference.answers import Reply
from genrec.inference.catalog_view import CatalogView
from genrec.policy.chat import generate
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.templates import ROLES, Item, Message, Role, load_language
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts

KEPT_TEXTS = 256
"""Texts whose tokens are kept: those of a conversation's earlier turns come again, and no others."""


class Conversations:
    """Replies of a policy; safe to share among threads, one reply at a time.

    Args:
        config: of the run.
        policy, prompts: of the run.
        backbones: the directory of packaged backbones, where the tokenizer is kept.
    """

    def __init__(self, config: Config, policy: Policy, prompts: Prompts, backbones: Path) -> None:
        self._config, self._policy, self._prompts, self._backbones = config, policy, prompts, backbones
        self._format: tuple[CatalogView, ChatFormat] | None = None
        self._lock = threading.Lock()  # a tokenizer changes its own state at each call

    def reply(
        self, view: CatalogView, messages: str | Sequence[Mapping[str, str]], sampling: generate.Sampling
    ) -> Reply:
        """The policy's next message; see ``Recommender.chat``."""
        conversation = self._parse(messages, view)
        sids = self._prompts.sids
        with self._lock:
            reply = generate.generate_reply(self._policy, self._format_of(view), view.trie, conversation, sampling)
        items = [view.ids[part.row] for part in reply.parts if isinstance(part, Item)]
        codes_NL, sizes = view.catalog.codes_NL, view.catalog.level_sizes
        text = generate.format_parts(reply.parts, codes_NL, sizes, view.titles, sids.style)
        return Reply(text, items, reply.ended)

    def _format_of(self, view: CatalogView) -> ChatFormat:
        """The one of the catalogue that was talked about last, or another catalogue's own; under the lock."""
        if self._format is None or self._format[0] is not view:
            made = ChatFormat(self._tokenizer, self._prompts.sids, view.catalog, self._prompts.form, KEPT_TEXTS)
            self._format = view, made
        return self._format[1]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._config.policy, self._backbones)

    def _parse(self, messages: str | Sequence[Mapping[str, str]], view: CatalogView) -> list[Message]:
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not isinstance(turns, list | tuple):
            raise InputError(f"messages: got {type(turns).__name__}; wanted the user's text, or a list of messages")
        if len(turns) > (most := int(self._policy.model.config.max_position_embeddings)):
            raise InputError(f"got {len(turns)} messages, and the model has {most} positions; leave out the oldest")
        if wrong := [turn for turn in turns if not _is_message(turn)]:
            raise InputError(
                f"got the message {reprlib.repr(wrong[0])}; wanted {{'role': {' | '.join(ROLES)}, 'content': text}} "
                "for each, the text in valid Unicode"
            )
        known = (view.rows, view.catalog, self._prompts.sids.style)
        parsed = [Message(cast("Role", turn["role"]), generate.parse_parts(turn["content"], *known)) for turn in turns]
        if turns and turns[0]["role"] != "system":
            language = load_language(self._config.learning.instruction.languages[0])
            parsed.insert(0, Message("system", (language.system[0],)))
        return parsed


def _is_message(turn: object) -> bool:
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        return False
    role, content = turn["role"], turn["content"]
    if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
        return False
    return not any(0xD800 <= ord(character) < 0xE000 for character in content)
