"""Vectors to semantic IDs without collisions, the catalogue with its trie, and the health page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.fitting import fit
from cluster.shards import map_shards
from cluster.stages import Output, run_stage
from genrec.config import Config
from workflows import embed, prepare
from workflows.change import OPTIONS, change
from workflows.door import main

VERSION = 1


def run(config: Config, insert: str | None = None, remove: str | None = None) -> Output:
    """Give every item its SID, then change the live catalogue where that is asked for."""
    output = _assign(config)
    change(config, output, insert, remove)
    return output


def _assign(config: Config) -> Output:
    """Give every item of the prepared catalogue its SID: by a quantizer, or as published (``sid.quantizer=given``)."""
    data = prepare.run(config)
    if config.sid.quantizer == "given":
        settings = config.sid.model_dump(mode="json", include={"quantizer", "column", "levels", "codes", "collisions"})
        work = partial(_take, config, data.path)
        return run_stage(config, "assign", version=VERSION, settings=settings, inputs=[data], work=work)
    vectors = embed.run(config)
    settings = {**config.sid.stage_settings(), "seed": config.seed}
    work = partial(_quantize, config, data.path, vectors.path)
    return run_stage(config, "assign", version=VERSION, settings=settings, inputs=[data, vectors], work=work)


def _take(config: Config, data: Path, out: Path) -> Mapping[str, Any]:
    from genrec.sid.build import finish_published

    return finish_published(data, out, config.sid)


def _quantize(config: Config, data: Path, vectors: Path, out: Path) -> Mapping[str, Any]:
    from genrec.sid.build import finish_quantized, make_assigner
    from genrec.sid.vectors import missing_shards

    items = fit(config, data, vectors, out)
    sid, compute = config.sid, config.compute
    make = partial(make_assigner, vectors, out, sid, compute.data_threads)
    map_shards(config, make, missing_shards(out / "codes", items, sid.shard_items), label="assign")
    return finish_quantized(data, vectors, out, sid, compute.threads)


if __name__ == "__main__":
    main(run, __doc__, options=OPTIONS)
