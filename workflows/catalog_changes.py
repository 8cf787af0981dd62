"""Changes of a catalogue from the command line: insert and remove, on the assignment that the config describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster import pipeline
from cluster.artifacts import Artifact
from cluster.newest_run import warn_if_not_served
from cluster.store_folders import change_of_catalog
from genrec.config import Config
from genrec.sid import catalog_updates
from genrec.sid.embed import make_text_encoder


def insert(config: Config, file: Path) -> str:
    """Give each item of a Parquet file a semantic ID; returns what was done, as a sentence.

    Raises:
        InputError: a file without usable items, or items that cannot be inserted.
    """
    items = catalog_updates.read_new_items(file, config.data.columns)
    made = pipeline.run(config, "assign")
    assigned, vectors = made["assign"], made["embed"].path if "embed" in made else Path()
    compute = config.compute
    device = "cpu" if compute.data_actors else compute.device  # With actors, cards are Ray's to give.
    encode = partial(make_text_encoder, config.embed, device, compute.threads)
    changes = changes_of(config, assigned)
    with change_of_catalog(config, changes):
        done = catalog_updates.insert(assigned.path, changes, items, encode, vectors=vectors, embed=config.embed)
    warn_if_not_served(config, assigned)
    return f"inserted {done['inserted']} items, returned {done['returned']}; {_state(done)}"


def remove(config: Config, ids: Sequence[str]) -> str:
    """Hide items from every search; returns what was done, as a sentence.

    Raises:
        InputError: an id that the catalogue lacks, or no item left.
    """
    assigned = pipeline.run(config, "assign")["assign"]
    changes = changes_of(config, assigned)
    with change_of_catalog(config, changes):
        done = catalog_updates.remove(assigned.path, changes, ids)
    warn_if_not_served(config, assigned)
    return f"removed {done['removed']} items; {_state(done)}"


def changes_of(config: Config, assigned: Artifact) -> Path:
    """The directory of the changes of an assignment's catalogue."""
    return config.storage_path / "live" / assigned.key


def _state(done: Mapping[str, Any]) -> str:
    return f"the catalogue holds {done['items']} semantic IDs: {done['catalog']}"
