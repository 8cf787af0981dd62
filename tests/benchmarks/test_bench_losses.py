"""The comparison of supervised losses: rows and seeds chosen, kept one by one, and judged by popularity too."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import losses
from benchmarks.compare import RunScore, compare
from genrec.config import Sft
from genrec.errors import InputError
from workflows import assign, prepare


def test_rows_and_seeds_are_trained_once_and_compared_seed_by_seed(tmp_path, monkeypatch):
    rows, seeds = "bench.variants=[cross_entropy,focal_rare]", "bench.seeds=2"
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    config = tiny_config(storage, shop, "sid.quantizer=title", rows, seeds, "learning.sft.epochs=2")
    outputs = prepare.run(config), assign.run(config)
    found = losses.run(config, *outputs)
    place = storage / "bench" / "losses"
    assert len([*place.glob("sft/*/manifest.json")]) == len([*place.glob("scores/*/manifest.json")]) == 4
    about = json.loads((place / "tiny.json").read_text())
    assert list(about) == ["cross_entropy", "focal_rare"]
    ours, theirs = about["focal_rare"], about["cross_entropy"]
    assert set(ours["seeds"]) == {"0", "1"}
    difference = ours["ndcg@10"]["mean"] - theirs["ndcg@10"]["mean"]
    assert ours["ndcg@10_difference"]["mean"] == pytest.approx(difference)
    assert {"hr@10/head", "hr@10/tail"} <= set(ours)
    assert "| focal_rare |" in found.table() and "HR@10 by target" in found.table()
    assert (place / "tiny.md").read_text() == found.table()
    monkeypatch.setattr("cluster.train.sft_loop", None)
    monkeypatch.setattr("benchmarks.compare.predict", None)
    assert losses.run(config, *outputs).table() == found.table()
    with pytest.raises(InputError, match=r"names \['focus'\].*focal_item"):
        losses.run(tiny_config(Path(storage), shop, "bench.variants=[focus]"), *outputs)


def test_every_loss_has_a_row_and_each_differs_from_plain_cross_entropy():
    rows = losses.sections(Sft(loss={"weights": ["hard"], "focal_gamma": 3.0}))  # type: ignore[arg-type]
    assert rows["cross_entropy"].loss.weights == () and rows["cross_entropy"].softmax == "trie"
    assert {"focal", "focal_item", "hard", "hard_item", "rare", "focal_rare", "level", "vocabulary"} < set(rows)
    assert rows["focal_item"].loss.unit == "item" and rows["focal"].loss.focal_gamma == 3.0
    assert len({row.model_dump_json() for row in rows.values()}) == len(rows)


def test_only_seeds_that_every_row_has_are_compared():
    values = {"a": {0: 0.1, 1: 0.9}, "b": {0: 0.3}}
    found = compare(
        {row: {s: RunScore({"ndcg@10": x}, Path(), Path()) for s, x in r.items()} for row, r in values.items()}
    )
    assert found["b"]["ndcg@10_difference"]["mean"] == pytest.approx(0.2)
    assert found["a"]["ndcg@10"]["mean"] == 0.1
