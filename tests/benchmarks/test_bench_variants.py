"""What the variants of the comparisons change, and how their scores are compared: no training. In the default suite."""

from pathlib import Path

import pytest

from benchmarks import claims, losses, recipes, rewards, tasks, tokenizers
from benchmarks.compare import RunScore, compare
from genrec.config import Learning, Sft, Sid, Tasks, load_config


def test_every_loss_is_a_variant_and_each_differs_from_plain_cross_entropy() -> None:
    found = losses.variants(Sft.model_validate({"loss": {"weights": ["hard"], "focal_gamma": 3.0}}))
    assert found["cross_entropy"].loss.weights == () and found["cross_entropy"].softmax == "trie"
    assert {"focal", "focal_item", "hard", "hard_item", "rare", "focal_rare", "level", "vocabulary"} < set(found)
    assert found["focal_item"].loss.unit == "item" and found["focal"].loss.focal_gamma == 3.0
    assert len({one.model_dump_json() for one in found.values()}) == len(found)


def test_only_seeds_that_every_variant_has_are_compared() -> None:
    values = {"a": {0: 0.1, 1: 0.9}, "b": {0: 0.3}}
    scores = {
        name: {seed: RunScore({"ndcg@10": value}, Path(), Path()) for seed, value in by_seed.items()}
        for name, by_seed in values.items()
    }
    found = compare(scores)
    assert found["b"]["ndcg@10_difference"]["mean"] == pytest.approx(0.2)
    assert found["a"]["ndcg@10"]["mean"] == 0.1


def test_rewards_and_objectives_of_the_recipes_are_variants() -> None:
    found = rewards.changes(load_config([], []))
    assert found["v4"][0] == {"objective": "ppo", "advantage": "auto"}
    assert found["v1"][0] == {"objective": "grpo", "advantage": "group_mean"}
    assert found["v3"][1].weights()["novelty"] == 0.1 and found["hit"][1].weights()["rank_log"] == 0.0


def test_a_change_of_the_rl_settings_reaches_the_config() -> None:
    changed = rewards.changed(load_config([], []), ({"kl": 0.0, "generation": "sample"}, {"future": 0.5}))
    assert changed.learning.rl.kl == 0.0 and changed.learning.rl.generation == "sample"
    assert changed.rewards.weights()["future"] == 0.5


def test_mixtures_differ_in_tasks_and_the_long_one_in_steps_alone() -> None:
    found = tasks.mixtures(Learning(sft=Sft(max_steps=7, epochs=2)))
    weights = {
        name: {task: (part.weight, part.repeat) for task, part in one.tasks.chosen.items()}
        for name, one in found.items()
    }
    assert weights["next_item"] == weights["next_item_x3"] == {"next_item": (1.0, 1)}
    others = dict.fromkeys(tasks.OTHERS, (1.0, 1))
    assert weights["all"] == {"next_item": (1.0, 1)} | others and len(others) == 9
    assert weights["all_next_item_x3"] == {"next_item": (3.0, 3)} | others
    assert {name: (one.sft.max_steps, one.sft.epochs) for name, one in found.items()} == {
        "next_item": (7, 2),
        "next_item_x3": (21, 6),
        "all": (7, 2),
        "all_next_item_x3": (7, 2),
    }
    assert all(one.sft.example_format == "tasks" for one in found.values())


def test_a_config_that_weighs_tasks_chooses_which_are_added() -> None:
    mixture = Tasks.model_validate({"next_item": {"weight": 0.7}, "semantic_anchoring": {"weight": 0.3}})
    found = tasks.mixtures(Learning(tasks=mixture, sft=Sft(max_steps=7)))
    assert set(found["all"].tasks.chosen) == {"next_item", "semantic_anchoring"}
    assert set(found["next_item"].tasks.chosen) == {"next_item"}


def test_published_sids_are_a_variant_where_the_items_have_them() -> None:
    assert "given" not in tokenizers.variants(Sid(), ["item", "id"])
    found = tokenizers.variants(Sid(cf_weight=0.5, codebook="ema"), ["item", "sid"])
    assert found["given"].quantizer == "given"
    assert found["rqvae"].codebook == "gradient" and found["rqvae_ema"].codebook == "ema"
    assert found["vq"].level_sizes == (256,) and found["vq"].collisions == "suffix"
    assert found["rqkmeans_fused"].cf_weight == 0.5


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_brings_its_method_and_the_config_the_backbone_and_the_length_of_training(name: str) -> None:
    config = load_config(["industrial", "smollm2"], ["learning.sft.epochs=7", "learning.rl.steps=5"])
    found, scratch = recipes.recipe(config, name), recipes.recipe(load_config(["industrial"]), name)
    own = load_config([f"versions/{name.removesuffix('_plain')}"])
    assert (found.learning.sft.epochs, found.learning.rl.steps, found.policy.path) == (7, 5, "smollm2")
    assert found.policy.finetuning == own.policy.finetuning and found.policy.lora == own.policy.lora
    assert set(found.learning.tasks.chosen) == {"next_item", "semantic_anchoring"}
    assert scratch.example_format == "dense" and not scratch.learning.tasks.chosen
    for one in (found, scratch):
        assert one.learning.sft.loss == own.learning.sft.loss and one.sid.quantizer == own.sid.quantizer
        assert (one.rewards == own.rewards) == (name != "v3_plain") and one.decode.width == 20
    assert found.rewards.novelty == (0.1 if name == "v3" else 0.0)


def test_a_claim_is_reached_positive_or_not_reproduced() -> None:
    def lines(difference: float, low: float) -> list[str]:
        score = {"hr@10": {"mean": 0.10}, "ndcg@10": {"mean": 0.08}}
        one = {"difference": difference, "low": low, "high": 1.0}
        own = {"sft": score, "gain": {"hr@10": one, "ndcg@10": one}, "collisions": 0.1, "trained_share": 0.01}
        return claims.verdicts("v1", own, {"hr@10": 0.1}, {})

    assert lines(0.0142, 0.001)[0].endswith("+14.2%: reached")
    assert lines(0.0100, 0.001)[0].endswith("positive")
    assert lines(0.0100, -0.001)[0].endswith("not reproduced")
    assert lines(0.0, 0.0)[2] == "0.8% of the parameters train: here 1.00%"
    assert claims.verdicts("v0a", {}, {}, {}) == []
