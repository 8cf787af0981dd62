"""The comparison of supervised losses: variants and seeds are chosen, kept one by one, and scored by popularity too."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import compare, losses
from cluster import pipeline
from cluster.stages import sft

pytestmark = pytest.mark.benchmark


def test_variants_and_seeds_are_trained_once_and_compared_seed_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants, seeds = "bench.variants=[cross_entropy,focal_rare]", "bench.seeds=2"
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    settings = ("sid.quantizer=title", variants, seeds, "learning.sft.epochs=2")
    config = tiny_config(storage, shop, *settings)
    inputs = pipeline.run(config, *losses.NEEDS)
    found = losses.run(config, inputs)
    directory = storage / "bench" / "losses"
    assert len([*directory.glob("sft/*/manifest.json")]) == len([*directory.glob("scores/*/manifest.json")]) == 4
    about = json.loads((directory / "tiny.json").read_text())
    assert list(about) == ["cross_entropy", "focal_rare"]
    focal, plain = about["focal_rare"], about["cross_entropy"]
    assert set(focal["seeds"]) == {"0", "1"}
    difference = focal["ndcg@10"]["mean"] - plain["ndcg@10"]["mean"]
    assert focal["ndcg@10_difference"]["mean"] == pytest.approx(difference)
    assert {"hr@10/head", "hr@10/tail"} <= set(focal)
    assert "| focal_rare |" in found.table() and "HR@10 by target" in found.table()
    assert (directory / "tiny.md").read_text() == found.table()
    monkeypatch.setattr(sft, "sft_loop", None)
    monkeypatch.setattr(compare, "predict", None)
    assert losses.run(config, inputs).table() == found.table()
