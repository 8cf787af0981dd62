"""``sid_space.json``, ``sid_space.safetensors`` and ``items.json``: items, prompts and hashes of an exported folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from genrec.data.content import content_digest
from genrec.data.files import write_atomically, write_json
from genrec.errors import InputError
from genrec.inference.hf_folder.sid_tokenizer import block_names
from genrec.policy.prompts import ITEM_TOKEN, Prompts
from genrec.sid.catalog import Catalog

SPACE, TENSORS, ITEMS = "sid_space.json", "sid_space.safetensors", "items.json"
FORMAT = 1


@dataclass(frozen=True)
class PlainPrompts:
    """How a history is written for the plain model: ``prefix``, the tokens (N, W) of its items, ``suffix``.

    The event types and times of a history are unknown in it. ``n_items``: items with a token of their own, from
    ``first_item`` on.
    """

    prefix: list[int]
    prompt_NW: Tensor
    suffix: list[int]
    first_item: int
    n_items: int

    @classmethod
    def of(cls, prompts: Prompts) -> PlainPrompts:
        """Those of the prompts of a policy."""
        n_items = len(prompts.tokens_NT) if prompts.form != "codes" else 0
        first_item = prompts.sids.base + prompts.sids.count
        tokens_1NW = prompts.items_in_context(torch.arange(len(prompts.tokens_NT))[None], None, None)
        prompt_NW = torch.where(tokens_1NW >= ITEM_TOKEN, tokens_1NW - ITEM_TOKEN + first_item, tokens_1NW)[0]
        prefix = prompts.prefix_P.tolist()
        whole = prompts.encode([[0]])[0][0].tolist()
        return cls(prefix, prompt_NW, whole[len(prefix) + prompt_NW.shape[1] :], first_item, n_items)


def write_space(catalog: Catalog, ids: Sequence[str], prompts: Prompts, folder: Path) -> None:
    """Write the three files."""
    plain, sids = PlainPrompts.of(prompts), prompts.sids
    present_N = torch.ones(len(catalog), dtype=torch.bool)
    present_N[list(catalog.removed)] = False
    tensors = {
        "tokens_NL": sids.tokens(catalog.codes_NL).int(),
        "prompt_NW": plain.prompt_NW.int().contiguous(),
        "present_N": present_N,
    }
    write_atomically(folder / TENSORS, lambda path: save_file(tensors, path))
    write_json({"ids": list(ids)}, folder / ITEMS)
    about = {
        "format": FORMAT,
        "level_sizes": list(sids.level_sizes),
        "first_sid_token": sids.base + sids.offsets[0],
        "first_item_token": plain.first_item if plain.n_items else None,
        "prefix": plain.prefix,
        "suffix": plain.suffix,
        "pad": prompts.pad,
        "max_history": prompts.max_items,
        "hashes": hashes_of(catalog, prompts),
    }
    write_json(about, folder / SPACE)


def hashes_of(catalog: Catalog, prompts: Prompts) -> dict[str, str]:
    """SHA-256 of the catalogue's semantic IDs, of what is written around a history, and of the SID tokens."""
    sids, plain = prompts.sids, PlainPrompts.of(prompts)
    prompt = [plain.prefix, plain.suffix, prompts.form, prompts.max_items]
    tokens = [sids.base, block_names(sids), plain.n_items]
    return {"catalog": catalog.digest, "prompt": _sha256(prompt), "tokens": _sha256(tokens)}


def write_file_hashes(folder: Path) -> None:
    """Add to ``sid_space.json`` the SHA-256 of every other file of the folder."""
    about = read_space(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    about["files"] = {name: content_digest(folder / name) for name in names if name != SPACE}
    write_json(about, folder / SPACE)


def read_space(folder: Path) -> dict[str, Any]:
    """The content of ``sid_space.json``.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """
    try:
        about: dict[str, Any] = json.loads((folder / SPACE).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, wanted {FORMAT}")
        return about
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no exported policy that can be read ({error}); make one with `genrec export`"
        ) from None


def check_files(folder: Path, about: Mapping[str, Any]) -> None:
    """Compare the files of a folder with the hashes in ``sid_space.json``; a card that was edited is no fault.

    Raises:
        InputError: a file is missing, or its content is another one.
    """
    wanted: dict[str, str] = about.get("files", {})
    for name, digest in wanted.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{folder / SPACE} names the file {name!r}, which lies outside of the folder")
        if not path.is_file():
            raise InputError(f"{folder}: the file {name} is missing; copy the folder again, whole")
        if name != "README.md" and content_digest(path) != digest:
            raise InputError(f"{folder}: the file {name} was changed or damaged; copy the folder again, whole")


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
