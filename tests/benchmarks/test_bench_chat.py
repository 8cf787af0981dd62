"""Conversations with a policy that was trained from scratch on bytes for a few steps."""

import json
from pathlib import Path

import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import chat
from cluster import pipeline
from genrec.errors import InputError

pytestmark = pytest.mark.benchmark


def test_every_learned_conversation_is_held_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "CONVERSATIONS", 3)
    monkeypatch.setattr(chat, "MAX_TOKENS", 30)
    overrides = (
        "policy={kind: scratch, arch: qwen3, tokenizer: bytes, hidden: 32, layers: 1, heads: 2}",
        "learning.sft={example_format: tasks, epochs: 1, max_steps: 4, lr: 5e-3, batch_size: 16, eval_queries: 20}",
        "learning.tasks={next_item: {weight: 1}, multi_turn_dialogue_sequence: {weight: 1}, running_text: {weight: 1}, "
        "category_based_recommendation: {weight: 1}, semantic_recovery: {weight: 1}}",
        "sid.quantizer=title",
    )
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop", users=24), *overrides)
    inputs = pipeline.run(config, *chat.NEEDS)
    found = chat.run(config, inputs)
    assert {name.partition(".")[0] for name in found.figures} == {
        "multi_turn_dialogue_sequence",
        "category_based_recommendation",
        "semantic_recovery",
    }
    assert {"semantic_recovery.agreement", "semantic_recovery.item_as_wanted"} < set(found.figures)
    assert all(0 <= value <= 1 for value in found.figures.values())
    assert "**semantic_recovery**" in found.table() and "- user: " in found.table()
    assert json.loads(found.as_json())["bench"] == "chat"
    with pytest.raises(InputError, match=r"names \['preference_analysis'\]"):
        chat.run(config.replace({"bench.variants": ("preference_analysis",)}), inputs)
