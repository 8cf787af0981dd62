"""One writer of an artifact in an object store, which has no locks: a lease that its writer renews.

The lease is a small file with the writer's name and a number that goes up. Who finds the lease of another watches it:
where the number stands still, the writer is gone, and the lease is taken over. No clock of another machine is read.
A writer that finds another's lease in place of its own stops before it publishes anything. Two writers that never see
each other's lease would both make the same result: a key stands for all that it depends on.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from genrec.data.object_store import ObjectStore
from genrec.errors import BeingWrittenError, InputError

LOG = logging.getLogger(__name__)

RENEW_S = 20.0
"""Seconds between two renewals."""
LOOKS = 20
"""Who waits looks so often within ``RENEW_S``: a short change, such as that of a catalogue, is soon over."""
WATCH = 3
"""A lease that was not renewed for so many times ``RENEW_S`` is taken over."""
SETTLE_S = 0.5
"""A lease that was just written is read again after so long: of two that were written at once, the later one stays."""


class WriterLease:
    """The lease of this process on ``name`` of ``store``; ``machine`` names its cache, whose lock it holds already."""

    def __init__(self, store: ObjectStore, name: str, machine: str) -> None:
        self._store, self._name, self._machine = store, f"{name}.writer.json", machine
        self._writer, self._number = uuid4().hex, 0
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._keep, daemon=True)
        self.problem: Exception | None = None

    def take(self) -> None:
        """Wait until a lease that another left behind is known to be one, and take it.

        Raises:
            BeingWrittenError: another process writes the same artifact.
        """
        found = self._read()
        if found is not None and found["machine"] != self._machine:
            self._watch(found)
        self._write()
        time.sleep(SETTLE_S)
        self.require()
        self._thread.start()

    def require(self) -> None:
        """Refuse to go on without the lease.

        Raises:
            BeingWrittenError: another process took it.
            InputError: the store could not be reached when it was to be renewed.
        """
        if self.problem is not None:
            raise self.problem
        found = self._read()
        if found is None or found["writer"] != self._writer:
            raise _taken(self._store, self._name, found)

    def release(self) -> None:
        """Remove the lease, if it is still this process's."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            found = self._read()
            if found is not None and found["writer"] == self._writer:
                self._store.remove([self._name])
        except InputError as error:
            LOG.warning("the lease could not be given back; who writes next waits a minute for it: %s", error)

    def _watch(self, found: dict[str, Any]) -> None:
        LOG.info("%s/%s: is its writer on %s alive?", self._store.url, self._name, found["host"])
        for look in range(1, 1 + WATCH * LOOKS):
            time.sleep(RENEW_S / LOOKS)
            now = self._read()
            if now is None:
                return
            if now != found and (look % LOOKS == 0 or now["writer"] != found["writer"]):
                raise _taken(self._store, self._name, now)
        LOG.warning("its writer on %s is gone: its lease is taken over", found["host"])

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self.require()
                self._write()
            except Exception as error:  # Told to the thread that works, when it asks.
                self.problem = error
                return

    def _read(self) -> dict[str, Any] | None:
        return self._store.read_json(self._name)

    def _write(self) -> None:
        self._number += 1
        content = {"writer": self._writer, "machine": self._machine, "number": self._number}
        content |= {"host": socket.gethostname(), "process": os.getpid()}
        self._store.write(self._name, json.dumps(content).encode())


def _taken(store: ObjectStore, name: str, found: dict[str, Any] | None) -> BeingWrittenError:
    who = "a process that has ended since" if found is None else f"process {found['process']} on {found['host']}"
    return BeingWrittenError(
        f"{store.url}/{name.removesuffix('.writer.json')} is written by {who}; wait until it ends, or end it, then run "
        "this again"
    )


@contextmanager
def writer_lease(store: ObjectStore, name: str, machine: str) -> Generator[WriterLease]:
    """Hold the lease on ``name`` meanwhile."""
    lease = WriterLease(store, name, machine)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()
