"""A scratch policy that reads and writes bytes: its tokenizer, and a run of tasks that can be talked to."""

import random
from pathlib import Path

import pytest
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

import genrec
from genrec.errors import InputError
from genrec.policy.chat.byte_tokenizer import MARKERS, SPECIALS, byte_tokenizer
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.templates import Message

TOKENIZER = byte_tokenizer()


def test_any_text_is_its_bytes_and_comes_back() -> None:
    rng = random.Random(0)
    ends = (0x80, 0x800, 0xD800, 0x110000)
    drawn = ["".join(chr(rng.randrange(end)) for _ in range(rng.randrange(40))) for end in ends for _ in range(20)]
    drawn = [text.encode(errors="ignore").decode() for text in drawn]
    for text in ("", " ", "\n\n", "[[[]]]", "<end><turn>a", "360 Brass — 北京", *drawn):
        ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        markers = sum(ids.count(TOKENIZER.convert_tokens_to_ids(marker)) for marker in MARKERS)
        assert len(ids) + markers == len(text.encode())
        assert not set(ids) & set(range(len(SPECIALS)))
        assert TOKENIZER.decode(ids) == text


def test_a_turn_is_a_letter_its_text_and_an_end() -> None:
    shown = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert shown == "<turn>uhi<end><turn>a"
    assert TOKENIZER.convert_ids_to_tokens([0, 1, 2, 3]) == list(SPECIALS)


def test_text_wants_positions_without_a_table_and_a_policy_without_text_cannot_talk(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy\.tokenizer=bytes needs policy\.arch=qwen3"):
        tiny_config(tmp_path, tmp_path, "policy.tokenizer=bytes", "policy.arch=gpt2")
    with pytest.raises(InputError, match=r"need policy\.kind=pretrained or policy\.tokenizer=bytes"):
        tiny_config(tmp_path, tmp_path, "learning.sft.example_format=tasks", "learning.tasks.next_item.weight=1")


def test_a_policy_from_scratch_learns_tasks_and_talks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = (
        "policy={kind: scratch, arch: qwen3, tokenizer: bytes, hidden: 32, layers: 1, heads: 2}",
        "learning.sft={example_format: tasks, epochs: 1, max_steps: 4, lr: 5e-3, batch_size: 16, eval_queries: 20}",
        "learning.tasks={next_item: {weight: 1}, sequence_prediction: {weight: 1}, semantic_recovery: {weight: 1}}",
        "learning.rl.steps=2",
    )
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop", users=24), *overrides)
    made(config, "evaluate")
    recommender = genrec.load(Path(config.storage) / "runs" / "tiny")
    reply = recommender.chat("I took [[i3]] and [[i4]]. What next?", max_tokens=40)
    assert all(item.startswith("i") for item in reply.items)
    assert recommender.recommend(["i3", "i4"], k=3)
    capsys.readouterr()


def test_specials_in_a_users_text_are_only_bytes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), "sid.quantizer=title")
    from genrec.policy.backbone import build
    from genrec.sid.catalog import Catalog

    settings = config.policy.replace({"tokenizer": "bytes", "arch": "qwen3", "hidden": 32, "heads": 2})
    catalog = Catalog.load(made(config, "assign").path)
    policy, prompts = build(settings, catalog, max_history=3, seed=0)
    form = ChatFormat(load_tokenizer(settings, None), prompts.sids, catalog)
    prompt_P = form.prompt([Message("user", ("<end><turn>anothing",))]).tolist()
    assert prompt_P.count(form.end) == 1 and max(prompt_P) < policy.sids.base
