"""Measures of answers that are written down here, so that each share is known."""

import pytest

from benchmarks import chat_measures
from genrec.policy.chat.generate import GeneratedReply
from genrec.policy.chat.templates import Item

KIND = {0: "tooth", 1: "tooth", 2: "hair", 3: "hair"}


def title(item: int) -> str:
    return f" (thing {item})"


def test_wordings_agree_pair_by_pair_and_an_answer_without_an_item_agrees_with_none() -> None:
    assert chat_measures.agreement([4, 4, 4]) == [1.0, 1.0, 1.0]
    assert chat_measures.agreement([4, 5, 4]) == [0.0, 1.0, 0.0]
    assert chat_measures.agreement([None, None]) == [0.0]
    assert chat_measures.agreement([4]) == []


@pytest.mark.parametrize(
    ("second", "wanted_second", "found"),
    [
        (1, 1, {"kept_after_like": 1.0}),
        (2, 1, {"kept_after_like": 0.0}),
        (2, 3, {"left_after_dislike": 1.0}),
        (1, 3, {"left_after_dislike": 0.0}),
    ],
)
def test_a_like_keeps_the_category_and_a_dislike_leaves_it(
    second: int, wanted_second: int, found: dict[str, float]
) -> None:
    own, wanted = ((Item(0),), ("Take ", Item(second))), ((Item(0),), (Item(wanted_second),))
    assert chat_measures.feedback_measures(own, wanted, KIND.__getitem__) == found
    assert chat_measures.feedback_measures((("nothing",), own[1]), wanted, KIND.__getitem__) == {}


def test_items_of_a_list_are_of_the_category_distinct_and_titled() -> None:
    parts = ("Here: ", Item(0), " (thing 0)\n", Item(0), " (thing 9)\n", Item(2), Item(1))
    found = chat_measures.list_measures(parts, (Item(1), "\n", Item(0)), KIND.__getitem__, title)
    assert found == {
        "in_category": [1.0, 1.0, 0.0, 1.0],
        "distinct": [1.0, 0.0, 1.0, 1.0],
        "right_titles": [1.0, 0.0, 0.0, 0.0],
    }


def test_a_semantic_id_that_no_item_has_is_counted() -> None:
    reply = GeneratedReply(["First ", Item(0), "<a_3><b_1><c_2>"], [], True, missing=1)
    assert chat_measures.existing(reply) == [1.0, 0.0]
    assert chat_measures.answer_measures(reply, ("Take ", Item(0))) == {
        "ended": 1.0,
        "item_where_wanted": 1.0,
        "item_as_wanted": 1.0,
    }
    assert chat_measures.answer_measures(reply, ("none",)) == {"ended": 1.0, "item_where_wanted": 0.0}
