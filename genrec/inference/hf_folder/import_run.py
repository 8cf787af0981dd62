"""A run from an exported folder: its hashes are checked, and its parts laid out as those of any finished run."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from genrec.config import Config
from genrec.data.content import content_digest
from genrec.data.files import fill_once, require_directory_at, write_json, write_parquet
from genrec.data.model_files import LOADING
from genrec.data.tables import QUERIES, QUERY_CONTEXT, SEQUENCES, SPLITS
from genrec.errors import InputError
from genrec.inference.hf_folder.export_run import ITEM_ROWS, OWN
from genrec.inference.hf_folder.sid_space import SPACE, check_files, hashes_of, read_space
from genrec.inference.run_record import RECORD
from genrec.policy.backbone import build, save
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog


def import_run(folder: Path, storage: Path, name: str = "") -> Path:
    """Make a run of an exported folder under ``storage``; returns the directory that `genrec.load` takes.

    The policy is the exported one, item rows and head included, in full and without adapters; the run has no users, and
    no ItemKNN prior, since both need the log. The same folder again changes nothing.

    Args:
        name: of the run; without, the one that it was exported from.

    Raises:
        InputError: no exported folder, a file that was changed or is missing, or parts that do not belong together; a
            storage that is a file, or a name that no run can have.
    """
    require_directory_at(storage, f"storage {storage}")
    about = read_space(folder)
    check_files(folder, about)
    key = content_digest(folder / SPACE)[:12]
    told = _read_run(folder)
    config = Config.model_validate({**told["config"], "storage": str(storage)})
    if name:
        config = config.replace(name=name)
    place = storage / "imported" / key
    parts = {"catalog": place / f"catalog-{key}", "data": place / "data", "policy": place / "policy"}
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if config.policy.kind != "scratch":
            parts["backbone"] = place / "backbone"
            config = _with_backbone(folder, config, parts["backbone"], about)
        _copy_catalog(folder / OWN, parts["catalog"], storage / "live" / parts["catalog"].name)
        fill_once(parts["data"], partial(_write_data, folder / OWN))
        _write_policy(folder, config, parts["policy"], Catalog.load(parts["catalog"]), about)
    run = storage / "runs" / f"{config.name}-{key}"
    record = {
        "parts": {part: path.relative_to(storage).as_posix() for part, path in parts.items()},
        "prior": {"weight": 0.0, "head_weight": told["head_weight"]},
        "mask_seen": told["mask_seen"],
        "event": told["event"],
        "config": config.model_dump(mode="json"),
    }
    run.mkdir(parents=True, exist_ok=True)
    write_json(record, run / RECORD)
    return run


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((folder / OWN / "run.json").read_text(encoding="utf-8"))
        return {name: told[name] for name in ("config", "head_weight", "mask_seen", "event")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: {OWN}/run.json cannot be read ({error}); export the run again") from None


def _copy_catalog(own: Path, assigned: Path, live: Path) -> None:
    """The catalogue as it was assigned, and its state after later changes.

    A file that is there is left alone: who serves the run has mapped it into memory.
    """
    fill_once(assigned, partial(shutil.copytree, own / "catalog"))
    if (own / "live").is_dir():
        fill_once(live, partial(shutil.copytree, own / "live"))


def _write_data(own: Path, data: Path) -> None:
    """A data directory with the items, and a log without users."""
    data.mkdir(parents=True, exist_ok=True)
    for name in ("items.parquet", "stats.json"):
        shutil.copyfile(own / name, data / name)
    write_parquet(SEQUENCES.empty_table(), data / "sequences" / "part-00000.parquet")
    empty = pa.schema([*QUERIES, *QUERY_CONTEXT]).empty_table()
    for split in SPLITS:
        write_parquet(empty, data / "queries" / split / "part-00000.parquet")


def _with_backbone(folder: Path, config: Config, backbone: Path, about: dict[str, Any]) -> Config:
    """The config of a policy whose weights are all in the folder; a pretrained one gets a model without SID tokens."""

    def write(fresh: Path) -> None:
        model = _plain(folder)
        style_markers = 2 if config.policy.sid_tokens == "numbered" else 0
        model.resize_token_embeddings(about["first_sid_token"] - style_markers, mean_resizing=False)
        model.save_pretrained(fresh)
        shutil.copytree(folder / OWN / "tokenizer", fresh, dirs_exist_ok=True)

    fill_once(backbone, write)
    changes = {"policy.path": str(backbone), "policy.finetuning": "full", "policy.weights": "pretrained"}
    return config.replace(changes)


def _write_policy(folder: Path, config: Config, out: Path, catalog: Catalog, about: dict[str, Any]) -> None:
    """The policy of the folder's weights, after a look at whether its tokens and prompts are those of the export."""
    policy, prompts = build(config.policy, catalog, max_history=config.data.max_history, seed=config.seed)
    live = folder / OWN / "live"
    newest, _, _ = catalog_updates.read(catalog_updates.current(folder / OWN / "catalog", live))
    newest.require_digest(catalog.digest, "the exported policy")
    wanted, found = about["hashes"], hashes_of(newest, prompts.for_catalog(newest))
    if wrong := [part for part, digest in found.items() if digest != wanted.get(part)]:
        raise InputError(f"{folder}: the {wrong[0]} is not the one that the policy was exported with; export it again")
    tensors = _tensors(folder, policy.sids.base + policy.sids.count)
    policy.adopt({name: tensors[name] for name in policy.trainable() if name in tensors})
    save(policy, dict(policy.snapshot(0).tensors), catalog, {"imported": about["hashes"]}, out)


def _tensors(folder: Path, vocabulary: int) -> dict[str, Tensor]:
    """All weights by the names that a policy gives them: those of the plain model, and the rows of items."""
    model = _plain(folder)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    tensors = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    if (folder / OWN / ITEM_ROWS).is_file():
        try:
            tensors |= load_file(folder / OWN / ITEM_ROWS)
        except SafetensorError as error:
            raise InputError(f"{folder}: {OWN}/{ITEM_ROWS} cannot be read ({error}); copy it again") from None
    return tensors


def _plain(folder: Path) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **LOADING)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: the model cannot be loaded ({error}); copy the folder again, whole") from None
