"""Quantizers: what every one of them must do, on worlds whose codes are known."""

import itertools
import json

import numpy as np
import pytest
import torch

from genrec.config import Sid
from genrec.errors import InputError
from genrec.sid.collisions import resolve
from genrec.sid.quantizers import REGISTRY, load_quantizer, make_quantizer
from genrec.sid.quantizers.autoencoder import Codebook, assign_codes, pass_gradient
from genrec.sid.quantizers.base import nearest
from genrec.sid.quantizers.controls import title_words
from genrec.sid.quantizers.lattice import entropy_loss, fsq_steps

FAST = {"levels": 3, "codebook_size": 4, "epochs": 80, "hidden": (32,), "latent": 8, "batch_size": 160, "lr": 5e-3}


def grid(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """320 vectors: 4 far centres, 4 offsets around each, little noise; and the centre of each vector."""
    rng = np.random.default_rng(seed)
    centres, offsets = np.eye(4, 16) * 10, np.eye(4, 16, k=8) * 2
    which = np.arange(320) % 16
    noise = 0.1 * rng.standard_normal((320, 16))
    return (centres[which // 4] + offsets[which % 4] + noise).astype(np.float32), which // 4


SEED = 2
COARSE_TO_FINE = ("rqkmeans", "rqkmeans_balanced", "rqkmeans_plus", "rqvae", "hierarchical")
CONTROLS = ("random", "title")


def settings_of(kind: str, **more) -> Sid:
    fewer = {"epochs": 40} if kind in ("lfq", "rqkmeans_plus") else {}
    return Sid(**{"quantizer": kind, **FAST, "levels": 1 if kind == "vq" else 3, **fewer, **more})


def inputs_of(kind: str, settings: Sid | None = None) -> np.ndarray:
    """The grid, or for ``title`` a title each: 16 kinds of things, 20 of each."""
    if kind != "title":
        return grid()[0]
    titles = [f"{'abcd'[n % 16 // 4]} {n % 4} no {n}" for n in range(320)]
    return title_words(titles, settings or settings_of(kind))


@pytest.fixture(params=sorted(REGISTRY), scope="module")
def quantizer(request):
    """Each kind, fitted on the grid."""
    quantizer = make_quantizer(settings_of(request.param), seed=SEED, device="cpu")
    quantizer.fit(inputs_of(request.param))
    return quantizer


def test_similar_vectors_share_their_first_code_and_others_do_not(quantizer):
    if quantizer.settings.quantizer not in COARSE_TO_FINE:
        pytest.skip("its first code says something else")
    vectors, centre = grid()
    codes = quantizer.encode(vectors)
    assert codes.shape == (320, 3) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < 4
    first = [set(codes[centre == group, 0].tolist()) for group in range(4)]
    assert all(len(found) == 1 for found in first) and len(set.union(*first)) == 4


def test_each_level_brings_the_decoded_vector_nearer(quantizer):
    kind, levels = quantizer.settings.quantizer, quantizer.settings.levels
    if kind in CONTROLS:
        pytest.skip("its codes do not stand for a vector")
    vectors, _ = grid()
    codes = quantizer.encode(vectors)
    spread = np.square(vectors - vectors.mean(0)).sum(1).mean()
    errors = [np.square(vectors - quantizer.decode(codes[:, :level])).sum(1).mean() for level in range(1, levels + 1)]
    assert all(error <= before + 0.01 * spread for before, error in itertools.pairwise([spread, *errors]))
    assert errors[-1] < 0.5 * spread
    if kind in COARSE_TO_FINE:
        assert errors[0] > errors[1] and errors[1] < 0.25 * spread


def test_the_cheapest_code_of_each_level_is_the_encoded_one(quantizer):
    vectors = inputs_of(quantizer.settings.quantizer)
    codes = quantizer.encode(vectors)
    assert codes.shape == (320, quantizer.settings.levels) and codes.dtype == np.int32
    for level in range(quantizer.settings.levels):
        costs = quantizer.level_costs(vectors, codes[:, :level])
        chosen = np.take_along_axis(costs, codes[:, level : level + 1], axis=1)[:, 0]
        assert costs.shape == (320, 4)
        np.testing.assert_allclose(chosen, costs.min(1), atol=1e-3)


def test_every_quantizer_gives_collision_resolution_what_it_needs(quantizer):
    vectors = inputs_of(quantizer.settings.quantizer)[: quantizer.settings.codebook_size**quantizer.settings.levels]
    vectors[::3] = vectors[0]
    codes = quantizer.encode(vectors)
    resolved = resolve(codes, vectors, quantizer)
    assert len(np.unique(resolved, axis=0)) == len(vectors)
    assert resolved.min() >= 0 and resolved.max() < 4


def test_the_same_seed_gives_the_same_codes_and_a_saved_quantizer_too(quantizer, tmp_path):
    vectors = inputs_of(quantizer.settings.quantizer)
    again = make_quantizer(quantizer.settings, seed=SEED, device="cpu")
    again.fit(vectors)
    quantizer.save(tmp_path)
    loaded = load_quantizer(tmp_path)
    codes = quantizer.encode(vectors)
    np.testing.assert_array_equal(codes, again.encode(vectors))
    np.testing.assert_array_equal(codes, loaded.encode(vectors))
    np.testing.assert_allclose(quantizer.decode(codes), loaded.decode(codes), atol=1e-6)
    assert type(loaded) is type(quantizer)


def test_fewer_items_than_codes_are_refused_with_a_number_that_works(quantizer):
    unfitted = make_quantizer(quantizer.settings, device="cpu")
    with pytest.raises(InputError, match=r"3 items cannot fill 4 codes.*sid.codebook_size=2"):
        unfitted.fit(inputs_of(quantizer.settings.quantizer)[:3])


def test_vectors_of_another_width_are_refused(quantizer):
    vectors = inputs_of(quantizer.settings.quantizer)
    with pytest.raises(InputError, match=rf"\(320, 2\).*\(items, {vectors.shape[1]}\)"):
        quantizer.encode(vectors[:, :2])


def test_identical_vectors_do_not_break_the_fit(quantizer):
    vectors = np.ones((50, 3 if quantizer.settings.quantizer == "title" else 16), np.float32)
    quantizer = make_quantizer(quantizer.settings.replace({"epochs": 5}), device="cpu")
    quantizer.fit(vectors)
    codes = quantizer.encode(vectors)
    assert len(np.unique(codes, axis=0)) == 1
    assert np.isfinite(quantizer.decode(codes)).all()


def test_a_broken_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no readable quantizer"):
        load_quantizer(tmp_path)
    (tmp_path / "quantizer.json").write_text(json.dumps({"sid": {}}))
    (tmp_path / "quantizer.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="no readable quantizer"):
        load_quantizer(tmp_path)


@pytest.mark.parametrize("option", [{"codebook": "ema"}, {"estimator": "rotation"}, {"sinkhorn": 0.05}])
def test_every_rqvae_option_learns_the_grid(option):
    vectors, centre = grid()
    quantizer = make_quantizer(Sid(quantizer="rqvae", **FAST, **option), device="cpu")
    quantizer.fit(vectors)
    codes = quantizer.encode(vectors)
    error = np.square(vectors - quantizer.decode(codes)).sum() / np.square(vectors - vectors.mean(0)).sum()
    assert error < 0.3
    assert len({(group, code) for group, code in zip(centre.tolist(), codes[:, 0].tolist(), strict=True)}) == 4


def test_the_rotation_maps_a_latent_onto_its_code_and_keeps_angles():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, 5, generator=generator, requires_grad=True)
    quantized = torch.randn(6, 5, generator=generator)
    turned = pass_gradient(latents, quantized, "rotation")
    torch.testing.assert_close(turned, quantized, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(6, 5, generator=generator)
    (turned * upstream).sum().backward()
    cosine = torch.nn.functional.cosine_similarity
    assert latents.grad is not None
    torch.testing.assert_close(cosine(latents.grad, latents), cosine(upstream, quantized), atol=1e-5, rtol=1e-4)


def test_sinkhorn_spreads_a_batch_evenly_where_the_nearest_code_does_not():
    left = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    codebook = torch.cat([torch.zeros(1, 4), 3 + torch.randn(3, 4, generator=torch.Generator().manual_seed(1))])
    nearest = torch.bincount(assign_codes(left, codebook, 0.0), minlength=4)
    even = torch.bincount(assign_codes(left, codebook, 0.05), minlength=4)
    assert nearest.max() > 48 and even.max() < 24


def test_a_code_that_nobody_chose_restarts_on_a_residual():
    book = Codebook(torch.tensor([[0.0, 0.0], [100.0, 100.0]]), decay=None)
    left = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    book.update(left, torch.tensor([0, 0]))
    assert book.restart_dead(left, torch.Generator().manual_seed(0)) == 1
    assert book.rows_Kd[1].tolist() == [1.0, 2.0] and book.rows_Kd[0].tolist() == [0.0, 0.0]


def test_ema_codebooks_move_to_the_mean_of_what_chose_them():
    book = Codebook(torch.zeros(2, 2), decay=0.5)
    for _ in range(30):
        book.update(torch.tensor([[1.0, 3.0], [3.0, 5.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(book.rows_Kd[0], torch.tensor([2.0, 4.0]), atol=1e-3, rtol=1e-3)


def lopsided(items: int = 2000) -> np.ndarray:
    """Vectors of which most lie in one narrow heap."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((items, 8)).astype(np.float32)
    points[: items * 3 // 4] *= 0.05
    return points


def test_balanced_clusters_keep_their_bounds_where_plain_ones_do_not():
    points, sizes = lopsided(), {}
    for kind in ("rqkmeans", "rqkmeans_balanced"):
        quantizer = make_quantizer(Sid(quantizer=kind, levels=2, codebook_size=16, iterations=5))
        measures = quantizer.fit(points)
        sizes[kind] = [np.bincount(codes, minlength=16) / (2000 / 16) for codes in quantizer.encode(points).T]
    assert sizes["rqkmeans"][0].max() > 2.5
    for level, share in enumerate(sizes["rqkmeans_balanced"], 1):
        assert share.min() >= 0.49 and share.max() <= 2.01
        assert measures[f"largest_{level}"] == pytest.approx(share.max())


def test_bounds_that_no_clusters_can_keep_are_refused():
    with pytest.raises(InputError, match=r"sid.balance=\(1.5, 2.0\)"):
        make_quantizer(Sid(quantizer="rqkmeans_balanced", balance=(1.5, 2.0))).fit(grid()[0])


def test_rqkmeans_plus_starts_from_residual_kmeans():
    points = lopsided(400)
    settings = {"levels": 2, "codebook_size": 8, "iterations": 5, "hidden": (8,), "epochs": 1, "lr": 1e-12}
    plus = make_quantizer(Sid(quantizer="rqkmeans_plus", **settings), device="cpu")
    plus.fit(points)
    scaled = (points - points.mean(0)) / np.sqrt(np.mean((points - points.mean(0)) ** 2))
    plain = make_quantizer(Sid(quantizer="rqkmeans", **settings), device="cpu")
    plain.fit(scaled.astype(np.float32))
    assert (plus.encode(points) == plain.encode(scaled.astype(np.float32))).all(axis=1).mean() > 0.95


def test_vq_has_one_level():
    with pytest.raises(InputError, match=r"vq has one level, got sid.levels=3; set sid.levels=1"):
        make_quantizer(Sid(quantizer="vq"))


def test_a_rotation_repays_where_the_slices_are_correlated():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((600, 3)).astype(np.float32)
    points = (hidden @ rng.standard_normal((3, 9)) + 0.01 * rng.standard_normal((600, 9))).astype(np.float32)
    errors = {}
    for kind in ("pq", "opq"):
        quantizer = make_quantizer(Sid(quantizer=kind, levels=3, codebook_size=16, iterations=10))
        quantizer.fit(points)
        errors[kind] = np.square(points - quantizer.decode(quantizer.encode(points))).sum()
    assert errors["opq"] < 0.95 * errors["pq"]


def test_the_code_of_a_tree_depends_on_its_prefix():
    points = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    quantizer = make_quantizer(Sid(quantizer="hierarchical", levels=3, codebook_size=8, iterations=5))
    quantizer.fit(points)
    codes = quantizer.encode(points)
    for group in range(8):
        rows = np.flatnonzero(codes[:, 0] == group)
        np.testing.assert_allclose(quantizer.decode(codes[rows[:1], :1])[0], points[rows].mean(0), atol=0.3)
    assert len(np.unique(codes, axis=0)) > 270
    assert np.square(points - quantizer.decode(codes)).sum() < 0.05 * np.square(points).sum()


def test_a_code_without_a_cluster_stands_for_its_parent_and_is_never_the_nearest():
    points = np.repeat(np.eye(4, 8, dtype=np.float32), 5, axis=0)
    quantizer = make_quantizer(Sid(quantizer="hierarchical", levels=2, codebook_size=4, iterations=3))
    quantizer.fit(points)
    codes = quantizer.encode(points)
    assert set(codes[:, 1].tolist()) == {0}
    unknown = np.array([[codes[0, 0], 3]], np.int32)
    np.testing.assert_allclose(quantizer.decode(unknown)[0], points[0], atol=1e-5)
    resolved = resolve(codes[::2], points[::2], quantizer)
    assert len(np.unique(resolved, axis=0)) == 10 and (resolved[:, 0] == codes[::2, 0]).all()


def test_lattices_use_nearly_all_codes_and_repeat_the_first_in_place_of_the_rest():
    assert (
        fsq_steps((256, 256)) == ((4, 4, 4, 4),) * 2
        and fsq_steps((4,)) == ((4,),)
        and fsq_steps((1024,)) == ((4,) * 5,)
    )
    assert all(0.8 * codes < np.prod(fsq_steps((codes,))) <= codes for codes in (8, 30, 240, 512, 1000, 4096))
    quantizer = make_quantizer(settings_of("fsq", codebook_size=10, epochs=1), device="cpu")
    quantizer.fit(grid()[0])
    book = quantizer.codebooks[0]
    assert len(book) == 10 and len(np.unique(book, axis=0)) == np.prod(fsq_steps((10,)))
    assert nearest(book, book).max() < np.prod(fsq_steps((10,)))


def test_the_entropy_loss_wants_sure_bits_that_are_evenly_spread():
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert entropy_loss(sure).item() == pytest.approx(-2 * np.log(2), abs=1e-3)
    assert entropy_loss(torch.full((2, 2), 0.5)).item() == pytest.approx(0, abs=1e-6)
    assert entropy_loss(torch.ones(2, 2)).item() == pytest.approx(0, abs=1e-3)


def test_titles_with_the_same_first_words_share_a_prefix():
    settings = Sid(quantizer="title", codebook_size=4096)
    words = title_words(["3M Tape, blue", "3m tape red", "Glue", ""], settings)
    assert (words[0, :2] == words[1, :2]).all() and words[0, 2] != words[1, 2]
    assert words.min() >= 1 and words.max() <= 4096
    assert words[2, 0] != words[0, 0] and (words[2, 1:] == words[3, 1:]).all()


def test_random_codes_are_spread_evenly_and_depend_on_the_seed():
    points = lopsided()
    drawn = []
    for seed in (0, 1):
        quantizer = make_quantizer(Sid(quantizer="random", codebook_size=8), seed=seed)
        quantizer.fit(points)
        drawn.append(quantizer.encode(points))
    assert all(np.bincount(codes, minlength=8).min() > 150 for codes in drawn[0].T)
    assert (drawn[0] != drawn[1]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_as_few_items_as_codes_are_enough_though_their_vectors_have_more_dimensions(kind):
    settings = settings_of(kind, epochs=2, iterations=2)
    vectors = inputs_of(kind)[:4]
    if kind != "title":
        vectors = np.random.default_rng(0).standard_normal((4, 384)).astype(np.float32)
    quantizer = make_quantizer(settings, device="cpu")
    quantizer.fit(vectors)
    codes = quantizer.encode(vectors)
    assert (codes < np.array(settings.level_sizes)).all() and np.isfinite(quantizer.decode(codes)).all()
    if kind == "opq":
        rotation = quantizer.tensors()["rotation"]
        assert np.allclose(rotation @ rotation.T, np.eye(384), atol=1e-3)
