"""Does a run whose processes are killed at random moments end with the results of an undisturbed one?

``full`` runs once undisturbed on Ray, then in rounds, each in an empty storage: a process of a random kind gets SIGKILL
at a random moment, again and again, and the command is started again whenever it ended with another exit code than 0.
Then every file of both is compared. ``bench.minutes`` is the time for rounds: after it nothing is killed any more, and
the round at work ends. Everything lies under ``<storage>/bench/chaos``, which each call begins anew.

The next kill waits for a sign of life: a file of the storage that changed since the last one. So a command that makes
no progress for ``bench.silence_s`` after a kill hangs because of that kill; it is ended, and counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness import Bench
from benchmarks.victims import NODE, HostedNodes, by_kind, draw, session_members, sweep
from cluster.artifacts import MANIFEST, Artifact
from cluster.pipeline import stages_needed
from cluster.progress import STAGE_LOG
from genrec.config import Config, to_yaml
from genrec.data.files import write_text
from genrec.errors import InputError
from genrec.seeds import generator_of

if TYPE_CHECKING:
    import numpy as np

LOG = logging.getLogger(__name__)

DIRECTORY = "chaos"
NEEDS = ()
POLL_S = 0.25
BEGIN = "──── the command is started\n"
TRIES = 3
"""Ends in a row without a kill: a busy machine is at times too slow for Ray to start."""

VOLATILE = re.compile(r"(^|_)(s|mb|seconds)$")
"""JSON keys of seconds and MiB, which no two runs share: ``wall_s``, ``peak_rss_mb``, ``seconds``."""

LEFT_OUT = (STAGE_LOG, "report.html", "tensorboard", "cache")
"""Files and folders that are not compared: logs, times of raw files, and the page that shows metrics.json with seconds.

Neither are locks and the hidden files of a write that was cut off, which nobody reads.
"""


@dataclass
class Chaos(Bench):
    """The figures, with a table of the kills by kind of process and stage."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def table(self) -> str:
        """The figures, and a row of kills for each kind of process."""
        stages = list(dict.fromkeys(stage for _, stage in self.kills))
        rows = [f"{'SIGKILL to':<16}" + "".join(f"{stage:>10}" for stage in stages)]
        for kind in sorted({kind for kind, _ in self.kills}):
            rows.append(f"{kind:<16}" + "".join(f"{self.kills[kind, stage]:>10}" for stage in stages))
        return "\n".join([super().table(), *rows])


@dataclass
class Tally:
    """What happened in all rounds: ``kills`` by kind of process and stage, and what is counted or told of the rest."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    restarts: int = 0
    alone: int = 0
    tracebacks: int = 0
    hangs: list[str] = field(default_factory=list[str])
    orphans: list[str] = field(default_factory=list[str])


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Chaos:
    """Run undisturbed, then disturbed until the minutes are over, and compare.

    Raises:
        InputError: the command fails although nothing of it was killed.
    """
    root = config.storage_path / "bench" / DIRECTORY
    shutil.rmtree(root, ignore_errors=True)
    config = on_ray(config)
    tally, differ, compared = Tally(), list[str](), 0
    nodes = HostedNodes(config.compute.object_store_mb) if config.bench.nodes == 2 else nullcontext(None)
    with nodes as hosted:
        start = time.monotonic()
        Attempts(config, root / "calm", hosted, Tally()).run()
        calm_s = time.monotonic() - start
        LOG.info("undisturbed: %.0f s", calm_s)
        expected = digests(root / "calm")
        until = time.monotonic() + 60 * config.bench.minutes
        number = 0
        while number == 0 or time.monotonic() < until:
            number += 1
            rng = generator_of("chaos", config.seed, number)
            gaps = moments(rng, 2 * calm_s / config.bench.kills)
            Attempts(config, root / f"round-{number}", hosted, tally, Killer(rng, gaps, until)).run()
            found = digests(root / f"round-{number}")
            changed = different(expected, found)
            LOG.info("round %d: %d of %d files differ", number, len(changed), len(expected))
            differ += [f"round-{number}/{name}" for name in changed]
            compared += len(expected)
    return report(number, tally, compared, differ)


def on_ray(config: Config) -> Config:
    """The config with every stage on Ray: at least one learner, rollout actor and data actor."""
    compute = config.compute
    least = {name: max(1, getattr(compute, name)) for name in ("workers", "rollout_actors", "data_actors")}
    return config.replace({"compute": compute.replace({**least, "in_process_below_mb": 0, "address": None})})


def command(file: Path) -> list[str]:
    """The command line of ``full`` with the config in ``file``."""
    return [sys.executable, "-m", "workflows.cli", "full", str(file)]


def moments(rng: np.random.Generator, longest_s: float) -> Callable[[], float]:
    """Seconds until the next kill, drawn uniformly between 0 and ``longest_s`` at each call."""
    return lambda: float(rng.uniform(0.0, longest_s))


@dataclass
class Killer:
    """Who is killed, and when: ``gaps`` gives the seconds to the next kill, none falls after ``until``."""

    rng: np.random.Generator
    gaps: Callable[[], float]
    until: float


class Attempts:
    """The command ``full`` in one storage, started again until it ends with exit code 0; with a ``killer``, disturbed.

    Its output goes to ``<storage>.log``.
    """

    def __init__(
        self, config: Config, storage: Path, hosted: HostedNodes | None, tally: Tally, killer: Killer | None = None
    ) -> None:
        self._config = config.replace({"storage": str(storage)})
        self._storage, self._hosted, self.tally, self._killer = storage, hosted, tally, killer
        self._file, self._log = storage.with_suffix(".yaml"), storage.with_suffix(".log")
        self._stages = [stage.name for stage in stages_needed(config, "evaluate")]
        self._last_kill, self._killed, self._at_kill = "nothing", False, changes(storage)

    def run(self) -> None:
        """Start the command until it has ended well.

        Raises:
            InputError: it failed ``TRIES`` times in a row although nothing of it was killed.
        """
        write_text(to_yaml(self._config), self._file)
        alone = 0
        while code := self._attempt():
            text = self._log.read_text(encoding="utf-8", errors="replace")
            alone = 0 if self._killed else alone + 1
            if alone == TRIES:
                tail = "\n".join(text.splitlines()[-5:])
                raise InputError(
                    f"`full` ended {TRIES} times although nothing was killed, at last with exit code {code}: {tail}\n"
                    f"wanted: a config whose `genrec full` ends well on Ray; all of its output is in {self._log}"
                )
            self.tally.restarts += 1
            self.tally.alone += alone > 0
            self.tally.tracebacks += "Traceback (most recent call last)" in text.rpartition(BEGIN)[2]

    def _attempt(self) -> int:
        """Run the command once, until nothing of it is left; returns its exit code."""
        self._killed, environment = False, {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        code_path = str(Path(__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (code_path, os.environ.get("PYTHONPATH"))))
        if self._hosted is not None:
            environment["RAY_ADDRESS"] = self._hosted.address
        with self._log.open("a", encoding="utf-8") as log:
            log.write(BEGIN)
            log.flush()
            process = subprocess.Popen(
                command(self._file),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        try:
            self._watch(process)
        finally:
            process.kill()
            code = process.wait()
            orphans = sweep(process.pid)
        self.tally.orphans += orphans
        if self._killer is not None:
            LOG.info("the command ended with exit code %d; left: %s", code, [line[:40].strip() for line in orphans])
        return code

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Until the command has ended: kill when it is time, and end it when nothing changed for too long."""
        killer, files, alive_at = self._killer, None, time.monotonic()
        next_at = time.monotonic() + killer.gaps() if killer else float("inf")
        while process.poll() is None:
            time.sleep(POLL_S)
            now, seen = time.monotonic(), changes(self._storage)
            if seen != files:
                files, alive_at = seen, now
            if now - alive_at > self._config.bench.silence_s:
                self._end_hanging(process)
                return
            if killer and next_at <= now < killer.until and files != self._at_kill:
                next_at = now + killer.gaps()
                if self._kill(process.pid, killer):
                    self._at_kill = files

    def _kill(self, session: int, killer: Killer) -> bool:
        """Kill one process, if there is any of the kind that was drawn."""
        kinds, stage = by_kind(session_members(session)), self._stage()
        if self._hosted is not None:
            kinds |= self._hosted.victims()
        if (drawn := draw(kinds, killer.rng)) is None:
            return False
        kind, process = drawn
        with suppress(psutil.NoSuchProcess):
            if self._hosted is not None and kind == NODE:
                self._hosted.replace_second()
            else:
                process.kill()
            self._killed, self._last_kill = True, f"{kind} in {stage}"
            self.tally.kills[kind, stage] += 1
            LOG.info("killed: %s", self._last_kill)
            return True
        return False

    def _end_hanging(self, process: subprocess.Popen[bytes]) -> None:
        about = f"{self._stage()}, after {self._last_kill} was killed"
        LOG.warning("hangs in %s", about)
        if self._killer is None or not self._killed:
            process.kill()
            raise InputError(
                f"`full` wrote nothing for {self._config.bench.silence_s:g} s in {self._stage()} although nothing was "
                f"killed; see {self._log}, or raise bench.silence_s"
            )
        self.tally.hangs.append(about)

    def _stage(self) -> str:
        """The stage at work: the first without a complete artifact."""
        open_ = (name for name in self._stages if not any((self._storage / name).glob(f"*/{MANIFEST}")))
        return next(open_, "end")


def changes(storage: Path) -> frozenset[tuple[str, int]]:
    """The files of ``storage`` with their times: another set means that something was written."""
    found: set[tuple[str, int]] = set()
    for directory, _, names in os.walk(storage):
        for name in names:
            with suppress(OSError):
                path = Path(directory, name)
                found.add((str(path), path.stat().st_mtime_ns))
    return frozenset(found)


def digests(storage: Path) -> dict[str, str]:
    """The SHA-256 of every file of results in ``storage``, by its relative path.

    In JSON the ``VOLATILE`` keys are dropped, and in text the path of the storage is replaced. ``LEFT_OUT`` says what
    is no result.
    """
    found: dict[str, str] = {}
    for path in sorted(storage.rglob("*")):
        name = path.relative_to(storage)
        hidden = any(part.startswith(".") or part in LEFT_OUT for part in name.parts)
        if path.is_file() and not hidden and path.suffix != ".lock":
            found[str(name)] = hashlib.sha256(_content(path, storage)).hexdigest()
    return found


def different(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The names of the files that are not the same on both sides, or on one side alone."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _content(path: Path, storage: Path) -> bytes:
    content = path.read_bytes().replace(str(storage).encode(), b"<storage>")
    if path.suffix == ".json":
        content = json.dumps(_lasting(json.loads(content)), sort_keys=True).encode()
    return content


def _lasting(value: Any) -> Any:
    """JSON without the volatile keys."""
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if not VOLATILE.search(str(key))}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def report(rounds: int, tally: Tally, compared: int, differ: list[str]) -> Chaos:
    """The result; files that differ and hangs are its failure."""
    kinds = Counter[str]()
    for (kind, _), number in tally.kills.items():
        kinds[kind] += number
    figures = {"rounds": rounds, "kills": kinds.total()} | {f"kills/{kind}": kinds[kind] for kind in sorted(kinds)}
    figures |= {"restarts": tally.restarts, "restarts/nothing_killed": tally.alone}
    figures |= {"tracebacks": tally.tracebacks, "hangs": len(tally.hangs)}
    figures |= {"orphans": len(tally.orphans), "files_compared": compared, "files_differ": len(differ)}
    faults = [f"{name} differs from the undisturbed run's" for name in differ]
    faults += [f"the command hung in {about}" for about in tally.hangs]
    return Chaos(
        DIRECTORY, {name: float(value) for name, value in figures.items()}, failure="\n".join(faults), kills=tally.kills
    )
