"""Names, ids, paths and texts from outside stay data: they leave no folder, steer no terminal and run no code."""

import ast
import json
import logging
from pathlib import Path

import pytest

from cluster.progress import LineHandler, stage_log
from genrec.config import Config, load_config
from genrec.errors import InputError, printable
from genrec.inference.run_record import RunRecord

ROOT = Path(__file__).parents[1]
CALLS = [
    (file.relative_to(ROOT), node)
    for folder in ("genrec", "cluster", "workflows", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call)
]


@pytest.mark.parametrize("name", ["..", ".", "../other", "/etc", "a/b", ".hidden", "a b", "a\n", "$(id)", ""])
def test_a_name_of_a_run_leaves_no_folder(name: str) -> None:
    with pytest.raises(InputError):
        load_config([], [f"name={json.dumps(name)}"])


@pytest.mark.parametrize("part", ["../elsewhere", "/etc", "prepare/../../elsewhere"])
def test_a_run_reads_nothing_outside_of_its_storage(tmp_path: Path, part: str) -> None:
    run = tmp_path / "storage" / "runs" / "mine"
    run.mkdir(parents=True)
    parts = {"data": "prepare/1", "catalog": part, "policy": "sft/1"}
    about = {"parts": parts, "prior": {"weight": 0.0}, "mask_seen": False, "config": Config().model_dump(mode="json")}
    (run / "recommender.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="lies outside of"):
        RunRecord.read(run)


def test_a_message_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b[2J\x07 soap\r\u202eevil\x9b1m"
    assert str(InputError(f"got {nasty}")) == f"got {printable(nasty)}" == r"got \x1b[2J\x07 soap\r\u202eevil\x9b1m"
    assert printable("two\nlines\tof 🧴 text") == "two\nlines\tof 🧴 text"
    logger, handler = logging.getLogger("genrec.test_security"), LineHandler()
    logging.getLogger("genrec").addHandler(handler)
    try:
        with stage_log("prepare", tmp_path):
            logger.warning("the item %s", nasty)
    finally:
        logging.getLogger("genrec").removeHandler(handler)
    for text in (capsys.readouterr().out, (tmp_path / "stage.log").read_text(encoding="utf-8")):
        assert printable(nasty) in text and "\x1b" not in text


@pytest.mark.parametrize("key", ["data.path", "data.items", "data.interactions"])
def test_raw_files_come_over_https_or_from_this_machine(key: str) -> None:
    with pytest.raises(InputError, match=r"http://example.org/log.*wanted https"):
        load_config([], [f"{key}=http://example.org/log"])
    for url in ("https://example.org/log", "http://127.0.0.1:8000/log"):
        load_config([], [f"{key}={url}"])


def test_no_code_of_a_model_is_run_and_no_pickle_is_read() -> None:
    """Each call says so itself, or passes the options that do (``LOADING``, ``safely``)."""
    loads = [(file, ast.unparse(call)) for file, call in CALLS if ast.unparse(call.func).endswith(".from_pretrained")]
    partials = [
        (file, ast.unparse(call))
        for file, call in CALLS
        if ast.unparse(call.func) == "partial" and "from_pretrained" in ast.unparse(call)
    ]
    assert len(loads) + len(partials) >= 6
    for file, text in (*loads, *partials):
        assert "trust_remote_code=False" in text or "**LOADING" in text or "**safely" in text, f"{file}: {text}"


def test_every_page_escapes_what_it_shows() -> None:
    made = [ast.unparse(call) for _, call in CALLS if ast.unparse(call.func).endswith("Environment")]
    assert made and all("autoescape=True" in text for text in made)
    for file in (ROOT / "genrec").rglob("*.j2"):
        assert "|safe" not in file.read_text(encoding="utf-8").replace(" ", ""), file


def test_no_shell_is_started() -> None:
    for file, call in CALLS:
        text = ast.unparse(call)
        assert "shell=True" not in text and ast.unparse(call.func) not in ("os.system", "os.popen"), file
