"""Untrained recommenders in well under a second: what they answer is arbitrary, but fixed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.pipeline import made
from support.synthetic import chain_shop, random_catalog, tiny_config

import genrec
from genrec.inference.recommender import Recommender
from genrec.policy.backbone import build, save

PRIORS = {
    "alone": {"weight": 0.0},
    "mixed": {"kind": "itemknn", "weight": 0.5, "power": 1.0, "settings": {}},
    "steered": {"kind": "itemknn_nodes", "weight": 0.5, "settings": {}},
}


def serve(
    directory: Path, *overrides: str, prices: bool = True, priors: Mapping[str, Mapping[str, Any]] = PRIORS
) -> dict[str, Recommender]:
    """Recommenders of a chain shop with 24 items (every third without a price), one for each of ``priors``."""
    storage, shop = directory / "storage", chain_shop(directory / "shop")
    if prices:
        items = pq.read_table(shop / "items.parquet")
        price = pa.array([None if row % 3 == 2 else float(row) for row in range(items.num_rows)], pa.float64())
        pq.write_table(items.append_column("price", price), shop / "items.parquet")
    config = tiny_config(storage, shop, *overrides)
    data, catalog = made(config, "prepare"), random_catalog(24, (8, 8, 8))
    catalog.save(storage / "assign" / "made")
    pq.write_table(pq.read_table(data.path / "items.parquet").select(["id"]), storage / "assign/made/sids.parquet")
    policy, _ = build(config.policy, catalog, max_history=config.data.max_history, seed=1)
    save(policy, policy.snapshot(0).tensors, catalog, {}, storage / "sft" / "made")
    parts = {"data": f"prepare/{data.key}", "catalog": "assign/made", "policy": "sft/made"}
    for name, prior in priors.items():
        about = {"parts": parts, "prior": prior, "mask_seen": name == "mixed", "config": config.model_dump(mode="json")}
        run = storage / "runs" / name
        run.mkdir(parents=True)
        (run / "recommender.json").write_text(json.dumps(about))
    return {name: genrec.load(storage / "runs" / name) for name in priors}
