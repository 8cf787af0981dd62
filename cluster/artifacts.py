"""Stages: each noun of a run is written once, under a name made from everything that went into it.

``storage/<name>/<key>/`` is complete exactly when its ``manifest.json`` exists; until then the work lives in
``<key>.partial/``, which survives ``kill -9`` and is handed to the same stage again. Same key: nothing to do.
Other config, code version or input: other key, other directory, never a mixture.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cluster.resources import PeakMemory
from genrec.config import Config, to_yaml
from genrec.data.files import write_json, write_text
from genrec.errors import InputError

_told: set[Path] = set()
"""Outputs that this process has spoken of already: every later verb asks for them again."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its name, its directory, the key that it is known by, and what it measured."""

    name: str
    path: Path
    key: str
    metrics: dict[str, Any]
    skipped: bool


def run_stage(
    config: Config,
    name: str,
    *,
    version: int,
    settings: Mapping[str, Any],
    inputs: Sequence[Artifact],
    work: Callable[[Path], Mapping[str, Any]],
) -> Artifact:
    """Do ``work(directory)`` unless its output exists already.

    Args:
        version: raised by hand whenever the stage's code gives another result from the same settings.
        settings: the JSON-able part of the config that the result depends on (not: threads, actors).
        inputs: the stages that it reads.
        work: fills the directory (skipping what a killed run left complete) and returns metrics.

    Raises:
        InputError: another process is at work on the same output.
    """
    key = _key(name, version, settings, [stage.key for stage in inputs])
    final = Path(config.storage).absolute() / name / key
    if (final / "manifest.json").is_file():
        manifest = json.loads((final / "manifest.json").read_text(encoding="utf-8"))
        if final not in _told:
            print(f"[{name}] done already: {_shown(final)}", flush=True)
        _told.add(final)
        return Artifact(name, final, key, manifest["metrics"], skipped=True)
    partial = final.with_name(f"{key}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{partial}.lock", timeout=0):
            if (final / "manifest.json").is_file():
                partial.rmdir()
                return run_stage(config, name, version=version, settings=settings, inputs=inputs, work=work)
            print(f"[{name}] {'continues' if any(partial.iterdir()) else 'starts'}: {_shown(final)}", flush=True)
            metrics = _measured(work, partial)
            write_text(to_yaml(config), partial / "config.yaml")
            write_json(_manifest(name, key, version, settings, inputs, metrics), partial / "manifest.json")
            partial.rename(final)
    except Timeout:
        raise InputError(f"another process is writing {partial}; wait for it, or end it, then run this again") from None
    except InputError:
        if partial.is_dir() and not any(partial.iterdir()):
            partial.rmdir()
        raise
    finally:
        if not partial.is_dir():
            Path(f"{partial}.lock").unlink(missing_ok=True)
    print(f"[{name}] done in {metrics['wall_s']:.0f} s, peak memory {metrics['peak_rss_mb']:.0f} MB", flush=True)
    _told.add(final)
    return Artifact(name, final, key, metrics, skipped=False)


def _key(name: str, version: int, settings: Mapping[str, Any], inputs: Sequence[str]) -> str:
    text = json.dumps([name, version, settings, list(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _measured(work: Callable[[Path], Mapping[str, Any]], directory: Path) -> dict[str, Any]:
    start = time.perf_counter()
    with PeakMemory() as memory:
        metrics = dict(work(directory))
    return {**metrics, "wall_s": round(time.perf_counter() - start, 2), "peak_rss_mb": round(memory.peak_mb, 1)}


def _manifest(
    name: str, key: str, version: int, settings: Mapping[str, Any], inputs: Sequence[Artifact], metrics: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "key": key,
        "code_version": version,
        "settings": dict(settings),
        "inputs": {stage.name: f"{stage.name}/{stage.key}" for stage in inputs},
        "metrics": metrics,
        "versions": _versions(),
    }


@cache
def _versions() -> dict[str, str]:
    packages = ("genrec", "torch", "ray", "transformers", "peft", "pyarrow", "numpy", "faiss-cpu", "faiss-gpu")
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {"python": platform.python_version()} | {p: installed[p] for p in packages if p in installed}


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
