"""Held-out items that are inserted into the catalogue without training."""

from pathlib import Path

import pytest

from benchmarks import insert
from cluster.artifacts import Artifact
from cluster.stages import sft
from genrec.config import Config
from genrec.errors import InputError
from genrec.sid.catalog import Catalog

pytestmark = pytest.mark.benchmark

Circle = tuple[Config, dict[str, Artifact]]


def test_an_inserted_item_is_found_without_training_and_the_others_stay(
    circle: Circle, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs = circle
    found = insert.run(config, inputs)
    assert found.figures["held_hr@10_absent"] == found.figures["held_hr@50_absent"] == 0
    assert found.figures["held_hr@50_nearest"] == 1 and found.figures["held_hr@10_nearest"] > 0
    assert found.figures["others_hr@10_absent"] > 0.5
    assert abs(found.figures["others_hr@10_change"]) < 0.3
    assert found.figures["held_queries"] + found.figures["other_queries"] == 60
    directory = Path(config.storage) / "bench" / "insert" / "insert"
    catalogs = [Catalog.load(path.parent) for path in directory.glob("*/**/catalog.json")]
    assert len(catalogs) == 2 and {len(catalog) for catalog in catalogs} == {24}
    monkeypatch.setattr(sft, "sft_loop", None)
    assert insert.run(config, inputs).figures == found.figures


def test_published_sids_and_too_many_items_are_refused(circle: Circle) -> None:
    config, inputs = circle
    with pytest.raises(InputError, match="cannot place"):
        insert.run(config.replace({"sid.quantizer": "given"}), inputs)
    with pytest.raises(InputError, match="half at most"):
        insert.run(config.replace({"bench.items": 20}), inputs)
