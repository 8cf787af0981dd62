"""One check of the project on one NVIDIA GPU, without a network: ``python -m benchmarks.gpu_check BUNDLE OUT``.

The machine needs Python 3.12, torch, transformers and peft; everything else comes in the bundle that
``make gpu-bundle`` writes. Each part runs in a process of its own under a time limit, so that one that fails costs none
of the others. Parts that show quality share the card; those that show exactness or speed have it alone. A table is
printed; ``OUT/gpu_check.json`` holds the figures, ``OUT/<part>.log`` what each part said.

This file imports the standard library alone: it runs before the bundle is unpacked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

SITE, ARTIFACTS = "site", "artifacts"
"""Folders of the unpacked bundle: Python packages, and finished stages of a run on Industrial."""

GRACE_S = 5.0
"""Seconds between the polite and the final end of a part that is over its limit."""


@dataclass(frozen=True)
class CheckPart:
    """One part of the check: what it shows, and the seconds that it may take."""

    about: str
    limit_s: float
    beside: bool = False
    """Whether it runs at the same time as its neighbours in the list that may: its seconds say little then."""


PARTS: Mapping[str, CheckPart] = {
    "exactness": CheckPart("decoding, scoring and gradients on the GPU against the CPU; bfloat16 against float32", 90),
    "language_model": CheckPart("SmolLM2-135M, all weights: SFT, GRPO, test beside ItemKNN", 450, beside=True),
    "lora": CheckPart("the same with adapters of rank 64", 450, beside=True),
    "random_weights": CheckPart("the same from random weights: what pretraining is worth", 450, beside=True),
    "pipeline": CheckPart(
        "the stages of the workflow, a learner and a rollout actor on one card, on Ray if it came", 450, beside=True
    ),
    "shapes": CheckPart("Qwen3-0.6B and 1.7B shapes: tokens/s, prompts/s, peak memory of SFT and GRPO", 150),
    "decoding": CheckPart("shape of Qwen3-1.7B, 1,000 tokens, beams of 50 and 256, against generate", 150),
    "nccl": CheckPart("training under DDP and NCCL compared with training alone", 60),
}
"""The parts in the order of their value; ``benchmarks.gpu_parts`` has a function for each."""


def main() -> int:
    """Unpack, run the parts, print a table; 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_check", description="The project on one GPU.")
    parser.add_argument("bundle", type=Path, help="folder with the archives of make gpu-bundle")
    parser.add_argument("out", type=Path, help="folder for the figures and the logs")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, in the order in which they run")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for all parts together")
    parser.add_argument("--rehearse", action="store_true", help="every part on the CPU, as small as it goes")
    parser.add_argument("--unpacked", type=Path, default=Path("/tmp/genrec-gpu-check"), help="where to unpack to")
    options = parser.parse_args()
    end = time.monotonic() + options.limit
    options.out.mkdir(parents=True, exist_ok=True)
    for archive in sorted(options.bundle.glob("*.tar*")):
        with tarfile.open(archive) as packed:
            packed.extractall(options.unpacked, filter="data")
    found: dict[str, dict[str, Any]] = {}
    names = options.parts.split(",")
    run = partial(run_part, unpacked=options.unpacked, out=options.out, end=end, rehearse=options.rehearse)
    for beside, group in itertools.groupby(names, lambda name: PARTS[name].beside):
        with ThreadPoolExecutor(len(names) if beside else 1) as threads:
            running = {threads.submit(run, name): name for name in group}
            for done in as_completed(running):
                error = done.exception()
                found[running[done]] = done.result() if error is None else {"failed": repr(error)}
                (options.out / "gpu_check.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
                sys.stdout.write(table(running[done], found[running[done]]))
                sys.stdout.flush()
    return int(any("failed" in figures for figures in found.values()))


def run_part(name: str, unpacked: Path, out: Path, end: float, *, rehearse: bool) -> dict[str, Any]:
    """The figures of part ``name``; under ``failed`` what went wrong, if something did.

    Args:
        end: on the monotonic clock, when every part has to have ended.
    """
    paths = [str(Path.cwd()), str(unpacked / SITE), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    result = out / f"{name}.json"
    result.unlink(missing_ok=True)
    call = [sys.executable, "-m", "benchmarks.gpu_parts", name, str(unpacked / ARTIFACTS), str(result)]
    log = out / f"{name}.log"
    started = time.monotonic()
    limit_s = max(0.0, min(PARTS[name].limit_s, end - started - GRACE_S))
    with log.open("w", encoding="utf-8") as text:
        process = subprocess.Popen([*call, *(["rehearse"] if rehearse else [])], stdout=text, stderr=text, env=env)
        failed = _wait(process, limit_s)
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    figures["seconds"] = round(time.monotonic() - started, 1)
    if failed:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        figures["failed"] = failed + "; the end of its log:\n" + "\n".join(said[-12:])
    return figures


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """Wait for a part, and end it when it is over its limit; what went wrong, or nothing."""
    try:
        code = process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return f"stopped after {limit_s:.0f} s"
    return f"ended with exit code {code}" if code else ""


def table(name: str, figures: Mapping[str, Any]) -> str:
    """The figures of one part as text."""
    lines = [f"── {name}: {PARTS[name].about}"]
    for label, value in figures.items():
        shown = f"{value:.5g}" if isinstance(value, float) else str(value)
        lines.append(f"   {label:<52}{shown if label == 'failed' else shortened(shown)}")
    return "\n".join(lines) + "\n"


def shortened(text: str, width: int = 400) -> str:
    """``text`` on one screen: the rest is in ``gpu_check.json``."""
    return text if len(text) <= width else f"{text[:width]}… ({len(text):,} characters)"


if __name__ == "__main__":
    sys.exit(main())
