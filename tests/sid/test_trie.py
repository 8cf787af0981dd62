"""The trie against a plain Python prefix table, dense and sparse, in memory and mapped from its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.synthetic import random_catalog

from genrec.errors import InputError
from genrec.sid import trie as trie_module
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

SIZES = (5, 7, 11)


@pytest.fixture(params=["dense", "sparse"])
def catalog(request, monkeypatch) -> Catalog:
    if request.param == "sparse":
        monkeypatch.setattr(trie_module, "DENSE_ENTRIES", 0)
    return random_catalog(60, SIZES, seed=3)


def prefixes(catalog: Catalog, depth: int) -> list[tuple[int, ...]]:
    return sorted({tuple(codes[:depth]) for codes in catalog.codes_NL.tolist()})


def test_the_children_of_every_node_are_those_of_a_python_prefix_table(catalog):
    for depth, size in enumerate(SIZES):
        nodes, below = prefixes(catalog, depth), prefixes(catalog, depth + 1)
        wanted = [[below.index((*node, k)) if (*node, k) in below else -1 for k in range(size)] for node in nodes]
        assert catalog.trie.step(depth, torch.arange(len(nodes))).tolist() == wanted


def test_a_walk_names_the_prefix_before_each_level_and_leaves_with_minus_one(catalog):
    strangers = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    paths = catalog.trie.walk(strangers).tolist()
    items = {tuple(codes): item for item, codes in enumerate(catalog.codes_NL.tolist())}
    for codes, path, item in zip(strangers.tolist(), paths, catalog.trie.find(strangers).tolist(), strict=True):
        for depth in range(3):
            known = prefixes(catalog, depth)
            prefix = tuple(codes[:depth])
            assert path[depth] == (known.index(prefix) if prefix in known else -1)
        assert item == items.get(tuple(codes), -1)
    assert catalog.item_of(tuple(catalog.codes_NL[9].tolist())) == 9
    assert catalog.item_of((0, 0, 99)) is None


def test_a_loaded_catalogue_maps_the_trie_that_was_saved(tmp_path, catalog):
    removed = Catalog(catalog.codes_NL, SIZES, removed=(3, 8))
    removed.save(tmp_path)
    loaded = Catalog.load(tmp_path)
    for name, tensor in removed.trie.tensors.items():
        assert torch.equal(loaded.trie.tensors[name], tensor)
    nodes = torch.arange(len(prefixes(catalog, 1)))
    assert torch.equal(loaded.trie.step(1, nodes), removed.trie.step(1, nodes))


def test_equal_tries_are_equal_bytes(tmp_path, catalog):
    for number in range(8):
        catalog.save(tmp_path / str(number))
    assert len({file.read_bytes() for file in tmp_path.glob("*/trie.safetensors")}) == 1


def test_a_trie_file_of_other_sids_is_not_used(tmp_path, catalog):
    random_catalog(60, SIZES, seed=4).save(tmp_path / "other")
    catalog.save(tmp_path / "own")
    (tmp_path / "other" / "trie.safetensors").replace(tmp_path / "own" / "trie.safetensors")
    loaded = Catalog.load(tmp_path / "own")
    assert torch.equal(loaded.trie.find(catalog.codes_NL), torch.arange(60))
    (tmp_path / "own" / "trie.safetensors").write_bytes(b"not a tensor")
    assert torch.equal(Catalog.load(tmp_path / "own").trie.find(catalog.codes_NL), torch.arange(60))


def test_a_large_trie_takes_few_bytes_per_item():
    rng = np.random.default_rng(0)
    flat = torch.from_numpy(rng.choice(256**3, size=200_000, replace=False))
    trie = Trie.from_codes(torch.stack([flat // 65536, flat // 256 % 256, flat % 256], 1), (256, 256, 256))
    stored = sum(tensor.numel() * tensor.element_size() for tensor in trie.tensors.values())
    assert stored <= 12 * 200_000


def test_shared_sids_are_refused():
    with pytest.raises(InputError, match="1 of 3 items share a semantic ID"):
        Trie.from_codes(torch.tensor([[0, 1], [1, 1], [0, 1]]), (2, 2))
