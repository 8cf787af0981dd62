"""The benchmark of baselines: rows beside published figures, one that fails, and a second call that makes nothing."""

import json
from typing import get_args

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import registry
from benchmarks.baselines import PUBLISHED
from cluster import baseline_rows
from cluster.baseline_rows import make_row
from genrec.config import BaselineName
from genrec.errors import InputError


def test_rows_stand_beside_what_was_published_and_are_made_once(tmp_path):
    shop, names = chain_shop(tmp_path / "shop"), "bench.variants=[repeat_last,text]"
    config = tiny_config(tmp_path / "st", shop, names, "baselines.counted=2").replace(name="beauty")
    table = registry.run("baselines", config).table()
    assert "- repeat_last failed: no train target repeats" in table and "| text |" in table
    page = tmp_path / "st/bench/baselines/beauty"
    assert page.with_suffix(".md").read_text() == table
    assert json.loads(page.with_suffix(".json").read_text())["text"]["0"]["test"]["hr@10"] > 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "st/baseline").glob("*/manifest.json")}
    assert len(made) == 1 and registry.run("baselines", config).table() == table
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_a_row_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def make(config, name, inputs):
        if name == "star":
            raise RuntimeError("CUDA out of memory\nand more")
        return make_row(config, name, inputs)

    monkeypatch.setattr(baseline_rows, "make_row", make)
    names = ("bench.variants=[star,text]", "baselines.counted=2")
    table = registry.run("baselines", tiny_config(tmp_path / "st", chain_shop(tmp_path / "shop"), *names)).table()
    assert "- star failed: CUDA out of memory" in table and "and more" not in table and "| text |" in table


def test_a_figure_that_was_published_is_shown():
    from benchmarks.baselines import Published, baselines_page

    row = {
        "test": {"hr@10": 0.1, "ndcg@10": 0.05, "hr@50": 0.2},
        "settings": {"valid_ndcg@10": 0.06, "best_epoch": 7, "seconds": 12.0},
        "ms_per_query": 0.5,
    }
    page = baselines_page(
        {"sasrec": {"0": row}}, {"sasrec": Published(0.0859, 0.0503, "a rerun"), "hstu": Published(1, 1, "")}
    )
    assert "| sasrec | 0.1000 | 0.0500 | 0.0859 / 0.0503 | 0.2000 | 0.0600 | 7 | 12 | 0.50 |" in page
    assert "- sasrec, published: a rerun" in page and "hstu" not in page
    other = {**row, "test": {"hr@10": 0.2, "ndcg@10": 0.05, "hr@50": 0.2}}
    three = baselines_page({"als": {"0": row, "1": row, "2": other, "3": {"failed": "no room"}}}, {})
    assert "| als | 0.1333 [-0.0101, 0.2768] | 0.0500 [0.0500, 0.0500] |" in three and "- als failed: no room" in three


def test_a_row_that_is_drawn_is_made_from_every_seed(tmp_path):
    names = ("bench.variants=[text,sasrec]", "bench.seeds=2", "baselines.sasrec.epochs=1", "baselines.counted=2")
    config = tiny_config(tmp_path / "st", chain_shop(tmp_path / "shop"), *names)
    found = registry.run("baselines", config)
    rows = json.loads((tmp_path / "st/bench/baselines/tiny.json").read_text())
    assert {name: list(seeds) for name, seeds in rows.items()} == {"text": ["0"], "sasrec": ["0", "1"]}
    scores = [one["test"]["ndcg@10"] for one in rows["sasrec"].values()]
    assert found.figures["sasrec.ndcg@10"] == pytest.approx(sum(scores) / 2)


def test_each_published_figure_is_of_a_row_and_says_where_it_is_from():
    for figures in PUBLISHED.values():
        for name, figure in figures.items():
            assert name in get_args(BaselineName) and 0 < figure.ndcg < figure.hr < 1 and figure.source


def test_a_counted_baseline_is_no_row(tmp_path):
    config = tiny_config(tmp_path / "st", chain_shop(tmp_path / "shop"), "bench.variants=[itemknn]")
    with pytest.raises(InputError, match="itemknn"):
        registry.run("baselines", config)
