"""The service of one process: the runs that it serves, which user gets which, reloads, and changes of the catalogue.

What several replicas must agree on lies in files that every node sees, so that a replica that was killed comes back to
it: the catalogue's numbered changes, which every search looks for first, and the runs of the last reload
(``RunsFile``). In an object store each replica looks for both every two seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from cluster.serve.catalog_writer import CatalogWriter
from cluster.serve.messages import About, CatalogChange, NewItem, ReloadAnswer, ServedVersion, UserBody
from cluster.serve.runs_file import RunsFile, Split
from cluster.serve.served_run import ServedRun
from cluster.serve.service_metrics import METRICS
from genrec.config import Serve
from genrec.errors import InputError
from genrec.inference.run_place import RunPlace

LOG = logging.getLogger(__name__)

Made = TypeVar("Made")

WATCH_S = 0.5
"""Seconds between two looks at the runs of the last reload."""
STORE_WATCH_S = 2.0
"""The same where they are in an object store, and between two looks at the changes of a catalogue there."""

SHOWN_CATEGORIES = 200


class HttpService:
    """One or two runs in service.

    Args:
        places: the runs; two with a share of the users each.
        split: the share of the second run.
        settings: ``serve`` of the config.
        shared: the runs of the last reload, which other replicas see too.

    Raises:
        InputError: a run cannot be served.
    """

    def __init__(self, places: Sequence[RunPlace], split: Split, settings: Serve, shared: RunsFile) -> None:
        self.settings, self.split, self._shared = settings, split, shared
        self._generation, kept = shared.read()
        self.runs = [ServedRun(place, settings) for place in kept or places]
        self.closing = False
        self._reloading = asyncio.Lock()
        self._writer = CatalogWriter()
        self._begun = set[asyncio.Task[Any]]()

    @property
    def versions(self) -> list[ServedVersion]:
        """What is served."""
        return [run.version for run in self.runs]

    def about(self, changes: bool) -> About:
        """What is served, the limits, and the most frequent categories; ``changes``: whether an API key is set."""
        shares = [1 - self.split.second, self.split.second] if len(self.runs) > 1 else [1.0]
        return About(
            runs=[run.info(share) for run, share in zip(self.runs, shares, strict=True)],
            max_k=self.settings.max_k,
            max_history=self.settings.max_history,
            changes=changes,
            categories=self.runs[0].recommender.view.attributes.frequent_categories(SHOWN_CATEGORIES),
        )

    def run_of(self, body: UserBody) -> ServedRun:
        """The run that answers: the one that the body names, or the user's own.

        A request without a user counts as its oldest item's, so a growing history stays with its run.

        Raises:
            InputError: no served run has the name.
        """
        if body.run is not None:
            return self.named(body.run)
        who = body.user if body.user is not None else "".join(body.history[:1])
        return self.runs[self.split.of(who) if len(self.runs) > 1 else 0]

    def named(self, name: str | None) -> ServedRun:
        """The served run of that name, or the first one without a name.

        Raises:
            InputError: none has it.
        """
        if name is None:
            return self.runs[0]
        for run in self.runs:
            if run.place.name == name:
                return run
        raise InputError(f"run: got {name!r}; served are {[run.place.name for run in self.runs]}")

    @asynccontextmanager
    async def using(self, run: ServedRun) -> AsyncGenerator[ServedRun]:
        """Keep a run open while a request uses it, also where a reload takes it out of service."""
        run.in_use += 1
        try:
            yield run
        finally:
            run.in_use -= 1

    async def reload(self, name: str | None, replaces: str | None) -> ReloadAnswer:
        """Serve another run, or the newest one of the served name, from the next request on; others end undisturbed.

        The new run is loaded, warmed up and tested beside the old one, which stays if anything fails.

        Raises:
            InputError: there is no such run, it cannot be read, it fails its smoke test, or another reload is going on.
        """
        if self._reloading.locked():
            raise InputError("another reload is going on; wait until it ends")
        async with self._reloading:
            await self._serve(*await self._told())
            old = self.named(replaces)
            place = await asyncio.to_thread(old.place.neighbour, name or old.place.name)
            if place == old.place:
                return ReloadAnswer(changed=False, served=self.versions)
            if place.name in {run.place.name for run in self.runs if run is not old}:
                raise InputError(f"run: {place.name} is served already, as the other of the two runs")
            places = [place if run is old else run.place for run in self.runs]
            fresh = self.runs
            try:
                fresh = await self._loaded(places)
                # Before anything is served: what cannot be told to the other replicas is not done.
                generation = await asyncio.to_thread(self._shared.write, places, self._generation)
            except InputError:
                _close_all(set(fresh) - set(self.runs))
                METRICS.changes.labels("reload", "rolled back").inc()
                raise
            self._generation = generation
            await self._take_over(fresh)
            METRICS.changes.labels("reload", "done").inc()
            return ReloadAnswer(changed=True, served=self.versions)

    async def follow(self) -> None:
        """Take over what other replicas were told: reloads, and changes of a catalogue.

        Runs until it is cancelled: after an error, whatever it is, it tries again.
        """
        pause_s = STORE_WATCH_S if self._shared.is_remote else WATCH_S
        again = 0.0
        while True:
            await asyncio.sleep(pause_s)
            # Catalogues first, each by itself: a run that cannot be loaded must not keep removed items in the answers.
            followed = [await self._tried(asyncio.to_thread(run.follow_changes)) for run in self.runs]
            if time.monotonic() >= again and not await self._tried(self._follow_reloads()):
                again = time.monotonic() + 10 * pause_s
            if not all(followed):
                await asyncio.sleep(10 * pause_s)

    async def _tried(self, work: Awaitable[None]) -> bool:
        """Whether ``work`` was done; who does not follow any more would serve what is old for ever."""
        try:
            await work
        except Exception as error:
            about = "what other replicas changed could not be taken over: %s"
            LOG.error(about, error, exc_info=not isinstance(error, InputError))
            return False
        return True

    def begin(self, work: Coroutine[Any, Any, Made]) -> asyncio.Task[Made]:
        """Start ``work``, which ends by itself."""
        task = asyncio.create_task(work)
        self._begun.add(task)  # The loop itself keeps tasks weakly.
        task.add_done_callback(self._begun.discard)
        return task

    async def _follow_reloads(self) -> None:
        """Serve what the last reload of any replica told; the lock is for the change alone, not for the look."""
        generation, places = await self._told()
        if generation > self._generation and not self._reloading.locked():
            async with self._reloading:
                await self._serve(generation, places)

    async def _told(self) -> tuple[int, list[RunPlace]]:
        """The number of reloads so far, and the runs that the last one told."""
        read = self._shared.read
        return await asyncio.to_thread(read) if self._shared.is_remote else read()

    async def _serve(self, generation: int, places: Sequence[RunPlace]) -> None:
        if generation > self._generation:
            await self._take_over(await self._loaded(places))
            self._generation = generation

    async def insert(self, items: Sequence[NewItem]) -> CatalogChange:
        """Insert items into the catalogue of every served run; searches that begin later find them.

        Raises:
            InputError: as ``catalog_updates.insert``.
        """
        return await self._change("insert", self.runs, lambda run: self._writer.insert(run.record, items))

    async def having(self, item: str) -> list[ServedRun]:
        """The served runs whose newest catalogue has the item, hidden or not."""
        await self._refresh()
        return [run for run in self.runs if item in run.recommender.view.rows]

    async def remove(self, item: str, runs: Sequence[ServedRun]) -> CatalogChange:
        """Hide an item of ``runs``, which are ``having`` it; no answer to a later request has it.

        Raises:
            InputError: it is the last item of a catalogue.
        """
        return await self._change("remove", runs, lambda run: self._writer.remove(run.record, [item]))

    async def close(self) -> None:
        """Refuse to be ready, and end the searches once nothing waits."""
        self.closing = True
        for run in self.runs:
            run.close()

    async def _loaded(self, places: Sequence[RunPlace]) -> list[ServedRun]:
        """The runs of ``places``; those that are served already as they are."""
        old, found = {run.place: run for run in self.runs}, list[ServedRun]()
        try:
            for place in places:
                found.append(old.get(place) or await asyncio.to_thread(ServedRun, place, self.settings))
        except Exception:  # The thread of one that was loaded already would keep it in memory.
            _close_all(set(found) - set(self.runs))
            raise
        return found

    async def _take_over(self, fresh: list[ServedRun]) -> None:
        """Serve ``fresh`` from now on."""
        old, self.runs = self.runs, fresh
        for run in old:
            if run not in fresh:
                await _close_unused(run)

    async def _change(
        self, name: str, runs: Sequence[ServedRun], change: Callable[[ServedRun], dict[str, int]]
    ) -> CatalogChange:
        """Make a change to each distinct catalogue of ``runs``, and serve it; tells the largest counts of any.

        Raises:
            InputError: a catalogue that it was not made to; the others have it, and are named.
        """
        distinct = {str(run.record.catalog): run for run in runs}.values()
        done, refused = dict[str, dict[str, int]](), dict[str, InputError]()
        for run in distinct:
            try:
                done[run.place.name] = await asyncio.to_thread(change, run)
            except InputError as error:
                refused[run.place.name] = error
        await self._refresh()
        if refused:
            raise _half_made(list(done), refused)
        METRICS.changes.labels(name, "done").inc()
        counts = {key: max(one.get(key, 0) for one in done.values()) for key in ("inserted", "returned", "removed")}
        return CatalogChange(**counts, served=self.versions)

    async def _refresh(self) -> None:
        """Serve the newest catalogue of each run."""
        for run in self.runs:
            await asyncio.to_thread(run.newest)


def _half_made(done: Sequence[str], refused: Mapping[str, InputError]) -> InputError:
    """The error of a change that some catalogues, or all, did not take."""
    (name, first), *_ = refused.items()
    if not done:
        return first
    return InputError(f"the catalogue of {', '.join(done)} has the change now, and that of {name} has not: {first}")


def _close_all(runs: Iterable[ServedRun]) -> None:
    for run in runs:
        run.close()


async def _close_unused(run: ServedRun) -> None:
    while run.in_use:
        await asyncio.sleep(0.01)
    run.close()
