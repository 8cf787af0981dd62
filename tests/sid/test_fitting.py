"""A quantizer that several workers fit together is the one that a single worker fits."""

import numpy as np
import pytest
from support.fake_process_group import FakeProcessGroup, Killed, Rows, agreement, drift, fit_by, new_net_of_one_thread
from support.sid_worlds import sid_world
from test_quantizers import FAST, grid

from genrec.config import load_config
from genrec.config.sid import FIT_PARALLEL, Sid
from genrec.errors import InputError
from genrec.sid.distributed import collectives
from genrec.sid.distributed.collectives import SingleProcess
from genrec.sid.distributed.vector_stream import BLOCK, READ, VIRTUAL_SHARDS, Stream
from genrec.sid.fit import fit_rows, fit_share, prepare_fit
from genrec.sid.quantizers import REGISTRY, load_quantizer, make_quantizer
from genrec.sid.quantizers.base import nearest
from genrec.sid.quantizers.rqvae import RqVae

KINDS = [
    *({"quantizer": kind} for kind in FIT_PARALLEL),
    {"quantizer": "rqvae", "codebook": "ema"},
    {"quantizer": "rqvae", "estimator": "rotation"},
]


@pytest.fixture(autouse=True)
def one_net_at_a_time(monkeypatch):
    monkeypatch.setattr(RqVae, "_new_net", new_net_of_one_thread)


def settings_of(**more) -> Sid:
    levels = {"levels": 1} if more["quantizer"] == "vq" else {}
    return Sid(**{**FAST, "epochs": 20, "fit_workers": 2, **levels, **more})


def cloud(items: int = 1200, width: int = 12) -> np.ndarray:
    """Vectors in heaps of very different sizes."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((12, width))
    which = np.minimum(rng.geometric(0.25, items) - 1, 11)
    return (centres[which] + rng.standard_normal((items, width))).astype(np.float32)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_two_and_three_workers_fit_what_one_fits(options):
    vectors, settings = cloud(), settings_of(**options, codebook_size=8, epochs=5, lr=1e-3)
    (one,), measures = fit_by(FakeProcessGroup(1), settings, vectors)
    for size in (2, 3) if options in KINDS[:3] else (2,):
        many, found = fit_by(FakeProcessGroup(size), settings, vectors)
        assert all(drift(many[0], other) == 0 for other in many[1:])
        assert found == pytest.approx(measures, rel=1e-4)
        assert drift(one, many[0]) < (1e-6 if options["quantizer"][-6:] == "kmeans" else 1e-4)
        assert agreement(one, many[0], vectors) > 0.999


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_shared_fit_is_as_good_as_one_in_memory(options):
    vectors, _ = grid()
    settings = settings_of(**options, epochs=40)
    alone = make_quantizer(settings, device="cpu")
    alone.fit(vectors)
    (shared, _), _ = fit_by(FakeProcessGroup(2), settings, vectors)
    errors = [np.square(vectors - q.decode(q.encode(vectors))).sum(1).mean() for q in (alone, shared)]
    spread = np.square(vectors - vectors.mean(0)).sum(1).mean()
    assert errors[1] < errors[0] + 0.05 * spread


def test_shared_kmeans_ends_where_no_mean_moves():
    vectors = cloud()
    settings = settings_of(quantizer="rqkmeans", codebook_size=16, iterations=200, levels=2)
    (one, _), measures = fit_by(FakeProcessGroup(2), settings, vectors)
    left = vectors.copy()
    for level, book in enumerate(one.codebooks, 1):
        code = nearest(left, book)
        means = np.stack([left[code == k].mean(0) for k in range(16)])
        moved = np.square(means - book).sum(1).max() / np.square(book).sum(1).mean()
        left -= book[code]
        assert moved < 1e-2
        assert measures[f"error_{level}"] == pytest.approx(np.square(left).sum(1).mean(), rel=1e-4)


def test_codes_that_run_empty_are_put_to_use_and_identical_vectors_do_no_harm():
    vectors = np.repeat(np.eye(4, 6, dtype=np.float32), 500, axis=0)
    for kind in FIT_PARALLEL:
        (one, _), _ = fit_by(
            FakeProcessGroup(2), settings_of(quantizer=kind, codebook_size=8, epochs=3, iterations=4), vectors
        )
        codes = one.encode(vectors)
        assert len(np.unique(codes, axis=0)) <= 4 and np.isfinite(one.decode(codes)).all()


def test_every_row_is_read_once_and_batches_do_not_depend_on_the_workers():
    vectors = np.arange(5000, dtype=np.float32)[:, None]
    rows = np.sort(np.random.default_rng(0).permutation(5000)[:4321])

    def batches(size: int, epoch: int) -> list[np.ndarray]:
        parts = [list(Stream(Rows(vectors), rows, rank=r, workers=size).batches(100, epoch)) for r in range(size)]
        whole = []
        for step in zip(*parts, strict=True):
            batch = np.full(step[0].size, np.nan, np.float32)
            for part in step:
                batch[part.index_B] = part.rows_BD[:, 0]
            whole.append(batch)
        return whole

    one = batches(1, epoch=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(one)), rows)
    assert len(one) == 44 and max(map(len, one)) < 200 and min(map(len, one)) > 50
    for size in (2, 3, VIRTUAL_SHARDS):
        assert all(np.array_equal(a, b) for a, b in zip(one, batches(size, epoch=0), strict=True))
    assert not np.array_equal(one[0], batches(1, epoch=1)[0])
    parts = [[block[:, 0] for _, block in Stream(Rows(vectors), rows, rank=r, workers=3).blocks()] for r in range(3)]
    np.testing.assert_array_equal(np.concatenate([block for part in parts for block in part]), rows)


def test_a_worker_reads_only_its_part_in_blocks_of_bounded_size():
    readers = [Rows(np.zeros((200_000, 1), np.float32)) for _ in range(2)]
    for rank, reader in enumerate(readers):
        stream = Stream(reader, range(len(reader)), rank=rank, workers=2)
        assert sum(len(block) for _, block in stream.blocks()) == 100_000
        assert reader.most <= BLOCK and reader.read_rows == 100_000
        reader.most = 0
        assert sum(len(batch.rows_BD) for batch in stream.batches(1024, 0)) == 100_000
        assert reader.most <= READ and reader.read_rows == 200_000


@pytest.mark.parametrize("items", [1, 3, 40, 70])
def test_fewer_items_than_virtual_shards_are_batched_too(items):
    vectors = np.arange(items, dtype=np.float32)[:, None]
    for batch_size in (1, 8, 100):
        batches = list(Stream(Rows(vectors), range(items)).batches(batch_size, 0))
        assert sorted(value for batch in batches for value in batch.rows_BD[:, 0].tolist()) == list(range(items))


@pytest.mark.parametrize("options", KINDS[:3] + KINDS[5:6], ids=str)
def test_a_killed_fit_goes_on_to_the_same_quantizer(options, tmp_path, monkeypatch):
    monkeypatch.setattr(collectives, "SAVE_S", 0.0)
    vectors, settings = cloud(), settings_of(**options, codebook_size=8, epochs=6, lr=1e-3, iterations=30)
    (undisturbed, _), measures = fit_by(FakeProcessGroup(2, tmp_path / "a"), settings, vectors)
    for lives in (2, 3):
        with pytest.raises(Killed):
            fit_by(FakeProcessGroup(2, tmp_path / "b", lives=lives), settings, vectors)
    group = FakeProcessGroup(3, tmp_path / "b")
    (resumed, *_), found = fit_by(group, settings, vectors)
    assert group.saved > 0
    assert found == pytest.approx(measures, rel=1e-4)
    assert drift(undisturbed, resumed) < 1e-4 and agreement(undisturbed, resumed, vectors) > 0.999


@pytest.mark.parametrize("kind", ["rqkmeans", "rqvae"])
def test_a_vector_that_one_worker_refuses_ends_all_of_them_with_its_message(kind):
    vectors = cloud()
    for row, value, message in ((1100, np.nan, "NaN.*1100"), (1150, 0, "only zeros.*1150"), (3, np.inf, "infinite.*3")):
        wrong = vectors.copy()
        wrong[row] = value
        seen = []

        def work(process, wrong=wrong, seen=seen):
            stream = Stream(Rows(wrong), range(len(wrong)), rank=process.rank, workers=process.size)
            try:
                make_quantizer(settings_of(quantizer=kind), device="cpu").fit_parallel(stream, process)
            except InputError as error:
                seen.append(str(error))

        FakeProcessGroup(3).run(work)
        assert len(seen) == 3 and len(set(seen)) == 1
        with pytest.raises(InputError, match=message):
            raise InputError(seen[0])


def test_exactly_these_quantizers_can_be_fitted_by_workers():
    for kind in set(REGISTRY) - set(FIT_PARALLEL):
        with pytest.raises(InputError, match=rf"rqkmeans, .*can be fitted by workers, sid.quantizer={kind} cannot"):
            load_config([], [f"sid.quantizer={kind}", "sid.fit_workers=2", "sid.levels=1"])
        unchecked = Sid.model_construct(quantizer=kind, fit_workers=2)
        with pytest.raises(InputError, match=f"sid.quantizer={kind} cannot"):
            make_quantizer(unchecked).fit_parallel(Stream(Rows(cloud()), range(1200)), SingleProcess())


def test_fewer_items_than_codes_are_refused_before_workers_start(tmp_path):
    world, settings = sid_world(tmp_path), settings_of(quantizer="rqkmeans", fit_items=3, collisions="suffix")
    with pytest.raises(InputError, match=r"3 items cannot fill 4 codes.*sid.codebook_size=2"):
        prepare_fit(world / "data", world / "vectors", world / "out", settings, seed=0)
    with pytest.raises(InputError, match=r"3 items cannot fill 4 codes.*sid.codebook_size=2"):
        make_quantizer(settings).fit_parallel(Stream(Rows(cloud()), range(3)), SingleProcess())


def test_balanced_batches_are_refused_where_workers_share_them():
    with pytest.raises(InputError, match=r"sid.sinkhorn=0.1 balances a whole batch"):
        load_config([], ["sid.quantizer=rqvae", "sid.fit_workers=2", "sid.sinkhorn=0.1"])


def test_the_number_of_workers_is_no_part_of_the_key_but_sharing_is():
    keys = [Sid(fit_workers=n).stage_settings() for n in (0, 1, 2)]
    assert keys[1] == keys[2] != keys[0]
    assert keys[0]["fit_items"] == 262_144 and not {"fit_workers", "fit_parallel"} & set(keys[0])
    assert keys[1]["fit_items"] is None and Sid(fit_workers=1, fit_items=7).stage_settings()["fit_items"] == 7


def test_all_items_are_fitted_by_workers_unless_a_number_is_set():
    assert fit_rows(10**6, Sid(fit_workers=1), 0) == range(10**6)
    assert len(fit_rows(10**6, Sid(), 0)) == 262_144
    one, many = Sid(fit_items=50), Sid(fit_items=50, fit_workers=2)
    np.testing.assert_array_equal(fit_rows(100, one, 3), fit_rows(100, many, 3))
    assert len(set(fit_rows(100, many, 3).tolist())) == 50  # type: ignore[union-attr]


def test_a_share_of_a_fit_over_files_is_saved_by_the_first_worker(tmp_path):
    world = sid_world(tmp_path)
    settings = settings_of(quantizer="rqkmeans", codebook_size=8, fit_items=100)
    FakeProcessGroup(2).run(
        lambda process: fit_share(world / "vectors", world / "out", settings, process, seed=0, threads=1)
    )
    assert sorted(path.name for path in (world / "out" / "quantizer").iterdir()) == [
        "fit.json",
        "quantizer.json",
        "quantizer.safetensors",
    ]
    assert load_quantizer(world / "out" / "quantizer").level_sizes == (8, 8, 8)
