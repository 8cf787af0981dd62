"""Quantizers: what every one of them must do, on worlds whose codes are known."""

import json

import numpy as np
import pytest
import torch

from genrec.config import Sid
from genrec.errors import InputError
from genrec.sid.quantizers import REGISTRY, load_quantizer, make_quantizer
from genrec.sid.quantizers.autoencoder import Codebook, assign_codes, pass_gradient

FAST = {"levels": 3, "codes": 4, "epochs": 80, "hidden": (32,), "latent": 8, "batch_size": 160, "lr": 5e-3}


def grid(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """320 vectors: 4 far centres, 4 offsets around each, little noise; and the centre of each vector."""
    rng = np.random.default_rng(seed)
    centres, offsets = np.eye(4, 16) * 10, np.eye(4, 16, k=8) * 2
    which = np.arange(320) % 16
    noise = 0.1 * rng.standard_normal((320, 16))
    return (centres[which // 4] + offsets[which % 4] + noise).astype(np.float32), which // 4


@pytest.fixture(params=sorted(REGISTRY), scope="module")
def quantizer(request):
    """Each kind, fitted on the grid."""
    quantizer = make_quantizer(Sid(quantizer=request.param, **FAST), seed=0, device="cpu")
    quantizer.fit(grid()[0])
    return quantizer


def test_similar_vectors_share_their_first_code_and_others_do_not(quantizer):
    vectors, centre = grid()
    codes = quantizer.encode(vectors)
    assert codes.shape == (320, 3) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < 4
    first = [set(codes[centre == group, 0].tolist()) for group in range(4)]
    assert all(len(found) == 1 for found in first) and len(set.union(*first)) == 4


def test_each_level_brings_the_decoded_vector_nearer(quantizer):
    vectors, _ = grid()
    codes = quantizer.encode(vectors)
    errors = [np.square(vectors - quantizer.decode(codes[:, :level])).sum(1).mean() for level in (1, 2, 3)]
    assert errors[0] > errors[1] >= errors[2] * 0.99
    assert errors[1] < 0.25 * np.square(vectors - vectors.mean(0)).sum(1).mean()


def test_the_cheapest_code_of_each_level_is_the_encoded_one(quantizer):
    vectors, _ = grid()
    codes = quantizer.encode(vectors)
    for level in range(3):
        costs = quantizer.level_costs(vectors, codes[:, :level])
        chosen = np.take_along_axis(costs, codes[:, level : level + 1], axis=1)[:, 0]
        assert costs.shape == (320, 4)
        np.testing.assert_allclose(chosen, costs.min(1), atol=1e-3)


def test_the_same_seed_gives_the_same_codes_and_a_saved_quantizer_too(quantizer, tmp_path):
    vectors, _ = grid()
    again = make_quantizer(quantizer.settings, seed=0, device="cpu")
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
    with pytest.raises(InputError, match=r"3 items cannot fill 4 codes.*sid.codes=2"):
        unfitted.fit(grid()[0][:3])


def test_a_nan_is_refused_before_fitting_and_before_encoding(quantizer):
    vectors, _ = grid()
    vectors[7, 3] = np.nan
    for call in (quantizer.fit, quantizer.encode):
        with pytest.raises(InputError, match=r"NaN.*\[7\]"):
            call(vectors)


def test_vectors_of_another_width_are_refused(quantizer):
    vectors, _ = grid()
    with pytest.raises(InputError, match=r"\(320, 5\).*\(items, 16\)"):
        quantizer.encode(vectors[:, :5])


def test_identical_vectors_do_not_break_the_fit(quantizer):
    vectors = np.ones((50, 16), np.float32)
    quantizer = make_quantizer(quantizer.settings.model_copy(update={"epochs": 5}), device="cpu")
    quantizer.fit(vectors)
    codes = quantizer.encode(vectors)
    assert len(np.unique(codes, axis=0)) == 1
    assert np.isfinite(quantizer.decode(codes)).all()


def test_a_checkpoint_of_another_quantizer_is_refused(tmp_path):
    vectors, _ = grid()
    kmeans = make_quantizer(Sid(quantizer="rqkmeans", **FAST))
    kmeans.fit(vectors)
    kmeans.save(tmp_path)
    with pytest.raises(InputError, match=r"holds a quantizer rqkmeans .*rqvae with levels"):
        make_quantizer(Sid(quantizer="rqvae", **FAST)).load(tmp_path)
    with pytest.raises(InputError, match=r"\(4, 4\) was expected"):
        make_quantizer(Sid(quantizer="rqkmeans", **{**FAST, "levels": 2})).load(tmp_path)


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
    book.observe(left, torch.tensor([0, 0]))
    assert book.restart_dead(left, torch.Generator().manual_seed(0)) == 1
    assert book.rows_Kd[1].tolist() == [1.0, 2.0] and book.rows_Kd[0].tolist() == [0.0, 0.0]


def test_ema_codebooks_move_to_the_mean_of_what_chose_them():
    book = Codebook(torch.zeros(2, 2), decay=0.5)
    for _ in range(30):
        book.observe(torch.tensor([[1.0, 3.0], [3.0, 5.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(book.rows_Kd[0], torch.tensor([2.0, 4.0]), atol=1e-3, rtol=1e-3)
