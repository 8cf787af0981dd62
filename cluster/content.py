"""Content in stage keys: the same bytes in another folder are the same run, changed bytes under one path are not."""

from __future__ import annotations

from collections.abc import Collection

from genrec.config import Config
from genrec.data.content import HashCache
from genrec.data.model_files import PACKAGED, model_identity, require_model


def hash_cache(config: Config) -> HashCache:
    """Digests of files that were read before, under ``<storage>/cache``."""
    return HashCache(config.storage_path / "cache" / "content.json")


def require_models(config: Config, stages: Collection[str]) -> None:
    """Check the directories of the models that ``stages`` read, before any of them starts.

    Raises:
        InputError: a file of a model is missing, empty, cut off, a Git LFS pointer or a pickle.
    """
    if "embed" in stages and config.embed.model not in PACKAGED:
        require_model(config.embed.model, "embed.model")
    if "sft" in stages and config.policy.kind == "pretrained" and config.policy.path not in PACKAGED:
        require_model(config.policy.path, "policy.path")


def model_content(model: str, config: Config) -> str:
    """What stands for ``model`` in a key: a local directory's digest, a packaged model's version, else its name."""
    return model_identity(model, hash_cache(config))
