"""The command line: what it accepts, what it refuses and how, and that it answers at once."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from support.synthetic import chain_shop, tiny_config

from cluster import pipeline
from genrec.config import Config, load_config, to_yaml
from genrec.errors import InputError
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog
from workflows.cli import command_line
from workflows.help_rows import LAST_STAGE

ROOT = Path(__file__).parents[2]
VERBS = [
    *("prepare", "embed", "assign", "sft", "grpo", "tune", "refit", "evaluate", "full"),
    *("report", "judge", "catalog", "export", "import", "update", "serve", "manifest", "bench"),
]
HEAVY = ("torch", "ray", "transformers", "pyarrow")


def genrec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command_line, [str(argument) for argument in arguments], prog_name="genrec")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str, Path | None]]:
    """The runs of the pipeline, which do nothing; the process stays as it is."""
    seen: list[tuple[Config, str, Path | None]] = []

    def run(config: Config, until: str, *, reward_file: Path | None = None) -> dict[str, Any]:
        seen.append((config, until, reward_file))
        return {}

    monkeypatch.setattr("cluster.pipeline.run", run)
    leave_process_alone(monkeypatch)
    return seen


def leave_process_alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    levels: list[int] = []
    monkeypatch.setattr("cluster.session.configure_process", lambda config: None)
    monkeypatch.setattr("cluster.progress.show_in_terminal", levels.append)
    return levels


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """A registry of two benchmarks that note their runs."""
    seen: list[tuple[str, Config]] = []

    def run(name: str, config: Config) -> SimpleNamespace:
        seen.append((name, config))
        return SimpleNamespace(table=lambda: f"bench {name}", as_json=lambda: '{"bench": 1}')

    known = {"decode": "constrained beam search", "losses": "losses of sft"}
    registry = SimpleNamespace(BENCHMARKS=known, run=run)
    monkeypatch.setitem(sys.modules, "benchmarks.registry", registry)  # type: ignore[arg-type]
    leave_process_alone(monkeypatch)
    return seen


@pytest.mark.parametrize(("verb", "until"), LAST_STAGE.items())
def test_a_verb_runs_the_pipeline_to_its_stage(verb: str, until: str, runs: list[tuple[Config, str, Any]]) -> None:
    assert genrec(verb, "demo", "cpu", "seed=3").exit_code == 0
    assert runs == [(load_config(["demo", "cpu"], ["seed=3"]), until, None)]


def test_options_stand_before_between_or_after_the_arguments(runs: list[tuple[Config, str, Any]]) -> None:
    shown = [
        genrec("sft", *arguments).stdout
        for arguments in (
            ("--show", "demo", "cpu", "seed=3"),
            ("demo", "--show", "cpu", "seed=3"),
            ("demo", "seed=3", "cpu", "--show"),
        )
    ]
    assert shown == [to_yaml(load_config(["demo", "cpu"], ["seed=3"]))] * 3
    assert not runs


@pytest.mark.parametrize("verb", ["grpo", "tune", "evaluate", "full"])
def test_a_file_of_rewards_reaches_the_pipeline(verb: str, runs: list[tuple[Config, str, Any]], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("TERMS = {}")
    assert genrec(verb, "--rewards", tmp_path / "mine.py", "demo", "cpu").exit_code == 0
    assert runs[0][2] == tmp_path / "mine.py"


def test_a_file_of_rewards_that_does_not_exist_is_refused_before_any_work(
    runs: list[tuple[Config, str, Any]], tmp_path: Path
) -> None:
    found = genrec("full", "demo", "--rewards", tmp_path / "none.py")
    assert (found.exit_code, runs) == (2, [])
    assert found.stderr.startswith("error: --rewards") and "no such file" in found.stderr


@pytest.mark.parametrize("verb", ["prepare", "embed", "assign", "sft"])
def test_stages_before_grpo_take_no_rewards(verb: str, runs: list[tuple[Config, str, Any]]) -> None:
    assert genrec(verb, "demo", "--rewards", "mine.py").exit_code == 2
    assert not runs


@pytest.mark.parametrize(
    ("options", "level"),
    [([], logging.INFO), (["-v"], logging.DEBUG), (["--quiet"], logging.WARNING)],
)
def test_verbose_and_quiet_choose_the_level(options: list[str], level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.pipeline.run", lambda *_, **__: {})
    levels = leave_process_alone(monkeypatch)
    assert genrec("sft", "demo", *options).exit_code == 0
    assert levels == [level]


def test_verbose_and_quiet_together_are_refused(runs: list[tuple[Config, str, Any]]) -> None:
    found = genrec("sft", "demo", "-v", "-q")
    assert (found.exit_code, runs) == (2, [])
    assert "wanted: one of them" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fulll", "demo"], "error: unknown command 'fulll'; the nearest is 'full'"),
        (["catalog", "inser", "x"], "error: unknown command 'inser'; the nearest is 'insert'"),
        (["sft", "dmeo"], "error: config file not found: dmeo"),
        (["sft", "demo", "learning.sft.lrr=1"], "error: unknown config key 'learning.sft.lrr'"),
        (["sft", "demo", "learning.grpo.lr=1"], "error: config key 'learning.grpo.lr'"),
        (["sft", "demo", "policy.dropout=7"], "error: invalid config"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    found = genrec(*arguments)
    assert found.exit_code == 2
    assert found.stderr.startswith(message)
    assert not found.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("the log is empty"), 2, "error: the log is empty\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; the same command continues from here\n"),
    ],
)
def test_what_stops_the_work_ends_without_a_traceback(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cluster.pipeline.run", run)
    leave_process_alone(monkeypatch)
    found = genrec("full", "demo", "cpu")
    assert (found.exit_code, found.stderr) == (code, message)


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.pipeline.run", lambda *_, **__: 1 // 0)
    leave_process_alone(monkeypatch)
    assert isinstance(genrec("full", "demo", "cpu").exception, ZeroDivisionError)


def test_a_package_that_is_missing_is_refused_before_any_work(
    runs: list[tuple[Config, str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.session.find_spec", lambda name: None)
    found = genrec("full", "demo", "versions/v2", "cpu")
    assert (found.exit_code, runs) == (2, [])
    assert "needs bitsandbytes, which is not installed" in found.stderr


def test_the_help_lists_every_verb_with_a_whole_sentence() -> None:
    found = genrec("--help")
    assert found.exit_code == 0
    lines = found.stdout[found.stdout.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines] == VERBS
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


@pytest.mark.parametrize("verb", LAST_STAGE)
def test_the_help_of_a_stage_says_what_it_reads_and_writes_with_an_example(verb: str) -> None:
    text = " ".join(genrec(verb, "--help").stdout.split())
    stage = pipeline.STAGES[LAST_STAGE[verb]]
    assert f"genrec {verb} demo cpu" in text
    assert f"<storage>/{stage.name}/<key>/: {stage.writes}" in text
    reads = text[text.index("reads") : text.index("writes <storage>")]
    if verb in ("prepare", "full"):
        assert "the catalogue and the log of data.source" in reads
    else:
        assert all(name in reads for name in stage.reads)


def test_examples_in_the_help_keep_their_lines() -> None:
    for verb in VERBS[:-1]:
        examples = [line for line in genrec(verb, "--help").stdout.splitlines() if line.startswith("      genrec ")]
        assert examples, verb
        assert all(line.split()[1] == verb for line in examples)


@pytest.mark.parametrize("verb", VERBS)
def test_the_module_of_a_verb_is_its_docstring_and_a_call(verb: str) -> None:
    module = importlib.import_module(f"workflows.{verb}")
    assert module.__file__ is not None and f"genrec {verb}" in (module.__doc__ or "")
    code = Path(module.__file__).read_text().split('"""')[2].strip().splitlines()
    assert code == ["from workflows.cli import main", "", 'if __name__ == "__main__":', f'    main("{verb}")']


def test_the_version_is_that_of_the_package() -> None:
    assert genrec("--version").stdout.startswith("genrec ")


def test_a_verb_without_arguments_shows_its_help() -> None:
    found = genrec("sft")
    assert found.exit_code == 2
    assert "genrec sft demo cpu" in found.output


def test_the_help_of_bench_lists_the_benchmarks(benchmarks: list[tuple[str, Config]]) -> None:
    text = genrec("bench", "--help").stdout
    assert "decode  constrained beam search" in text and "losses  losses of sft" in text


def test_a_benchmark_prints_its_table_and_json_last(benchmarks: list[tuple[str, Config]]) -> None:
    found = genrec("bench", "decode", "--json", "demo", "cpu", "seed=2")
    assert found.stdout == 'bench decode\n{"bench": 1}\n'
    assert genrec("bench", "losses", "demo").stdout == "bench losses\n"
    assert benchmarks == [("decode", load_config(["demo", "cpu"], ["seed=2"])), ("losses", load_config(["demo"]))]


def test_an_unknown_benchmark_is_refused_with_the_nearest(benchmarks: list[tuple[str, Config]]) -> None:
    found = genrec("bench", "decod", "demo")
    assert (found.exit_code, benchmarks) == (2, [])
    assert found.stderr == "error: unknown benchmark 'decod'; the nearest is 'decode'; wanted: one of decode, losses\n"


@pytest.mark.parametrize("arguments", [["--help"], ["full", "demo", "cpu", "seed=7", "--show"]])
def test_help_and_show_import_nothing_heavy_and_answer_at_once(arguments: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['genrec', *{arguments!r}]\n"
        "from workflows.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    start = time.perf_counter()
    done = python("-W", "ignore", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert time.perf_counter() - start < 15, "alone on a machine: 0.2 s for --help, 0.7 s for --show"


@pytest.mark.parametrize("module", ["workflows.cli full", "workflows.full"])
def test_a_module_is_the_same_command_in_any_folder(module: str, tmp_path: Path) -> None:
    done = python("-m", *module.split(), "demo", "seed=7", "cpu", "--show", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_config(["demo", "cpu"], ["seed=7"]) == load_config([shown_in(tmp_path, done.stdout)])


def shown_in(folder: Path, text: str) -> Path:
    (folder / "shown.yaml").write_text(text)
    return folder / "shown.yaml"


class Words:
    """An encoder whose vectors depend on the text alone."""

    def encode(self, texts: list[str]) -> Any:
        seeds = [int(hashlib.md5(text.encode()).hexdigest()[:8], 16) for text in texts]
        return np.array([np.random.default_rng(seed).standard_normal(8) for seed in seeds], np.float32)


def test_catalog_inserts_once_removes_and_refuses_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("genrec.sid.embed.make_encoder", lambda settings, device: Words())
    leave_process_alone(monkeypatch)
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"))
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    new = tmp_path / "new.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "title": ["new a", "new b"]}), new)
    for inserted in (2, 0):
        found = genrec("catalog", "insert", new, tmp_path / "run.yaml")
        assert found.exit_code == 0, found.output
        assert f"inserted {inserted} items, returned 0; " in found.stdout
    assert "removed 2 items; " in genrec("catalog", "remove", "a,i3", tmp_path / "run.yaml").stdout
    assigned = pipeline.run(config, "assign")["assign"]
    catalog = Catalog.load(catalog_updates.current(assigned.path, tmp_path / "storage" / "live" / assigned.key))
    assert assigned.skipped and len(catalog) == 26 and catalog.removed == (3, 24)
    pq.write_table(pa.table({"id": ["i5"], "title": ["known"]}), new)
    refused = genrec("catalog", "insert", new, tmp_path / "run.yaml")
    assert refused.exit_code == 2 and "already" in refused.stderr
    record = tmp_path / "storage" / "runs" / config.name / "recommender.json"
    record.parent.mkdir(parents=True)
    for catalog, warned in ((f"assign/{assigned.key}", False), ("assign/another", True)):
        record.write_text(json.dumps({"parts": {"catalog": catalog}}))
        caplog.clear()
        said = genrec("catalog", "remove", "i4" if warned else "i2", tmp_path / "run.yaml").stdout
        told = f"the run {config.name} serves another catalogue (assign/another) and does not see this change"
        assert "serves another" not in said
        assert [told in record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            True
        ] * warned


@pytest.mark.parametrize("action", ["insert", "remove"])
def test_the_help_of_a_change_says_where_it_is_kept(action: str) -> None:
    text = genrec("catalog", action, "--help").stdout
    assert "<storage>/live/" in text and f"genrec catalog {action} " in text


def test_an_import_into_a_url_is_refused(tmp_path: Path) -> None:
    answer = CliRunner().invoke(command_line, ["import", str(tmp_path), "--storage", "s3://shop/genrec"])
    assert answer.exit_code == 2 and "got a URL" in answer.output


def test_a_file_in_place_of_the_storage_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for storage in (tmp_path / "file", tmp_path / "file" / "below"):
        answer = CliRunner().invoke(command_line, ["prepare", "demo", "cpu", f"storage={storage}"])
        assert answer.exit_code == 2 and "is a file; wanted a directory" in answer.output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("prepare demo storage=/proc/x", "storage=/proc/x: no directory can be made at /proc/x"),
        ("catalog remove i1 demo storage=/proc/x/y", "storage=/proc/x/y: no directory can be made at /proc/x/y"),
        (
            "prepare demo storage=s3://shop/x compute.cache=/proc/x",
            "compute.cache=/proc/x: no directory can be made at",
        ),
        ("prepare demo storage=LINK", "LINK is a link to nothing; wanted a directory"),
        ("prepare demo storage=HERE/" + "x" * 300, "(File name too long); wanted a directory"),
    ],
)
def test_a_place_where_no_directory_can_be_made_is_refused_before_any_work(
    words: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_process_alone(monkeypatch)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    arguments = words.replace("LINK", str(tmp_path / "link")).replace("HERE", str(tmp_path)).split()
    answer = genrec(*arguments)
    assert answer.exit_code == 2 and named.replace("LINK", "link") in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
