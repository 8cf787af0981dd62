"""Mixtures of tasks compared: the page of a tiny run on a pretrained model."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config
from support.tiny_lm import tiny_lm

from benchmarks import tasks
from cluster import pipeline
from genrec.errors import InputError

pytestmark = pytest.mark.benchmark


def test_mixtures_are_trained_and_compared_on_a_pretrained_model(tmp_path: Path) -> None:
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    overrides = (
        "sid.quantizer=title",
        "policy.kind=pretrained",
        f"policy.path={tiny_lm(tmp_path / 'lm')}",
        "policy.lora.rank=2",
        "learning.sft.example_format=rows",
        "learning.sft.epochs=1",
        "learning.sft.max_steps=2",
        "bench.seeds=1",
        "bench.variants=[next_item,all_next_item_x3]",
    )
    config = tiny_config(storage, shop, *overrides)
    inputs = pipeline.run(config, *tasks.NEEDS)
    found = tasks.run(config, inputs)
    about = json.loads((storage / "bench" / "tasks" / "tiny.json").read_text())
    assert list(about) == ["next_item", "all_next_item_x3"]
    assert "| all_next_item_x3 |" in found.table() and 0 <= found.figures["next_item.ndcg@10"] <= 1
    with pytest.raises(InputError, match="equal steps"):
        tasks.run(tiny_config(storage, shop, *overrides, "learning.sft.max_steps=0"), inputs)
