"""The load of bench serve: what it counts as failed, and as wrong."""

import pytest

from benchmarks.load import HttpReply, LoadClient
from benchmarks.serve import Changes


def test_a_service_that_refuses_everything_fails_changes_and_makes_no_answer_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GENREC_API_KEY", "a key of the tests alone")
    answer = HttpReply(503, {}, 0, 0, True)
    monkeypatch.setattr(LoadClient, "ask", lambda *asked: answer)
    changes = Changes("http://nowhere")
    changes.remove_recommended({"history": ["i1"]})
    changes.reload("run")
    assert (changes.made, changes.failed, changes.is_wrong(answer)) == (1, 2, False)


def test_an_item_is_wrong_in_answers_that_begin_after_its_removal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREC_API_KEY", "a key of the tests alone")
    status = {"POST": 200, "DELETE": 500}
    found = {"items": [{"id": "i1"}]}
    monkeypatch.setattr(LoadClient, "ask", lambda self, method, *asked: HttpReply(status[method], found, 0, 0))
    changes, late, early = (
        Changes("http://nowhere"),
        HttpReply(200, found, float("inf"), 0),
        HttpReply(200, found, 0, 0),
    )
    changes.remove_recommended({"history": ["i1"]})
    assert not changes.is_wrong(late), "the removal failed"
    status["DELETE"] = 200
    changes.remove_recommended({"history": ["i1"]})
    assert changes.is_wrong(late) and not changes.is_wrong(early)
