"""Artifacts: each stage writes one directory, under a name made from everything that its result depends on.

``<storage>/<stage>/<key>/`` is complete exactly when its ``manifest.json`` exists; until then the work lives in
``<key>.partial/``, which survives ``kill -9`` and is handed to the same stage again. Same key: nothing to do.
Other settings, code or inputs: other key, other directory, never a mixture.

Where storage is a URL, the directories are those of its cache on this machine (``genrec.data.artifact_cache``): a
stage is done when the store has it, and is fetched from there, or made here and uploaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cluster.fingerprint import code_digest
from cluster.node_files import artifact_cache, files_of_stage, machine_of, working_with
from cluster.progress import STAGE, STAGE_LOG, stage_log
from cluster.resources import PeakMemory
from cluster.writer_lease import WriterLease, writer_lease
from genrec.config import Config, to_yaml
from genrec.data.artifact_cache import MANIFEST, UNFINISHED, ArtifactCache
from genrec.data.files import remove_temporary, write_json, write_text
from genrec.errors import BeingWrittenError

LOG = logging.getLogger(__name__)

PENDING = "pending.json"
"""In an unfinished directory: what its key was made from, so that a later key can say what it differs in, and
``SPENT_S``; written when a run begins to work there."""

SPENT_S = "spent_s"
"""Seconds that runs which did not finish had spent on it before."""

BOOKKEEPING = (PENDING, STAGE_LOG)
"""Files of an unfinished directory that hold nothing of its result."""

PACKAGES = ("genrec", "torch", "ray", "transformers", "peft", "pyarrow", "numpy", "faiss-cpu", "faiss-gpu")


@dataclass(frozen=True)
class Artifact:
    """The result of a finished stage: its name, its directory, the key that it is known by, and what it measured."""

    name: str
    path: Path
    key: str
    metrics: dict[str, Any]
    skipped: bool


@dataclass(frozen=True)
class Recipe:
    """What an artifact depends on, and nothing else.

    ``settings`` is JSON-able and holds what changes the result; ``code`` names the modules whose code makes it
    (``cluster.fingerprint``); ``inputs`` are the artifacts that it reads.
    """

    name: str
    settings: Mapping[str, Any]
    code: Sequence[str]
    inputs: Sequence[Artifact] = ()

    @cached_property
    def parts(self) -> dict[str, Any]:
        """What the key is made from, JSON-able."""
        return {
            "name": self.name,
            "settings": dict(self.settings),
            "code": code_digest(*self.code),
            "inputs": {artifact.name: f"{artifact.name}/{artifact.key}" for artifact in self.inputs},
        }

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of ``parts``."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()[:12]


def make_artifact(config: Config, recipe: Recipe, work: Callable[[Path], Mapping[str, Any]]) -> Artifact:
    """The artifact of ``recipe``: as it lies under ``config.storage``, or made by ``work(directory)``.

    ``work`` fills the directory (skipping what a killed run left complete) and returns metrics.

    Raises:
        InputError: another process is making the same artifact.
    """
    final = config.storage_path / recipe.name / recipe.key
    cache = artifact_cache(config)
    if (finished := finished_artifact(recipe.name, final, cache)) is not None:
        LOG.info("done already: %s", shown_path(final), extra={STAGE: recipe.name})
        return finished
    partial = final.with_name(f"{recipe.key}{UNFINISHED}")
    with _only_writer(partial), only_writer_in_store(cache, partial) as lease:
        # Another process may have finished it between the look above and the lock.
        if (finished := finished_artifact(recipe.name, final, cache)) is not None:
            return finished
        # Where its manifest is here already, it was made, and not yet uploaded or moved.
        made = final if (final / MANIFEST).is_file() else partial
        if not (made / MANIFEST).is_file():
            _make(config, recipe, work, partial)
        if cache is not None and lease is not None:
            lease.require()
            cache.upload(made, final)
        if made == partial:
            shutil.rmtree(final, ignore_errors=True)  # Without a manifest: a copy of the storage that was cut off.
            partial.rename(final)
    metrics = _manifest(final)["metrics"]
    about = (metrics["wall_s"], metrics["peak_rss_mb"])
    LOG.info("done in %.0f s, peak memory %.0f MB", *about, extra={STAGE: recipe.name})
    return Artifact(recipe.name, final, recipe.key, metrics, skipped=False)


def shown_path(path: Path) -> str:
    """``path`` relative to the working directory where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def shown_in_storage(config: Config, path: Path) -> str:
    """Where everybody finds ``path``, which lies in the storage: below the storage's URL, or as ``shown_path``."""
    if not config.is_remote:
        return shown_path(path)
    return f"{config.storage.partition('?')[0].rstrip('/')}/{path.relative_to(config.storage_path).as_posix()}"


def finished_artifact(name: str, final: Path, cache: ArtifactCache | None = None) -> Artifact | None:
    """The artifact of stage ``name`` in the directory ``final``; None unless it is complete.

    With a ``cache``, unless the store has it complete: it is fetched then.
    """
    if cache is not None and not (cache.holds(final) and cache.fetch(final)):
        return None
    if not (final / MANIFEST).is_file():
        return None
    return Artifact(name, final, final.name, _manifest(final)["metrics"], skipped=True)


def _manifest(final: Path) -> dict[str, Any]:
    return json.loads((final / MANIFEST).read_text(encoding="utf-8"))


@contextmanager
def _only_writer(partial: Path) -> Generator[None]:
    """Hold the lock of an unfinished directory; an empty one, and the lock of one that is gone, are removed."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{partial}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        # What lies here is the other's, also while it is empty.
        raise BeingWrittenError(
            f"another process is writing {partial}; wait until it ends, or end it, then run this again"
        ) from None
    try:
        partial.mkdir(exist_ok=True)  # Who held the lock until now may have removed it since the look above.
        yield
    finally:
        if partial.is_dir() and not _holds_work(partial):
            shutil.rmtree(partial)
        if not partial.is_dir():
            Path(f"{partial}.lock").unlink(missing_ok=True)  # While it is held: a moment later it may be another's.
        lock.release()


@contextmanager
def only_writer_in_store(cache: ArtifactCache | None, directory: Path) -> Generator[WriterLease | None]:
    """Hold the lease on ``directory`` in the store of ``cache``; without one, nothing.

    Raises:
        InputError: a process on another machine is writing it.
    """
    if cache is None:
        yield None
        return
    with writer_lease(cache.store, cache.name(directory), machine_of(cache.root)) as lease:
        yield lease


def _make(config: Config, recipe: Recipe, work: Callable[[Path], Mapping[str, Any]], partial: Path) -> None:
    """Run ``work`` and write the manifest, whose metrics have wall time, of killed runs too, and peak memory."""
    files = files_of_stage(config, [artifact.path for artifact in recipe.inputs], partial)
    begins = "continues" if _holds_work(partial) else "starts"
    LOG.info("%s: %s", begins, shown_path(partial.with_suffix("")), extra={STAGE: recipe.name})
    parts = recipe.parts
    _tell_of_other_code(parts, partial)
    spent_s, start = _spent_s(partial), time.perf_counter()
    write_json({**parts, SPENT_S: spent_s}, partial / PENDING)
    with stage_log(recipe.name, partial), PeakMemory() as memory, working_with(files):
        found = dict(work(partial))
    remove_temporary(partial)
    wall_s = spent_s + time.perf_counter() - start
    metrics = {**found, "wall_s": round(wall_s, 2), "peak_rss_mb": round(memory.peak_mb, 1)}
    write_text(to_yaml(config), partial / "config.yaml")
    write_json({**parts, "key": recipe.key, "metrics": metrics, "versions": _versions()}, partial / MANIFEST)
    (partial / PENDING).unlink()


def _spent_s(partial: Path) -> float:
    """Seconds that earlier runs spent here: each from its ``PENDING`` to the last file that it wrote."""
    pending = partial / PENDING
    if not pending.is_file():
        return 0.0
    before: float = json.loads(pending.read_text(encoding="utf-8")).get(SPENT_S, 0.0)
    last = max(file.stat().st_mtime for file in partial.rglob("*") if file.is_file())
    return before + last - pending.stat().st_mtime


def _holds_work(partial: Path) -> bool:
    return any(file.name not in BOOKKEEPING for file in partial.iterdir())


def _tell_of_other_code(parts: Mapping[str, Any], partial: Path) -> None:
    """Say which unfinished directories differ from this one in code alone: they stay as they are, and are not used."""
    for other in sorted(partial.parent.glob("*.partial")):
        pending = other / PENDING
        if other == partial or not pending.is_file():
            continue
        theirs = json.loads(pending.read_text(encoding="utf-8"))
        theirs.pop(SPENT_S, None)
        if {**theirs, "code": ""} == {**parts, "code": ""}:
            about = f"{shown_path(other)} was begun by other code; it is kept, and not used"
            LOG.warning(about, extra={STAGE: parts["name"]})


@cache
def _versions() -> dict[str, str]:
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}
