"""Reasons by a larger model: an OpenAI-compatible server answers once per train query, before training starts.

Answers are kept as lines of ``teacher.jsonl`` in the stage's directory, so a killed run requests only the others. The
key comes from the environment variable that the config names; it is sent to the server, and written nowhere.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np

from genrec.config import Config, Teacher
from genrec.errors import InputError

LOG = logging.getLogger(__name__)

FILE = "teacher.jsonl"
TASK = "recommendation_reasoning"


def ask(config: Config, data: Path, out: Path) -> int:
    """Ask for a reason for each of ``teacher.examples`` train queries, in each language in turn; returns their number.

    Does nothing without a URL, or when no task reads reasons.

    Raises:
        InputError: the server cannot be reached, or answers with an error or in another form.
    """
    settings = config.learning.instruction.teacher
    mixtures = (config.learning.tasks, *(stage.tasks for stage in config.learning.stages.on().values()))
    if settings.url is None or not any(TASK in tasks.chosen for tasks in mixtures):
        return 0
    known, asked = read_reasons(out), 0
    for row, language, question in _questions(config, data):
        if (row, language) in known:
            continue
        line = {"row": row, "language": language, "text": _answer(settings, question)}
        with (out / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        asked += 1
        if asked % 50 == 0:
            LOG.info("%d reasons by %s", asked, settings.model)
    return asked


def read_reasons(out: Path) -> dict[tuple[int, str], str]:
    """(train query row, language) to the reason, as ``ask`` wrote them; a line that was cut off is left out."""
    if not (out / FILE).is_file():
        return {}
    reasons: dict[tuple[int, str], str] = {}
    for line in (out / FILE).read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        reasons[found["row"], found["language"]] = found["text"]
    return reasons


def _questions(config: Config, data: Path) -> list[tuple[int, str, str]]:
    """(row, language, question) for a seeded sample of the queries whose items have titles."""
    from genrec.data.tables import read_items, read_queries
    from genrec.learning.tasks.item_fields import ItemFields
    from genrec.policy.chat.templates import fill, load_language

    settings = config.learning.instruction
    languages = [load_language(name) for name in settings.languages]
    shop, train = ItemFields(read_items(data), settings), read_queries(data, "train")
    order = np.random.default_rng([config.seed, 1]).permutation(train.num_rows)[: settings.teacher.examples]
    rows = train.take(order)
    questions: list[tuple[int, str, str]] = []
    for number, (row, history, target) in enumerate(
        zip(order.tolist(), rows["history"].to_pylist(), rows["target"].to_pylist(), strict=True)
    ):
        language = languages[number % len(languages)]
        if {"titles", "target_title"} <= shop.has_about_query(history, target):
            parts = fill(language.phrases["teacher"], shop.about_query(history, target, language, ""))
            questions.append((row, language.name, "".join(str(part) for part in parts)))
    return questions


def _answer(settings: Teacher, question: str) -> str:
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
    }
    key = os.environ.get(settings.key_variable)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    url = f"{str(settings.url).rstrip('/')}/chat/completions"
    request = Request(url, json.dumps(body).encode(), headers)
    try:
        with urlopen(request, timeout=settings.timeout_s) as response:
            return _text(json.load(response))
    except (URLError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        have = "set" if key else "not set"
        raise InputError(
            f"the teacher at {url} gave no answer: {error!r}; wanted: an OpenAI-compatible server with the model "
            f"{settings.model!r} (the key variable {settings.key_variable} is {have})"
        ) from None


def _text(response: Mapping[str, Any]) -> str:
    text = " ".join(str(response["choices"][0]["message"]["content"]).split())
    if not text:
        raise ValueError("an empty answer")
    return text
