"""The parts of RL compared: settings and the best row come from validation, and what was chosen is tested."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import compare, rl_quality
from benchmarks.rl_parts import PARTS, RECIPES, SERVED_PARTS, known_parts, overruled, rows_of
from cluster import pipeline
from cluster.stages import grpo
from genrec.errors import InputError

SETTINGS = (
    "sid.quantizer=title",
    "data.max_history=4",
    "bench.variants=[listwise,mine+sibling]",
    "bench.parts.mine={learning.rl.objective: dr_grpo}",
    "bench.grid={learning.rl.lr: [1e-4, 3e-3], learning.rl.steps: [2]}",
    "bench.seeds=2",
    "learning.sft.epochs=2",
    "learning.rl.eval_every=1",
)


@pytest.mark.benchmark
def test_validation_chooses_the_settings_of_each_row_and_the_best_row_and_only_these_are_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage"
    config = tiny_config(storage, chain_shop(tmp_path / "shop"), *SETTINGS)
    inputs = pipeline.run(config, *rl_quality.NEEDS)
    found = rl_quality.run(config, inputs)
    directory = storage / "bench" / "rl-quality"
    manifests = [json.loads(made.read_text()) for made in directory.glob("scores/*/manifest.json")]
    splits = [one["settings"].get("split", "test") for one in manifests]
    assert (splits.count("test"), splits.count("valid")) == (3 * 2, 2 + 2 * 3)
    about = json.loads((directory / "tiny.json").read_text())
    assert list(about["rows"]) == ["sft", "listwise", "mine+sibling"]
    for row, choices in about["tried"].items():
        chosen = about["rows"][row]
        first_seed = {shown: one["valid"] for shown, one in choices.items() if one["seeds"] == 1}
        assert chosen["valid"] == choices[chosen["settings"]]["valid"] and choices[chosen["settings"]]["seeds"] == 2
        assert len(choices) == (1 if row == "sft" else 2) == len(first_seed) + 1
    assert about["best"] == max(about["rows"], key=lambda row: about["rows"][row]["valid"])
    cost = about["rows"]["listwise"]["cost"]
    assert cost["seconds"] > 0 and cost["sft_steps"] > cost["sft_time"] > 0
    assert about["rows"]["listwise"]["audit"]["zero_advantage_groups"] == 0
    assert (directory / "tiny.md").read_text() == found.table() and f"**{about['best']}**" in found.table()
    monkeypatch.setattr(grpo, "grpo_loop", None)
    monkeypatch.setattr(compare, "predict", None)
    assert rl_quality.run(config, inputs).table() == found.table()


def test_every_part_is_a_valid_config_and_starts_from_the_same_sft_policy(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    rows = rows_of(config)
    assert {*rows, *SERVED_PARTS} == {*PARTS, *SERVED_PARTS, *RECIPES} == set(known_parts(config))
    rows |= rows_of(config.replace({"bench.variants": list(SERVED_PARTS)}))
    assert len({str(one) for one in rows.values()}) >= len(rows) - 1  # The config may be one of the parts.
    assert all(one.learning.sft == config.learning.sft and one.policy == config.policy for one in rows.values())


def test_what_a_part_takes_from_the_config_is_said(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, "learning.rl.steps=600", "bench.parts.long={learning.rl.steps: 600}")
    assert rows_of(config)["listwise"].learning.rl.steps == 300
    assert overruled(config, "listwise")["learning.rl.steps"] == (600, 300)
    for row in ("config", "grpo", "listwise+long"):
        assert "learning.rl.steps" not in overruled(config, row)
    of_grid = config.replace({"bench.grid": {"learning.rl.steps": (2,)}})
    assert "learning.rl.steps" not in overruled(of_grid, "listwise")
    assert overruled(tiny_config(tmp_path, tmp_path, "learning.rl.steps=300"), "v1") == {}
    worth = "rewards.settings.events"
    names = tiny_config(
        tmp_path, tmp_path, f"{worth}={{cart: 3}}", f"bench.parts.own={{{worth}.cart: 2, {worth}.buy: 9}}"
    )
    assert overruled(names, "own") == {f"{worth}.cart": (3, 2)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bench.variants=[listwise+some]", r"names \['some'\]; wanted: some of \['config', .*joined by \+"),
        ("bench.parts.mine={learning.sft.lr: 1}", r"learning\.rl\. and rewards alone; got learning\.sft\.lr"),
        ("bench.parts.sft={}", r"bench\.parts names \['sft'\]; wanted: names without \+, and not sft"),
        ("bench.grid={learning.rl.rate: [1]}", r"learning\.rl\.rate: Extra inputs are not permitted"),
    ],
)
def test_a_part_that_is_unknown_or_changes_what_it_may_not_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    config = tiny_config(tmp_path, tmp_path, "bench.variants=[config,mine]", "bench.parts.mine={}", override)
    with pytest.raises(InputError, match=message):
        rl_quality.run(config, {})


@pytest.mark.benchmark
def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(tmp_path: Path) -> None:
    shop, settings = chain_shop(tmp_path / "shop"), ("sid.quantizer=title", "learning.sft.epochs=1", "bench.seeds=1")
    config = tiny_config(tmp_path / "storage", shop, *settings, "bench.metric=ndcg@11")
    with pytest.raises(InputError, match=r"bench\.metric=ndcg@11 is not measured here; wanted one of .*'ndcg@10'"):
        rl_quality.run(config, pipeline.run(config, *rl_quality.NEEDS))


@pytest.mark.benchmark
def test_a_row_that_learns_from_what_is_served_has_all_rows_scored_as_they_are_served(tmp_path: Path) -> None:
    shop, own = chain_shop(tmp_path / "shop"), ("learning.sft.epochs=1", "bench.seeds=1", "decode.prior=itemknn_nodes")
    config = tiny_config(tmp_path / "storage", shop, *own, "sid.quantizer=title", "bench.variants=[grpo,served]")
    inputs = pipeline.run(config, *rl_quality.NEEDS)
    served = rl_quality.run(config, inputs)
    assert "Answers as they are served" in served.table()
    alone = rl_quality.run(config.replace({"bench.variants": ["grpo"]}), inputs)
    assert "as they are served" not in alone.table()
    better = [one.figures[f"{row}.ndcg@10"] for one in (served, alone) for row in ("sft", "grpo")]
    assert min(better[:2]) > max(better[2:]), "ItemKNN knows the chain, an epoch of SFT does not"
