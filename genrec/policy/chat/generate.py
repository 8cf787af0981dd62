"""Answers in free text with semantic IDs in it: text is any text, and between the markers only SIDs of the catalogue.

After an opening marker the trie decides which codes may follow; after the last one the closing marker is forced. The
KV cache holds all that was said, so a token costs one forward of itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.policy.chat.chat_format import CLOSE, OPEN, ChatFormat
from genrec.policy.chat.templates import Item, Message, Parts
from genrec.policy.model import Policy
from genrec.policy.prompts import sid_names
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

SPAN = re.compile(re.escape(OPEN) + r"\s*(.*?)\s*" + re.escape(CLOSE), re.DOTALL)
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the best one at temperature 0, else drawn from the ``top_p`` most probable mass."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"cannot write with {self}; wanted: max_tokens >= 1, temperature >= 0, 0 < top_p <= 1")


@dataclass
class Written:
    """What the assistant wrote: text and items in order, and its tokens; ``ended`` unless cut at ``max_tokens``."""

    parts: list[str | Item] = field(default_factory=list[str | Item])
    tokens: list[int] = field(default_factory=list[int])
    ended: bool = False


@torch.no_grad()
def write(policy: Policy, form: ChatFormat, trie: Trie, messages: Sequence[Message], sampling: Sampling) -> Written:
    """The assistant's next message.

    Raises:
        InputError: no message from the user at the end, or more tokens than the model reads.
    """
    if not messages or messages[-1].role != "user":
        came = messages[-1].role if messages else "none"
        raise InputError(f"the last message must be the user's, it is {came!r}; wanted: [..., {{'role': 'user', ...}}]")
    prompt_P = form.prompt(messages)
    room = int(policy.model.config.max_position_embeddings)
    margin = sampling.max_tokens + len(form.open) + len(form.close) + trie.depth
    if len(prompt_P) + margin > room:
        raise InputError(
            f"the conversation has {len(prompt_P)} tokens and max_tokens={sampling.max_tokens} may follow, the model "
            f"reads {room}; shorten one of them"
        )
    return _ChatGenerator(policy, form, trie, sampling).write(prompt_P)


def read(text: str, rows: Mapping[str, int], catalog: Catalog) -> Parts:
    """A user's text as parts: ``[[…]]`` holds an item's id, or its SID as ``<a_1><b_2><c_3>``.

    Args:
        rows: item id to row.

    Raises:
        InputError: an item that is not in the catalogue.
    """
    parts: list[str | Item] = []
    end, sid = 0, "".join(rf"<{chr(ord('a') + level)}_(\d+)>" for level in range(catalog.levels))
    for found in SPAN.finditer(text):
        name = found[1]
        codes = re.fullmatch(sid, name)
        row = rows.get(name, catalog.item_of(tuple(map(int, codes.groups()))) if codes else None)
        if row is None:
            raise InputError(f"{found[0]!r} is no item of the catalogue; wanted: [[id]] or [[<a_1><b_2>…]] of one")
        parts += [text[end : found.start()], Item(row)]
        end = found.end()
    return tuple(part for part in (*parts, text[end:]) if part != "")


def show(parts: Sequence[str | Item], codes_NL: Tensor, level_sizes: Sequence[int], titles: Sequence[str]) -> str:
    """Parts as text, each item as its SID and, unless the text has it, its title: ``[[<a_1><b_2>]] (title)``."""
    names, offsets = sid_names(level_sizes), [sum(level_sizes[:level]) for level in range(len(level_sizes))]
    shown: list[str] = []
    for place, part in enumerate(parts, start=1):
        if isinstance(part, str):
            shown.append(part)
            continue
        sid = "".join(names[offset + code] for offset, code in zip(offsets, codes_NL[part.row].tolist(), strict=True))
        title = f" ({titles[part.row]})" if titles[part.row] else ""
        text = takewhile(lambda after: isinstance(after, str), parts[place:])
        said = "".join(map(str, text)).startswith(title)
        shown.append(f"{OPEN}{sid}{CLOSE}" if said else f"{OPEN}{sid}{CLOSE}{title}")
    return "".join(shown)


class _ChatGenerator:
    """One answer in the making."""

    def __init__(self, policy: Policy, form: ChatFormat, trie: Trie, sampling: Sampling) -> None:
        self._policy, self._form, self._trie, self._sampling = policy, form, trie, sampling
        self._writable_V = form.writable().to(policy.device)
        self._cache: Any = policy.new_cache()
        self._read = 0
        self._generator = torch.Generator(policy.device).manual_seed(sampling.seed)

    def write(self, prompt_P: Tensor) -> Written:
        written, text = Written(), list[int]()
        hidden_D = self._forward(prompt_P.tolist())
        while len(written.tokens) < self._sampling.max_tokens:
            logits_V = self._policy.vocabulary_logits(hidden_D)[: self._policy.sids.base]
            token = self._choose(logits_V, self._writable_V)
            if token == self._form.end:
                written.ended = True
                break
            text.append(token)
            written.tokens.append(token)
            hidden_D = self._forward([token])
            if tuple(text[-len(self._form.open) :]) == self._form.open:
                self._close_text(written, text[: -len(self._form.open)])
                hidden_D = self._span(hidden_D, written)
                text = []
        self._close_text(written, text)
        return written

    def _span(self, hidden_D: Tensor, written: Written) -> Tensor:
        """Write a SID of the catalogue and its closing marker; the state behind it."""
        node = torch.zeros((), dtype=torch.long, device=hidden_D.device)
        for level in range(self._trie.depth):
            children_K = self._trie.step(level, node[None])[0]
            code = self._choose(self._policy.level_logits(hidden_D, level), children_K >= 0)
            node = children_K[code].long()
            token = int(self._policy.sids.token(level, torch.tensor(code)))
            last = level == self._trie.depth - 1
            tokens = [token, *(self._form.close if last else ())]
            written.tokens += tokens
            hidden_D = self._forward(tokens)
        written.parts.append(Item(int(self._trie.leaf_items[node])))
        return hidden_D

    def _choose(self, logits_V: Tensor, may_V: Tensor) -> int:
        logits_V = logits_V.float().masked_fill(~may_V, -torch.inf)
        if not self._sampling.temperature:
            return int(logits_V.argmax())
        probability_V = torch.softmax(logits_V / self._sampling.temperature, -1)
        best_V, token_V = probability_V.sort(descending=True)
        best_V = best_V.masked_fill(best_V.cumsum(-1) - best_V >= self._sampling.top_p, 0.0)
        return int(token_V[torch.multinomial(best_V, 1, generator=self._generator)])

    def _forward(self, tokens: list[int]) -> Tensor:
        """The state (D,) behind ``tokens``, which follow all that was read before."""
        device, before, after = self._policy.device, self._read, self._read + len(tokens)
        mask_SK = torch.ones(len(tokens), after, dtype=torch.bool, device=device).tril(before)
        positions_1S = torch.arange(before, after, device=device)[None]
        tokens_1S = torch.tensor([tokens], device=device)
        self._read = after
        return self._policy.hidden(tokens_1S, positions_1S, mask_SK[None, None], self._cache)[0, -1]

    def _close_text(self, written: Written, tokens: list[int]) -> None:
        if tokens:
            written.parts.append(str(self._form.tokenizer.decode(tokens, skip_special_tokens=True)))
