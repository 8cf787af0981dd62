"""The check on a GPU: a part that fails or takes too long costs none of the others, and keeps what it has measured."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_parts
from benchmarks.decode import DecodeSize
from benchmarks.gpu_check import CheckPart, run_part, table
from benchmarks.harness import Bench
from genrec.config import Config


@pytest.fixture
def quick_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu_check, "PARTS", {"no_such_part": CheckPart("fails", 60), "exactness": CheckPart("slow", 0.2)}
    )
    monkeypatch.setattr(gpu_check, "GRACE_S", 0.1)


@pytest.mark.usefixtures("quick_parts")
@pytest.mark.parametrize(("name", "said"), [("no_such_part", "exit code 1"), ("exactness", "stopped after 0 s")])
def test_a_part_that_fails_or_is_over_its_limit_says_so(name: str, said: str, tmp_path: Path) -> None:
    found = run_part(name, tmp_path, tmp_path, time.monotonic() + 60, rehearse=True)
    assert said in found["failed"]
    assert said in table(name, found)


PARTS_THAT_GO_WRONG = """
import sys
from pathlib import Path

name, _, result, *_ = sys.argv[1:]
if name == "half":
    Path(result).write_text('{"card": "no')
if name == "bytes":
    sys.stdout.buffer.write(b"\\xff\\xfe half a progress bar")
    sys.exit(3)
if name == "good":
    Path(result).write_text('{"card": "some"}')
"""


def test_no_part_ends_the_whole_check_whatever_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``half`` leaves half of its figures, ``bytes`` a log that is no text."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "gpu_parts.py").write_text(PARTS_THAT_GO_WRONG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_check, "PARTS", {name: CheckPart("", 60) for name in ("half", "bytes", "good")})
    monkeypatch.setattr("sys.argv", ["gpu_check", str(tmp_path), str(tmp_path / "out"), "--parts", "half,bytes,good"])
    assert gpu_check.main() == 1
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert "JSONDecodeError" in found["half"]["failed"]
    assert "exit code 3" in found["bytes"]["failed"] and "half a progress bar" in found["bytes"]["failed"]
    assert found["good"]["card"] == "some" and "failed" not in found["good"]


def test_a_piece_that_fails_costs_the_next_one_nothing_and_is_named(tmp_path: Path) -> None:
    figures, done = gpu_parts.Figures(tmp_path / "part.json"), list[str]()
    machine = gpu_parts.Machine("cpu", rehearse=True, artifacts=tmp_path)
    for label in ("first", "second"):
        with gpu_parts._kept_apart(label, machine, figures):
            if label == "first":
                raise RuntimeError("CUDA out of memory")
            done.append(label)
    assert done == ["second"]
    assert json.loads((tmp_path / "part.json").read_text()) == {"first_failed": "RuntimeError('CUDA out of memory')"}


def test_the_seconds_of_a_search_are_kept_when_a_reference_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(config: Config, size: DecodeSize, device: str, tell: Callable[[Bench], None]) -> Bench:
        tell(Bench("decode", {"tree_s": 0.1}))
        if size.widths == (50,):
            raise RuntimeError("too slow")
        return Bench("decode", {"tree_s": 0.2}, {"vs_generate": 9.0})

    monkeypatch.setattr(gpu_parts, "measure", measure)
    figures = gpu_parts.Figures(tmp_path / "part.json")
    gpu_parts.decoding(gpu_parts.Machine("cpu", rehearse=True, artifacts=tmp_path), figures)
    assert figures.pop("w50_failed").startswith("RuntimeError")
    assert figures == {"w50_tree_s": 0.1, "w256_tree_s": 0.2, "w256_ratio_vs_generate": 9.0}


def test_a_long_figure_is_cut_in_the_table_and_a_failure_is_not() -> None:
    text = table("exactness", {"metrics": "m" * 5000, "failed": "f" * 5000})
    assert "5,000 characters" in text and "f" * 5000 in text and "m" * 401 not in text


@pytest.mark.usefixtures("quick_parts")
def test_parts_that_may_share_the_card_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, together = list[str](), list[int](), threading.Barrier(2, timeout=20)

    def run(name: str, **_: object) -> dict[str, object]:
        running.append(name)
        if name in ("a", "b"):
            together.wait()
        most.append(len(running))
        if name in ("a", "b"):
            together.wait()
        running.remove(name)
        return {}

    parts = {name: CheckPart("", 1, beside=name != "alone") for name in ("a", "b", "alone", "c")}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(gpu_check, "run_part", run)
    arguments = ["gpu_check", str(tmp_path), str(tmp_path / "out"), "--parts", "a,b,alone,c"]
    monkeypatch.setattr("sys.argv", arguments)
    assert gpu_check.main() == 0
    assert max(most[:2]) == 2 and most[2:] == [1, 1]
    assert list(json.loads((tmp_path / "out" / "gpu_check.json").read_text()))[2:] == ["alone", "c"]


def test_every_part_has_its_work() -> None:
    assert set(gpu_check.PARTS) == set(gpu_parts.WORK)


def test_figures_are_on_disk_as_soon_as_they_are_known(tmp_path: Path) -> None:
    figures = gpu_parts.Figures(tmp_path / "part.json")
    figures.add(seconds=2.5)
    figures.add(card="none")
    assert json.loads((tmp_path / "part.json").read_text()) == {"seconds": 2.5, "card": "none"}
    assert [file.name for file in tmp_path.iterdir()] == ["part.json"]


@pytest.mark.benchmark
def test_the_rehearsal_of_exactness_finds_no_difference_on_the_same_device(tmp_path: Path) -> None:
    figures = gpu_parts.Figures(tmp_path / "part.json")
    gpu_parts.exactness(gpu_parts.Machine("cpu", rehearse=True, artifacts=tmp_path), figures)
    assert figures["gpt2_float32_same_items"] == figures["qwen3_same_as_generate"] == 1.0
    assert figures["qwen3_float32_gradient"] == 0.0 < figures["qwen3_bfloat16_gradient"] < 0.1
