"""The benchmark of large logs at a size of seconds."""

from pathlib import Path

import pytest

from benchmarks import scale
from genrec.config import load_config

pytestmark = pytest.mark.benchmark


def test_every_place_is_measured_at_every_size_and_nothing_is_left_behind(tmp_path: Path) -> None:
    found = scale.measure(load_config([], [f"storage={tmp_path}"]), (2000, 8000))
    names = {f"{name}_{figure}" for name in scale.PLACES for figure in ("us_per_event_2e+03", "peak_mb_8e+03")}
    assert names <= set(found.figures) and all(value >= 0 for value in found.figures.values())
    assert {f"{name}_time_per_event_last_over_first" for name in scale.PLACES} == set(found.ratios)
    assert not list((tmp_path / "bench").rglob("*.parquet"))
