"""The judge: what it is asked, what it may answer, and what is made of that."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support.judge_server import JudgeServer, fair_reply, judging
from support.shop_texts import SHOPS_TEXTS

from cluster import chat_client
from cluster.judge import judge_run
from genrec.config import Config, load_config
from genrec.errors import InputError
from genrec.evaluation.judge.replies import read_reply
from workflows.cli import command_line

USERS = 12


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "FIRST_PAUSE_S", 0.001)


def made_run(directory: Path, title: str = "") -> Path:
    """A run of two systems: the model's answers are good, ItemKNN's are poor, but for the first users' equal ones."""
    columns: dict[str, Any] = {
        "query": [3 * user for user in range(USERS)],
        "history": [[f"thing {user} {title}", "another"] for user in range(USERS)],
        "target": [[f"great choice {user}"] for user in range(USERS)],
        "random": [[f"bad item {user}", "x"] for user in range(USERS)],
        "model": [[f"good item {user}", "y"] for user in range(USERS)],
        "itemknn": [[f"{'good' if user < 2 else 'poor'} item {user}", "z"] for user in range(USERS)],
    }
    directory.mkdir()
    pq.write_table(pa.table(columns), directory / "answers.parquet")
    return directory


def config_for(server: JudgeServer, *settings: str) -> Config:
    return load_config([], [f"judge.url='{server.url}'", "judge.model=big", *settings])


def judge_files(run: Path) -> tuple[dict[str, Any], str]:
    (directory,) = (run / "judge").iterdir()
    found = json.loads((directory / "judge.json").read_text("utf-8"))
    return found, (directory / "judge.html").read_text("utf-8")


def test_scores_follow_the_judge_and_equal_answers_are_shown_once(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with judging() as server:
        verdict, page = judge_run(config_for(server, "judge.price_in=2", "judge.price_out=5"), run)
    found, text = judge_files(run)
    means = {name: row["means"]["score"] for name, row in found["systems"].items()}
    assert means == pytest.approx({"model": 4, "itemknn": 2 + 2 * 2 / USERS, "target": 5, "random": 1})
    assert verdict.startswith("For this judge the model, 4.00 of 5, is ahead of ItemKNN") and verdict in text
    assert found["systems"]["itemknn"]["histogram"] == [0, 60, 0, 12, 0], "3 criteria, 2 passes, 10 and 2 users"
    assert found["passes"]["equal"] == found["passes"]["kappa"] == 1 and found["judges"] is None
    assert found["spent"] == {
        "asked": 24, "judged": 24, "failures": {}, "tokens_in": 2400, "tokens_out": 240, "price": pytest.approx(0.006),
    }  # fmt: skip
    shown = [json.loads(one["messages"][1]["content"])["recommenders"] for one in server.requests]
    assert sorted({len(answers) for answers in shown}) == [3, 4]
    assert len({next(iter(answers.values()))[0].split()[0] for answers in shown}) == 4, "any of them comes first"
    assert not any(re.search("model|itemknn|target", one["messages"][1]["content"]) for one in server.requests)
    assert page.is_file()


def test_a_killed_judge_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")

    def stops(request: dict[str, Any]) -> str | int:
        return 401 if len(server.requests) > 5 else fair_reply(request)

    with judging(stops) as server, pytest.raises(InputError, match=r"401.*GENREC_JUDGE_KEY is not set"):
        judge_run(config_for(server, "judge.concurrency=1"), run)
    (file,) = run.glob("judge/*/judgements.jsonl")
    file.write_text(file.read_text("utf-8") + '{"model": "big", "jud', "utf-8")
    with judging() as server:
        moved = config_for(server)
        judge_run(moved, run)
        assert len(server.requests) == 19 and len(list(run.glob("judge/*"))) == 1, "it may be reached elsewhere"
        judge_run(moved.replace({"judge.passes": 3}), run)
    assert len(server.requests) == 31, "a third pass is asked alone"


NONSENSE = (
    "", "no", "{}", "[1]", '{"A": 5}', '{"A": {"fit": 5}}', "{" * 3000, '{"a":' * 3000, '{"A": {"fit": NaN}}',
    '{"A": {"fit": 6, "coherence": 1, "appeal": 1}}', '{"A": {"fit": true, "coherence": 1, "appeal": 1}}',
    '{"A": {"fit": "5", "coherence": 1, "appeal": 1}}', '{"A": {"fit": 2.5, "coherence": 1, "appeal": 1}}',
)  # fmt: skip


def test_malformed_replies_are_asked_again_counted_and_no_judgement(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")

    def sometimes(request: dict[str, Any]) -> str | int:
        number = len(server.requests)
        if number % 3 == 0:
            return f"<think>{{}}</think> Sure:\n```json\n{fair_reply(request)}\n```"
        return NONSENSE[number // 3 % len(NONSENSE)] if number % 3 == 1 else fair_reply(request)

    with judging(sometimes) as server:
        judge_run(config_for(server, "judge.concurrency=1", "judge.retries=0"), run)
    found, _ = judge_files(run)
    assert found["spent"]["failures"]["malformed reply"] >= 5
    assert found["systems"]["model"]["means"]["score"] == 4


def test_a_reply_without_words_is_malformed_asked_again_and_paid(tmp_path: Path) -> None:
    """A model that thinks until it is cut off says nothing, and its tokens cost what others do."""
    run, asked = made_run(tmp_path / "run"), set[str]()

    def cut_off_at_first(request: dict[str, Any]) -> str:
        question = request["messages"][1]["content"]
        first = question not in asked
        asked.add(question)
        return "" if first else fair_reply(request)

    with judging(cut_off_at_first) as server:
        judge_run(config_for(server, "judge.passes=1", "judge.concurrency=1", "judge.price_out=5"), run)
    spent = judge_files(run)[0]["spent"]
    assert len(server.requests) == 2 * USERS and spent["judged"] == USERS
    assert spent["failures"] == {"malformed reply": USERS}
    assert (spent["tokens_in"], spent["tokens_out"]) == (2 * USERS * 100, 2 * USERS * 10)
    assert spent["price"] == pytest.approx(2 * USERS * 10 * 5 / 1e6)


@pytest.mark.parametrize("reply", [*NONSENSE, 500, 429, 400])
def test_a_judge_that_answers_nonsense_is_given_up(reply: str | int, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with judging(lambda _: reply) as server, pytest.raises(InputError, match="no judgement 10 times in a row"):
        judge_run(config_for(server, "judge.retries=0"), run)
    assert len(server.requests) <= 2 * USERS * 2


def test_a_judge_that_never_answers_or_is_not_there_is_one_message(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with judging() as server:
        server.lock.acquire()
        slow = config_for(server, "judge.retries=0", "judge.timeout_s=0.05", "judge.give_up_after=3")
        with pytest.raises(InputError, match=r"3 times in a row.*no reply"):
            judge_run(slow, run)
        server.lock.release()
    with pytest.raises(InputError, match="the judge at http"):
        judge_run(slow, run)
    with pytest.raises(InputError, match=r"judge\.url is not set"):
        judge_run(load_config([]), run)


def test_a_judge_that_scores_at_random_is_not_believed(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")

    def blind(request: dict[str, Any]) -> str:
        shown = json.loads(request["messages"][1]["content"])["recommenders"]
        return json.dumps({one: {"fit": 3, "coherence": 3, "appeal": 3} for one in shown})

    with judging(blind) as server:
        verdict, _ = judge_run(config_for(server), run)
    found, _ = judge_files(run)
    assert verdict.startswith("This judge does not score what users chose above random items")
    assert found["passes"]["kappa"] is None and found["passes"]["equal"] == 1


def test_a_judge_that_likes_what_it_reads_first_is_seen(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")

    def first(request: dict[str, Any]) -> str:
        shown = json.loads(request["messages"][1]["content"])["recommenders"]
        return json.dumps({one: dict.fromkeys(("fit", "coherence", "appeal"), 5 if one == "A" else 2) for one in shown})

    with judging(first) as server, judging() as other:
        second = (f"judge.second.url='{other.url}'", "judge.second.model=small")
        judge_run(config_for(server, *second, "judge.price_in=2", "judge.second.price_in=1"), run)
    found, _ = judge_files(run)
    assert found["spent"]["tokens_in"] == 3600
    assert found["spent"]["price"] == pytest.approx((2400 * 2 + 1200 * 1) / 1e6)
    assert found["positions"] == {"A": 5, "B": 2, "C": 2, "D": 2}
    assert found["passes"]["kappa"] < 0.5 and found["judges"]["kappa"] < 0.5
    assert found["judges"]["scores"] == 3 * sum(4 if user > 1 else 3 for user in range(USERS))


def test_hostile_titles_are_data_for_the_judge_and_the_page(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", title=" ".join(SHOPS_TEXTS))
    with judging() as server:
        judge_run(config_for(server, "judge.passes=1", "judge.model=<script>alert(1)</script>"), run)
    asked = [json.loads(one["messages"][1]["content"]) for one in server.requests]
    assert all(set(one) == {"history", "recommenders"} and len(one["history"]) == 2 for one in asked)
    assert "<script>alert(1)" not in judge_files(run)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "judge.url=http://localhost:1/v1", "judge.model=x"], "holds no answers.parquet"),
        (["run", "judge.url=http://localhost:1/v1", "judge.model=x", "judge.systems=[knn]"], "judge.systems names"),
        (["run", "judge.url=http://localhost:1/v1"], "needs judge.model"),
        (["run", "judge.url=http://far.host/v1", "judge.model=x"], "in the clear"),
        (["run", "judge.queries=3"], "judge.queries"),
        (["run"], "judge.url is not set"),
    ],
)
def test_bad_input_is_one_message(words: list[str], said: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    result = CliRunner().invoke(command_line, ["judge", str(run.with_name(words[0])), *words[1:]])
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("before", ["{} No: it fits.</think>", "<think>{}</think>", "Draft: {}\nFinal:", "<think>{}"])
def test_a_draft_is_no_judgement(before: str) -> None:
    draft, final = (json.dumps({"A": dict.fromkeys(("fit", "coherence", "appeal"), one)}) for one in (1, 5))
    text = before.replace("{}", draft)
    if before == "<think>{}":  # Cut off at judge.max_tokens.
        with pytest.raises(ValueError, match="no JSON object"):
            read_reply(text, ["A"])
    else:
        assert read_reply(f"{text} {final}", ["A"])["A"]["fit"] == 5
