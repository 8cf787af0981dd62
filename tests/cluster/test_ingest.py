"""Streaming ingest on Ray: the policy of one process, for any number of workers, also when one of them is killed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.pipeline import made
from support.synthetic import tiny_config

from cluster.ingest import Position
from cluster.stages import sft
from cluster.train import RunSpec, run_training
from genrec.config import Config
from genrec.learning.sft.streaming import StreamedEpochs

STREAMED = [
    "learning.sft.ingest=stream",
    "learning.sft.pool=16",
    "learning.sft.epochs=2",
    "data.shards=5",
    "policy.dropout=0.0",
    "learning.sft.checkpoint_every=2",
    "learning.sft.distill=0.3",
    "compute.worker_cpus=0.1",
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def curve_of(out: Path) -> list[float]:
    return [point["loss"] for point in json.loads((out / "curve.json").read_text())["curve"]]


def train(config: Config, data: Path, catalog: Path, out: Path, kill_at: int) -> Path:
    """SFT on Ray, whose rank 0 gets SIGKILL once, when it asks for the batch of the step ``kill_at``."""

    def dying_loop(spec: RunSpec) -> None:
        marker, read = spec.out / "killed", StreamedEpochs.micro_batches

        def killed(self: StreamedEpochs, step: int, size: int, rank: int, world: int) -> Any:
            if step == kill_at and rank == 0 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(self, step, size, rank, world)

        StreamedEpochs.micro_batches = killed
        sft.sft_loop(spec)

    out.mkdir()
    stream = sft.make_stream(config, data, out)
    run_training(dying_loop, RunSpec(config, data, catalog, out, stream=stream), "sft")
    assert (out / "killed").exists()
    return out


def test_a_position_that_was_never_written_or_only_begun_is_the_start(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    position = Position.of(tiny_config(tmp_path, tmp_path), tmp_path)
    assert position.read() == 0
    position.write(1234)
    assert position.read() == 1234
    file = tmp_path / "train" / "position.json"
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert position.read() == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_workers_learn_from_a_stream_what_one_process_does_also_after_a_kill(
    shop: Path, storage: Path, tmp_path: Path
) -> None:
    alone = tiny_config(storage, shop, *STREAMED)
    data, catalog, wanted = (made(alone, stage).path for stage in ("prepare", "assign", "sft"))
    config = alone.replace({"compute.workers": 2})
    found = train(config, data, catalog, tmp_path / "two", kill_at=6)
    assert curve_of(found) == pytest.approx(curve_of(wanted), rel=1e-4)
    assert Position.of(config, found).read() == 6  # The checkpoint before the last one, of step 8.
    weights, same = (load_file(place / "policy.safetensors") for place in (wanted, found))
    assert all(weights[name].allclose(same[name], atol=1e-3) for name in weights)
