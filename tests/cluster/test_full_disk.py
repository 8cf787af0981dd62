"""A disk that is full, or closed to this user, is one message in every stage, and the same command goes on later."""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from support.encoders import CircleEncoder
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

from cluster import pipeline
from cluster.artifacts import Artifact
from cluster.pipeline import STAGES, Stage, run_stage
from cluster.progress import LineHandler, stage_log
from cluster.stages.plan import Plan, StageRun
from genrec.config import Config
from genrec.data.files import share, write_atomically, write_text
from genrec.errors import InputError, MachineError
from genrec.learning.checkpoints import DirectoryCheckpoints

FULL = OSError(errno.ENOSPC, "No space left on device", "/storage/x")
REFUSED = {
    "full": FULL,
    "over quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "another user's": PermissionError(errno.EACCES, "Permission denied", "/storage"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "a worker's": RuntimeError("worker 0 failed:\nTraceback ...\nOSError: [Errno 28] No space left on device"),
}


def fails(error: Exception) -> None:
    raise error


def broken(place: str, error: Exception) -> Stage:
    """A stage whose plan, work or publication meets ``error``."""

    def plan(run: StageRun) -> Plan:
        if place == "plan":
            fails(error)
        return Plan({}, lambda out: fails(error) or {} if place == "work" else {})

    plan.__module__ = __name__
    return Stage("broken", "", "", plan, publish=lambda run, artifact: fails(error))


@pytest.mark.parametrize("error", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("place", ["plan", "work", "publish"])
def test_a_disk_that_refuses_is_one_message_wherever_a_stage_writes(
    place: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipeline.STAGES, "broken", broken(place, error))  # type: ignore[arg-type]
    with pytest.raises(MachineError) as caught:
        run_stage(Config(storage=str(tmp_path)), "broken", {})
    message = str(caught.value)
    assert str(error).splitlines()[-1] in message and f"free space, and the right to write, under {tmp_path}" in message
    assert "\n" not in message


def test_an_error_of_another_kind_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.STAGES, "broken", broken("work", RuntimeError("a bug")))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a bug"):
        run_stage(Config(storage=str(tmp_path)), "broken", {})


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, module_patch: pytest.MonkeyPatch
) -> tuple[Config, dict[str, Artifact]]:
    """A run up to sft, for stages to be made again from its artifacts."""
    shop = chain_shop(tmp_path_factory.mktemp("shop"), users=12)
    module_patch.setattr("genrec.sid.embed.make_encoder", lambda settings, device: CircleEncoder())
    config = tiny_config(tmp_path_factory.mktemp("storage"), shop, "learning.sft.max_steps=2", "learning.rl.steps=1")
    return config, pipeline.run(config, "sft")


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "tune"])
def test_a_real_stage_on_a_full_disk_leaves_nothing_that_looks_finished(
    stage: str, finished: tuple[Config, dict[str, Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs = finished
    own = config.replace(storage=str(tmp_path))
    given = dict(inputs) | ({"grpo": inputs["sft"]} if stage in ("value", "evaluate") else {})
    monkeypatch.setattr("genrec.data.files.os.fsync", lambda file: fails(FULL))
    with pytest.raises(InputError, match="No space left on device"):
        run_stage(own, stage, given)
    assert not list(tmp_path.rglob("manifest.json")) and not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "runs").exists()


def test_the_same_command_goes_on_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop", users=12))
    with monkeypatch.context() as patch:
        patch.setattr("genrec.data.files.os.fsync", lambda file: fails(FULL))
        with pytest.raises(InputError):
            pipeline.run(config, "prepare")
    assert (made(config, "prepare").path / "manifest.json").is_file()


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Full:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise FULL

    logger = logging.getLogger("genrec.probe")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler := LineHandler(Full()))  # type: ignore[arg-type]
    (tmp_path / "stage.log").symlink_to("/dev/full")
    with stage_log("sft", tmp_path):
        logger.info("on we go")
    logger.removeHandler(handler)
    assert capsys.readouterr().err == ""


@pytest.fixture
def umask() -> object:
    old = os.umask(0o027)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_every_file_gets_the_mode_of_the_umask(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1)}
    write_text("x", tmp_path / "text")
    write_atomically(tmp_path / "tensors", lambda path: save_file(tensors, path))
    DirectoryCheckpoints(tmp_path / "c").save(lambda path: save_file(tensors, path / "tensors"), {})
    assert {mode(file) for file in tmp_path.rglob("*") if file.is_file()} == {0o640}
    save_file(tensors, tmp_path / "bare")
    assert mode(tmp_path / "bare") == 0o600, "else nothing of this is needed any more"
    share(tmp_path)
    assert mode(tmp_path / "bare") == 0o640
