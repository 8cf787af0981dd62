"""The benchmark of supervised fine-tuning at a size of seconds: every figure is there and counts what it says."""

import json

import pytest

from benchmarks import sft
from genrec.config import Config

pytestmark = pytest.mark.benchmark

SMALL = sft.SftSize(items=50, users=4, rows=16, vocabulary=60, hidden=16, batch=4, rounds=1)


def test_every_figure_and_ratio_is_measured_in_one_run() -> None:
    found = json.loads(sft.measure(Config(), SMALL).as_json())
    ratios = ("dense_vs_rows", "level_vs_full_vocab", "vs_hf_trainer", "tokenisation_share", "share_of_matmul_rate")
    ratios += ("pretrained_dense_vs_rows",)
    assert set(ratios) <= set(found["ratios"])
    assert {"dense_tokens_per_s", "dense_train_rows_per_s", "lora_step_trainer_s"} <= set(found["figures"])
    assert all(value > 0 for value in (*found["figures"].values(), *found["ratios"].values()))


def test_whole_sequences_and_rows_learn_the_same_kind_of_target() -> None:
    size = sft.SftSize()
    dense, rows = sft.dense_and_rows(size, seed=0)
    assert sum(batch.targets for batch in rows.batches()) == size.rows
    assert sum(batch.targets for batch in dense.batches()) > size.rows
