"""Item text to vectors, on Ray Data: one Parquet file per shard of items."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact, run_stage
from cluster.data import parallel_map
from genrec.config import Config
from genrec.data.tables import read_items
from workflows import prepare
from workflows.door import main

VERSION = 1


def run(config: Config) -> Artifact:
    """Embed every item of the prepared catalogue."""
    data = prepare.run(config)
    settings = config.embed.model_dump(mode="json")
    work = partial(_embed, config, data.path)
    return run_stage(config, "embed", version=VERSION, settings=settings, inputs=[data], work=work)


def _embed(config: Config, data: Path, out: Path) -> Mapping[str, Any]:
    from genrec.sid.embed import item_texts, make_embedder
    from genrec.sid.encoders import resolve_model
    from genrec.sid.vectors import VectorFiles, missing_shards

    settings, compute = config.embed, config.compute
    resolve_model(settings.model)
    items = len(item_texts(read_items(data), settings.fields))
    threads = compute.data_threads
    make = partial(make_embedder, data, out, settings, compute.device, threads)
    parallel_map(config, make, missing_shards(out, items, settings.shard_items), label="embed")
    return {"items": items, "dimensions": VectorFiles(out).width}


if __name__ == "__main__":
    main(run, __doc__)
