"""Build, save and load a policy: the one entry to ``scratch`` and ``pretrained``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import PolicyConfig
from genrec.data.files import write_atomically, write_json
from genrec.errors import InputError
from genrec.policy.context import ContextTokens
from genrec.policy.model import Policy
from genrec.policy.pretrained import build_pretrained
from genrec.policy.prompts import DENSE_WINDOW, Prompts
from genrec.policy.scratch import BOS, PAD, build_scratch
from genrec.sid.catalog import Catalog

__all__ = ["BOS", "DENSE_WINDOW", "PAD", "build", "load", "save"]


def build(
    settings: PolicyConfig,
    catalog: Catalog,
    *,
    max_history: int,
    seed: int,
    cache: Path | None = None,
    titles: Sequence[str] = (),
) -> tuple[Policy, Prompts]:
    """A new policy for ``catalog`` with its prompts, initialised from ``seed``; the global random state is untouched.

    Args:
        max_history: the most items of a history that a prompt holds.
        cache: a directory where a packaged backbone is kept in a form that loads fast (GGUF takes half a minute).
        titles: of the items, the start of the SID embeddings under ``policy.sid_init=text``. Without them they start
            as under ``mean``, which is enough for a policy that adopts trained embeddings anyway.

    Raises:
        InputError: the settings do not fit together, or the pretrained model cannot be found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.kind == "scratch":
            return build_scratch(settings, catalog, max_history)
        return build_pretrained(settings, catalog, max_history, cache, titles)


def save(
    policy: Policy, tensors: dict[str, Tensor], catalog: Catalog, about: Mapping[str, object], directory: Path
) -> None:
    """Write ``policy.safetensors`` (``tensors``, the trainable part) and then ``policy.json`` (``about`` and the
    digests of the catalogue and of the pretrained weights): a directory with the second file is complete.
    """
    write_atomically(directory / "policy.safetensors", lambda path: save_file(tensors, path))
    digests = {"catalog": catalog.digest, "base": policy.base}
    context = {"context": _as_json(policy.sids.context)} if policy.sids.context.count else {}
    tokens = {"sid_base": policy.sids.base, "sid_tokens": policy.sids.style}
    write_json({**about, **digests, **context, **tokens}, directory / "policy.json")


def load(
    settings: PolicyConfig,
    catalog: Catalog,
    directory: Path,
    *,
    max_history: int,
    seed: int,
    cache: Path | None = None,
) -> tuple[Policy, Prompts]:
    """The policy that ``save`` wrote into ``directory``, in evaluation mode; the arguments are those of ``build``.

    Raises:
        InputError: as ``build``; no readable policy is there; or the catalogue or the pretrained model is another one
            than at the training.
    """
    policy, prompts = build(settings, catalog, max_history=max_history, seed=seed, cache=cache)
    tensors, about = _read(directory, catalog)
    trained_with = about.get("base")
    if trained_with not in (None, policy.base):
        raise InputError(
            f"the policy in {directory} was trained with the model {trained_with[:12]} at policy.path="
            f"{settings.path!r}, got {str(policy.base)[:12]} there now: its weights, tokenizer or template were "
            "changed. Put the old files back, or train again"
        )
    _require_same_rows(policy, tensors, directory)
    _require_same_names(policy, str(about.get("sid_tokens", "letters")), directory)
    _require_same_context(policy, about.get("context"), directory)
    policy.adopt(tensors)
    return policy.eval(), prompts


def _require_same_rows(policy: Policy, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Refuse a policy whose rows of items are others than the config asks for, such as one of before there were any."""
    kept, wanted = ({name for name in names if name.startswith("items.")} for names in (tensors, policy.trainable()))
    if kept != wanted:
        raise InputError(
            f"the policy in {directory} has the rows of items {sorted(kept)}, policy.items asks for {sorted(wanted)}; "
            "set policy.items as it was at the training (input=none head=false: no rows), or train again"
        )


def _require_same_names(policy: Policy, style: str, directory: Path) -> None:
    """Refuse a policy that was trained on SIDs in another style: it would have other tokens around them."""
    if style != policy.sids.style:
        raise InputError(
            f"the policy in {directory} was trained with policy.sid_tokens={style}, got policy.sid_tokens="
            f"{policy.sids.style}; set it as it was at the training, or train again"
        )


def _require_same_context(policy: Policy, trained_with: object, directory: Path) -> None:
    """Refuse a policy whose tokens of event types and gaps mean something else than the config says."""
    wanted = _as_json(policy.sids.context) if policy.sids.context.count else None
    if trained_with != wanted:
        raise InputError(
            f"the policy in {directory} was trained with the context {trained_with}, policy.context asks for {wanted}; "
            "set policy.context as it was at the training, or train again"
        )


def _as_json(context: ContextTokens) -> dict[str, Any]:
    return {"events": context.events, "gaps": context.gaps, "types": list(context.types)}


def _read(directory: Path, catalog: Catalog) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trainable part that ``save`` wrote for ``catalog``, by parameter name, and what ``policy.json`` says of it.

    Raises:
        InputError: the files are missing or damaged, or belong to another catalogue.
    """
    try:
        about = json.loads((directory / "policy.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "policy.safetensors")
        trained_on = str(about["catalog"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"no readable policy in {directory}: {error}; train one with `genrec sft`") from error
    catalog.require_digest(trained_on, f"the policy in {directory}")
    return tensors, about
