"""embed: item texts to vectors, on Ray Data, one Parquet file per shard of items."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.content import model_content
from cluster.data import parallel_map
from cluster.resources import data_device
from cluster.stages.plan import Plan, StageRun
from genrec.config import Config
from genrec.data.readers import read_items


def plan(run: StageRun) -> Plan:
    """Embed every item of the prepared catalogue.

    The key holds the device: vectors are computed in bfloat16 on CUDA and in float32 elsewhere.
    """
    config, device = run.config, data_device(run.config)
    settings = {
        **config.embed.result_settings(),
        "device": device,
        "model": model_content(config.embed.model, config),
    }
    return Plan(settings, partial(_embed, config, run.path("prepare"), device))


def _embed(config: Config, data: Path, device: str, out: Path) -> Mapping[str, Any]:
    from genrec.data.shards import missing_shards
    from genrec.sid.embed import item_texts, make_embedder
    from genrec.sid.encoders import resolve_model
    from genrec.sid.vectors import VectorFiles

    embed, threads = config.embed, config.compute.data_threads
    resolve_model(embed.model)
    items = len(item_texts(read_items(data), embed.fields))
    make = partial(make_embedder, data, out, embed, device, threads)
    parallel_map(config, make, missing_shards([out], items, embed.shard_items), label="encode texts")
    return {"items": items, "dimensions": VectorFiles(out).width}
