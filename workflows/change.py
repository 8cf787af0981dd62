"""The live catalogue behind ``workflows.assign --insert`` and ``--remove``, under ``<storage>/live/<assignment>``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cluster.artifacts import Artifact
from genrec.config import Config
from workflows import embed

OPTIONS = {
    "insert": "Parquet file of new items: each takes the nearest free SID in the live catalogue",
    "remove": "ids of items, with commas between: masked in the live catalogue, their SIDs kept",
}


def change(config: Config, assigned: Artifact, insert: str | None, remove: str | None) -> None:
    """Remove items (ids with commas between), then insert those of a Parquet file; print what came of each."""
    from genrec.sid import catalog_updates as catalogs
    from genrec.sid.embed import make_text_encoder

    live = Path(config.storage).absolute() / "live" / assigned.key
    if remove:
        print(f"[live] {catalogs.remove(assigned.path, live, remove.split(','))}", flush=True)
    if insert:
        items = catalogs.read_new_items(Path(insert), config.data.columns)
        encode = partial(make_text_encoder, config.embed, config.compute.device, config.compute.threads)
        vectors = Path() if config.sid.quantizer == "given" else embed.run(config).path
        found = catalogs.insert(assigned.path, live, items, encode, vectors=vectors, embed=config.embed)
        print(f"[live] {found}", flush=True)
