"""The comparison of searches: one table over seeds, whose beams are those of the comparison of losses."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import losses, searches
from cluster import pipeline

pytestmark = pytest.mark.benchmark


def test_every_search_is_measured_over_the_seeds_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    settings = ("bench.seeds=2", "learning.sft.epochs=4", "decode.width=50", "bench.variants=[cross_entropy]")
    config = tiny_config(storage, shop, "sid.quantizer=title", *settings)
    inputs = pipeline.run(config, *searches.NEEDS)
    found = searches.run(config, inputs)
    about = json.loads((storage / "bench" / "searches" / "tiny.json").read_text())
    kinds = ["beam", "beam, prior on items", "beam, prior on nodes", "diverse beam", "stochastic beam", "samples"]
    assert list(about["searches"]) == [*kinds, "beam, item head on nodes"]
    assert all(0 <= one["ndcg@10"]["mean"] <= one["hr@10"]["mean"] <= 1 for one in about["searches"].values())
    assert 0 < about["validity"]["all"]["mean"] <= 1 and len(about["weights"]) == 2
    plain = losses.run(config, inputs).figures["cross_entropy.ndcg@10"]
    assert about["searches"]["beam, item head on nodes"]["ndcg@10"]["mean"] == pytest.approx(plain)
    monkeypatch.setattr(searches, "measure_searches", lambda *_: pytest.fail("measured again"))
    assert searches.run(config, inputs).table() == found.table()
