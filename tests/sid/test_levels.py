"""Levels of unequal size: every quantizer gives each level its own number of codes, up to the catalogue."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.sid_worlds import N, build, sid_world
from test_quantizers import FAST, grid, inputs_of

from genrec.config import Sid, load_config
from genrec.errors import InputError
from genrec.sid.catalog import Catalog
from genrec.sid.collisions import resolve
from genrec.sid.published import published_codes
from genrec.sid.quantizers import REGISTRY, load_quantizer, make_quantizer
from genrec.sid.quantizers.lattice import fsq_steps
from genrec.sid.suffix import add_suffix

SIZES = (8, 4, 12)


def settings_of(kind: str, **more) -> Sid:
    sizes = {"levels": 1, "codebook_size": 8} if kind == "vq" else {"codebook_size": SIZES}
    return Sid(**{**FAST, "quantizer": kind, "epochs": 10, **sizes, **more})


def own_inputs(quantizer) -> np.ndarray:
    return inputs_of(quantizer.settings.quantizer, quantizer.settings)


@pytest.fixture(params=sorted(REGISTRY), scope="module")
def quantizer(request):
    """Each kind, fitted on the grid with 8, 4 and 12 codes."""
    quantizer = make_quantizer(settings_of(request.param), seed=0, device="cpu")
    quantizer.fit(own_inputs(quantizer))
    return quantizer


def test_every_level_has_its_own_number_of_codes(quantizer):
    vectors, sizes = own_inputs(quantizer), quantizer.level_sizes
    codes = quantizer.encode(vectors)
    assert codes.shape == (320, len(sizes)) and codes.min() >= 0 and (codes.max(axis=0) < sizes).all()
    for level, size in enumerate(sizes):
        costs = quantizer.level_costs(vectors, codes[:, :level])
        assert costs.shape == (320, size)
        chosen = np.take_along_axis(costs, codes[:, level : level + 1], axis=1)[:, 0]
        np.testing.assert_allclose(chosen, costs.min(1), atol=1e-3)
    assert quantizer.decode(codes).shape == (320, 3 if quantizer.settings.quantizer == "title" else 16)


def test_collisions_of_unequal_levels_are_resolved_or_counted(quantizer):
    sizes = quantizer.level_sizes
    vectors = own_inputs(quantizer)[: np.prod(sizes)]
    vectors[::3] = vectors[0]
    codes = quantizer.encode(vectors)
    resolved = Catalog(torch.from_numpy(resolve(codes, vectors, quantizer)), sizes)
    assert len(resolved) == len(vectors)
    counted, longer = add_suffix(codes, sizes)
    assert longer[:-1] == sizes and longer[-1] >= sizes[-1]
    np.testing.assert_array_equal(Catalog(torch.from_numpy(counted), longer).codes_NL[:, :-1], codes)


def test_a_saved_quantizer_keeps_its_levels(quantizer, tmp_path):
    quantizer.save(tmp_path)
    loaded = load_quantizer(tmp_path)
    vectors = own_inputs(quantizer)
    assert loaded.level_sizes == quantizer.level_sizes
    np.testing.assert_array_equal(loaded.encode(vectors), quantizer.encode(vectors))


@pytest.mark.parametrize("collisions", ["resolve", "suffix"])
@pytest.mark.parametrize("kind", ["rqkmeans", "fsq", "title"])
def test_a_catalogue_is_built_with_unequal_levels(kind, collisions, tmp_path):
    world = sid_world(tmp_path)
    metrics = build(world, world / "out", settings_of(kind, collisions=collisions, shard_items=50))
    catalog = Catalog.load(world / "out")
    assert catalog.level_sizes[:3] == SIZES and len(catalog) == N
    assert metrics["collisions_after"] == 0


def test_levels_come_from_the_command_line_and_equal_ones_are_one_number():
    assert load_config([], ["sid.codebook_size=[256,128,64]"]).sid.level_sizes == (256, 128, 64)
    assert load_config([], ["sid.codebook_size=[64,64,64]"]).sid == load_config([], ["sid.codebook_size=64"]).sid


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sid.codebook_size=[256,128]", r"sid\.codebook_size.*one for each of sid\.levels=3 \(got \[256, 128\]\)"),
        ("sid.codebook_size=[256,128,1]", r"sid\.codebook_size.*2 to 65536"),
        ("sid.codebook_size=70000", r"sid\.codebook_size.*2 to 65536"),
    ],
)
def test_sizes_that_cannot_be_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        load_config([], [override])


def test_too_few_items_are_told_a_list_that_works(quantizer):
    if quantizer.settings.quantizer == "vq":
        pytest.skip("it has one level")
    with pytest.raises(
        InputError, match=r"7 items cannot fill 12 codes.*sid\.codebook_size=\[4,4,4\]|sid\.codebook_size=4 "
    ):
        make_quantizer(quantizer.settings).fit(own_inputs(quantizer)[:7])
    with pytest.raises(InputError, match=r"11 items cannot fill 12 codes.*sid\.codebook_size=\[8,4,8\]"):
        make_quantizer(quantizer.settings).fit(own_inputs(quantizer)[:11])


def test_published_codes_beyond_their_level_are_told_a_list_that_works():
    items = pa.table({"sid": pa.array([[0, 3], [2, 5]], pa.list_(pa.int16()))})
    with pytest.raises(InputError, match=r"codes 3…5 at level 2.*sid\.codebook_size=\[8,6\]"):
        published_codes(items, "sid", (8, 4))


def test_lattices_of_unequal_levels_use_nearly_all_codes_of_each():
    steps = fsq_steps((256, 128, 64))
    assert steps == ((7, 6, 6), (5, 5, 5), (4, 4, 4))
    for kind, points in (("fsq", [4, 16, 6]), ("lfq", [4, 16, 8])):
        quantizer = make_quantizer(settings_of(kind, codebook_size=(4, 16, 8), epochs=1), device="cpu")
        quantizer.fit(grid()[0])
        assert [len(np.unique(book, axis=0)) for book in quantizer.codebooks] == points
        reach = np.stack([np.abs(book).max(axis=0) for book in quantizer.codebooks])
        assert (reach[2][reach[0] > 0] < reach[0][reach[0] > 0]).all()
