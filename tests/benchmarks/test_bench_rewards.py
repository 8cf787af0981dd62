"""The comparison of rewards: the same SFT policies, rows of rewards, gains by paired bootstrap, and audits."""

import json

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import rewards
from genrec.config import load_config
from genrec.errors import InputError
from workflows import assign, embed, prepare

SETTINGS = ("bench.seeds=2", "learning.sft.epochs=2", "learning.rl.steps=2", "learning.rl.eval_every=1")


def test_rows_begin_at_the_same_sft_policies_and_are_compared_with_them(tmp_path, monkeypatch):
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    rows = "bench.variants=[future,semantic]"
    config = tiny_config(storage, shop, "sid.quantizer=title", "data.max_history=4", rows, *SETTINGS)
    outputs = prepare.run(config), assign.run(config), embed.run(config)
    found = rewards.run(config, *outputs)
    place = storage / "bench" / "rewards"
    stages = {name: [*place.glob(f"{name}/*/manifest.json")] for name in ("sft", "grpo", "scores")}
    assert {name: len(made) for name, made in stages.items()} == {"sft": 2, "grpo": 4, "scores": 6}
    starts = [json.loads(made.read_text())["inputs"]["sft"] for made in stages["grpo"]]
    assert sorted(starts) == sorted(2 * [f"sft/{made.parent.name}" for made in stages["sft"]])
    about = json.loads((place / "tiny.json").read_text())
    assert list(about) == ["sft", "future", "semantic"]
    gain = about["future"]["paired"]["hr@50"]
    assert gain["difference"] == pytest.approx(about["future"]["hr@50"]["mean"] - about["sft"]["hr@50"]["mean"])
    assert gain["low"] <= gain["difference"] <= gain["high"] and "hr@50/tail" in about["future"]["paired"]
    assert all(value == 0 for value in about["sft"]["paired"]["ndcg@10"].values())
    assert (
        0 <= about["semantic"]["audit"]["zero_advantage_groups"] <= 1
        and "advantage_share/semantic" in about["semantic"]["audit"]
    )
    assert (place / "tiny.md").read_text() == found.table() and "| future |" in found.table()
    monkeypatch.setattr("cluster.train.grpo_loop", None)
    monkeypatch.setattr("benchmarks.compare.predict", None)
    assert rewards.run(config, *outputs).table() == found.table()
    with pytest.raises(InputError, match=r"names \['futur'\].*future"):
        rewards.run(tiny_config(storage, shop, "bench.variants=[futur]"), *outputs)


def test_rows_take_rewards_and_objectives_of_the_recipes():
    rows = rewards.changes(load_config([], []))
    assert rows["v4"][0] == {"objective": "ppo"}
    assert rows["v3"][1].weights()["novelty"] == 0.1 and rows["hit"][1].weights()["rank_log"] == 0.0
