"""The policy and its parts beside ItemKNN: every part can be left out, and figures are kept policy by policy."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import policy
from cluster import pipeline
from cluster.stages import sft

pytestmark = pytest.mark.benchmark


def test_ways_to_answer_are_compared_with_itemknn_and_variants_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = "bench.variants=[whole,without_rows,without_head]"
    settings = ("sid.quantizer=title", variants, "bench.seeds=2", "learning.sft.epochs=2", "decode.prior=itemknn_nodes")
    storage = tmp_path / "storage"
    config = tiny_config(storage, chain_shop(tmp_path / "shop"), *settings)
    inputs = pipeline.run(config, *policy.NEEDS)
    found = policy.run(config, inputs)
    about = json.loads((storage / "bench" / "policy" / "tiny.json").read_text())
    assert list(about) == ["whole", "without_rows", "without_head"]
    assert set(about["whole"]["0"]["rows"]) == {"sid_path", "item_head", "policy", "model", "itemknn"}
    assert set(about["without_rows"]["1"]["rows"]) == {"policy", "model", "itemknn"}
    assert about["whole"]["0"]["rows"]["itemknn"] == about["without_head"]["1"]["rows"]["itemknn"]
    page = found.table()
    assert "| policy, seed 1 |" in page and "| without_rows | – | – |" in page
    monkeypatch.setattr(sft, "sft_loop", None)
    monkeypatch.setattr(policy, "predict_test", None)
    assert policy.run(config, inputs).table() == page


def test_each_variant_is_the_config_with_one_part_off(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    names = policy.parts_of(config)
    changed = [config.replace(dict(policy.PARTS[name])) for name in names]
    assert changed[0] == config
    assert all(one != config for one in changed[1:]) and len({str(one) for one in changed}) == len(changed)


def test_soft_targets_are_added_where_there_are_none_and_else_left_out(tmp_path: Path) -> None:
    without = tiny_config(tmp_path, tmp_path, "learning.sft.distill=0")
    added = without.replace(dict(policy.PARTS["with_itemknns_soft_targets"]))
    names = {"with_itemknns_soft_targets", "without_itemknns_soft_targets"}
    assert names & set(policy.parts_of(without)) == {"with_itemknns_soft_targets"}
    assert names & set(policy.parts_of(added)) == {"without_itemknns_soft_targets"}


def test_pretraining_is_left_out_where_there_is_some(tmp_path: Path) -> None:
    scratch = tiny_config(tmp_path, tmp_path)
    adapters = scratch.replace({"policy.kind": "pretrained", "policy.finetuning": "lora"})
    whole = scratch.replace({"policy.kind": "pretrained", "policy.finetuning": "full"})
    assert not any("without_pretraining" in policy.parts_of(config) for config in (scratch, adapters))
    assert set(policy.parts_of(whole)) == set(policy.PARTS) - {"with_itemknns_soft_targets"}
    assert whole.replace(dict(policy.PARTS["without_pretraining"])).policy.weights == "random"
    with pytest.raises(ValueError, match=r"policy.weights=random is for .* adapters of rank"):
        adapters.replace({"policy.weights": "random"})
