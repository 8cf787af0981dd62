"""A finished run as a recommender: ``genrec.load(run).recommend(history, k=10)``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from genrec.baselines.itemknn import ItemKNN, Pairs, fit_itemknn
from genrec.baselines.train_log import read_train_log
from genrec.config.root import is_url
from genrec.data.readers import read_items
from genrec.errors import InputError
from genrec.inference.answers import CatalogItem, Recommendation, Reply
from genrec.inference.catalog_view import CatalogView
from genrec.inference.conversation import Conversations
from genrec.inference.diversity import diversify
from genrec.inference.explanation import explain
from genrec.inference.request import Diversity, RecommendRequest, RowRequest, in_rows
from genrec.inference.request_context import whole_number
from genrec.inference.run_place import RunPlace
from genrec.inference.run_record import RunRecord
from genrec.inference.tree_ranker import OnPart, Ranked, TreeRanker
from genrec.policy.backbone import load as load_policy
from genrec.policy.chat import generate
from genrec.policy.decoding.request_constraints import Constraint
from genrec.policy.decoding.request_ids import item_ids
from genrec.policy.model import Policy
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog
from genrec.sid.readable import SidNames

__all__ = ["RecommendRequest", "Recommendation", "Recommender", "Reply", "load"]


class Recommender:
    """The policy, catalogue and prior of a run, searched as they were evaluated; safe to share among threads.

    Args:
        run: the finished run.
        live: serve the catalogue with all later inserts and removals (`genrec catalog`); else as it was assigned.
        device: of the policy and the search, such as ``cpu`` or ``cuda``.

    Raises:
        InputError: a part of the run is missing or does not fit the others, or there is no such device.
    """

    def __init__(self, run: RunRecord, *, live: bool = True, device: str = "cpu") -> None:
        self.run, config = run, run.config
        self._device = usable_device(device)
        backbones = run.storage / "backbones"
        self._live = run.live if live else None
        items, catalog = read_items(run.data), Catalog.load(run.catalog)
        # An updated run has counted events of inserted items; their titles come with the catalogue as it is now.
        self._items = items.slice(0, len(catalog))
        self._policy, self._prompts = load_policy(
            config.policy,
            catalog,
            run.policy,
            max_history=config.data.max_history,
            seed=config.seed,
            cache=backbones,
        )
        self._policy.to(self._device)
        self._digest = catalog.digest
        self._conversations = Conversations(config, self._policy, self._prompts, backbones)
        self._ranker = TreeRanker(run, self._policy)
        self._knn: ItemKNN | None = None
        if run.prior.weight and run.prior.settings is not None:
            log = read_train_log(run.data, items.num_rows)
            self._knn = fit_itemknn(Pairs(log), run.prior.settings)
        self._names = SidNames.load(run.catalog)
        self._refresh_lock = threading.Lock()
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
        diversity: Diversity | None = None,
        explain: bool = False,
        prior: bool = True,
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
            diversity: how much of its probability the list gives up for items that differ.
            explain: whether each answer says why.
            prior: False leaves out the run's ItemKNN: the policy alone.

        Raises:
            InputError: an empty history, an item that is not in the catalogue, k below 1, an argument of another type,
                a constraint on an id, category or price that the catalogue does not have, or events or times that are
                not one for each item.
        """
        known = (event, history_events, history_times)
        return self.recommend_batch([RecommendRequest(history, k, constraint, *known, diversity, explain, prior)])[0]

    def recommend_batch(self, requests: Sequence[RecommendRequest]) -> list[list[Recommendation]]:
        """The answers of ``recommend`` to several requests, from one search for all of them.

        Raises:
            InputError: as ``recommend``, for any of the requests; ``check`` tells for which one.
        """
        view = self._view
        return self._answers(view, [in_rows(request, view, self.run) for request in requests])

    def recommend_each(self, requests: Sequence[RecommendRequest]) -> list[list[Recommendation] | InputError]:
        """``recommend_batch``, with an error in the place of each request that it would refuse."""
        view = self._view
        asked = [_rows_or_refusal(request, view, self.run) for request in requests]
        answers = iter(self._answers(view, [one for one in asked if not isinstance(one, InputError)]))
        return [one if isinstance(one, InputError) else next(answers) for one in asked]

    def check(self, request: RecommendRequest) -> None:
        """Refuse a request that ``recommend_batch`` would refuse, without a search.

        Raises:
            InputError: as ``recommend``.
        """
        in_rows(request, self._view, self.run)

    def score(
        self, history: Iterable[str], items: Iterable[str], *, view: CatalogView | None = None, **asked: object
    ) -> list[float]:
        """The log-probability of each of ``items`` as the next one, prior included where the run has one.

        It is in the units of ``recommend`` for the same ``k``, whose ``score`` is exp of it for every item that its
        search finds; -inf for an item that it would never recommend: removed, or seen where the run masks seen items.

        Args:
            history: as in ``recommend``.
            items: ids of the catalogue.
            view: the catalogue to answer from, one that ``view`` gave; without, the one of this moment.
            asked: further fields of a ``RecommendRequest``, such as ``event`` or ``constraint``.

        Raises:
            InputError: as ``recommend``; or an item that is not in the catalogue.
        """
        view, ids = view or self._view, item_ids(items, "items")
        one = in_rows(RecommendRequest(history, **asked), view, self.run)  # pyright: ignore[reportArgumentType]
        return self._ranker.score(view, one, [view.row_of(item) for item in ids]) if ids else []

    def item(self, item_id: str) -> CatalogItem:
        """What the catalogue knows of an item, inserted and removed ones included.

        Raises:
            InputError: no item has this id.
        """
        return self._view.item(self._view.row_of(item_id))

    def search_titles(self, text: str, limit: int = 10) -> list[CatalogItem]:
        """Items whose title holds every word of ``text``, or whose id it is; at most ``limit``.

        Words are found in any case, and whether an accented letter is written as one character or as two.

        An id comes first, then titles that begin with the text, then short ones. An empty text finds nothing.

        Raises:
            InputError: something else than text, or a limit below 1.
        """
        if whole_number(limit, "limit") < 1:
            raise InputError(f"limit: got {limit}; wanted 1 or more")
        return self._view.search(text, limit)

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
        return self._conversations.reply(self._view, messages, generate.Sampling(max_tokens, temperature, top_p, seed))

    def refresh(self) -> bool:
        """Serve the newest catalogue; False if nothing was inserted or removed since (cost: one directory listing).

        Requests in progress end on the catalogue that they began with.

        Raises:
            InputError: the new catalogue cannot be read, or did not grow from the one that is served.
        """
        with self._refresh_lock:  # so that of two callers the slower one does not bring back an older catalogue
            path = self._current()
            if path == self._view.path:
                return False
            self._view = self._read_view(path)
            return True

    @property
    def policy(self) -> Policy:
        """The policy, in evaluation mode; not to be changed."""
        return self._policy

    @property
    def view(self) -> CatalogView:
        """The catalogue that is served, as it is at this moment."""
        return self._view

    def is_stale(self) -> bool:
        """Whether items were inserted or removed since the last ``refresh`` (cost: one directory listing)."""
        return self._current() != self._view.path

    @property
    def catalog_version(self) -> str:
        """Names the catalogue that is served: equal names, equal items."""
        return self.version_of(self._view)

    def version_of(self, view: CatalogView) -> str:
        """``catalog_version`` while ``view`` is, or was, the one that is served."""
        return f"{self.run.catalog.name}/{view.path.name}"

    def on_part(self, listener: OnPart) -> None:
        """Tell ``listener`` the name and the seconds of each part of every later answer (``tree_ranker.PARTS``)."""
        self._ranker.on_part = listener

    def _answers(self, view: CatalogView, asked: Sequence[RowRequest]) -> list[list[Recommendation]]:
        ranked = self._ranker.rank(view, asked)
        return [self._answer(view, one, found) for one, found in zip(asked, ranked, strict=True)]

    def _answer(self, view: CatalogView, asked: RowRequest, ranked: Ranked) -> list[Recommendation]:
        if asked.diversity is not None:
            ranked = diversify(ranked, asked.k, asked.diversity, view, asked.rows)
        rows = [row for row, _ in ranked]
        why = [None] * len(rows)
        if asked.explain and rows:
            logp_GL, _ = self._ranker.steps(view, asked, rows)
            why = explain(view, rows, logp_GL.cpu(), asked.rows, self._prompts.sids.style)
        return [
            Recommendation(view.ids[row], view.titles[row], score, view.path_of(row), reason)
            for (row, score), reason in zip(ranked, why, strict=True)
        ]

    def _current(self) -> Path:
        """The directory of the catalogue to serve."""
        assigned, stored = self.run.catalog, is_url(self.run.config.storage)
        return assigned if self._live is None else catalog_updates.current(assigned, self._live, stored=stored)

    def _read_view(self, path: Path) -> CatalogView:
        view = CatalogView.read(
            path, self._items, self._prompts, self._digest, self._knn, self._names, device=self._device
        )
        if self._policy.items is not None:  # Before any request can name an item of the new catalogue.
            self._policy.items.set_catalog(view.catalog, self._prompts.sids)
        return view


def _rows_or_refusal(request: RecommendRequest, view: CatalogView, run: RunRecord) -> RowRequest | InputError:
    try:
        return in_rows(request, view, run)
    except InputError as error:
        return error


def usable_device(device: str) -> str:
    """``device``, if there is one.

    Raises:
        InputError: it is no device of PyTorch, or this machine has none.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device: got {device!r}, which cannot be used ({reason}); wanted cpu or cuda") from None
    return device


def load(run: str | Path, *, live: bool = True, device: str = "cpu") -> Recommender:
    """The recommender of a finished run.

    Args:
        run: the directory of its report, ``<storage>/runs/<name>``, or its URL, which is fetched to this machine.
        live: with the items that were inserted and without those that were removed since; False: as assigned.
        device: of the policy and the search, such as ``cpu`` or ``cuda``.

    Raises:
        InputError: no finished run is there, one of its parts is missing, or there is no such device.
    """
    return Recommender(RunPlace.find(run).read(), live=live, device=device)
