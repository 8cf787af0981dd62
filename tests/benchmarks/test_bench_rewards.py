"""The comparison of rewards: the same SFT policies, gains by paired bootstrap, and audits of the updates."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import compare, rewards
from cluster import pipeline
from cluster.stages import grpo

pytestmark = pytest.mark.benchmark

SETTINGS = (
    "sid.quantizer=title",
    "data.max_history=4",
    "bench.variants=[future,semantic]",
    "bench.seeds=2",
    "learning.sft.epochs=2",
    "learning.rl.steps=2",
    "learning.rl.eval_every=1",
)


def test_variants_start_from_the_same_sft_policies_and_are_compared_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    config = tiny_config(storage, shop, *SETTINGS)
    inputs = pipeline.run(config, *rewards.NEEDS)
    found = rewards.run(config, inputs)
    directory = storage / "bench" / "rewards"
    stages = {name: [*directory.glob(f"{name}/*/manifest.json")] for name in ("sft", "grpo", "scores")}
    assert {name: len(made) for name, made in stages.items()} == {"sft": 2, "grpo": 4, "scores": 6}
    starts = [json.loads(made.read_text())["inputs"]["sft"] for made in stages["grpo"]]
    assert sorted(starts) == sorted(2 * [f"sft/{made.parent.name}" for made in stages["sft"]])
    about = json.loads((directory / "tiny.json").read_text())
    assert list(about) == ["sft", "future", "semantic"]
    gain = about["future"]["paired"]["hr@50"]
    assert gain["difference"] == pytest.approx(about["future"]["hr@50"]["mean"] - about["sft"]["hr@50"]["mean"])
    assert gain["low"] <= gain["difference"] <= gain["high"] and "hr@50/tail" in about["future"]["paired"]
    assert all(value == 0 for value in about["sft"]["paired"]["ndcg@10"].values())
    audit = about["semantic"]["audit"]
    assert 0 <= audit["zero_advantage_groups"] <= 1 and "advantage_share/semantic" in audit
    assert (directory / "tiny.md").read_text() == found.table() and "| future |" in found.table()
    monkeypatch.setattr(grpo, "grpo_loop", None)
    monkeypatch.setattr(compare, "predict", None)
    assert rewards.run(config, inputs).table() == found.table()
