"""``<storage>/runs/<name>`` is the newest report of a name, whole at any moment; the others of that name stay."""

from pathlib import Path

import pytest

from cluster.artifacts import Artifact
from cluster.stages.evaluate import PUBLISHED, publish
from cluster.stages.plan import StageRun
from genrec.config import Config
from genrec.errors import InputError


def artifact(storage: Path, key: str) -> Artifact:
    path = storage / "evaluate" / key
    path.mkdir(parents=True, exist_ok=True)
    for name in PUBLISHED:
        (path / name).write_text(key)
    return Artifact("evaluate", path, key, {"verdict": "it wins"}, skipped=False)


def shown(storage: Path, name: str) -> set[str]:
    return {(storage / "runs" / name / file).read_text() for file in PUBLISHED}


def test_two_seeds_of_one_name_are_both_kept_and_the_newest_has_the_name(tmp_path: Path) -> None:
    run = StageRun(Config(storage=str(tmp_path), name="shop"), {})
    for key in ("aaa", "bbb"):
        publish(run, artifact(tmp_path, key))
        assert shown(tmp_path, "shop") == {key}
    assert shown(tmp_path, "shop-aaa") == {"aaa"} and shown(tmp_path, "shop-bbb") == {"bbb"}
    publish(run, artifact(tmp_path, "aaa"))
    assert shown(tmp_path, "shop") == {"aaa"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"shop", "shop-aaa", "shop-bbb"}
    assert (tmp_path / "runs" / "shop").resolve().parent.parent == tmp_path.resolve(), "genrec.load finds the storage"


def test_a_report_in_a_directory_of_the_name_is_moved_aside_and_not_lost(tmp_path: Path) -> None:
    old = tmp_path / "runs" / "shop"
    old.mkdir(parents=True)
    (old / "report.html").write_text("old")
    publish(StageRun(Config(storage=str(tmp_path), name="shop"), {}), artifact(tmp_path, "aaa"))
    assert shown(tmp_path, "shop") == {"aaa"}
    assert "old" in {file.read_text() for file in (tmp_path / "runs").glob("shop-*/report.html")}


def test_a_copy_that_fails_half_way_shows_nothing(tmp_path: Path) -> None:
    made = artifact(tmp_path, "aaa")
    (made.path / PUBLISHED[-1]).unlink()
    with pytest.raises(FileNotFoundError):
        publish(StageRun(Config(storage=str(tmp_path), name="shop"), {}), made)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("name", ["..", ".", ".x", "a/b", "-x", "", "x" * 101])
def test_a_name_cannot_leave_the_folder_of_runs(name: str) -> None:
    with pytest.raises((InputError, ValueError)):
        Config().replace(name=name)
