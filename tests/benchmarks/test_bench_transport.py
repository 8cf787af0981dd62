"""The benchmark of how weights travel, at a small size."""

import pytest

from benchmarks import transport
from genrec.config import load_config


@pytest.mark.benchmark
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_weights_arrive_on_every_way_and_each_is_timed() -> None:
    found = transport.measure(load_config([], ["compute.threads=1"]), (4,), rounds=2)
    assert set(found.figures) == {f"{way}_4_mb_ms" for way in ("store", "pickled", "broadcast")}
    assert all(value > 0 for value in [*found.figures.values(), *found.ratios.values()])
    assert set(found.ratios) == {f"{way}_over_store_4_mb" for way in ("pickled", "broadcast")}
