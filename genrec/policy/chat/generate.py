"""Chat replies: free text, with semantic IDs of the catalogue between markers.

After an opening marker the trie decides which codes may follow, so each item is one of the catalogue, and a reply names
none twice; after the last code the closing marker is forced. The KV cache holds the whole conversation, so each token
costs one forward pass of a single position.
"""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.policy.chat.chat_format import ChatFormat
from genrec.policy.chat.templates import Item, Message, Parts
from genrec.policy.model import Policy
from genrec.policy.prompts import ITEM_TOKEN
from genrec.policy.sid_text import MARKERS, SidStyle, read_sid, without_markers, write_sid
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

COLDEST, HOTTEST = 1e-6, 1e6
"""Temperatures beyond which a draw is the most probable token, or even over all: float32 has no numbers between."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the most probable one at temperature 0, else drawn by nucleus sampling.

    ``top_p`` is the nucleus: the most probable tokens whose probabilities sum to it (Holtzman et al. 2020).
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole_ones: tuple[object, ...] = (self.max_tokens, self.seed)
        whole = all(not isinstance(n, bool) and isinstance(n, Integral) for n in whole_ones)
        numbers = whole and all(isinstance(n, Real) for n in (self.temperature, self.top_p))
        if (
            not numbers
            or self.max_tokens < 1
            or not 0 <= self.temperature < float("inf")
            or not 0 < self.top_p <= 1
            or not 0 <= self.seed < 2**63
        ):
            raise InputError(
                f"got {reprlib.repr(self)}; wanted max_tokens >= 1, temperature >= 0, 0 < top_p <= 1, "
                "seed >= 0, all of them numbers"
            )


@dataclass
class GeneratedReply:
    """A message of the assistant: text and items in order, and its tokens; ``ended`` unless cut at ``max_tokens``.

    ``missing`` counts semantic IDs that no item has; they are text, and occur without the constraint alone.
    """

    parts: list[str | Item] = field(default_factory=list[str | Item])
    tokens: list[int] = field(default_factory=list[int])
    ended: bool = False
    missing: int = 0


@torch.no_grad()
def generate_reply(
    policy: Policy,
    chat_format: ChatFormat,
    trie: Trie,
    messages: Sequence[Message],
    sampling: Sampling,
    *,
    constrained: bool = True,
    most_items: int | None = None,
) -> GeneratedReply:
    """The assistant's next message.

    Only with ``constrained`` is every semantic ID in it one of the catalogue, and of another item than those before it
    (until all have been named).

    Args:
        most_items: items after which it is cut.

    Raises:
        InputError: the last message is not the user's, or the conversation exceeds the model's positions.
    """
    if not messages or messages[-1].role != "user":
        got = messages[-1].role if messages else "none"
        raise InputError(f"the last message must be the user's, got {got!r}; wanted [..., {{'role': 'user', ...}}]")
    prompt_P = chat_format.prompt(messages)
    room = int(policy.model.config.max_position_embeddings)
    margin = sampling.max_tokens + len(chat_format.open) + len(chat_format.close) + trie.depth
    if len(prompt_P) + margin > room:
        raise InputError(
            f"the conversation has {len(prompt_P)} tokens and max_tokens={sampling.max_tokens} may follow, but "
            f"the model has {room} positions; shorten one of them"
        )
    # Around all forwards, which autocast: weights that train are cast once, and not again for each token.
    with torch.autocast(policy.device.type, enabled=False):
        return _ChatGenerator(policy, chat_format, trie, sampling, constrained).generate(prompt_P, most_items)


def parse_parts(text: str, rows: Mapping[str, int], catalog: Catalog, style: SidStyle = "letters") -> Parts:
    """A user's text as parts: between markers stands an item's id, or its SID as ``write_sid`` writes it.

    ``[[…]]`` are markers in every ``style``, so that a user can name an item by its id without knowing the style. A
    removed item may be named in both ways: an earlier reply of the conversation may have done so.

    Args:
        rows: item id to row.

    Raises:
        InputError: an item that is not in the catalogue.
    """
    parts: list[str | Item] = []
    end = 0
    for start, stop, name in _spans(text, dict((MARKERS["letters"], MARKERS[style]))):
        codes = read_sid(name, catalog.level_sizes, style)
        row = rows.get(name, None if codes is None else catalog.row_of(codes))
        if row is None:
            first = write_sid([0] * catalog.levels, catalog.level_sizes, style)
            raise InputError(
                f"{reprlib.repr(text[start:stop])} is no item of the catalogue; wanted [[id]], or a SID such as "
                f"{first.join(MARKERS[style])}, of one"
            )
        parts += [text[end:start], Item(row)]
        end = stop
    return tuple(part for part in (*parts, text[end:]) if part != "")


def _spans(text: str, pairs: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """Begin, end and name of each span between markers; in linear time, also where a text is all opening markers."""
    opening = re.compile("|".join(map(re.escape, pairs)))
    last, at = {before: text.rfind(after) for before, after in pairs.items()}, 0
    while (found := opening.search(text, at)) is not None:
        begin, name_at = found.span()
        if last[found[0]] < name_at:
            at = begin + 1
            continue
        name_end = text.find(pairs[found[0]], name_at)
        at = name_end + len(pairs[found[0]])
        yield begin, at, text[name_at:name_end].strip()


def format_parts(
    parts: Sequence[str | Item],
    codes_NL: Tensor,
    level_sizes: Sequence[int],
    titles: Sequence[str],
    style: SidStyle = "letters",
) -> str:
    """Parts as text: ``[[<a_1><b_2>]] (title)`` for an item, without the title where the following text repeats it.

    Only items have markers, so ``parse_parts`` reads the text again, as the next turn of a conversation does.
    """
    before, after = MARKERS[style]
    parts = [without_markers(part) if isinstance(part, str) else part for part in parts]
    pieces: list[str] = []
    for index, part in enumerate(parts, start=1):
        if isinstance(part, str):
            pieces.append(part)
            continue
        if pieces and pieces[-1].endswith(before[0]):  # It would be read as the beginning of the marker.
            pieces.append(" ")
        sid = f"{before}{write_sid(codes_NL[part.row].tolist(), level_sizes, style)}{after}"
        title = f" ({without_markers(titles[part.row])})" if titles[part.row] else ""
        text = takewhile(lambda following: isinstance(following, str), parts[index:])
        titled = "".join(map(str, text)).startswith(title)
        pieces.append(sid if titled else f"{sid}{title}")
    return "".join(pieces)


class _ChatGenerator:
    """Generates one reply, token by token."""

    def __init__(
        self, policy: Policy, chat_format: ChatFormat, trie: Trie, sampling: Sampling, constrained: bool
    ) -> None:
        self._policy, self._format, self._trie, self._sampling = policy, chat_format, trie, sampling
        self._constrained, self._named_paths = constrained, list[list[int]]()
        self._text_tokens_V = chat_format.text_token_mask().to(policy.device)
        self._cache: Any = policy.new_cache()
        self._tokens = list[int]()
        self._generator = torch.Generator(policy.device).manual_seed(sampling.seed)

    def generate(self, prompt_P: Tensor, most_items: int | None) -> GeneratedReply:
        reply, text = GeneratedReply(), list[int]()
        hidden_D = self._forward(prompt_P.tolist())
        items = 0
        while len(reply.tokens) < self._sampling.max_tokens and items != most_items:
            logits_V = self._policy.vocabulary_logits(hidden_D)[: self._policy.sids.text_end]
            token = self._choose(logits_V, self._text_tokens_V)
            if token == self._format.end:
                reply.ended = True
                break
            text.append(token)
            reply.tokens.append(token)
            hidden_D = self._forward([token])
            if tuple(text[-len(self._format.open) :]) == self._format.open:
                self._append_text(reply, text[: -len(self._format.open)])
                hidden_D = self._generate_sid(hidden_D, reply)
                text, items = [], items + 1
        self._append_text(reply, text)
        return reply

    def _generate_sid(self, hidden_D: Tensor, reply: GeneratedReply) -> Tensor:
        """Append a SID and the closing marker; returns the hidden state (D,) after them."""
        node = torch.zeros((), dtype=torch.long, device=hidden_D.device)
        codes, path = list[int](), list[int]()
        if len(self._named_paths) == len(self._trie.leaf_items):
            self._named_paths.clear()
        for level in range(self._trie.depth):
            children_K = self._trie.step(level, node[None].clamp(min=0))[0]
            allowed_K = torch.ones_like(children_K, dtype=torch.bool)
            if self._constrained:
                allowed_K = (children_K >= 0) & ~torch.isin(children_K, self._used_up(level).to(children_K))
            code = self._choose(self._policy.level_logits(hidden_D, level), allowed_K)
            node = children_K[code].long() if node >= 0 else node
            codes.append(code)
            path.append(int(node))
            token = int(self._policy.sids.token(level, torch.tensor(code)))
            last = level == self._trie.depth - 1
            tokens = [token, *(self._format.close if last else ())]
            reply.tokens += tokens
            if last and self._format.form == "last" and node >= 0:
                tokens[0] = ITEM_TOKEN + int(self._trie.leaf_items[node])
            hidden_D = self._forward(tokens)
        if node >= 0:
            reply.parts.append(Item(int(self._trie.leaf_items[node])))
            self._named_paths.append(path)
        else:
            sids = self._policy.sids
            reply.parts.append(write_sid(codes, sids.level_sizes, sids.style))
            reply.missing += 1
        return hidden_D

    def _used_up(self, level: int) -> Tensor:
        """The nodes that a code of ``level`` leads to, and under which this reply has named every item."""
        items_n, named = self._trie.leaves_under()[level], Counter(path[level] for path in self._named_paths)
        return torch.tensor([node for node, count in named.items() if count == int(items_n[node])])

    def _choose(self, logits_V: Tensor, allowed_V: Tensor) -> int:
        logits_V = logits_V.float().masked_fill(~allowed_V, -torch.inf)
        if self._sampling.temperature < COLDEST:
            return int(logits_V.argmax())
        scaled_V = (logits_V - logits_V.max()) / min(self._sampling.temperature, HOTTEST)
        probability_V = torch.softmax(scaled_V, -1)
        best_V, token_V = probability_V.sort(descending=True)
        best_V = best_V.masked_fill(best_V.cumsum(-1) - best_V >= self._sampling.top_p, 0.0)
        return int(token_V[torch.multinomial(best_V, 1, generator=self._generator)])

    def _forward(self, tokens: list[int]) -> Tensor:
        """The hidden state (D,) after ``tokens``, which continue the conversation so far."""
        device, before, after = self._policy.device, len(self._tokens), len(self._tokens) + len(tokens)
        mask_SK = torch.ones(len(tokens), after, dtype=torch.bool, device=device).tril(before)
        positions_1S = torch.arange(before, after, device=device)[None]
        tokens_1S, earlier_1P = (torch.tensor([part], device=device).long() for part in (tokens, self._tokens))
        self._tokens += tokens
        mask_11SK = mask_SK[None, None]
        return self._policy.hidden(tokens_1S, positions_1S, mask_11SK, self._cache, earlier_BP=earlier_1P)[0, -1]

    def _append_text(self, reply: GeneratedReply, tokens: list[int]) -> None:
        if tokens:
            reply.parts.append(str(self._format.tokenizer.decode(tokens, skip_special_tokens=True)))
