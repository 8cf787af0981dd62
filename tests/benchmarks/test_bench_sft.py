"""The benchmark of supervised fine-tuning, at a size of seconds: every figure is there and counts what it says."""

import json

import pytest

from benchmarks import sft
from genrec.config import Config


def test_every_figure_and_ratio_is_measured_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"ITEMS": 50, "USERS": 4, "ROWS": 8, "VOCABULARY": 60, "HIDDEN": 16, "BATCH": 4, "TURNS": 1}
    for name, size in small.items():
        monkeypatch.setattr(sft, name, size)
    found = json.loads(sft.run(Config()).as_json())
    ratios = ("dense_vs_rows", "level_vs_full_vocab", "vs_hf_trainer", "tokenisation_share", "share_of_matmul_rate")
    assert set(ratios) <= set(found["ratios"])
    assert {"dense_tokens_per_s", "dense_train_rows_per_s", "lora_step_trainer_s"} <= set(found["figures"])
    assert all(value > 0 for value in (*found["figures"].values(), *found["ratios"].values()))


def test_both_forms_learn_the_same_kind_of_target() -> None:
    dense, rows = sft._forms(seed=0)
    assert sum(batch.targets for batch in rows.batches()) == sft.ROWS
    assert sum(batch.targets for batch in dense.batches()) > sft.ROWS
