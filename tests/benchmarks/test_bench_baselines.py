"""The benchmark of baselines: rows beside published figures, one that fails, and a second call that makes nothing."""

import json

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import registry
from genrec.errors import InputError


def test_rows_stand_beside_what_was_published_and_are_made_once(tmp_path):
    shop, names = chain_shop(tmp_path / "shop"), "bench.variants=[repeat_last,text]"
    config = tiny_config(tmp_path / "st", shop, names, "baselines.counted=2").replace(name="beauty")
    table = registry.run("baselines", config).table()
    assert "- repeat_last failed: no train target repeats" in table and "| text |" in table
    page = tmp_path / "st/bench/baselines/beauty"
    assert page.with_suffix(".md").read_text() == table
    assert json.loads(page.with_suffix(".json").read_text())["text"]["test"]["hr@10"] > 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "st/baseline").glob("*/manifest.json")}
    assert len(made) == 1 and registry.run("baselines", config).table() == table
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_a_figure_that_was_published_is_shown():
    from benchmarks.tables import baselines_page

    row = {
        "test": {"hr@10": 0.1, "ndcg@10": 0.05, "hr@50": 0.2},
        "settings": {"valid_ndcg@10": 0.06, "best_epoch": 7, "seconds": 12.0},
        "ms_per_query": 0.5,
    }
    assert "| sasrec | 0.1000 | 0.0500 | 0.0859 / 0.0503 | 0.2000 | 0.0600 | 7 | 12 | 0.50 |" in baselines_page(
        {"sasrec": row}, {"sasrec": (0.0859, 0.0503)}
    )


def test_a_counted_baseline_is_no_row(tmp_path):
    config = tiny_config(tmp_path / "st", chain_shop(tmp_path / "shop"), "bench.variants=[itemknn]")
    with pytest.raises(InputError, match="itemknn"):
        registry.run("baselines", config)
