"""The pages of runs and searches: what they say, that they hold everything themselves, and how a browser shows them."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from markupsafe import escape
from support.browser import BROWSER, NO_BROWSER, Page, browser
from support.search_worlds import search_record, trial
from support.shop_texts import SHOPS_TEXTS
from support.sid_worlds import sequences

from genrec.evaluation.report.compare import report_runs
from genrec.evaluation.report.explore import catalog_view, user_answers
from genrec.evaluation.report.page import write_report
from genrec.evaluation.search_page import importance as module
from genrec.evaluation.search_page.importance import FANOVA, RANK, importance, rank_importance
from genrec.evaluation.search_page.tune_page import verdict, write_tune_page
from genrec.evaluation.slices import sid_use
from genrec.evaluation.summary import Rankings, summarise
from genrec.pages.render import as_data, as_markdown, shown_figure
from genrec.sid.health import measure
from genrec.sid.health_page import write_page as write_health_page
from genrec.sid.train_events import TrainEvents

CHARTS = ("parallel", "scatter", "curves", "differences")
needs_browser = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as opened:
        yield opened


def first_words(page: str) -> str:
    body = page[page.index('<main id="content">') :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).strip()


def test_data_for_a_script_is_json_that_ends_no_element_and_holds_no_nan():
    value = {"title": "</script><!-- &", "figures": [1.0, float("nan"), float("inf")], "line": "\u2028"}
    text = str(as_data(value))
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {**value, "figures": [1.0, None, None]}


def test_figures_are_short():
    shown = [shown_figure(value) for value in (0.12345, 12345, 1e-6, float("nan"), None, True, "grpo", 250.0)]
    assert shown == ["0.1235", "12,345", "1e-06", "–", "–", "True", "grpo", "250"]


def test_text_in_markdown_is_no_markup():
    assert as_markdown("a|b *c* [d](e)\n<f> \x1b") == r"a\|b \*c\* \[d\]\(e\) \<f\> \\x1b"


def test_the_page_of_a_search_begins_with_its_verdict_and_has_every_trial(tmp_path: Path):
    record = search_record()
    page = write_tune_page(record, tmp_path, title="demo").read_text(encoding="utf-8")
    assert first_words(page).startswith(
        "Trial 8 beats the config&#39;s own weights. 9 trials (6 finished, 2 stopped, 1 f"
    )
    table = page[page.index('id="table"') :]
    rows = re.findall(r'<tr data-id="(\w+)"', table)
    assert rows == [one.id for one in record.trials]
    assert "the worker died: out of memory" in table and "zero_advantage_groups" in table


def test_a_search_that_runs_or_has_no_figure_has_a_page_too(tmp_path: Path):
    record = search_record(verdict=None)
    assert verdict(record) == "The search is not over: 08 prefix=0.32 leads so far with ndcg@10 0.1120."
    empty = record.model_validate({**record.model_dump(), "trials": [], "finalists": []})
    page = write_tune_page(empty, tmp_path).read_text(encoding="utf-8")
    assert first_words(page).startswith("The search has no result yet: no trial has a figure.")
    assert "it takes at least four trials" in page


@pytest.mark.parametrize("optuna", [True, False])
def test_the_key_that_makes_the_metric_is_the_important_one(monkeypatch: pytest.MonkeyPatch, optuna: bool):
    if optuna:
        pytest.importorskip("optuna")
    else:
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    found = importance(search_record())
    assert found.method == (FANOVA if optuna else RANK)
    assert next(iter(found.shares)) == "rewards.prefix" and found.trials == 8
    assert set(found.shares) == {"rewards.prefix", "learning.rl.kl", "learning.rl.objective"}
    assert all(0 <= share <= 1 + 1e-9 for share in found.shares.values())


def test_rank_importance_is_1_for_an_order_and_for_groups_apart_and_0_for_none():
    assert rank_importance([1, 2, 3, 4], np.array([8.0, 4.0, 2.0, 1.0])) == pytest.approx(1)
    assert rank_importance(["a", "a", "b", "b"], np.array([1.0, 1.0, 2.0, 2.0])) == pytest.approx(1)
    assert rank_importance(["a", "b", "b", "a"], np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0)


def test_hostile_names_and_errors_are_text_on_the_page(tmp_path: Path):
    texts = list(SHOPS_TEXTS.values())
    record = search_record(*(trial(20 + n, "failed", name=text, error=text) for n, text in enumerate(texts)))
    page = write_tune_page(record, tmp_path, title=texts[-2]).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    for text in texts:
        assert str(escape(text)) in page


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_a_search_without_a_complaint_a_foreign_host_or_a_page_too_wide(
    tab: Page, tmp_path: Path, width: int, dark: bool
):
    hostile = trial(30, name="<img src=http://evil.example/x onerror=alert(1)>")
    tab.open_file(write_tune_page(search_record(hostile), tmp_path), width=width, dark=dark)
    assert tab.errors == [] and not [url for url in tab.requests if url.startswith(("http", "ws", "//"))]
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.run("document.images.length") == 0
    drawn = tab.run(
        "['parallel', 'scatter', 'curves', 'differences'].map(id => document.querySelectorAll(`#${id} svg`).length)"
    )
    assert drawn == [1, 1, 1, 1]
    assert tab.run("document.querySelectorAll('#parallel path[data-id]').length") == 9
    paper = tab.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(21, 23, 27)" if dark else "rgb(251, 250, 248)")


@needs_browser
def test_the_keyboard_sorts_the_trials_and_keeps_one_in_sight(tab: Page, tmp_path: Path):
    tab.open_file(write_tune_page(search_record(), tmp_path))
    column = "[...document.querySelectorAll('#table + p + .wrap tbody tr')].map(row => row.cells[2].textContent)"
    button = "document.querySelectorAll('#table + p + .wrap th button')[2]"
    tab.run(f"{button}.focus()")
    tab.press("Enter")
    descending = tab.run(column)
    assert descending[-1] == "–" and descending[:-1] == sorted(descending[:-1], reverse=True)
    tab.press("Enter")
    assert tab.run(column)[:-1] == sorted(descending[:-1])
    assert tab.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    tab.run("document.querySelector('#parallel svg').focus()")
    tab.press("ArrowRight")
    assert not tab.run("document.getElementById('hint').hidden")
    tab.press("Enter")
    picked = tab.run("[...new Set([...document.querySelectorAll('[data-id].on')].map(one => one.dataset.id))]")
    assert len(picked) == 1 and tab.run("document.querySelectorAll('tr.on').length") >= 1
    tab.press("Escape")
    assert tab.run("document.querySelectorAll('[data-id].on').length") == 0
    assert tab.errors == []


def report_page(directory: Path) -> Path:
    """The report of a made-up evaluation, with every part that a report may have."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 40, 60)
    ranked = np.stack([rng.permutation(40)[:20] for _ in targets])
    ranked[:30, 0] = targets[:30]
    codes_NL = np.stack([np.arange(40) // 10, np.arange(40) // 2 % 5, np.arange(40) % 2], axis=1)
    other = np.stack([rng.permutation(40)[:20] for _ in targets])
    found = Rankings(targets, ranked, {"itemknn": other}, codes_NL, np.arange(40), event_Q=["buy", "view"] * 30)
    titles = ["<img src=http://evil.example/x onerror=alert(1)>", *(f"thing {n}" for n in range(1, 40))]
    answers = user_answers([[1, 2, 3]] * 60, targets, {"model": ranked, "itemknn": other}, titles)
    curve = [
        {"step": s, "loss": 1.0 / s, "reward": 0.1 * s, "kl/1": 0.1, "kl/2": 0.2, "ndcg@10": 0.1} for s in range(1, 9)
    ]
    return write_report(
        directory,
        summarise(found, resamples=50),
        curves={"sft": curve, "grpo": curve},
        sid_stats=sid_use(codes_NL, (4, 5, 2)),
        users=answers,
        catalog=catalog_view(codes_NL, titles),
        config_text="name: demo",
        title="demo",
    )


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_a_browser_shows_a_report_without_a_complaint_a_foreign_host_or_a_page_too_wide(
    tab: Page, tmp_path: Path, width: int, dark: bool
):
    tab.open_file(report_page(tmp_path), width=width, dark=dark)
    assert tab.errors == [] and not [url for url in tab.requests if url.startswith(("http", "ws", "//"))]
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.run("document.images.length") == 0
    assert tab.run("document.querySelectorAll('[data-bars] svg').length") == 3
    assert tab.run("document.querySelectorAll('[data-panel] svg').length") == 8
    assert tab.run("document.querySelectorAll('#map circle').length") == 40
    assert tab.run("document.querySelectorAll('#users > details').length") == 20
    paper = tab.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(21, 23, 27)" if dark else "rgb(251, 250, 248)")


@needs_browser
def test_the_map_finds_titles_and_opens_the_branch_of_an_item_by_keyboard(tab: Page, tmp_path: Path):
    tab.open_file(report_page(tmp_path))
    assert tab.run("document.querySelectorAll('#tree [data-item]').length") == 0, "branches are filled when opened"
    tab.run("document.querySelector('#map svg').focus()")
    tab.press("ArrowRight")
    hint = tab.run("document.getElementById('hint').textContent")
    tab.press("Enter")
    assert tab.run("document.querySelector('#tree mark').textContent").split(" ", 3)[3] == hint.splitlines()[0]
    assert tab.run("document.querySelectorAll('#tree details[open]').length") == 2
    field = "document.getElementById('find')"
    tab.run(f"{field}.value = 'thing 39'; {field}.dispatchEvent(new Event('input'))")
    deadline = time.monotonic() + 10
    while tab.run("found.textContent") != "1 of 40 items" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tab.run("found.textContent") == "1 of 40 items"
    assert tab.errors == []


@needs_browser
def test_a_browser_shows_runs_side_by_side_and_the_health_of_semantic_ids(tab: Page, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        report_page(tmp_path / name)
    for width in (1280, 390):
        tab.open_file(report_runs([tmp_path / "one", tmp_path / "two"], tmp_path / "both"), width=width)
        assert tab.errors == [] and tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.run("document.querySelectorAll('#bars svg, #curves svg').length") == 2
        tab.open_file(health_page(tmp_path), width=width)
        assert tab.errors == [] and tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.run("document.querySelectorAll('table.sort th button').length") > 5


def health_page(directory: Path) -> Path:
    """The health page of a made-up catalogue."""
    codes_NL = np.stack([np.arange(40) % 4, np.arange(40) // 4], axis=1).astype(np.int32)
    texts = [f"thing {n}" for n in range(40)]
    items = pa.table({"title": texts, "brand": texts, "categories": [["shop", f"part {n % 6}"] for n in range(40)]})
    health = {**measure(codes_NL, codes_NL, (4, 10), TrainEvents.of(sequences([(0, 1), (1, 2)]))), "warnings": []}
    write_health_page(lambda rows, names: items.select(names).take(rows), codes_NL, health, directory / "health.html")
    return directory / "health.html"
