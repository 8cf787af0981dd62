"""What people see: lines, bars in a terminal, a file per stage, and the records of workers."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console
from support.search_worlds import search_record, trial

from cluster.progress import BarHandler, LineHandler, log_to_file, stage_log, tail_log
from genrec.evaluation.search_page.live import log_search
from genrec.progress import Progress, log_progress

LOG = logging.getLogger("genrec.probe")


@pytest.fixture
def info_level() -> None:
    LOG.setLevel(logging.INFO)


def handled(handler: logging.Handler) -> logging.Handler:
    """The handler, on the probe's logger alone."""
    LOG.handlers = [handler]
    return handler


@pytest.fixture(autouse=True)
def _no_handlers_stay() -> object:
    yield
    LOG.handlers = []


@pytest.mark.usefixtures("info_level")
def test_lines_name_their_stage_and_what_is_more_than_information(tmp_path: Path) -> None:
    stream = io.StringIO()
    handled(LineHandler(stream))
    LOG.info("before")
    with stage_log("sft", tmp_path):
        log_progress(LOG, Progress("step", 30, 266, 235.4, {"loss": 6.39612}))
        LOG.warning("thin %s", "ice")
    assert stream.getvalue().splitlines() == [
        "before",
        "[sft] step 30/266  loss 6.3961  about 235 s left",
        "[sft] warning: thin ice",
    ]
    kept = (tmp_path / "stage.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in kept] == [
        "INFO genrec.probe: step 30/266  loss 6.3961  about 235 s left",
        "WARNING genrec.probe: thin ice",
    ]


@pytest.mark.usefixtures("info_level")
def test_a_terminal_that_knows_only_ascii_gets_what_it_can_show() -> None:
    raw = io.BytesIO()
    handled(LineHandler(io.TextIOWrapper(raw, encoding="ascii")))
    LOG.info("── 1/6 prepare")
    assert raw.getvalue() == b"?? 1/6 prepare\n"


@pytest.mark.usefixtures("info_level")
def test_a_terminal_shows_a_bar_with_rate_time_left_and_figures(tmp_path: Path) -> None:
    screen = io.StringIO()
    bars = handled(BarHandler(Console(file=screen, force_terminal=True, width=120, markup=False, highlight=False)))
    with stage_log("sft", tmp_path):
        log_progress(LOG, Progress("step", 30, 266, 118.0, {"ndcg@10": 0.09801}))
        assert isinstance(bars, BarHandler)
        bars._bars.refresh()
        shown = screen.getvalue()
        LOG.info("a line [bold]in between[/bold]")
        log_progress(LOG, Progress("step", 266, 266, 0.0, {"ndcg@10": 0.1}))
    for part in ("sft steps", "30/266", "2 steps/s", "about 1:58 min left", "ndcg@10 0.0980"):
        assert part in shown
    assert "[bold]in between[/bold]" in screen.getvalue(), "what is logged is text, never markup"
    assert "step 266/266" in screen.getvalue()


@pytest.mark.usefixtures("info_level")
def test_records_of_a_worker_reach_the_driver_with_their_level_and_progress(tmp_path: Path) -> None:
    stream = io.StringIO()
    handled(LineHandler(stream))
    with tail_log(tmp_path, interval_s=0.01):
        own, LOG.handlers = LOG.handlers, []
        with log_to_file(tmp_path):
            print("a library\nprints")
            LOG.warning("slow")
            log_progress(LOG, Progress("step", 1, 2, 3.0))
        LOG.handlers = own
    lines = [json.loads(line) for line in (tmp_path / "worker.jsonl").read_text().splitlines()]
    assert [line["message"] for line in lines][:2] == ["a library", "prints"]
    assert stream.getvalue().splitlines() == ["warning: slow", "step 1/2  about 3 s left"]


@pytest.mark.usefixtures("info_level")
def test_a_search_is_a_line_per_change_in_a_file_and_one_table_in_a_terminal() -> None:
    record = search_record(trial(30, "running", name="30 \x1b[31m[bold]"), verdict=None)
    stream = io.StringIO()
    handled(LineHandler(stream))
    log_search(LOG, record, "t4")
    log_search(LOG, record, "t9")
    assert stream.getvalue().splitlines() == [
        "04 prefix=0.16: step 10, ndcg@10 0.096, stopped",
        "09 prefix=0.36: step 0, ndcg@10 –, failed (the worker died: out of memory)",
    ]
    screen = io.StringIO()
    handled(BarHandler(Console(file=screen, force_terminal=True, width=140, height=40)))
    log_search(LOG, record, "t4")
    LOG.info("in between")
    log_progress(LOG, Progress("step", 1, 2, 9.0))
    log_search(LOG, search_record(), None)
    shown = screen.getvalue()
    assert "search: optuna, asha" in shown and "in between" in shown and "0.112*" in shown
    assert "6 finished, 2 stopped, 1 failed; 9 of 10 trials" in shown
    assert "[bold]" in shown and "\x1b[31m" not in shown and "step 1/2" not in shown
    assert shown.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


def test_a_table_that_is_higher_than_the_terminal_counts_what_it_leaves_out() -> None:
    screen = io.StringIO()
    handled(BarHandler(Console(file=screen, force_terminal=True, width=140, height=10)))
    LOG.setLevel(logging.INFO)
    log_search(LOG, search_record(verdict=None), "t4")
    assert "5 more rows" in screen.getvalue() and "01 prefix=0.04" not in screen.getvalue()


def test_a_line_that_a_worker_left_half_written_hides_nothing(tmp_path: Path) -> None:
    stream, line = io.StringIO(), {"name": LOG.name, "level": 30, "levelname": "WARNING", "message": "seen"}
    handled(LineHandler(stream))
    with pytest.raises(RuntimeError, match="its own error"), tail_log(tmp_path, interval_s=0.01):
        whole = json.dumps(line) + "\n"
        (tmp_path / "worker.jsonl").write_text(whole[:20] + whole + whole)
        raise RuntimeError("its own error")
    assert stream.getvalue() == "warning: seen\n"


def test_a_quiet_command_shows_no_information_of_workers_either(tmp_path: Path) -> None:
    stream, line = io.StringIO(), {"name": LOG.name, "level": 20, "levelname": "INFO", "message": "step 1"}
    handled(LineHandler(stream))
    LOG.setLevel(logging.WARNING)
    with tail_log(tmp_path, interval_s=0.01):
        (tmp_path / "worker.jsonl").write_text(json.dumps(line) + "\n")
    assert stream.getvalue() == ""
