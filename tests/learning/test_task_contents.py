"""What each instruction task says about the small shop of ``test_tasks``, whose items are known."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_tasks import ITEMS, KINDS, SETTINGS, TARGETS, example_builder, form, items, learned
from test_tasks import mixture as mixture_of

from genrec.config import Instruction, TaskWeight
from genrec.errors import InputError
from genrec.learning.tasks.category_lists import CategoryLists
from genrec.learning.tasks.examples import ExampleBuilder
from genrec.learning.tasks.item_fields import ItemFields
from genrec.learning.tasks.windows import sliding_windows
from genrec.policy.chat.templates import Item, Message, load_language

ENGLISH = load_language("en")
DRAWS = 12


def builder(histories: Any, targets: Any, settings: Instruction = SETTINGS, **options: Any) -> ExampleBuilder:
    return ExampleBuilder(ItemFields(items(), settings), [ENGLISH], settings, histories, targets, **options)


def kind(item: int) -> str:
    return KINDS[item % 4]


def said_by(role: str, messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message.role == role]


def rows_of(message: Message) -> list[int]:
    return [part.row for part in message.parts if isinstance(part, Item)]


def text_of(message: Message) -> str:
    return "".join(part if isinstance(part, str) else "#" for part in message.parts)


def drawn(own: ExampleBuilder, task: str, row: int) -> list[list[Message]]:
    return [own.build(task, row, np.random.default_rng(draw)) for draw in range(DRAWS)]


def test_windows_slide_over_the_whole_sequence_and_end_with_it() -> None:
    assert sliding_windows([list(range(7)), [8, 9], [3]], 4, 2) == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6], [8, 9]]
    assert sliding_windows([list(range(8))], 4, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_category_analysis_names_the_most_frequent_categories_of_each_window() -> None:
    settings = SETTINGS.replace({"window": 4, "stride": 2, "interests": 2})
    own = builder([[0]], [1], settings, sequences=[[0, 4, 8, 1, 5, 9, 2]])
    windows = [[0, 4, 8, 1], [8, 1, 5, 9], [1, 5, 9, 2]]
    assert own.rows("category_analysis").tolist() == [0, 1, 2]
    for row, names in enumerate(("tooth, hair", "hair, tooth", "hair, soap")):
        for messages in drawn(own, "category_analysis", row):
            assert rows_of(messages[1]) == windows[row]
            assert names in text_of(messages[2])


def test_a_category_request_has_no_history_and_is_answered_with_five_titled_items_of_the_category() -> None:
    own = example_builder(languages=["en"])
    for row, target in enumerate(TARGETS):
        for messages in drawn(own, "category_based_recommendation", row):
            assert rows_of(messages[1]) == []
            asked = text_of(messages[1])
            assert kind(target) in asked
            listed = rows_of(messages[2])
            assert listed[0] == target
            assert len(set(listed)) == 5
            assert {kind(item) for item in listed} == {kind(target)}
            assert all(f"# ({kind(item)} thing number {item})" in text_of(messages[2]) for item in listed)
    descriptions = {
        f"a {kind(12)} thing number 12 for the house" in text_of(one[1])
        for one in drawn(own, "category_based_recommendation", 0)
    }
    assert descriptions == {True, False}, "some requests describe what is wanted"


def test_items_of_a_list_are_drawn_by_how_often_they_were_chosen_and_none_is_absent() -> None:
    counts_N = np.zeros(ITEMS, dtype=int)
    counts_N[4] = 60
    lists = CategoryLists(ItemFields(items(), SETTINGS), counts_N, absent=[8])
    found = Counter(item for seed in range(100) for item in lists.draw(0, 2, np.random.default_rng(seed))[1:])
    assert found[4] > 80
    assert set(found) <= {4, 12, 16, 20}
    assert lists.has(0, 5)
    assert not lists.has(0, 6)
    assert not lists.has(8, 2)


def test_a_category_dialogue_shows_three_titled_items_and_then_three_of_another_type() -> None:
    own = builder([[0, 5, 4]], [6], SETTINGS.replace({"turns": 2}))
    for messages in drawn(own, "multi_turn_dialogue_category", 0):
        first, second = (rows_of(message) for message in said_by("assistant", messages))
        assert (first[0], second[0]) == (4, 6), "the last items of two categories"
        assert [kind(item) for item in first + second] == ["tooth"] * 3 + ["soap"] * 3
        assert len(set(first + second)) == 6
        asked = [text_of(message) for message in said_by("user", messages)]
        assert "tooth" in asked[0] and "soap" in asked[1]
        assert "thing number 4)" in text_of(messages[2])
    three = builder([[0, 5, 4]], [6]).build("multi_turn_dialogue_category", 0, np.random.default_rng(0))
    assert [kind(rows_of(message)[0]) for message in said_by("assistant", three)] == ["hair", "tooth", "soap"]


def test_a_sequence_dialogue_takes_later_behaviour_as_like_and_dislike_and_names_the_type() -> None:
    likes = {template.lines["like"] for template in ENGLISH.tasks["multi_turn_dialogue_sequence"]}
    dislikes = {template.lines["dislike"] for template in ENGLISH.tasks["multi_turn_dialogue_sequence"]}
    own = builder([[2, 3, 1, 5]], [6])
    for messages in drawn(own, "multi_turn_dialogue_sequence", 0):
        answers = said_by("assistant", messages)
        assert [rows_of(message) for message in answers] == [[1], [5], [6]], "the user's own next items"
        assert [name in text_of(message) for message, name in zip(answers, ("hair", "hair", "soap"), strict=True)]
        _, stays, leaves = (text_of(message) for message in said_by("user", messages))
        assert stays in likes and leaves in dislikes
    assert {"Not bad, more like it."} < likes and {"I don't like it, another one."} < dislikes


def test_an_item_is_recommended_once_in_a_dialogue() -> None:
    own = builder([[2, 5, 6, 5]], [6], SETTINGS.replace({"turns": 2}))
    messages = own.build("multi_turn_dialogue_sequence", 0, np.random.default_rng(0))
    assert [rows_of(message) for message in said_by("assistant", messages)] == [[5], [6]]
    alone = builder([[6, 6], [2, 6]], [6, 5], SETTINGS.replace({"turns": 2}))
    assert alone.rows("multi_turn_dialogue_sequence").tolist() == [1], "one answer has nothing to be liked"


def test_histories_are_semantic_ids_titles_or_both_mixed() -> None:
    own = builder([list(range(8))], [9], SETTINGS.replace({"turns": 2}))
    forms = set[str]()
    for draw in range(40):
        user = own.build("multi_turn_dialogue_sequence", 0, np.random.default_rng(draw))[1]
        shown = [(item in rows_of(user), f"thing number {item}" in text_of(user)) for item in range(7)]
        assert all(with_sid or with_title for with_sid, with_title in shown)
        forms.add({1: str(shown[0])}.get(len(set(shown)), "mixed"))
    assert forms == {str((True, False)), str((False, True)), "mixed"}


def test_preferences_are_sentences_on_categories_and_brands_or_a_teachers() -> None:
    own = builder([[0, 4, 3, 1]], [2], SETTINGS.replace({"window": 2, "interests": 2}))
    for messages in drawn(own, "preference_analysis", 0):
        assert text_of(messages[2]) == (
            "The customer mostly chooses tooth, hair. The favourite brands are brand 1, brand 0. "
            "Lately it has been hair, paper."
        )
    taught = builder([[0]], [2], taught={("preference_analysis", 0, "en"): "Clean teeth matter."})
    assert text_of(drawn(taught, "preference_analysis", 0)[0][2]) == "Clean teeth matter."


def test_the_item_comes_before_the_reason_which_names_shared_attributes_or_is_a_teachers() -> None:
    own = example_builder(languages=["en"])
    for messages in drawn(own, "recommendation_reasoning", 0):
        parts, said = messages[2].parts, text_of(messages[2])
        first = next(index for index, part in enumerate(parts) if part == Item(TARGETS[0]))
        assert "".join(map(str, parts[:first])) in ("I recommend ", "", "My recommendation: ")
        assert said.index("thing number 12") < said.index("It is from tooth") < said.index("brand 0")
    taught = example_builder(languages=["en"], taught={("recommendation_reasoning", 0, "en"): "Because I say so."})
    for messages in drawn(taught, "recommendation_reasoning", 0):
        assert text_of(messages[2]).endswith("Because I say so.")


def test_anchoring_has_all_details_and_recovery_is_title_categories_and_synopsis_to_sid() -> None:
    own = example_builder(languages=["en"])
    title = "Title: hair thing number 5"
    rest = ("Categories: shop > hair", "Synopsis: a hair thing number 5 for the house")
    both_ways = set[str]()
    for messages in drawn(own, "semantic_anchoring", 5):
        details = next(message for message in messages[1:] if "Title" in text_of(message))
        both_ways.add(details.role)
        assert "\n".join((title, rest[0], "Brand: brand 2", rest[1])) in text_of(details)
    assert both_ways == {"user", "assistant"}
    for messages in drawn(own, "semantic_recovery", 5):
        assert "\n".join((title, *rest)) in text_of(messages[1])
        assert rows_of(messages[1]) == [] and rows_of(messages[2]) == [5]


def test_a_sid_leads_to_title_category_and_plot() -> None:
    own = example_builder(languages=["en"])
    answers = {text_of(messages[2]) for messages in drawn(own, "attribute_mapping", 5)}
    assert answers == {"hair thing number 5", "hair", "a hair thing number 5 for the house"}
    plain = example_builder(items(description=[""] * ITEMS), languages=["en"])
    answers = {text_of(messages[2]) for messages in drawn(plain, "attribute_mapping", 5)}
    assert answers == {"hair thing number 5", "hair"}


def test_a_passage_has_sid_title_categories_and_synopsis_with_the_sid_before_or_after() -> None:
    own, before = example_builder(languages=["en"]), set[bool]()
    for draw in range(40):
        (passage,) = own.build("running_text", 5, np.random.default_rng(draw))
        said = text_of(passage)
        assert rows_of(passage) == [5]
        assert all(part in said for part in ("hair thing number 5", "shop > hair", "a hair thing number 5 for"))
        before.add(said.index("#") < said.index("hair"))
    assert before == {True, False}


def test_every_token_of_a_passage_is_learned_but_the_one_that_begins_it() -> None:
    own = form()
    passage = ("About ", Item(5), ": hair")
    encoded = own.encode_passage(passage)
    assert encoded.label_S.tolist() == [False] + [True] * (len(encoded.tokens_S) - 1)
    assert learned(encoded, own) == "About [[###]]: hair<|im_end|>"
    assert torch.equal(encoded.tokens_S[-1:], encoded.tokens_S[:1]), "no beginning of text: its end stands there"
    mixed = mixture_of(running_text=TaskWeight(weight=1))
    batch = mixed.take(np.arange(len(mixed)))
    assert torch.equal(batch.label_CS[:, 1:], batch.mask_CS[:, 1:])
    assert not batch.label_CS[:, 0].any()


def test_examples_count_alike_where_the_balance_says_so() -> None:
    from test_tasks import queries

    from genrec.config import Tasks
    from genrec.learning.tasks.mixture import Mixture

    tasks = Tasks(next_item=TaskWeight(weight=9, repeat=3), running_text=TaskWeight(weight=0.1))
    mixed = Mixture(tasks, example_builder(), queries(), form(), seed=0, max_tokens=4096, balance="examples")
    assert [share.factor for share in mixed.shares] == [1.0, 1.0]
    assert mixed.statistics()["tasks"]["next_item"]["loss_share"] == pytest.approx(12 / (12 + ITEMS), abs=1e-4)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("recommendation_reasoning", {"assistant": "{reason} So {target}."}, r"wants {target} before {reason}"),
        ("semantic_recovery", {"user": "{title}, {path}"}, r"lacks the field {record} or {details} or {description}"),
        ("semantic_anchoring", {"user": "{sid}", "assistant": "{title}"}, r"lacks the field {details} or {path}"),
        ("running_text", {"text": "{record}"}, r"lacks the field {sid}"),
        ("multi_turn_dialogue_sequence", {"assistant": "{target}"}, r"lacks the field {category}"),
        ("category_based_recommendation", {"assistant": "{target}"}, r"lacks the field {list} or {titled_list}"),
    ],
)
def test_a_template_without_its_tasks_content_is_refused(tmp_path: Path, task: str, change: Any, message: str) -> None:
    packaged = Path(__file__).parents[2] / "genrec/policy/chat/languages/en.yaml"
    content = yaml.safe_load(packaged.read_text())
    content["tasks"][task][0].update(change)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        load_language(str(file))
