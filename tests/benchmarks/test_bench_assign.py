"""The benchmark of assignment at a size of seconds."""

from pathlib import Path

import pytest

from benchmarks import assign
from genrec.config import load_config

pytestmark = pytest.mark.benchmark


def test_every_size_is_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    found = assign.measure(load_config([], [f"storage={tmp_path}"]), (2000, 4000), 16, 16)
    assert {"assign_vs_faiss", "cost_1m_over_10k", "trie_bytes_per_item", "fit_vs_faiss"} <= set(found.ratios)
    assert all(value >= 0 for value in (*found.figures.values(), *found.ratios.values()))
    assert found.figures["catalog_load_s_4k"] > 0 and not (tmp_path / "bench" / "assign").exists()
