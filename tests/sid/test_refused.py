"""What no quantizer can learn from is refused by each with a message that helps; what only looks odd works."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.sid_worlds import N, build, sid_world
from test_quantizers import inputs_of, settings_of

from genrec.config import Sid, load_config
from genrec.data.shards import shard_path
from genrec.errors import InputError
from genrec.sid.collisions import resolve
from genrec.sid.fit import fit_quantizer
from genrec.sid.quantizers import REGISTRY, make_quantizer
from genrec.sid.vectors import VectorFiles, write_vectors

EVERY = sorted(REGISTRY)


def quick(kind: str, **more) -> Sid:
    return settings_of(kind, **{"epochs": 2, "iterations": 2, **more})


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or inf"), (0, "only zeros")])
def test_vectors_without_a_place_are_refused_and_named(kind, value, message):
    quantizer = make_quantizer(quick(kind), device="cpu")
    quantizer.fit(inputs_of(kind))
    wrong = inputs_of(kind)
    wrong[[7, 9]] = value
    for call in (make_quantizer(quick(kind), device="cpu").fit, quantizer.encode):
        with pytest.raises(InputError, match=rf"2 of 320 item vectors hold {message}.*\[7, 9\].*embed again"):
            call(wrong)


@pytest.mark.parametrize("kind", EVERY)
def test_no_items_at_all_are_refused(kind):
    for items in (0, 1):
        with pytest.raises(InputError, match=rf"got {items} items, wanted at least 2"):
            make_quantizer(quick(kind), device="cpu").fit(inputs_of(kind)[:items])


@pytest.mark.parametrize("kind", EVERY)
def test_thousands_of_identical_items_get_distinct_sids(kind):
    codes = {"levels": 1, "codebook_size": 2000} if kind == "vq" else {"codebook_size": 13}
    quantizer = make_quantizer(quick(kind, **codes), device="cpu")
    vectors = np.repeat(inputs_of(kind)[:2], (1997, 3), axis=0)
    quantizer.fit(vectors)
    found = quantizer.encode(vectors)
    assert len(np.unique(found[:1997], axis=0)) < 5 and np.isfinite(quantizer.decode(found)).all()
    assert len(np.unique(resolve(found, vectors, quantizer), axis=0)) == 2000


@pytest.mark.parametrize("kind", EVERY)
def test_a_checkpoint_of_another_quantizer_or_shape_is_refused(kind, tmp_path):
    quantizer = make_quantizer(quick(kind), device="cpu")
    quantizer.fit(inputs_of(kind))
    quantizer.save(tmp_path)
    other = EVERY[EVERY.index(kind) - 1]
    with pytest.raises(InputError, match=rf"got a quantizer {kind} with .*, wanted {other} with .*; fit it"):
        make_quantizer(quick(other)).load(tmp_path)
    with pytest.raises(InputError, match=r"wanted .* with levels \(5"):
        make_quantizer(quick(kind, codebook_size=5)).load(tmp_path)
    tensors = load_file(tmp_path / "quantizer.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file({**tensors, "strange": np.ones(1)}, tmp_path / "quantizer.safetensors")
    with pytest.raises(InputError, match=rf"are not those of a quantizer {kind} .*is missing.*fit it again"):
        make_quantizer(quick(kind)).load(tmp_path)


def test_a_checkpoint_of_a_network_of_another_shape_is_refused(tmp_path):
    for kind, more in (("rqvae", {"latent": 4}), ("rqkmeans_plus", {"hidden": (8,)}), ("lfq", {"hidden": (8,)})):
        quantizer = make_quantizer(quick(kind), device="cpu")
        quantizer.fit(inputs_of(kind))
        quantizer.save(tmp_path)
        with pytest.raises(InputError, match=rf"not those of a quantizer {kind} with these settings .*size mismatch"):
            make_quantizer(quick(kind, **more)).load(tmp_path)


@pytest.mark.parametrize("kind", EVERY)
def test_vectors_of_a_file_are_refused_before_anything_is_fitted(kind, tmp_path):
    if kind == "title":
        pytest.skip("it does not read them to fit")
    world = sid_world(tmp_path)
    vectors = VectorFiles(world / "vectors").read(60, N).copy()
    vectors[3] = np.nan
    write_vectors(vectors, 60, shard_path(world / "vectors", 1))
    settings = quick(kind, collisions="suffix")
    with pytest.raises(InputError, match=r"NaN.*\[63\]"):
        fit_quantizer(world / "data", world / "vectors", world / "out", settings, seed=0, threads=1, device="cpu")
    write_vectors(vectors[:, :8], 60, shard_path(world / "vectors", 1))
    with pytest.raises(InputError, match="got vectors of width 8, wanted 16"):
        fit_quantizer(world / "data", world / "vectors", world / "out", settings, seed=0, threads=1, device="cpu")
    assert not (world / "out").exists()


def test_vectors_of_another_width_than_the_fit_are_refused_while_assigning(tmp_path):
    world = sid_world(tmp_path)
    build(world, world / "out", kill_after=1)
    for shard in range(2):
        write_vectors(np.ones((60, 5), np.float32), 60 * shard, shard_path(world / "vectors", shard))
    with pytest.raises(InputError, match=r"got vectors of shape \(50, 5\), wanted \(items, 16\)"):
        build(world, world / "out")


def test_fewer_dimensions_than_slices_are_refused():
    for kind in ("pq", "opq"):
        with pytest.raises(InputError, match=r"2 dimensions cannot be cut into 3 slices; lower sid\.levels"):
            make_quantizer(quick(kind)).fit(inputs_of(kind)[:, 3:5] + 1)


def test_one_level_cannot_give_each_item_a_code_and_says_so_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"k-means needs at least as many items as codes.*set sid.collisions=suffix"):
        load_config([], ["sid.quantizer=vq", "sid.levels=1"])
    with pytest.raises(InputError, match=r"sid.quantizer=vq has one level; set sid.levels=1"):
        load_config([], ["sid.quantizer=vq", "sid.collisions=suffix"])
    assert load_config([], ["sid.quantizer=vq", "sid.levels=1", "sid.collisions=suffix"]).sid.level_sizes == (256,)
    world = sid_world(tmp_path)
    with pytest.raises(InputError, match=r"120 items and 4 codes: sid.quantizer=vq .*set sid.collisions=suffix"):
        build(world, world / "out", quick("vq"))


@pytest.mark.parametrize("kind", ["rqvae", "rqkmeans_plus"])
def test_an_autoencoder_that_diverges_is_refused_with_its_epoch(kind):
    with pytest.raises(InputError, match=r"after epoch 1 the reconstruction error is (nan|inf).*lower sid\.lr="):
        make_quantizer(quick(kind, lr=1e30), device="cpu").fit(inputs_of(kind))
