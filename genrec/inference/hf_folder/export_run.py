"""A run as a Hugging Face folder: anyone can load its model, and genrec can make a run of it again.

model.safetensors, config.json, tokenizer*      the plain model: adapters merged, SID tokens in the vocabulary
sid_space.json, sid_space.safetensors, items.json   items, prompts, hashes
catalog_logits.py                               keeps ``generate`` inside the catalogue; needs no genrec
README.md                                       the model card
genrec/                                         what the plain model cannot hold, for `genrec import`
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from genrec.data.files import require_directory_at, share, write_atomically, write_json, write_text
from genrec.data.readers import read_queries
from genrec.errors import InputError
from genrec.inference.hf_folder import catalog_logits
from genrec.inference.hf_folder.card import CardFacts, write_card
from genrec.inference.hf_folder.folder_check import FolderCheck, check_folder, require_same
from genrec.inference.hf_folder.plain_model import plain_model
from genrec.inference.hf_folder.sid_space import PlainPrompts, write_file_hashes, write_space
from genrec.inference.hf_folder.sid_tokenizer import sid_tokenizer
from genrec.inference.recommender import Recommender
from genrec.policy.chat.chat_format import load_tokenizer

LOG = logging.getLogger(__name__)

OWN = "genrec"
"""The folder of what only genrec reads."""

ITEM_ROWS = "item_rows.safetensors"
LEFT_OUT = shutil.ignore_patterns("*.html", "manifest.json", "config.yaml", "stage.log", "codes", "cf", ".*")
"""Files of an assignment that no search reads."""

CHECKED = 16
"""Histories whose answers are compared before the folder is finished."""


def export_run(recommender: Recommender, report: Path, folder: Path, licence: str = "other") -> FolderCheck:
    """Write the run that ``recommender`` serves into the new folder ``folder``.

    Args:
        report: the directory of the run's report.
        licence: of the model, for the card: a name that the hub knows, such as ``apache-2.0``.

    Returns:
        How far the plain model differs from the policy.

    Raises:
        InputError: ``folder`` holds something, or the written model does not answer as the policy.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something already; name a new folder")
    require_directory_at(folder, f"the folder {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        fresh = Path(temporary) / folder.name
        fresh.mkdir()
        check = _write(recommender, report, fresh, licence)
        if folder.is_dir():
            folder.rmdir()
        fresh.rename(folder)
    return check


def _write(recommender: Recommender, report: Path, folder: Path, licence: str) -> FolderCheck:
    run, view, policy = recommender.run, recommender.view, recommender.policy
    n_items = PlainPrompts.of(view.prompts).n_items
    plain_model(policy, n_items).cpu().save_pretrained(folder)
    own = _own_tokenizer(recommender)
    if own is not None:
        own.save_pretrained(folder / OWN / "tokenizer")
    sid_tokenizer(own, policy.sids, n_items).save_pretrained(folder)
    write_space(view.catalog, view.ids, view.prompts, folder)
    shutil.copyfile(catalog_logits.__file__, folder / "catalog_logits.py")
    _write_own(recommender, folder / OWN)
    check = check_folder(folder, policy, view, _histories(recommender))
    lost = not_exported(recommender)
    if not reads_means(recommender):
        require_same(check, policy)
    for sentence in lost:
        LOG.warning("the plain model lacks a part of the run: %s", sentence)
    items = int(len(view.ids) - len(view.removed))
    write_text(write_card(CardFacts(run, report, check, lost, licence, items)), folder / "README.md")
    share(folder)
    write_file_hashes(folder)
    return check


def reads_means(recommender: Recommender) -> bool:
    """Whether the policy adds to an item what depends on other items of the history, which no table can hold."""
    items = recommender.policy.items
    return (
        items is not None
        and items.has_input
        and (items.mean_up is not None or recommender.policy.sids.context.count > 0)
    )


def not_exported(recommender: Recommender) -> Sequence[str]:
    """What a plain language model cannot hold of the run, in sentences."""
    run, policy = recommender.run, recommender.policy
    prior = run.prior.weight > 0
    found = {
        "The decaying mean of the history's item rows (`policy.items.mean`) depends on the whole history; the plain "
        "model's item tokens have the rows of their own item alone.": policy.items is not None
        and policy.items.mean_up is not None,
        "The item head (`policy.items.head`), which ranks items beside the semantic IDs, is not part of it.": (
            policy.item_head is not None
        ),
        f"The ItemKNN prior of weight {run.prior.weight:g} is counted from the log, which is not here.": prior,
        "Event types and times of a history (`policy.context`) are written as unknown.": policy.sids.context.count > 0,
        "Items of the history are not left out of the answer, as genrec does for this run.": run.mask_seen,
    }
    lost = [sentence for sentence, is_true in found.items() if is_true]
    return lost or ["Nothing: it answers as the run does."]


def _own_tokenizer(recommender: Recommender) -> PreTrainedTokenizerBase | None:
    run = recommender.run
    if not run.config.policy.knows_text:
        return None
    return load_tokenizer(run.config.policy, run.storage / "backbones")


def _write_own(recommender: Recommender, folder: Path) -> None:
    """What `genrec import` needs beside the plain model."""
    run, policy = recommender.run, recommender.policy
    rows = {name: tensor for name, tensor in policy.snapshot(0).tensors.items() if name.startswith("items.")}
    if rows:
        write_atomically(folder / ITEM_ROWS, lambda path: save_file(rows, path))
    shutil.copytree(run.catalog, folder / "catalog", ignore=LEFT_OUT)
    if recommender.view.path != run.catalog:
        shutil.copytree(recommender.view.path, folder / "live" / recommender.view.path.name, ignore=LEFT_OUT)
    for name in ("items.parquet", "stats.json"):
        shutil.copyfile(run.data / name, folder / name)
    about = {
        "config": run.config.replace(storage="storage").model_dump(mode="json"),
        "head_weight": run.prior.head_weight,
        "mask_seen": run.mask_seen,
        "event": run.event,
    }
    write_json(about, folder / "run.json")


def _histories(recommender: Recommender) -> list[list[int]]:
    """Histories to compare on: of validation queries, else of test queries, else of items."""
    for split in ("valid", "test"):
        try:
            queries = read_queries(recommender.run.data, split, ["history"])
        except InputError:
            continue
        if queries.num_rows:
            return queries.slice(0, CHECKED)["history"].to_pylist()
    return [[row] for row in range(min(CHECKED, len(recommender.view.ids)))]
