"""The comparison of searches: one table over seeds, whose beams are those of the comparison of losses."""

import json

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import losses, searches
from workflows import assign, prepare


def test_every_search_is_judged_over_the_seeds_and_nothing_is_done_twice(tmp_path, monkeypatch):
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    settings = ("bench.seeds=2", "learning.sft.epochs=4", "decode.width=50", "bench.variants=[cross_entropy]")
    config = tiny_config(storage, shop, "sid.quantizer=title", *settings)
    outputs = prepare.run(config), assign.run(config)
    found = searches.run(config, *outputs)
    about = json.loads((storage / "bench" / "searches" / "tiny.json").read_text())
    kinds = ["beam", "beam, prior on items", "beam, prior on nodes", "diverse beam", "stochastic beam", "samples"]
    assert list(about["rows"]) == kinds
    assert all(0 <= row["ndcg@10"]["mean"] <= row["hr@10"]["mean"] <= 1 for row in about["rows"].values())
    assert 0 < about["validity"]["all"]["mean"] <= 1 and len(about["weights"]) == 2
    plain = losses.run(config, *outputs).figures["cross_entropy.ndcg@10"]
    assert about["rows"]["beam"]["ndcg@10"]["mean"] == pytest.approx(plain)
    monkeypatch.setattr("benchmarks.searches._judge", lambda *_: pytest.fail("asked again"))
    assert searches.run(config, *outputs).table() == found.table()
