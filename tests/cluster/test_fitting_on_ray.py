"""The same fits on Ray Train: one and two gloo workers, a worker that dies, a fit that is refused."""

import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from support.fake_process_group import FakeProcessGroup, agreement, drift, fit_by
from support.sid_worlds import N, sid_world

from cluster.stages import assign
from cluster.stages.assign import RayProcessGroup
from cluster.train import train_on_ray
from genrec.config import Config, load_config
from genrec.data.shards import shard_path
from genrec.errors import InputError
from genrec.sid.catalog import Catalog
from genrec.sid.fit import fit_share
from genrec.sid.quantizers import load_quantizer
from genrec.sid.vectors import Floats, VectorFiles, unit_rows, write_vectors

KINDS = ({"quantizer": "rqkmeans"}, {"codebook": "ema"}, {})


def rqvae(directory: Path, workers: int) -> Config:
    sizes = [
        "sid.codebook_size=8",
        "sid.epochs=6",
        "sid.batch_size=64",
        "sid.latent=8",
        "sid.hidden=[16]",
        "sid.shard_items=50",
    ]
    where = [f"storage={directory}", "compute.device=cpu", "compute.threads=1", "compute.data_actors=0"]
    return load_config([], ["sid.quantizer=rqvae", f"sid.fit_workers={workers}", *sizes, *where])


def inputs(world: Path) -> Floats:
    return unit_rows(VectorFiles(world / "vectors").read())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_two_ray_train_workers_fit_what_one_fits_though_one_of_them_dies(tmp_path):
    world = sid_world(tmp_path)
    config, died = rqvae(world, 2), world / "died"
    vectors, kinds = world / "vectors", KINDS

    def fit_all():
        from genrec.sid.distributed import collectives

        collectives.SAVE_S = 0.0
        for number, options in enumerate(kinds):
            mine = RayProcessGroup(config)
            with mine.latest() as directory:
                (world / f"begin-{mine.rank}-{directory is not None}").touch()
            if number < len(kinds) - 1:
                mine.latest, mine.save = lambda: nullcontext(None), lambda write, metrics: None
            else:
                mine.save = dying(mine, mine.save)
            fit_share(vectors, world / f"out-{number}", config.sid.replace(options), mine, seed=0, threads=1)

    def dying(mine, save):
        def save_and_die(write, metrics):
            save(write, metrics)
            if metrics["epoch"] == 3 and mine.rank == 1 and not died.exists():
                died.touch()
                os._exit(1)

        return save_and_die

    train_on_ray(fit_all, config, world / "run", "fit", 2)
    assert died.exists()
    assert {path.name for path in world.glob("begin-*")} == {f"begin-{r}-{b}" for r in (0, 1) for b in (True, False)}
    for number, options in enumerate(KINDS):
        (one,), _ = fit_by(FakeProcessGroup(1), config.sid.replace(options), inputs(world))
        two = load_quantizer(world / f"out-{number}" / "quantizer")
        assert drift(one, two) < (1e-6 if number == 0 else 1e-4)
        assert agreement(one, two, inputs(world)) > 0.99


def test_a_catalogue_is_assigned_by_a_quantizer_that_a_worker_fitted(tmp_path, monkeypatch):
    world = sid_world(tmp_path)
    config, out = rqvae(world, 1), world / "out"

    def train_here(loop, config, out, name, workers):
        (out / "train" / name).mkdir(parents=True)

        def work(process):
            monkeypatch.setattr(assign, "RayProcessGroup", lambda config: process)
            loop()

        FakeProcessGroup(workers, out / "train" / "checkpoint").run(work)

    monkeypatch.setattr(assign, "train_on_ray", train_here)
    metrics = assign._quantize(config, world / "data", world / "vectors", out)
    (alone,), measures = fit_by(FakeProcessGroup(1), config.sid, inputs(world))
    assert drift(alone, load_quantizer(out / "quantizer")) < 1e-4
    assert len(Catalog.load(out)) == N and not (out / "train").exists()
    assert metrics["fit"]["error"] == pytest.approx(measures["error"], rel=1e-4)


def test_a_vector_that_one_worker_refuses_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    world, out = sid_world(tmp_path), tmp_path / "out"
    vectors = VectorFiles(world / "vectors").read(60, 120).copy()
    vectors[50] = np.nan
    write_vectors(vectors, 60, shard_path(world / "vectors", 1))

    def train_here(loop, config, out, name, workers):
        (out / "train" / name).mkdir(parents=True)
        (out / "worker.jsonl").touch()
        FakeProcessGroup(workers).run(lambda one: fit_share(world / "vectors", out, config.sid, one, seed=0, threads=1))

    monkeypatch.setattr(assign, "train_on_ray", train_here)
    with pytest.raises(InputError, match=r"NaN or infinite values.*\[110\]"):
        assign.fit(rqvae(world, 2), world / "data", world / "vectors", out)
    assert not list(out.iterdir())
