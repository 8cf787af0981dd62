"""Texts by a larger model: an OpenAI-compatible server writes reasons and tastes for train queries, before training.

Several questions are asked at a time. Answers are kept as lines of ``teacher.jsonl`` in the stage's directory as they
come, so a killed run, or one that a server ended, requests only the others. The key comes from the environment variable
that the config names; it is sent to the server, and written nowhere.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from cluster.chat_client import NoReply, chat
from genrec.config import Config, Teacher
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

FILE = "teacher.jsonl"
QUESTIONS = {"recommendation_reasoning": "teacher", "preference_analysis": "teacher_taste"}
"""The tasks that a teacher writes for, and the phrase that asks it."""


def ask(config: Config, data: Path, out: Path) -> int:
    """Ask for a text about ``teacher.examples`` train queries per task, in each language in turn; returns their number.

    Does nothing without a URL, or when no task reads the texts.

    Raises:
        InputError: the server cannot be reached, or answers with an error or in another form.
    """
    settings = config.learning.instruction.teacher
    mixtures = (config.learning.tasks, *(stage.tasks for stage in config.learning.stages.on().values()))
    tasks = [task for task in QUESTIONS if any(task in mixture.chosen for mixture in mixtures)]
    if settings.url is None or not tasks:
        return 0
    known, asked = read_texts(out), 0
    open_questions = [question for question in _questions(config, data, tasks) if question[:3] not in known]
    given_up = threading.Event()
    with ThreadPoolExecutor(settings.concurrency) as pool, (out / FILE).open("a", encoding="utf-8") as file:
        if known:
            file.write("\n")  # Ends a line that was cut off.
        answers = {pool.submit(_answer, settings, text, given_up): about for *about, text in open_questions}
        try:
            for answer in as_completed(answers):
                task, row, language = answers[answer]
                line = {"task": task, "row": row, "language": language, "text": answer.result()}
                file.write(json.dumps(line) + "\n")
                file.flush()
                asked += 1
                if asked % 50 == 0:
                    LOG.info("%d of %d texts by %s", asked, len(answers), settings.model)
        finally:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return asked


def read_texts(out: Path) -> dict[tuple[str, int, str], str]:
    """(task, train query row, language) to the text, as ``ask`` wrote them; a line that was cut off is left out."""
    if not (out / FILE).is_file():
        return {}
    texts: dict[tuple[str, int, str], str] = {}
    for line in (out / FILE).read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        texts[found["task"], found["row"], found["language"]] = found["text"]
    return texts


def _questions(config: Config, data: Path, tasks: Sequence[str]) -> list[tuple[str, int, str, str]]:
    """(task, row, language, question) for a seeded sample of the queries whose items have titles."""
    from genrec.data.readers import read_items, read_queries
    from genrec.learning.tasks.history_fields import HistoryFields
    from genrec.learning.tasks.item_fields import ItemFields
    from genrec.policy.chat.templates import fill, load_language

    settings = config.learning.instruction
    languages = [load_language(name) for name in settings.languages]
    items, train = ItemFields(read_items(data), settings), read_queries(data, "train")
    fields = HistoryFields(items, settings)
    order = np.random.default_rng([config.seed, 1]).permutation(train.num_rows)[: settings.teacher.examples]
    rows = train.take(order)
    questions: list[tuple[str, int, str, str]] = []
    for number, (row, history, target) in enumerate(
        zip(order.tolist(), rows["history"].to_pylist(), rows["target"].to_pylist(), strict=True)
    ):
        language = languages[number % len(languages)]
        titles = fields.titles(history, language)
        if titles and items.titles[target]:
            said = {"titles": (titles,), "target_title": (items.titles[target],)}
            asked = {task: fill(language.phrases[QUESTIONS[task]], said) for task in tasks}
            questions += [(task, row, language.name, str(parts[0])) for task, parts in asked.items()]
    return questions


def _answer(settings: Teacher, question: str, given_up: threading.Event) -> str:
    try:
        reply = chat(settings, [{"role": "user", "content": question}], given_up, who="the teacher")
    except NoReply as error:
        raise InputError(f"{error}; the same command asks only what is not answered yet") from None
    return " ".join(reply.text.split())
