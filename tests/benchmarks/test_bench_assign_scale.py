"""The benchmark of ``assign`` on catalogues that grow, at a size of seconds."""

from pathlib import Path

import pytest

from benchmarks import assign_scale
from genrec.config import load_config

pytestmark = pytest.mark.benchmark


def test_every_part_is_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    found = assign_scale.measure(load_config([], [f"storage={tmp_path}"]), (2000, 4000), 16)
    names = {f"{name}_us_per_item_{size}" for name in (*assign_scale.PLACES, "assign") for size in (2000, 4000)}
    assert names <= set(found.figures) and all(value >= 0 for value in found.figures.values())
    assert set(found.ratios) == {
        f"{name}_time_per_item_last_over_first" for name in ("encode", "finish", "assign", "factors")
    }
    assert not (tmp_path / "bench" / "assign-scale").exists()
