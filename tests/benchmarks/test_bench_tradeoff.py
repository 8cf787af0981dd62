"""The curve of a reward's weight against its goal and accuracy, on a small shop with event types."""

import json
from pathlib import Path

import pytest
from support.synthetic import tiny_config
from test_bench_events import typed_shop

from benchmarks import tradeoff
from cluster import pipeline
from genrec.config import Config
from genrec.errors import InputError

pytestmark = pytest.mark.benchmark


def test_each_weight_is_validated_and_the_best_is_tested_against_the_sft_policy(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "storage",
        typed_shop(tmp_path / "shop"),
        "rewards.settings.purchases=[buy]",
        "rewards.settings.events={view: 1.0, buy: 3.0}",
        "learning.sft.epochs=1",
        "learning.rl.slate=4",
        "bench.seeds=1",
        "bench.variants=[categories,purchases]",
        "bench.weights=[0.1,2.0]",
    )
    found = tradeoff.run(config, pipeline.run(config, *tradeoff.NEEDS))
    about = json.loads((tmp_path / "storage" / "bench" / "tradeoff" / "tiny.json").read_text())
    picture = (tmp_path / "storage" / "bench" / "tradeoff" / "tiny.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    for name, goal in (("categories", "categories@10"), ("purchases", "ndcg@10/buy")):
        one = about[name]
        assert one["goal"] == goal and [point["weight"] for point in one["points"]] == [0.1, 2.0]
        best = max(one["points"], key=lambda point: point[goal]["kept"])
        assert one["chosen"] == best["weight"] and best[goal]["change"] >= 0
        for point in one["points"]:
            assert [version["step"] for version in point["versions"][0]] == [0, 3, 6] or point["stopped"][0]
            assert point["ndcg@10"]["change"] >= -one["share"]
        assert {"ndcg@10", "hr@50", "value@10", "categories@10", "ndcg@10/buy"} <= set(one["test"])
    assert "| categories: weight |" in found.table() and "Tested: weight" in found.table()
    aims = tradeoff.aims(config)
    assert len({str(tradeoff.changed(config, aim, 0.1)) for aim in aims.values()}) == len(aims)


def test_a_goal_that_the_log_does_not_have_is_refused(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "storage", typed_shop(tmp_path / "shop"), "learning.sft.epochs=1", "bench.variants=[purchases]"
    )
    with pytest.raises(InputError, match=r"ndcg@10/purchase.*do not have.*ndcg@10/buy"):
        tradeoff.run(config, pipeline.run(config, *tradeoff.NEEDS))
    longer = config.replace({"bench.variants": ("categories",), "learning.rl.slate": 50})
    with pytest.raises(InputError, match="lists of 50 distinct items, and the catalogue has 24"):
        tradeoff.run(longer, pipeline.run(longer, *tradeoff.NEEDS))


def test_the_rewards_need_not_say_what_a_purchase_is_for_goals_without_any(tmp_path: Path) -> None:
    assert (
        tradeoff.aims(tiny_config(tmp_path, tmp_path, "rewards.settings.purchases=[]")).keys()
        == tradeoff.aims(Config()).keys()
    )
