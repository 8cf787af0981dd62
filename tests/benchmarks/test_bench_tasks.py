"""Mixtures of tasks side by side: which tasks a row has, how long it trains, and the page of a tiny run."""

import json

import pytest
from support.synthetic import chain_shop, tiny_config
from support.tiny_lm import tiny_lm

from benchmarks import tasks
from genrec.config import Learning, Sft, Tasks
from genrec.errors import InputError
from workflows import assign, prepare


def test_rows_differ_in_tasks_and_the_long_one_in_steps_alone():
    rows = tasks.mixtures(Learning(sft=Sft(max_steps=7, epochs=2)))
    weights = {
        name: {task: (part.weight, part.repeat) for task, part in row.tasks.chosen.items()}
        for name, row in rows.items()
    }
    assert weights["next_item"] == weights["next_item_x3"] == {"next_item": (1.0, 1)}
    others = dict.fromkeys(tasks.OTHERS, (1.0, 1))
    assert weights["all"] == {"next_item": (1.0, 1)} | others and len(others) == 9
    assert weights["all_next_item_x3"] == {"next_item": (3.0, 3)} | others
    assert {name: (row.sft.max_steps, row.sft.epochs) for name, row in rows.items()} == {
        "next_item": (7, 2),
        "next_item_x3": (21, 6),
        "all": (7, 2),
        "all_next_item_x3": (7, 2),
    }
    assert all(row.sft.example_format == "tasks" for row in rows.values())


def test_a_config_that_weighs_tasks_chooses_which_join():
    mixture = Tasks.model_validate({"next_item": {"weight": 0.7}, "semantic_anchoring": {"weight": 0.3}})
    rows = tasks.mixtures(Learning(tasks=mixture, sft=Sft(max_steps=7)))
    assert set(rows["all"].tasks.chosen) == {"next_item", "semantic_anchoring"}
    assert set(rows["next_item"].tasks.chosen) == {"next_item"}


def test_mixtures_are_trained_and_compared_on_a_pretrained_model(tmp_path):
    shop = chain_shop(tmp_path / "shop")
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
    config = tiny_config(tmp_path / "storage", shop, *overrides)
    outputs = prepare.run(config), assign.run(config)
    found = tasks.run(config, *outputs)
    about = json.loads((tmp_path / "storage" / "bench" / "tasks" / "tiny.json").read_text())
    assert list(about) == ["next_item", "all_next_item_x3"]
    assert "| all_next_item_x3 |" in found.table() and 0 <= found.figures["next_item.ndcg@10"] <= 1
    with pytest.raises(InputError, match="equal steps"):
        tasks.run(tiny_config(tmp_path / "storage", shop, *overrides, "learning.sft.max_steps=0"), *outputs)
    with pytest.raises(InputError, match=r"names \['some'\]"):
        tasks.run(tiny_config(tmp_path / "storage", shop, *overrides, "bench.variants=[some]"), *outputs)
