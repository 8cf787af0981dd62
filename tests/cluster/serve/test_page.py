"""The page at / in a real browser, against the service: what a person can do with it."""

import json
import re
import socket
import threading
import time
from collections.abc import Generator
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest
import torch
import uvicorn
from support.browser import BROWSER, NO_BROWSER, Page, browser
from support.served import serve
from support.service import KEY, make_service

from cluster.serve.http_app import PAGE, make_app

HOSTILE = "<img src=x onerror=\"document.title='executed'\"><script>document.title='executed'</script>"
IDS = "[...document.querySelectorAll('.ranking > li')].map((row) => row.dataset.id)"
AS_CODE = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
TOLD = "document.getElementById('inserted').textContent"
IDLE = "document.querySelector('#columns').getAttribute('aria-busy') === 'false'"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A service of two runs; the item i5 has a hostile title."""
    directory = tmp_path_factory.mktemp("page")
    keys = ("policy.arch=qwen3", "policy.tokenizer=bytes", "learning.sft.example_format=rows")
    serve(directory, *keys)
    for file in directory.glob("storage/prepare/*/items.parquet"):
        items = pq.read_table(file)
        titles = items["title"].to_pylist()
        titles[items["id"].to_pylist().index("i5")] = HOSTILE
        pq.write_table(items.set_column(items.schema.get_field_index("title"), "title", [titles]), file)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENREC_API_KEY", KEY)
        service = make_service(directory / "storage", "alone", "steered", share=0.5, deadline_ms=30_000)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(make_app(service), port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def tab() -> Generator[Page]:
    if BROWSER is None:
        pytest.skip(NO_BROWSER)
    with browser() as page:
        yield page


@pytest.fixture
def page(tab: Page, address: str) -> Page:
    """The page after a history of i3 and i4, in a window of 1280 pixels."""
    tab.errors.clear()
    tab.window(1280, 900)
    tab.open("about:blank")
    tab.open(f"{address}/#{urlencode([('item', 'i3'), ('item', 'i4')])}")
    tab.wait(f"document.querySelectorAll('#history li').length === 2 && {IDLE}")
    return tab


def change(page: Page, script: str) -> list[str]:
    """The recommended ids after a change to the form, once they are there."""
    page.run("document.querySelector('#columns').setAttribute('aria-busy', 'true')")
    page.run(script)
    page.wait(IDLE)
    return page.run(IDS)


def set_value(id_: str, value: str) -> str:
    return (
        f"(() => {{ const one = document.getElementById('{id_}'); one.value = {json.dumps(value)};"
        "one.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_a_history_is_picked_by_the_keyboard_alone_and_recommendations_follow(page: Page) -> None:
    before = page.run(IDS)
    assert len(before) == 10
    page.run("document.getElementById('search').focus()")
    page.type("hair 13")
    page.wait("document.querySelectorAll('#hits [role=option]').length === 1")
    page.run("document.querySelector('#columns').setAttribute('aria-busy', 'true')")
    page.press("Enter")
    page.wait(f"document.querySelectorAll('#history li').length === 3 && {IDLE}")
    assert page.run("document.querySelector('#history li:last-child span').textContent") == "hair thing number 13 i13"
    assert page.run(IDS) != before
    assert page.run("location.hash") == "#item=i3&item=i4&item=i13"
    page.press("Tab")
    assert page.run("document.activeElement.getAttribute('aria-label')") == "Remove paper thing number 3"
    page.press("Enter")
    page.wait("document.querySelectorAll('#history li').length === 2")
    assert not page.errors


def test_each_item_has_its_score_and_says_why(page: Page) -> None:
    first = page.run("document.querySelector('.ranking > li').innerText")
    assert re.search(r"\d %", first) and "Why" in first
    page.run("document.querySelector('.ranking summary').click()")
    told = page.run("document.querySelector('.ranking .why').innerText")
    assert re.search(r"<a_\d>\s+[\d.<]+ %, \d+ items?", told)


def test_constraints_and_the_prior_change_the_answer(page: Page) -> None:
    plain = page.run(IDS)
    hair = change(page, set_value("category", "hair"))
    assert hair and all(int(one[1:]) % 4 == 1 for one in hair)
    change(page, set_value("category", ""))
    unseen = change(page, "document.getElementById('unseen').click()")
    assert not {"i3", "i4"} & set(unseen) and unseen != plain
    assert page.run("document.getElementById('prior').disabled")
    with_prior = change(page, set_value("run", "steered"))
    assert not page.run("document.getElementById('prior').disabled")
    without = change(page, "document.getElementById('prior').click()")
    assert without == unseen != with_prior


def test_two_runs_are_compared_side_by_side(page: Page) -> None:
    change(page, set_value("compare", "steered"))
    headings = page.run("[...document.querySelectorAll('.answer h3')].map((one) => one.textContent)")
    assert headings == ["alone", "steered"]
    shared = int(page.run("document.getElementById('status').textContent").split(", ")[1].split()[0])
    ids = page.run(IDS)
    assert shared == len(set(ids[:10]) & set(ids[10:]))
    assert page.run("document.querySelectorAll('.badge.other').length") == 2 * (10 - shared)


def test_a_title_is_shown_as_text_and_never_executed(page: Page) -> None:
    shown = change(page, set_value("k", "24"))
    assert "i5" in shown
    assert page.run("document.querySelector('.ranking > li[data-id=i5] .title').textContent") == HOSTILE
    page.run("document.getElementById('search').focus()")
    page.type("i5")
    page.wait("document.querySelectorAll('#hits [role=option]').length > 0")
    page.press("Enter")
    page.wait(f"document.querySelectorAll('#history li').length === 3 && {IDLE}")
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert page.run("document.title") == "genrec"


def test_the_policy_can_be_talked_to(page: Page) -> None:
    assert not page.run("document.getElementById('chat-box').hidden")
    page.run("document.getElementById('chat-box').open = true")
    page.run("document.getElementById('say').focus()")
    page.type("[[i3]]")
    page.run("document.querySelector('#chat button[type=submit]').click()")
    page.wait("document.querySelectorAll('#talk p').length === 2")
    assert page.run("document.querySelector('#talk p').textContent") == "[[i3]]"


def test_an_item_is_removed_and_inserted_with_the_key_and_a_refusal_is_told(page: Page) -> None:
    """A removed item comes back by an insert, so the semantic IDs of this catalogue, which are drawn, do."""
    change(page, set_value("k", "24"))
    page.run("document.getElementById('insert-box').open = true")
    for field, value in (("new-id", "i7"), ("new-title", "a new thing"), ("key", "wrong")):
        page.run(set_value(field, value))
    page.run("document.getElementById('remove').click()")
    assert "API key" in page.wait("document.getElementById('problem').textContent")
    page.run(set_value("key", KEY))
    page.run("document.getElementById('remove').click()")
    page.wait(f"!({IDS}).includes('i7') && {TOLD}.startsWith('Removed')")
    assert page.run("document.getElementById('problem').hidden")
    page.run("document.querySelector('#insert button[type=submit]').click()")
    page.wait(f"({IDS}).includes('i7') && {TOLD}.startsWith('Inserted')")
    assert re.search(r"its probability is (< )?[\d.]+ %", page.run(TOLD))
    assert page.run("document.querySelector('.ranking > li[data-id=i7] .badge').textContent") == "inserted"


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_nothing_is_cut_off_on_a_phone_and_text_stands_out_in_the_dark(page: Page, width: int, dark: bool) -> None:
    page.window(width, 800, dark=dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    text, ground = (
        [int(n) for n in re.findall(r"\d+", page.run(f"getComputedStyle(document.body).{name}"))[:3]]
        for name in ("color", "backgroundColor")
    )
    assert (sum(text) > sum(ground)) == dark and abs(sum(text) - sum(ground)) > 3 * 120
    assert not page.errors


def test_the_page_names_no_foreign_host_and_never_reads_text_as_html() -> None:
    """Also where no browser is installed."""
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://|//[a-z]+\.", text), file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            file
        )
        assert len(text.splitlines()) < 300, file
