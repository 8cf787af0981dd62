"""One run in service: its recommender, the queue of its searches, its last answers, and its popular items."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256

import torch

from cluster.serve.answer_cache import AnswerCache
from cluster.serve.asked import Question, read_history, read_question
from cluster.serve.messages import (
    ChatBody,
    ItemAnswer,
    RecommendAnswer,
    RecommendBody,
    RunInfo,
    ScoreAnswer,
    ScoreBody,
    ServedVersion,
)
from cluster.serve.popular import popular_items
from cluster.serve.search_queue import SearchQueue, TooLateError
from cluster.serve.service_metrics import METRICS
from cluster.serve.user_log import UserLog
from cluster.store_folders import catalog_in_store
from genrec.config import Serve
from genrec.errors import InputError
from genrec.inference.answers import Recommendation, Reply
from genrec.inference.catalog_view import CatalogView
from genrec.inference.recommender import Recommender
from genrec.inference.run_place import RunPlace

CHATS = 4
"""Conversations that are written at a time; others are refused."""
SMOKE_USERS = 4
"""Users of the log (items, where it has none) that a run must answer before it is served."""


class CatalogFaultError(Exception):
    """The newest catalogue cannot be read: a fault of the service, not of who asks."""


@dataclass(frozen=True)
class RankedAnswer:
    """What the policy or the counts answered, and the version that it comes from."""

    items: list[Recommendation]
    catalog: str


class ServedRun:
    """A run that answers requests: on CPU, or on CUDA where ``serve.gpus`` is above 0.

    Raises:
        InputError: no finished run is there, one of its parts is missing, or it fails its smoke test.
    """

    def __init__(self, place: RunPlace, settings: Serve) -> None:
        self.place, self._settings = place, settings
        self.record = place.read()
        torch.set_num_threads(settings.threads)
        self.recommender = Recommender(self.record, device="cuda" if settings.gpus else "cpu")
        self._updates = catalog_in_store(self.record.config, self.record.live)
        self.policy = f"{self.record.policy.parent.name}/{self.record.policy.name}"
        view = self.recommender.view
        self._log = UserLog(self.record.data, len(view.ids))
        self._popularity_N = self._log.popularity()
        self._cache: AnswerCache[RankedAnswer] = AnswerCache(settings.cached_answers)
        self._chats, self._free_chats = ThreadPoolExecutor(CHATS, "chat"), threading.Semaphore(CHATS)
        self.in_use = 0
        self._smoke_test()
        self._queue: SearchQueue[Question, RankedAnswer] = SearchQueue(
            self._search, settings.batch, settings.max_queue, settings.gather_ms / 1000
        )

    def follow_changes(self) -> None:
        """Serve the newest catalogue, which of an object store is fetched first; waits for neither a search nor a loop.

        Raises:
            InputError: the store, or the catalogue, cannot be read.
        """
        if self._updates is not None:
            self._updates.follow()
        self.recommender.refresh()

    def newest(self) -> CatalogView:
        """The newest catalogue: an answer is from one view, whatever other threads take over meanwhile.

        Raises:
            CatalogFaultError: it cannot be read, and the one before may have removed items.
        """
        try:
            self.recommender.refresh()
        except InputError as error:
            raise CatalogFaultError(str(error)) from error
        return self.recommender.view

    @property
    def version(self) -> ServedVersion:
        """What an answer that is made now comes from."""
        return self._version(self.recommender.catalog_version)

    async def recommend(self, body: RecommendBody, request_id: str) -> RecommendAnswer:
        """The next items: from the last answers, a search shared with other requests, or the most frequent items.

        Raises:
            InputError: as ``Recommender.recommend``, but for unknown items and an empty history.
        """
        question, found = self._asked(body)
        # A search looks for a newer catalogue itself. An answer without one has to, and one that says what is missing.
        if (found is not None or question.notes) and self.recommender.is_stale():
            await asyncio.to_thread(self.newest)
            question, found = self._asked(body)
        cached, late = found is not None, False
        if found is None and question.request.ids:
            found, late = await self._searched(question, body.deadline_ms or self._settings.deadline_ms)
            if found is not None:
                self._cache.put(self._key(body, question, found.catalog), found)
        source = "policy" if found is not None else "popularity"
        if found is None:
            found = await asyncio.to_thread(self._popular, question)
        METRICS.answers.labels(self.place.name, source, str(cached).lower()).inc()
        notes = [*question.notes]
        if late:
            notes.append("the policy's answer would have come after the deadline: the most frequent items are answered")
        if body.event is not None and self.record.config.policy.context.events != "wanted":
            notes.append("event: this policy was not trained to be asked for one (policy.context.events=wanted)")
        if source == "popularity" and (left_out := [name for name in ("diversity", "explain") if getattr(body, name)]):
            notes.append(f"{' and '.join(left_out)}: for answers of the policy alone, and left out here")
        if len(found.items) < body.k and body.constraint is not None:
            notes.append(f"the constraint, or the search under it, left {len(found.items)} items")
        elif len(found.items) < body.k and self.record.mask_seen and question.request.ids:
            notes.append(f"this run answers no item of the history, which left {len(found.items)} items")
        return RecommendAnswer(
            request_id=request_id,
            served=self._version(found.catalog),
            items=[_item_answer(one) for one in found.items],
            source=source,
            cached=cached,
            unknown=list(question.unknown),
            notes=notes,
        )

    async def score(self, body: ScoreBody, request_id: str) -> ScoreAnswer:
        """The probability of each item of ``body.items``.

        Raises:
            InputError: as ``Recommender.score``; no item of the history is in the catalogue.
            TooLateError: too many requests wait already.
        """
        return await asyncio.wrap_future(self._queue.call(lambda: self._score(body, request_id)))

    async def chat(self, body: ChatBody) -> Reply:
        """The policy's next message.

        Raises:
            InputError: as ``Recommender.chat``.
            TooLateError: too many conversations wait already.
        """
        if not self._free_chats.acquire(blocking=False):
            raise TooLateError
        reply = self._chats.submit(self._chat, body)
        # Also where the request ends first: a conversation that began goes on, one that did not is cancelled.
        reply.add_done_callback(lambda _: self._free_chats.release())
        return await asyncio.wrap_future(reply)

    def info(self, share: float) -> RunInfo:
        """What a client may want to know of the run."""
        config, context = self.record.config, self.record.config.policy.context
        return RunInfo(
            served=self.version,
            share=share,
            items=len(self.recommender.view.ids) - len(self.recommender.view.removed),
            max_history=config.data.max_history,
            chat=config.policy.knows_text,
            events=list(context.types) if context.events == "wanted" else [],
            prior=self.record.prior.kind if self.record.prior.weight else "none",
        )

    def users(self, most: int) -> list[str]:
        """The first users of the log, at most ``most``."""
        return self._log.users[:most]

    def close(self) -> None:
        """End the searches once nothing waits, and the conversations."""
        self._queue.close()
        self._chats.shutdown(wait=False)

    def _version(self, catalog: str) -> ServedVersion:
        return ServedVersion(run=self.place.name, policy=self.policy, catalog=catalog)

    def _asked(self, body: RecommendBody) -> tuple[Question, RankedAnswer | None]:
        """What a body asks of the catalogue as it is known here, and the answer of an equal question before."""
        question = read_question(body, self.recommender.view, self._log)
        return question, self._cache.get(self._key(body, question))

    def _key(self, body: RecommendBody, question: Question, catalog: str | None = None) -> Hashable:
        """All that an answer depends on: the weights, the catalogue, and the question."""
        left_out = {"user", "run", "deadline_ms", "history", "history_events", "history_times"}
        request, version = question.request, catalog or self.recommender.catalog_version
        known = (request.ids, tuple(request.history_events), tuple(request.history_times))
        asked = body.model_dump_json(exclude=left_out).encode()  # A constraint may name as many ids as there are.
        return self.policy, version, known, sha256(asked).digest()

    async def _searched(self, question: Question, deadline_ms: float) -> tuple[RankedAnswer | None, bool]:
        """The policy's answer, or None and True where it would be, or was, too late."""
        deadline = time.monotonic() + deadline_ms / 1000
        try:
            waiting = asyncio.wrap_future(self._queue.submit(question, deadline))
            return await asyncio.wait_for(waiting, deadline - time.monotonic()), False
        except (TooLateError, TimeoutError):
            return None, True

    def _search(self, questions: Sequence[Question]) -> list[RankedAnswer | Exception]:
        """One search for all questions that can be searched for; an error in the place of each other one."""
        self.newest()
        version = self.recommender.catalog_version
        with METRICS.search_s.labels(self.place.name).time():
            found = self.recommender.recommend_each([question.request for question in questions])
        METRICS.batch.labels(self.place.name).observe(sum(not isinstance(one, InputError) for one in found))
        return [one if isinstance(one, InputError) else RankedAnswer(one, version) for one in found]

    def _popular(self, question: Question) -> RankedAnswer:
        view, request = self.newest(), question.request
        history = [view.rows[item] for item in request.ids]
        hidden = history[-self.record.config.data.max_history :] if self.record.mask_seen else ()
        items = popular_items(view, self._popularity_N, history, request.k, request.constraint, hidden)
        return RankedAnswer(items, self.recommender.version_of(view))

    def _score(self, body: ScoreBody, request_id: str) -> ScoreAnswer:
        view = self.newest()
        served = self._version(self.recommender.version_of(view))
        known = read_history(body, view, self._log)
        context = {"event": body.event, "history_events": known.events, "history_times": known.times}
        logps = self.recommender.score(known.ids, body.items, view=view, **context)
        items = [
            ItemAnswer(id=item, title=view.titles[view.rows[item]], score=math.exp(logp))
            for item, logp in zip(body.items, logps, strict=True)
        ]
        return ScoreAnswer(request_id=request_id, served=served, items=items, unknown=list(known.unknown))

    def _chat(self, body: ChatBody) -> Reply:
        self.newest()
        said = body.messages if isinstance(body.messages, str) else [turn.model_dump() for turn in body.messages]
        return self.recommender.chat(
            said, max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, seed=body.seed
        )

    def _smoke_test(self) -> None:
        """Answer some users of the log, or items, alone and in one batch: the code is warm then, and known to work.

        Raises:
            InputError: an answer is empty, names items twice, or has scores that are no probabilities.
        """
        view = self.recommender.view
        bodies = [RecommendBody(user=user) for user in self.users(SMOKE_USERS)]
        bodies = bodies or [RecommendBody(history=[item]) for item in view.ids[:SMOKE_USERS]]
        questions = [read_question(body, view, self._log) for body in bodies]
        for batch in ([questions[0]], questions):
            for found in self._search(batch):
                if isinstance(found, Exception):
                    raise found
                ids = [item.id for item in found.items]
                good = all(math.isfinite(item.score) and 0 <= item.score <= 1 + 1e-4 for item in found.items)
                if not ids or len(set(ids)) < len(ids) or not good:
                    raise InputError(
                        f"the run {self.place.folder} fails its smoke test: got {found.items[:3]}…; wanted "
                        "distinct items with probabilities; evaluate the run again, or serve another one"
                    )


def _item_answer(one: Recommendation) -> ItemAnswer:
    why = None if one.why is None else asdict(one.why)
    return ItemAnswer(id=one.id, title=one.title, score=one.score, path=list(one.path), why=why)
