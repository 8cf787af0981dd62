"""A finished run as a recommender: ``genrec.load(run).recommend(history, k=10)``."""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from genrec.baselines.itemknn import ItemKNN, Pairs
from genrec.baselines.sparse import Sparse, mask_seen_items
from genrec.baselines.train_log import read_train_log
from genrec.data.readers import read_items
from genrec.errors import InputError
from genrec.inference.batch import make_node_prior, without_seen
from genrec.inference.catalog_view import CatalogView
from genrec.inference.prior import RankedItems, normalise
from genrec.inference.request_context import request_context, whole_number
from genrec.inference.run_record import RunRecord
from genrec.metrics import IntArray
from genrec.policy.backbone import load as load_policy
from genrec.policy.chat import generate
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.templates import ROLES, Item, Message, Role, load_language
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.node_prior import NodePrior
from genrec.policy.decoding.prompt_cache import PromptCache
from genrec.policy.decoding.request_constraints import Constraint
from genrec.policy.decoding.request_ids import item_ids
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog
from genrec.sid.readable import SidNames
from genrec.types import HistoryContext


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; ``score`` is its probability under the model, prior included where the run uses one.

    With a prior on the trie's nodes the score is a share of the total over the items that the search found. ``path``
    has the names of the item's codes, where they are readable (``sid.quantizer=taxonomy``, ``title_words``), such as
    ("Drinkware", "Mugs", "3"); else it is empty.
    """

    id: str
    title: str
    score: float
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """A message of the assistant: ``text`` has each item as its SID and title, ``items`` are the ids of the items.

    ``ended`` is False where the message was cut at ``max_tokens``.
    """

    text: str
    items: list[str]
    ended: bool


class Recommender:
    """The policy, catalogue and prior of a run, searched as they were evaluated; safe to share among threads.

    Args:
        run: the finished run.
        live: serve the catalogue with all later inserts and removals (`genrec catalog`); else as it was assigned.

    Raises:
        InputError: a part of the run is missing or does not fit the others.
    """

    def __init__(self, run: RunRecord, *, live: bool = True) -> None:
        self._run, config = run, run.config
        self._backbones = run.storage / "backbones"
        self._live = run.storage / "live" / run.catalog.name if live else None
        self._items = read_items(run.data)
        catalog = Catalog.load(run.catalog)
        self._policy, self._prompts = load_policy(
            config.policy,
            catalog,
            run.policy,
            max_history=config.data.max_history,
            seed=config.seed,
            cache=self._backbones,
        )
        self._digest = catalog.digest
        cache_bytes = config.decode.prompt_cache_mb * 2**20
        self._prompt_cache = PromptCache(self._policy, cache_bytes) if cache_bytes else None
        self._chat_lock = threading.Lock()  # a tokenizer changes its own state at each call
        self._knn: ItemKNN | None = None
        if run.prior.weight and run.prior.settings is not None:
            log = read_train_log(run.data, self._items.num_rows)
            self._knn = ItemKNN(Pairs(log), run.prior.settings)
        self._names = SidNames.load(run.catalog)
        self._view = self._read_view(self._current())

    def recommend(
        self,
        history: Iterable[str],
        k: int = 10,
        constraint: Constraint | None = None,
        *,
        event: str | None = None,
        history_events: Sequence[str | None] = (),
        history_times: Sequence[int] = (),
    ) -> list[Recommendation]:
        """The ``k`` most probable next items, best first; removed items are never among them.

        Args:
            history: the shop's item ids, oldest first, in a list or any other iterable; the last ``data.max_history``
                of them are used. Inserted and removed items may be among them.
            k: a whole number; above the catalogue's size, all items are ranked.
            constraint: which items are allowed; if they are fewer than ``k``, the result is shorter.
            event: the type of event that is asked for, such as ``"purchase"``; None: ``decode.event``, or the most
                frequent one. Policies without ``policy.context.events=wanted`` do not read it.
            history_events: the type of event of each item of the history; without, ``event``'s default for all.
            history_times: the time of each of them, in epoch seconds; without, unknown.

        Raises:
            InputError: an empty history, an item that is not in the catalogue, k below 1, an argument of another type,
                a constraint on an id, category or price that the catalogue does not have, or events or times that are
                not one for each item.
        """
        view, ids, most = self._view, item_ids(history, "history"), whole_number(k, "k")
        if not isinstance(cast("object", constraint), Constraint | None):
            raise InputError(f"constraint: got {type(constraint).__name__}; wanted genrec.Constraint or None")
        unknown = [item for item in ids if item not in view.rows]
        if unknown or not ids or most < 1:
            raise InputError(
                f"got k={most} and a history of {len(ids)} items, {len(unknown)} of them unknown "
                f"({reprlib.repr(unknown[:3])}); wanted k >= 1 and at least one item, all from the catalogue"
            )
        seen = [view.rows[item] for item in ids]
        allowed_N = None if constraint is None else view.attributes.mask(constraint, seen)
        rows = seen[-self._run.config.data.max_history :]
        context = request_context(len(seen), self._run.event, event, history_events, history_times)
        ranked = self._rank(view, rows, context.last(len(rows)), min(most, len(view.ids)), allowed_N)
        return [Recommendation(view.ids[row], view.titles[row], score, view.path_of(row)) for row, score in ranked]

    def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Reply:
        """The policy's next message in a conversation: text with items of the catalogue in it.

        Args:
            messages: ``[{"role": "user", "content": "After [[id]], what next?"}, …]``, or the user's text alone.
                ``[[…]]`` contains an item's id, or its SID as ``<a_1><b_2><c_3>`` (in the style of
                ``policy.sid_tokens``). Without a system message the first one of the training templates is used.
            max_tokens: of the message; an item that was begun is completed.
            temperature: 0 takes the most probable token; above 0, tokens are drawn from the ``top_p`` nucleus.
            seed: of the draws.

        Raises:
            InputError: a policy of semantic IDs only, a last message that is not the user's, an unknown role or
                item, or too many tokens.
        """
        sampling = generate.Sampling(max_tokens, temperature, top_p, seed)
        view = self._view
        conversation = self._parse(messages, view)
        with self._chat_lock:
            chat_format = ChatFormat(self._tokenizer, self._prompts.sids, view.catalog, self._prompts.form)
            reply = generate.generate_reply(self._policy, chat_format, view.catalog.trie, conversation, sampling)
        items = [view.ids[part.row] for part in reply.parts if isinstance(part, Item)]
        codes_NL, sizes, style = view.catalog.codes_NL, view.catalog.level_sizes, self._prompts.sids.style
        return Reply(generate.format_parts(reply.parts, codes_NL, sizes, view.titles, style), items, reply.ended)

    def refresh(self) -> bool:
        """Serve the newest catalogue; False if nothing was inserted or removed since (cost: one directory listing).

        Requests in progress end on the catalogue that they began with.

        Raises:
            InputError: the new catalogue cannot be read, or did not grow from the one that is served.
        """
        path = self._current()
        if path == self._view.path:
            return False
        self._view = self._read_view(path)
        return True

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._run.config.policy, self._backbones)

    def _parse(self, messages: str | Sequence[Mapping[str, str]], view: CatalogView) -> list[Message]:
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not isinstance(turns, list | tuple):
            raise InputError(f"messages: got {type(turns).__name__}; wanted the user's text, or a list of messages")
        if wrong := [turn for turn in turns if not _is_message(turn)]:
            raise InputError(
                f"got the message {reprlib.repr(wrong[0])}; wanted {{'role': {' | '.join(ROLES)}, 'content': text}} "
                "for each, the text in valid Unicode"
            )
        known = (view.rows, view.catalog, self._prompts.sids.style)
        parsed = [Message(cast("Role", turn["role"]), generate.parse_parts(turn["content"], *known)) for turn in turns]
        if turns and turns[0]["role"] != "system":
            language = load_language(self._run.config.learning.instruction.languages[0])
            parsed.insert(0, Message("system", (language.system[0],)))
        return parsed

    def _current(self) -> Path:
        """The directory of the catalogue to serve."""
        assigned = self._run.catalog
        return assigned if self._live is None else catalog_updates.current(assigned, self._live)

    def _read_view(self, path: Path) -> CatalogView:
        view = CatalogView.read(path, self._items, self._prompts, self._digest, self._knn, self._names)
        if self._policy.items is not None:  # Before any request can name an item of the new catalogue.
            self._policy.items.set_catalog(view.catalog, self._prompts.sids)
        return view

    def _rank(
        self, view: CatalogView, rows: list[int], context: HistoryContext, k: int, allowed_N: Tensor | None
    ) -> list[tuple[int, float]]:
        """The k best (row, score), best first, after a history of ``rows``, oldest first."""
        prior, recent_1H = self._run.prior, np.array([rows[::-1]])
        scores, node_prior = self._prior_scores(view, recent_1H), None
        if scores is not None and prior.kind == "itemknn_nodes":
            node_prior = make_node_prior(view.catalog.trie, view.catalog.codes_NL, scores, prior.weight)
        width = max(k + (len(rows) if self._run.mask_seen else 0), self._run.config.decode.width)
        beams = self._search(view, rows, context, width, allowed_N, node_prior)
        if self._run.mask_seen:
            beams = without_seen(beams, recent_1H, width - len(rows))
        beams = beams.fused(prior.head_weight)
        probabilities = beams.probabilities(len(view.ids))
        if node_prior is not None:
            probabilities = probabilities / (probabilities.sum() or 1.0)
        elif scores is not None:
            scores = scores if allowed_N is None else scores.multiply(allowed_N.numpy()[None]).tocsr()
            probabilities = (1 - prior.weight) * probabilities + prior.weight * normalise(scores, prior.power)
        row = probabilities.tocsr()
        best = np.argsort(-row.data, kind="stable")[:k]
        return [(int(row.indices[i]), float(row.data[i])) for i in best]

    def _search(
        self,
        view: CatalogView,
        rows: list[int],
        context: HistoryContext,
        width: int,
        allowed_N: Tensor | None,
        node_prior: NodePrior | None,
    ) -> RankedItems:
        """``width`` candidates (1, W) with log p_policy(item), plus weight · log p_prior(item) under a node prior."""
        trie = view.catalog.trie
        tokens_BP, mask_BP = view.prompts.encode([rows], [context])
        cache = self._prompt_cache
        found = beam(
            self._policy,
            tokens_BP,
            mask_BP,
            trie,
            width,
            masks=view.masks.masks([allowed_N]),
            prior=node_prior,
            head_weight=self._run.prior.head_weight,
            prefilled=None if cache is None else cache.prefill(tokens_BP, mask_BP),
        )
        logp_BW = found.logp_BW
        if node_prior is not None:
            leaves_BW1 = trie.path(found.codes_BWL)[..., -1:]
            logp_BW = logp_BW + node_prior.log_prior(trie.depth - 1, leaves_BW1)[..., 0]
        head_QK = None if found.head_BW is None else found.head_BW.numpy()
        return RankedItems(found.items_BW.numpy(), logp_BW.numpy(), head_QK)

    def _prior_scores(self, view: CatalogView, recent_1H: IntArray) -> Sparse | None:
        """ItemKNN's scores (1, N) over the view's catalogue; None where the run has no prior."""
        if view.knn is None:
            return None
        scores, removed = view.knn.scores(recent_1H), view.catalog.removed
        if removed:
            scores = mask_seen_items(scores, np.array([removed]))
        return mask_seen_items(scores, recent_1H) if self._run.mask_seen else scores


def _is_message(turn: object) -> bool:
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        return False
    role, content = turn["role"], turn["content"]
    if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
        return False
    return not any(0xD800 <= ord(character) < 0xE000 for character in content)


def load(run: str | Path, *, live: bool = True) -> Recommender:
    """The recommender of a finished run.

    Args:
        run: the directory of its report, ``<storage>/runs/<name>``.
        live: with the items that were inserted and without those that were removed since; False: as assigned.

    Raises:
        InputError: no finished run is there, or one of its parts is missing.
    """
    return Recommender(RunRecord.read(Path(run)), live=live)
