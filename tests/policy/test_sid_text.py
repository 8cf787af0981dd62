"""Semantic IDs as text in both styles: names, markers, and policies that are saved, loaded and talked to with them."""

import json
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.served import serve
from support.synthetic import random_catalog, tiny_config
from support.tiny_lm import tiny_lm

from genrec.config import Lora, PolicyConfig
from genrec.errors import InputError
from genrec.inference.conversation import KEPT_TEXTS
from genrec.policy.backbone import build, load, save
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.generate import format_parts, parse_parts
from genrec.policy.chat.templates import Item, Message
from genrec.policy.prompts import SidTokens
from genrec.policy.sid_text import MARKERS, SidStyle, read_sid, sid_names, write_sid
from genrec.sid.catalog import Catalog

STYLES: tuple[SidStyle, ...] = ("letters", "numbered")
CATALOG = random_catalog(40, (4, 5, 3, 6))
NUMBERED_CHAT = "policy={kind: scratch, arch: qwen3, tokenizer: bytes, hidden: 32, layers: 1, heads: 2}"


def test_numbers_go_on_through_the_levels_as_in_four_levels_of_256_codes() -> None:
    assert write_sid((112, 11, 133, 0), (256,) * 4, "numbered") == "<|sid_112|><|sid_267|><|sid_645|><|sid_768|>"
    assert write_sid((112, 11, 133, 0), (256,) * 4) == "<a_112><b_11><c_133><d_0>"


@given(st.data(), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.sampled_from(STYLES))
def test_what_is_written_is_read_and_each_name_is_one_code(
    data: st.DataObject, sizes: list[int], style: SidStyle
) -> None:
    codes = tuple(data.draw(st.integers(0, size - 1)) for size in sizes)
    text, names = write_sid(codes, sizes, style), sid_names(sizes, style)
    assert read_sid(text, sizes, style) == codes
    assert len(set(names)) == sum(sizes)
    firsts = [sum(sizes[:level]) for level in range(len(sizes))]
    assert text == "".join(names[first + code] for first, code in zip(firsts, codes, strict=True))


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("<a_1><b_2>", "letters"),
        ("<b_1><a_2><c_0>", "letters"),
        ("<a_4><b_0><c_0>", "letters"),
        ("<a_1> <b_2><c_0>", "letters"),
        ("<a_01><b_2><c_0>", "letters"),
        ("<|sid_1|><|sid_4|><|sid_9|>", "letters"),
        ("<|sid_1|><|sid_4|>", "numbered"),
        ("<|sid_4|><|sid_1|><|sid_9|>", "numbered"),
        ("<|sid_1|><|sid_9|><|sid_9|>", "numbered"),
        ("<|sid_1|><|sid_4|><|sid_99|>", "numbered"),
        ("<a_1><b_0><c_0>", "numbered"),
    ],
)
def test_text_that_is_no_sid_of_all_levels_in_order_has_no_codes(text: str, style: SidStyle) -> None:
    assert read_sid(text, (4, 5, 3), style) is None


def test_markers_of_numbered_sids_are_two_tokens_before_the_codes() -> None:
    plain, numbered = (SidTokens(100, CATALOG.level_sizes, style=style) for style in STYLES)
    assert (plain.count, plain.text_end, plain.offsets[0]) == (18, 100, 0)
    assert (numbered.count, numbered.text_end, numbered.offsets[0]) == (20, 101, 2)
    codes_NL = CATALOG.codes_NL
    torch.testing.assert_close(numbered.tokens(codes_NL), plain.tokens(codes_NL) + 2)
    assert int(numbered.tokens(codes_NL).min()) >= 102 and int(numbered.tokens(codes_NL).max()) < 120
    for level in range(4):
        torch.testing.assert_close(numbered.token(level, codes_NL[:, level]), numbered.tokens(codes_NL)[:, level])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_lm(tmp_path_factory.mktemp("lm")))


def settings_of(backbone: str, style: SidStyle, finetuning: str = "lora") -> PolicyConfig:
    lora = Lora(rank=2, dropout=0.0)
    return PolicyConfig.model_validate(
        {"kind": "pretrained", "path": backbone, "lora": lora, "sid_tokens": style, "finetuning": finetuning}
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("finetuning", ["lora", "full"])
def test_an_item_in_a_conversation_stands_between_the_markers_of_its_style(
    backbone: str, style: SidStyle, finetuning: str
) -> None:
    settings = settings_of(backbone, style, finetuning)
    policy, prompts = build(settings, CATALOG, max_history=4, seed=0)
    tokenizer, sids = load_tokenizer(settings, None), policy.sids
    form = ChatFormat(tokenizer, sids, CATALOG)
    encoded = form.encode([Message("user", ("After ", Item(3))), Message("assistant", ("take ", Item(7), "."))])
    span = [*form.open, *sids.tokens(CATALOG.codes_NL[7]).tolist(), *form.close]
    tokens = encoded.tokens_S.tolist()
    at = next(start for start in range(len(tokens)) if tokens[start : start + len(span)] == span)
    assert encoded.label_S[at : at + len(span)].tolist() == [True] * (len(span) - 1) + [False]
    if style == "numbered":
        assert (form.open, form.close) == ((sids.base,), (sids.base + 1,))
        assert tokens.count(sids.base) == tokens.count(sids.base + 1) == 2
        typed = form.encode([Message("user", ("<|sid_start|><|sid_1|><|sid_end|>",))])
        assert int(typed.tokens_S.max()) < sids.base
    assert bool(form.text_token_mask()[form.open[0]]) and len(form.text_token_mask()) == sids.text_end
    histories, _ = prompts.encode([[3, 7]])
    assert not {*range(sids.base, sids.base + sids.markers)} & set(histories.flatten().tolist())
    hidden = policy.hidden(encoded.tokens_S[None], torch.arange(len(tokens))[None], torch.ones(1, 1, 1, 1).bool())
    level = policy.level_logits(hidden, 2)
    whole = policy.vocabulary_logits(hidden)
    torch.testing.assert_close(level, whole[..., sids.token(2, torch.arange(3))])


def test_running_text_learns_the_start_of_a_numbered_sid_and_its_codes_but_not_its_forced_end(backbone: str) -> None:
    settings = settings_of(backbone, "numbered")
    policy, _ = build(settings, CATALOG, max_history=4, seed=0)
    form = ChatFormat(load_tokenizer(settings, None), policy.sids, CATALOG)
    encoded = form.encode_passage(("See ", Item(7), " now."))
    forced_S = encoded.tokens_S == policy.sids.base + 1
    assert forced_S.sum() == 1 and encoded.label_S.tolist() == [False, *(~forced_S[1:]).tolist()]
    assert bool(encoded.label_S[encoded.tokens_S == policy.sids.base].all())


def test_a_tokenizer_that_has_a_name_of_the_style_is_refused(backbone: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(settings_of(backbone, "numbered"), None)
    copied = tiny_lm(tmp_path / "lm")
    tokenizer.add_tokens(["<|sid_end|>"])
    tokenizer.save_pretrained(copied)
    with pytest.raises(InputError, match="already has 1 of the SID tokens"):
        build(settings_of(str(copied), "numbered"), CATALOG, max_history=4, seed=0)


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_policy_is_loaded_in_its_style_and_refused_in_the_other(
    backbone: str, tmp_path: Path, style: SidStyle
) -> None:
    settings = settings_of(backbone, style)
    policy, _ = build(settings, CATALOG, max_history=4, seed=0)
    save(policy, policy.snapshot(0).tensors, CATALOG, {}, tmp_path)
    assert json.loads((tmp_path / "policy.json").read_text())["sid_tokens"] == style
    again, _ = load(settings, CATALOG, tmp_path, max_history=4, seed=1)
    assert again.snapshot(0).digest == policy.snapshot(0).digest
    other = settings.replace({"sid_tokens": STYLES[1 - STYLES.index(style)]})
    with pytest.raises(InputError, match=f"was trained with policy.sid_tokens={style}"):
        load(other, CATALOG, tmp_path, max_history=4, seed=1)


@pytest.mark.parametrize("style", STYLES)
def test_a_users_text_names_items_by_id_in_any_style_and_by_sid_in_its_own(style: SidStyle) -> None:
    before, after = MARKERS[style]
    sid = write_sid(CATALOG.codes_NL[7].tolist(), CATALOG.level_sizes, style)
    text = f"After [[x1]] and {before}{sid}{after}: what, <|sid_start|>?"
    parts = parse_parts(text, {"x1": 2}, CATALOG, style)
    assert parts == ("After ", Item(2), " and ", Item(7), ": what, <|sid_start|>?")
    shown = format_parts(parts, CATALOG.codes_NL, CATALOG.level_sizes, [""] * len(CATALOG), style)
    assert parse_parts(shown, {}, CATALOG, style) == (*parts[:-1], ": what, < |sid_start|>?")
    with pytest.raises(InputError, match=r"is no item of the catalogue; wanted \[\[id\]\], or a SID such as"):
        parse_parts(f"{before}nothing{after}", {}, CATALOG, style)


def test_a_recommender_speaks_in_the_style_of_its_policy(tmp_path: Path) -> None:
    recommender = serve(tmp_path, NUMBERED_CHAT, "policy.sid_tokens=numbered")["alone"]
    by_id = recommender.chat("After [[i3]], what?", max_tokens=8, seed=3)
    codes = random_catalog(24, (8, 8, 8)).codes_NL[3].tolist()
    sid = write_sid(codes, (8, 8, 8), "numbered").join(MARKERS["numbered"])
    assert recommender.chat(f"After {sid}, what?", max_tokens=8, seed=3) == by_id
    with pytest.raises(InputError, match="no item of the catalogue"):
        recommender.chat("After [[<a_0><b_0><c_0>]], what?")


def test_a_policy_without_text_has_no_style(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sid_tokens=numbered is about SIDs in text, which this policy does not know"):
        tiny_config(tmp_path, tmp_path, "policy.sid_tokens=numbered")


def test_a_text_of_opening_markers_alone_is_read_in_linear_time() -> None:
    text = "[" * 200_000
    began = time.process_time()
    assert parse_parts(text, {}, CATALOG) == (text,)
    assert time.process_time() - began < 5  # Quadratic: minutes.


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("title", ["see [[x1]]", "polish [[limited]]", "[[[M4]]]", "<|sid_start|>nothing<|sid_end|>"])
def test_a_reply_is_read_again_whatever_its_words_and_titles_hold(title: str, style: SidStyle) -> None:
    """The page sends a reply back as the assistant's turn."""
    titles = [title] * len(CATALOG)
    shown = format_parts((f"I like {title}: ", Item(7), "."), CATALOG.codes_NL, CATALOG.level_sizes, titles, style)
    again = parse_parts(shown, {"x1": 2}, CATALOG, style)
    assert [part for part in again if isinstance(part, Item)] == [Item(7)]


@pytest.mark.parametrize("style", STYLES)
def test_a_reply_is_read_again_where_a_text_ends_as_a_marker_begins(style: SidStyle) -> None:
    about = (CATALOG.codes_NL, CATALOG.level_sizes, [""] * len(CATALOG), style)
    for text in ("[", "one of [", "<", "[[", "a [["):
        again = parse_parts(format_parts((text, Item(7), "]", Item(3)), *about), {}, CATALOG, style)
        assert [part for part in again if isinstance(part, Item)] == [Item(7), Item(3)]


@pytest.mark.parametrize("style", STYLES)
def test_an_item_that_was_removed_may_still_be_named_by_its_sid(style: SidStyle) -> None:
    """A reply named it before; the conversation goes on."""
    gone = Catalog(CATALOG.codes_NL, CATALOG.level_sizes, removed=[5, 7])
    said = format_parts(("I like ", Item(7)), gone.codes_NL, gone.level_sizes, ["a title"] * len(gone), style)
    assert gone.item_of(gone.codes_NL[7].tolist()) is None
    assert parse_parts(said, {}, gone, style) == ("I like ", Item(7), " (a title)")
    taken = {tuple(codes) for codes in gone.codes_NL.tolist()}
    free = next(codes for codes in product(*map(range, gone.level_sizes)) if codes not in taken)
    with pytest.raises(InputError, match="no item of the catalogue"):
        parse_parts(write_sid(free, gone.level_sizes, style).join(MARKERS[style]), {}, gone, style)


def test_a_recommender_keeps_no_more_of_what_is_said_than_a_conversation_needs(tmp_path: Path) -> None:
    recommender = serve(tmp_path, NUMBERED_CHAT)["alone"]
    said = [{"role": "user", "content": str(number)} for number in range(KEPT_TEXTS + 50)]
    recommender.chat(said, max_tokens=1)
    kept = recommender._conversations._format_of(recommender.view)._text.cache_info()
    assert kept.currsize == kept.maxsize == KEPT_TEXTS
    with pytest.raises(InputError, match="got 1000000 messages, and the model has"):
        recommender.chat(said[:1] * 1_000_000)
