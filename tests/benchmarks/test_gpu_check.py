"""The check on a GPU: a part that fails or takes too long costs none of the others, and keeps what it has measured."""

import json
import threading
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_parts
from benchmarks.gpu_check import CheckPart, run_part, table


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


@pytest.mark.benchmark
def test_the_rehearsal_of_exactness_finds_no_difference_on_the_same_device(tmp_path: Path) -> None:
    figures = gpu_parts.Figures(tmp_path / "part.json")
    gpu_parts.exactness(gpu_parts.Machine("cpu", rehearse=True, artifacts=tmp_path), figures)
    assert figures["gpt2_float32_same_items"] == figures["qwen3_same_as_generate"] == 1.0
    assert figures["qwen3_float32_gradient"] == 0.0 < figures["qwen3_bfloat16_gradient"] < 0.1
