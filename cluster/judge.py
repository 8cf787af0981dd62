"""A language model judges the answers of a finished run: several questions at a time, resumable, within limits.

Judgements are lines of ``<run>/judge/<key>/judgements.jsonl``, written as they come; the same command asks only what
has none yet. The key is made of the answers and of the settings that change a judgement.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cluster.chat_client import NoReply, chat
from genrec.config import ChatServer, Config
from genrec.data.files import write_json
from genrec.errors import InputError
from genrec.evaluation.judge.judge_page import write_judge_page
from genrec.evaluation.judge.judgement import Judged, Spent, judge_verdict, summarise_judgements
from genrec.evaluation.judge.questions import JudgeQuestion, questions
from genrec.evaluation.judge.replies import Scores, read_reply
from genrec.evaluation.judge.system_answers import FILE, OTHERS, read_answers
from genrec.evaluation.summary import NAMES

LOG = logging.getLogger(__name__)

JUDGEMENTS = "judgements.jsonl"
ASKED_AGAIN = 1
"""Further tries for a reply that is no judgement."""
KEPT = 500
"""Characters of such a reply that are kept."""
LINE = ("model", "judge", "pass", "query", "systems", "scores", "failure", "malformed", "tokens_in", "tokens_out")
"""What a line of the file has at least."""


@dataclass(frozen=True)
class Outcome:
    """What came of one question: scores, or why there are none; tokens of all tries."""

    scores: Scores | None
    failure: str = ""
    reply: str = ""
    malformed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def as_line(self, question: JudgeQuestion) -> dict[str, Any]:
        """The line of the file."""
        judge, turn, query = question.key
        systems = {letter: list(names) for letter, names in question.systems.items()}
        return {"judge": judge, "pass": turn, "query": query, "systems": systems, **vars(self)}


def judge_run(config: Config, run: Path) -> tuple[str, Path]:
    """Judge the answers of a run; returns the verdict and the page that shows it.

    Raises:
        InputError: no judge is given, the run has no answers, the judge cannot be reached, refuses, or answers nonsense
            ``judge.give_up_after`` times in a row, or fewer than six users were judged.
    """
    settings = config.judge
    if settings.url is None:
        raise InputError(
            "judge.url is not set; wanted: an OpenAI-compatible server, as in "
            "judge.url=https://host/v1 judge.model=NAME, with its key in the environment variable "
            f"{settings.key_variable}"
        )
    table = read_answers(run, settings.systems)
    systems = [name for name in table.column_names if name not in OTHERS]
    rows = np.random.default_rng([config.seed, 3]).permutation(len(table))[: settings.queries]
    asked = list(_questions(config, table.take(np.sort(rows)).to_pylist(), systems))
    out = run / "judge" / _key(config, run)
    out.mkdir(parents=True, exist_ok=True)
    _ask(config, asked, out / JUDGEMENTS)
    judged, spent = read_judgements(config, asked, out / JUDGEMENTS)
    found = summarise_judgements(judged, systems, spent, config.seed)
    shown = NAMES | {"target": "what users chose", "random": "random items"}
    verdict = judge_verdict(found, systems[0], shown)
    found = {
        "verdict": verdict,
        "models": [server.model for server in _servers(config)],
        "run": run.name,
        **found,
    }
    write_json(found, out / "judge.json")
    return verdict, write_judge_page(out, found, shown)


def _servers(config: Config) -> list[ChatServer]:
    second = config.judge.second
    return [config.judge, *([second] if second.url else [])]


def _questions(config: Config, users: Sequence[dict[str, Any]], systems: Sequence[str]) -> list[JudgeQuestion]:
    """Those of every pass of the first judge, then those of the second one."""
    settings = config.judge
    series = [(0, turn) for turn in range(settings.passes)] + [(1, 0)] * (len(_servers(config)) - 1)
    limits = {"history": settings.history, "top": settings.answers, "seed": config.seed}
    return [one for judge, turn in series for one in questions(users, systems, judge=judge, turn=turn, **limits)]


def _key(config: Config, run: Path) -> str:
    """What the judgements depend on; more users or passes, or a second judge, add to those that are there."""
    settings = config.judge.result_settings()
    later = ("url", "queries", "passes", "second", "key_variable")
    kept = {name: value for name, value in settings.items() if name not in later}
    about = json.dumps([config.seed, kept], sort_keys=True).encode()
    return hashlib.sha256(about + (run / FILE).read_bytes()).hexdigest()[:12]


def _ask(config: Config, asked: Sequence[JudgeQuestion], file: Path) -> None:
    """Put the questions that have no judgement yet; what was judged is kept whatever happens."""
    done = {_place_of(line) for line in _lines(file) if line["scores"]}
    open_questions = [one for one in asked if _place(config, one) not in done]
    given_up, servers, in_a_row = threading.Event(), _servers(config), 0
    if not open_questions:
        return
    LOG.info("%d questions, %d of them answered before", len(asked), len(asked) - len(open_questions))
    with ThreadPoolExecutor(config.judge.concurrency) as pool, file.open("a", encoding="utf-8") as lines:
        lines.write("\n")  # Ends a line that was cut off.
        waiting = {pool.submit(_judge, servers[one.judge], one, given_up): one for one in open_questions}
        try:
            for number, future in enumerate(as_completed(waiting), start=1):
                outcome = _write(config, waiting[future], future, lines)
                in_a_row = 0 if outcome.scores else in_a_row + 1
                if outcome.scores is None:
                    LOG.warning("no judgement of query %d: %s", waiting[future].query, outcome.failure)
                if in_a_row >= config.judge.give_up_after:
                    raise InputError(
                        f"the judge gave no judgement {in_a_row} times in a row, the last time: {outcome.failure} "
                        f"(reply: {outcome.reply[:200]!r}); what was judged is kept, and the same command goes on"
                    )
                if number % 50 == 0:
                    LOG.info("%d of %d judgements", number, len(waiting))
        finally:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _write(config: Config, question: JudgeQuestion, future: Future[Outcome], lines: IO[str]) -> Outcome:
    outcome = future.result()
    model = _servers(config)[question.judge].model
    lines.write(json.dumps({"model": model, **outcome.as_line(question)}) + "\n")
    lines.flush()
    return outcome


def _judge(server: ChatServer, question: JudgeQuestion, given_up: threading.Event) -> Outcome:
    """Ask once, and once more where the reply is no judgement.

    Raises:
        NoReply: the server would answer no question.
    """
    tokens_in = tokens_out = 0
    failure = text = ""
    for attempt in range(ASKED_AGAIN + 1):
        try:
            reply = chat(server, question.messages, given_up, who="the judge")
        except NoReply as error:
            if error.is_final:
                raise
            if error.empty is None:
                return Outcome(None, "no reply", str(error)[:KEPT], attempt, tokens_in, tokens_out)
            reply = error.empty
        tokens_in, tokens_out, text = tokens_in + reply.tokens_in, tokens_out + reply.tokens_out, reply.text
        try:
            scores = read_reply(text, list(question.answers))
        except ValueError as error:
            failure = f"no judgement: {error}"
            continue
        return Outcome(scores, malformed=attempt, tokens_in=tokens_in, tokens_out=tokens_out)
    return Outcome(None, failure, text[:KEPT], ASKED_AGAIN + 1, tokens_in, tokens_out)


def _place(config: Config, question: JudgeQuestion) -> tuple[str, int, int, int]:
    return _servers(config)[question.judge].model, *question.key


def _place_of(line: dict[str, Any]) -> tuple[str, int, int, int]:
    return line["model"], line["judge"], line["pass"], line["query"]


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of the file; those that were cut off are left out."""
    found: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {*LINE} <= set(line):
            found.append(line)
    return found


def read_judgements(config: Config, asked: Sequence[JudgeQuestion], file: Path) -> tuple[list[Judged], Spent]:
    """The judgements of the questions ``asked``, and what they cost; every try counts, also of lines since replaced."""
    places = {_place(config, question) for question in asked}
    lines = [line for line in _lines(file) if _place_of(line) in places]
    last = {_place_of(line): line for line in lines}
    failures = Counter({"malformed reply": sum(line["malformed"] for line in lines)})
    judged: list[Judged] = []
    for question in asked:
        line = last.get(_place(config, question))
        if line is not None and line["scores"] is not None:
            judged.append(Judged(*question.key, line["systems"], line["scores"]))
        elif line is not None:
            failures[f"question without a judgement ({line['failure'].partition(':')[0]})"] += 1
    spent = Spent(len(asked), {name: count for name, count in failures.items() if count})
    spent.tokens_in, spent.tokens_out = (sum(line[name] for line in lines) for name in ("tokens_in", "tokens_out"))
    servers = (config.judge, config.judge.second)
    paid = ((servers[line["judge"]], line) for line in lines)
    spent.price = sum(one.price_in * line["tokens_in"] + one.price_out * line["tokens_out"] for one, line in paid) / 1e6
    return judged, spent
