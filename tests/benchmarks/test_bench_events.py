"""Contexts of the prompt compared by the event type of the target, beside ItemKNN."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import events
from cluster import pipeline
from genrec.errors import InputError

pytestmark = pytest.mark.benchmark
TYPES = "policy.context.types=[view,buy]"


def typed_shop(directory: Path) -> Path:
    """A chain shop in which every third event is a purchase."""
    log = directory / "interactions.parquet"
    table = pq.read_table(chain_shop(directory) / "interactions.parquet")
    types = ["buy" if row % 3 == 2 else "view" for row in range(table.num_rows)]
    pq.write_table(table.append_column("event", pa.array(types)), log)
    return directory


def test_variants_and_itemknn_are_scored_by_event_type(tmp_path: Path) -> None:
    settings = ("sid.quantizer=title", "learning.sft.epochs=1", "bench.seeds=1", "bench.variants=[items,wanted_gaps]")
    config = tiny_config(tmp_path / "storage", typed_shop(tmp_path / "shop"), TYPES, *settings)
    found = events.run(config, pipeline.run(config, *events.NEEDS))
    about = json.loads((tmp_path / "storage" / "bench" / "events" / "tiny.json").read_text())
    assert list(about) == ["ItemKNN", "items", "wanted_gaps"]
    one = about["wanted_gaps"]["0"]
    assert one["all"]["queries"] == one["view"]["queries"] + one["buy"]["queries"] == 60
    share = one["view"]["queries"] / 60
    mean = share * one["view"]["ndcg@10"] + (1 - share) * one["buy"]["ndcg@10"]
    assert one["all"]["ndcg@10"] == pytest.approx(mean)
    assert "| wanted_gaps |" in found.table() and "| ItemKNN |" in found.table()


def test_a_config_without_event_types_is_refused_and_variants_differ(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy\.context\.types"):
        events.run(tiny_config(tmp_path, tmp_path), {})
    config = tiny_config(tmp_path, tmp_path, TYPES)
    assert len({str(events.variant_of(config, name)) for name in events.VARIANTS}) == len(events.VARIANTS)
