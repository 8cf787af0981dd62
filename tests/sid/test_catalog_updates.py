"""Catalogue updates: new items get the nearest free SID, no SID changes, and a removed item gets its own SID back."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genrec.config import Embed, Sid
from genrec.data.shards import shard_path
from genrec.errors import InputError
from genrec.policy.decoding.request_constraints import read_item_attributes
from genrec.sid import catalog_updates
from genrec.sid.catalog import Catalog, save_codes
from genrec.sid.codes import write_sids
from genrec.sid.collaborative import neighbour_factors
from genrec.sid.collisions import resolve
from genrec.sid.free_sids import nearest_free
from genrec.sid.prefixes import prefix_numbers
from genrec.sid.quantizers import make_quantizer
from genrec.sid.suffix import add_suffix
from genrec.sid.trie import Trie
from genrec.sid.vectors import nearest_rows, unit_rows, write_vectors

N = 100


class Words:
    """An encoder whose vectors depend on the text alone; counts its calls."""

    calls = 0

    def encode(self, texts):
        Words.calls += 1
        rows = [
            np.random.default_rng(int(hashlib.md5(text.encode()).hexdigest()[:8], 16)).standard_normal(8)
            for text in texts
        ]
        return np.array(rows, np.float32)


def new_items(*names: str, title: str = "new ") -> pa.Table:
    columns = {
        "id": list(names),
        "title": [f"{title}{name}" for name in names],
        "description": [""] * len(names),
        "brand": [""] * len(names),
        "categories": pa.array([[] for _ in names], pa.list_(pa.string())),
    }
    return pa.table(columns)


def assigned(directory: Path, items: int = N, **settings) -> Path:
    """What ``assign`` leaves behind, for items whose text is their id."""
    sid = Sid(**{"levels": 3, "codebook_size": 8, "iterations": 5, **settings})
    vectors = Words().encode([f"old {row}" for row in range(items)])
    write_vectors(vectors, 0, shard_path(directory / "vectors", 0))
    quantizer = make_quantizer(sid)
    quantizer.fit(vectors)
    codes, sizes = quantizer.encode(vectors), sid.level_sizes
    codes, sizes = (
        add_suffix(codes, sizes) if sid.collisions == "suffix" else (resolve(codes, vectors, quantizer), sizes)
    )
    out = directory / "assign"
    quantizer.save(out / "quantizer")
    save_codes(torch.from_numpy(codes), sizes, out)
    write_sids(pa.chunked_array([[f"i{row}" for row in range(items)]]), codes, out / "sids.parquet")
    return out


def insert(out: Path, items: pa.Table) -> dict:
    place, vectors = out.parent / "live", out.parent / "vectors"
    return catalog_updates.insert(out, place, items, Words, vectors=vectors, embed=Embed())


def now(out: Path) -> Catalog:
    return Catalog.load(catalog_updates.current(out, out.parent / "live"))


@pytest.mark.parametrize("settings", [{}, {"collisions": "suffix"}, {"quantizer": "hierarchical"}, {"quantizer": "pq"}])
def test_new_items_get_sids_of_their_own_and_no_other_moves(tmp_path, settings):
    out = assigned(tmp_path, **settings)
    before = Catalog.load(out)
    counts = insert(out, new_items("b", "a", "c"))
    after = now(out)
    assert counts["inserted"] == 3 and len(after) == N + 3
    torch.testing.assert_close(after.codes_NL[:N], before.codes_NL)
    assert len(torch.unique(after.codes_NL, dim=0)) == N + 3
    assert {after.item_of(tuple(codes)) for codes in after.codes_NL[N:].tolist()} == {N, N + 1, N + 2}
    table = pq.read_table(catalog_updates.current(out, tmp_path / "live") / "sids.parquet")
    assert table["id"].to_pylist()[N:] == ["b", "a", "c"]
    after.require_digest(before.digest, "a model of the shorter catalogue")
    with pytest.raises(InputError, match="other items"):
        before.require_digest(after.digest, "a model of the longer catalogue")


def test_the_sid_is_the_nearest_free_one():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((60, 8)).astype(np.float32)
    quantizer = make_quantizer(Sid(levels=2, codebook_size=8, iterations=5))
    quantizer.fit(points)
    sizes = quantizer.level_sizes
    taken = prefix_numbers(resolve(quantizer.encode(points[:50]), points[:50], quantizer), sizes)
    every = np.stack(np.unravel_index(np.arange(64), sizes), axis=1).astype(np.int32)
    free = np.setdiff1d(np.arange(64), taken)
    for point in points[50:]:
        error = np.square(point - quantizer.decode(every[free])).sum(axis=1)
        assert nearest_free(point[None], quantizer, taken)[0] == free[error.argmin()]
    identical = nearest_free(np.repeat(points[:1], 14, axis=0), quantizer, taken)
    assert sorted([*identical, *taken]) == list(range(64))


def test_the_same_insert_again_changes_nothing(tmp_path):
    out = assigned(tmp_path)
    insert(out, new_items("a", "b"))
    digest, calls = now(out).digest, Words.calls
    again = insert(out, new_items("b", "a"))
    assert again["inserted"] == 0 and now(out).digest == digest and Words.calls == calls
    assert len(list((tmp_path / "live").iterdir())) == 1


def test_the_order_of_the_rows_does_not_matter_and_inserts_add_up(tmp_path):
    first, second = assigned(tmp_path / "x"), assigned(tmp_path / "y")
    insert(first, new_items("a", "b", "c"))
    insert(second, new_items("c", "a", "b"))
    sids = [
        dict(zip(table["id"].to_pylist(), map(tuple, table["codes"].to_pylist()), strict=True))
        for table in (
            pq.read_table(catalog_updates.current(o, o.parent / "live") / "sids.parquet") for o in (first, second)
        )
    ]
    assert sids[0] == sids[1]
    insert(first, new_items("d"))
    assert len(now(first)) == N + 4 and now(first).grown_from == (N, N + 3)
    added = pq.read_table(catalog_updates.current(first, first.parent / "live") / "added.parquet")
    assert added["id"].to_pylist() == ["a", "b", "c", "d"]


def test_a_known_id_is_refused_and_nothing_is_written(tmp_path):
    out = assigned(tmp_path)
    with pytest.raises(InputError, match=r"1 of 2 items are in the catalogue already \(\['i7'\]"):
        insert(out, new_items("a", "i7"))
    insert(out, new_items("a"))
    with pytest.raises(InputError, match="in the catalogue already"):
        insert(out, new_items("a", title="other "))
    assert len(now(out)) == N + 1


def test_a_full_catalogue_is_refused(tmp_path):
    out = assigned(tmp_path, items=62, levels=2)
    with pytest.raises(InputError, match=r"65 items do not fit into 64 semantic IDs"):
        insert(out, new_items("a", "b", "c"))
    insert(out, new_items("a", "b"))
    assert len(now(out)) == math.prod((8, 8)) and not list((tmp_path / "live").glob(".*"))


def test_a_removed_item_is_not_found_keeps_its_sid_and_returns_to_it(tmp_path):
    out = assigned(tmp_path)
    before = Catalog.load(out)
    codes = tuple(before.codes_NL[7].tolist())
    catalog_updates.remove(out, tmp_path / "live", ["i7", "i9"])
    removed = now(out)
    assert removed.item_of(codes) is None and 7 not in removed.trie.leaf_items
    assert removed.digest == before.digest and len(removed.trie.leaf_items) == N - 2
    assert catalog_updates.remove(out, tmp_path / "live", ["i7"])["removed"] == 0
    counts = insert(out, new_items("i7", "z"))
    assert (counts["returned"], counts["inserted"]) == (1, 1)
    assert now(out).item_of(codes) == 7 and now(out).removed == (9,)
    assert tuple(now(out).codes_NL[N].tolist()) != tuple(before.codes_NL[9].tolist())


@pytest.mark.parametrize(
    ("ids", "message"), [(["nobody"], "not in the catalogue"), ([f"i{r}" for r in range(N)], "all")]
)
def test_a_removal_that_cannot_be_is_refused(tmp_path, ids, message):
    out = assigned(tmp_path)
    with pytest.raises(InputError, match=message):
        catalog_updates.remove(out, tmp_path / "live", ids)
    assert not (tmp_path / "live").exists()


def test_published_sids_cannot_place_a_new_item(tmp_path):
    out = assigned(tmp_path)
    (out / "quantizer").rename(tmp_path / "gone")
    with pytest.raises(InputError, match="published SIDs"):
        insert(out, new_items("a"))


@pytest.mark.parametrize(("table", "message"), [
    (pa.table({"name": ["x"]}), "id"),
    (new_items("a", "a"), "more than once"),
    (new_items("a").slice(0, 0), "got no items"),
    (pa.table({"id": pa.array([], pa.string()), "title": pa.array([], pa.string())}), "got no items"),
])  # fmt: skip
def test_a_file_without_usable_items_is_refused(tmp_path, table, message):
    pq.write_table(table, tmp_path / "new.parquet")
    with pytest.raises(InputError, match=message):
        catalog_updates.read_new_items(tmp_path / "new.parquet", {})
    with pytest.raises(InputError, match=r"not found: .*none.parquet"):
        catalog_updates.read_new_items(tmp_path / "none.parquet", {})


def test_new_items_may_come_as_csv_and_keep_their_leading_zeros(tmp_path):
    (tmp_path / "new.csv").write_text("article_id,name,category\n007,Lamp,Home > Light\n8,,\n")
    items = catalog_updates.read_new_items(tmp_path / "new.csv", {})
    assert items.to_pylist() == [
        {"id": "007", "title": "Lamp", "description": "", "brand": "", "categories": ["Home", "Light"]},
        {"id": "8", "title": "", "description": "", "brand": "", "categories": []},
    ]


def test_a_trie_without_items_is_the_trie_of_the_others():
    rng = np.random.default_rng(0)
    codes = torch.tensor(np.stack(np.unravel_index(rng.choice(125, 40, replace=False), (5, 5, 5)), axis=1))
    gone = rng.choice(40, 15, replace=False).tolist()
    rest = [row for row in range(40) if row not in gone]
    pruned, fresh = Trie.from_codes(codes, (5, 5, 5)).without(gone), Trie.from_codes(codes[rest], (5, 5, 5))
    assert torch.equal(pruned.leaf_items, torch.tensor(rest, dtype=torch.int32)[fresh.leaf_items])
    assert all(
        torch.equal(pruned.tensors[name], fresh.tensors[name]) for name in pruned.tensors if name != "leaf_items"
    )


def test_a_new_item_borrows_the_factors_of_its_nearest_texts():
    text, factors = np.eye(20, dtype=np.float32), np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    cold = np.concatenate([np.ones(10), np.zeros(10)])[None].astype(np.float32)
    np.testing.assert_allclose(neighbour_factors(factors, text, cold), [[1, 0]], atol=1e-6)


def test_a_change_that_another_process_made_meanwhile_is_never_passed_over(tmp_path):
    out = assigned(tmp_path)

    class Slow(Words):
        def encode(self, texts):
            catalog_updates.remove(out, tmp_path / "live", ["i7"])
            return super().encode(texts)

    place, vectors = tmp_path / "live", tmp_path / "vectors"
    with pytest.raises(InputError, match="is another process changing it"):
        catalog_updates.insert(out, place, new_items("a"), Slow, vectors=vectors, embed=Embed())
    assert now(out).removed == (7,) and len(now(out)) == N and not list(place.glob(".*"))
    assert insert(out, new_items("a"))["inserted"] == 1
    assert now(out).removed == (7,) and len(now(out)) == N + 1


def test_prices_of_inserted_items_are_kept(tmp_path):
    out = assigned(tmp_path)
    insert(out, new_items("a").append_column("price", pa.array([3])))
    insert(out, new_items("b"))
    added = catalog_updates.read(catalog_updates.current(out, tmp_path / "live"))[2]
    items = pa.table({"categories": pa.array([[]] * N, pa.list_(pa.string()))})
    attributes = read_item_attributes(items, added, {})
    assert [attributes.of(row)[1] for row in (0, N, N + 1)] == [None, 3.0, None]
    with pytest.raises(InputError, match="price"):
        insert(out, new_items("c").append_column("price", pa.array(["dear"])))


def test_changes_without_new_items_share_the_file_of_vectors(tmp_path):
    out = assigned(tmp_path)
    catalog = Catalog.load(out)
    catalog.vectors_NF = torch.randn(N, 8)
    catalog.save(out)
    first = catalog_updates.remove(out, tmp_path / "live", ["i1"])
    second = catalog_updates.remove(out, tmp_path / "live", ["i2"])
    files = [Path(place) / "vectors.safetensors" for place in (out, first["catalog"], second["catalog"])]
    assert all(file.samefile(files[0]) for file in files)
    assert torch.equal(Catalog.load(files[2].parent).vectors_NF, catalog.vectors_NF.half())


def test_nearest_rows_are_those_of_a_whole_sort_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    known, new = rng.integers(-1, 2, (200, 3)).astype(np.float32), rng.integers(-1, 2, (50, 3)).astype(np.float32)
    wanted = np.argsort(-(unit_rows(new) @ unit_rows(known).T), axis=1, kind="stable")[:, :10]
    monkeypatch.setattr("genrec.sid.vectors.COSINES", 3 * len(known))
    np.testing.assert_array_equal(nearest_rows(known, new), wanted)
    assert nearest_rows(known[:4], new).shape == (50, 4)


def test_a_catalogue_that_grew_often_is_hashed_once(monkeypatch):
    codes = torch.from_numpy(np.stack(np.unravel_index(np.arange(500), (8, 8, 8)), axis=1))
    before = Catalog(codes[:100], (8, 8, 8))
    grown = Catalog(codes, (8, 8, 8), grown_from=tuple(range(100, 500)))
    hashed = []
    monkeypatch.setattr("genrec.sid.catalog.hashlib.sha256", lambda data: hashed.append(0) or hashlib.blake2b(data))
    with pytest.raises(InputError, match="other items"):
        grown.require_digest("of none", "a model")
    assert len(hashed) <= 2
    monkeypatch.undo()
    grown.require_digest(before.digest, "a model")
    grown.require_digest(Catalog(codes[:320], (8, 8, 8)).digest, "a model")
