"""The recipes of ``configs/versions`` compared, value by value, with what the design documents state of them."""

from typing import Any

import pytest

from genrec.config import Config, load_config
from genrec.errors import InputError

COMMON: dict[str, Any] = {
    # Three levels of 256 codes, from the vectors of texts alone.
    "sid.levels": 3,
    "sid.codebook_size": 256,
    "sid.text_weight": 1.0,
    "sid.cf_weight": 0.0,
    # LoRA r 64, alpha 128, dropout .05; no rows of items.
    "policy.kind": "pretrained",
    "policy.prompt": "question",
    "policy.lora.rank": 64,
    "policy.lora.alpha": 128,
    "policy.lora.dropout": 0.05,
    "policy.lora.targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "policy.items.input": "none",
    "policy.items.head": False,
    "policy.context.events": "none",
    "policy.context.gaps": False,
    # Next item and SID <-> text, jointly.
    "learning.sft.example_format": "tasks",
    "learning.tasks.next_item.weight": 0.7,
    "learning.tasks.semantic_anchoring.weight": 0.3,
    # Cosine 5e-4 to 1e-5, effective batch 256 by accumulation, patience 8 in steps that can fire.
    "learning.sft.lr": 5e-4,
    "learning.sft.min_lr": 1e-5,
    "learning.sft.batch_size": 256,
    "learning.sft.patience": 8,
    "learning.sft.eval_steps": 25,
    # 16 candidates, KL, no supervised term.
    "learning.rl.group": 16,
    "learning.rl.generation": "beam",
    "learning.rl.kl": 0.1,
    "learning.rl.prefix_weight": "probability",
    "learning.rl.sft": 0.0,
    # Trie-constrained beam of 20.
    "decode.width": 20,
    "decode.prior": "none",
    "evaluation.ks": (1, 3, 5, 10, 20),
}

PPO = {
    "learning.rl.objective": "ppo",
    "learning.rl.ratio_clip": 0.2,
    "learning.rl.gae_lambda": 0.95,
    "learning.rl.critic": "layers",
}
GRPO = {"learning.rl.objective": "grpo", "learning.rl.advantage": "group_std"}
FOCAL = {"learning.sft.loss.weights": ("focal",), "learning.sft.loss.focal_gamma": 2.0}
PLAIN = {"learning.sft.loss.weights": (), "learning.sft.loss.second_pass": 0.0}

OWN: dict[str, dict[str, Any]] = {
    "v0a": {"sid.quantizer": "rqvae", "policy.finetuning": "lora", **PLAIN, **GRPO},
    "v0b": {
        "sid.quantizer": "rqvae",
        "policy.finetuning": "lora",
        **FOCAL,
        **GRPO,
        "rewards.settings.ground_truth": "future",
    },
    "v1": {
        "sid.quantizer": "rqvae",
        "policy.finetuning": "lora",
        **PLAIN,
        "learning.rl.objective": "grpo",
        "learning.rl.advantage": "group_mean",
    },
    "v2": {
        "sid.quantizer": "rqkmeans_balanced",
        "policy.finetuning": "qlora",
        "learning.sft.loss.weights": ("rare",),
        "learning.sft.loss.rare_weight": 1.5,
        **PPO,
        "rewards.settings.horizon": 1,
        "rewards.settings.events": dict.fromkeys(("click", "view", "cart", "purchase", "unknown"), 1.0),
        "rewards.settings.other_events": 1.0,
    },
    "v3": {"sid.quantizer": "rqvae", "policy.finetuning": "lora", **FOCAL, **GRPO},
    "v4": {
        "sid.quantizer": "rqvae",
        "sid.codebook": "ema",
        "sid.decay": 0.99,
        "policy.finetuning": "qlora",
        "learning.sft.loss.weights": (),
        "learning.sft.loss.second_pass": 0.3,
        **PPO,
        "rewards.settings.events": {"click": 1.0, "view": 1.0, "cart": 1.0, "purchase": 3.0, "unknown": 1.0},
        "rewards.settings.delayed": ("purchase",),
        "rewards.settings.purchases": ("purchase",),
    },
}

REWARDS = {
    "v0a": {"hit": 1.0},
    "v0b": {"hit": 1.0, "rank_log": -0.15, "diversity": 0.1},
    "v1": {"hit": 1.0, "rank_log": -0.15},
    "v2": {"event": 1.0, "rank_linear": -0.1, "diversity": 0.2},
    "v3": {"hit": 1.0, "rank_log": -0.15, "diversity": 0.1, "novelty": 0.1},
    "v4": {"event": 1.0, "unwanted_repeat": -0.5},
}


def value(config: Config, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("version", OWN)
@pytest.mark.parametrize("data", ["demo", "industrial", "beauty", "events"])
@pytest.mark.parametrize("model", ["smollm2", "qwen2.5-3b", None])
def test_a_recipe_is_what_the_documents_state_with_any_data_and_model(
    version: str, data: str, model: str | None
) -> None:
    config = load_config([data, f"versions/{version}", *([model] if model else []), "cpu"])
    stated = {**COMMON, **OWN[version]}
    if model == "qwen2.5-3b":
        assert (config.embed.model, config.embed.kind) == ("Qwen/Qwen2.5-3B", "causal")
    assert {key: value(config, key) for key in stated} == stated
    assert {name: weight for name, weight in config.rewards.weights().items() if weight} == REWARDS[version]


def test_new_items_are_explored_with_or_without_a_reward() -> None:
    plain = load_config(["versions/v3"], ["rewards.novelty=0"])
    assert {name for name, weight in plain.rewards.weights().items() if weight} == {"hit", "rank_log", "diversity"}


@pytest.mark.parametrize("version", OWN)
def test_patience_can_fire(version: str) -> None:
    """36,259 train rows and 3,686 items, as Industrial has, and one check for each ``eval_steps``."""
    sft = load_config(["industrial", f"versions/{version}"]).learning.sft
    per_epoch = (36259 + 3686) / sft.batch_size * (1 + sft.loss.second_pass)
    assert sft.epochs * per_epoch / sft.eval_steps > 2 * sft.patience


def test_the_whole_model_of_1_7b_has_four_levels_and_trains_all_its_weights() -> None:
    config = load_config(["industrial", "versions/three_stage", "qwen3-1.7b", "a100"])
    assert (config.policy.path, config.policy.finetuning) == ("Qwen/Qwen3-1.7B", "full")
    assert (config.sid.levels, config.sid.collisions) == (3, "suffix")
    assert config.policy.sid_tokens == "numbered"
    assert config.learning.stages.pretraining.lr == config.learning.sft.lr == 2e-5


def test_whole_sequences_are_learned_unless_a_question_follows_the_history() -> None:
    assert load_config(["demo"]).example_format == "dense"
    assert load_config(["demo", "smollm2"]).example_format == "dense"
    assert load_config(["demo", "smollm2"], ["policy.prompt=question"]).example_format == "rows"
    with pytest.raises(InputError, match=r"dense needs policy\.prompt=sequence"):
        load_config(["demo", "smollm2"], ["policy.prompt=question", "learning.sft.example_format=dense"])
