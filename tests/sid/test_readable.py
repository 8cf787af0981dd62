"""Readable SIDs: paths of categories and brands, words of titles, and a last level that tells items apart."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sid_worlds import N, sid_world

from genrec.config import Embed, Sid
from genrec.data.tables import ITEMS
from genrec.errors import InputError
from genrec.sid import catalog_updates
from genrec.sid.build import finish_readable
from genrec.sid.catalog import Catalog
from genrec.sid.free_sids import nearest_free
from genrec.sid.prefixes import nearest_prefixes, prefix_codes, prefix_numbers
from genrec.sid.readable import PathCosts, SidNames, number_items, title_words

TAXONOMY = Sid(quantizer="taxonomy", levels=4, codebook_size=16)
WORDS = Sid(quantizer="title_words", levels=3, codebook_size=16)


def shop(*rows: tuple[str, str, list[str]]) -> pa.Table:
    """Items of (title, brand, categories), with ids i0, i1, …"""
    table = {
        "item": range(len(rows)),
        "id": [f"i{row}" for row in range(len(rows))],
        "title": [title for title, _, _ in rows],
        "description": [""] * len(rows),
        "brand": [brand for _, brand, _ in rows],
        "categories": [categories for _, _, categories in rows],
        "first_seen": pa.nulls(len(rows), pa.int64()),
    }
    return pa.table(table).cast(ITEMS)


KITCHEN = shop(
    ("Red mug", "Ada", ["Home", "Drinkware", "Mugs"]),
    ("Blue mug", "Ada", ["Home", "Drinkware", "Mugs"]),
    ("Glass", "Bo", ["Home", "Drinkware", "Glasses"]),
    ("Pan", "", ["Home", "Cooking"]),
    ("Gift", "Bo", []),
)


def sids(items: pa.Table, settings: Sid) -> tuple[SidNames, np.ndarray]:
    """The names of the items, and their whole SIDs."""
    names = SidNames.learn(items, settings)
    codes, sizes = number_items(names.encode(items), names.level_sizes, np.arange(items.num_rows))
    assert len(np.unique(codes, axis=0)) == items.num_rows and (codes < np.array(sizes)).all()
    return names, codes


def test_a_taxonomy_path_is_category_subcategory_and_brand_and_the_last_code_counts():
    names, codes = sids(KITCHEN, TAXONOMY)
    assert [names.path_of(row) for row in codes.tolist()] == [
        ("Drinkware", "Mugs", "Ada", "0"),
        ("Drinkware", "Mugs", "Ada", "1"),
        ("Drinkware", "Glasses", "Bo", "0"),
        ("Cooking", "other", "other", "0"),
        ("other", "other", "Bo", "0"),
    ]
    assert names.root == ("Home",) and names.level_sizes == (3, 3, 3)


def test_without_brands_all_levels_of_names_are_categories_and_without_categories_the_brand_is_the_first():
    plain = shop(("a", "", ["A", "B", "C"]), ("b", "", ["A", "D"]))
    names, codes = sids(plain, TAXONOMY)
    assert [names.path_of(row) for row in codes.tolist()] == [("B", "C", "other", "0"), ("D", "other", "other", "0")]
    branded, codes = sids(shop(("a", "Bo", []), ("b", "Ada", [])), TAXONOMY.replace({"levels": 3}))
    assert branded.names == [["other", "Ada", "Bo"], ["other"]]
    assert [branded.path_of(row) for row in codes.tolist()] == [("Bo", "other", "0"), ("Ada", "other", "0")]


def test_one_category_for_all_still_names_the_items_and_numbers_them():
    names, codes = sids(shop(*[("x", "", ["Home", "Mugs"])] * 5), TAXONOMY.replace({"levels": 2}))
    assert names.path_of(codes[4].tolist()) == ("Mugs", "4")
    assert codes[:, 0].tolist() == [1] * 5


def test_names_beyond_the_size_of_a_level_are_other_and_the_most_frequent_stay():
    brands = ["common"] * 3 + ["often"] * 2 + ["once", "single"]
    items = shop(*[("x", brand, ["A" if row % 2 else "B"]) for row, brand in enumerate(brands)])
    names, codes = sids(items, TAXONOMY.replace({"levels": 3, "codebook_size": 3}))
    assert names.names[1] == ["other", "common", "often"]
    assert [names.path_of(row)[1] for row in codes.tolist()] == [*brands[:5], "other", "other"]


def test_title_words_are_in_the_order_of_the_title_and_the_same_word_is_the_same_code_at_every_level():
    items = shop(*[(title, "", []) for title in ("The Iron Man 2", "Man of Steel", "Iron Giant", "Iron Man!", "42")])
    names, codes = sids(items, WORDS)
    paths = [names.path_of(row) for row in codes.tolist()]
    assert paths == [
        ("iron", "man", "0"),
        ("man", "steel", "0"),
        ("iron", "giant", "0"),
        ("iron", "man", "1"),
        ("other", "other", "0"),
    ]
    assert names.names[0] == names.names[1] == ["other", "iron", "man", "giant", "steel"]


def test_a_smaller_level_of_words_has_the_most_frequent_of_them():
    items = shop(*[(title, "", []) for title in ("blue mug", "red mug", "green mug")])
    names, codes = sids(items, WORDS.replace({"codebook_size": (2, 4, 16)}))
    assert [names.path_of(row)[:2] for row in codes.tolist()] == [("mug", "other")] * 3
    assert names.names == [["other", "mug"], ["other", "mug", "blue", "green"]]


def test_titles_in_any_script_have_words_and_equal_names_in_two_forms_of_unicode_are_one():
    assert title_words("Café ＣＡＦＥ, a 10 ml Чай с лимоном 茶 烏龍茶") == [
        "café",
        "cafe",
        "ml",
        "чай",
        "лимоном",
        "烏龍茶",
    ]
    items = shop(("x", "Caf\u00e9", ["Tea"]), ("y", "Cafe\u0301 ", ["Tea"]), ("z", "茶", ["Tea"]))
    names, codes = sids(items, TAXONOMY.replace({"levels": 3}))
    assert [names.path_of(row) for row in codes.tolist()] == [
        ("Tea", "Café", "0"),
        ("Tea", "Café", "1"),
        ("Tea", "茶", "0"),
    ]


def test_items_without_any_name_are_refused_with_a_remedy():
    with pytest.raises(InputError, match="no item has a category or a brand; choose another"):
        SidNames.learn(shop(("a", "", []), ("b", "", [])), TAXONOMY)
    with pytest.raises(InputError, match="no item has a title with words"):
        SidNames.learn(shop(("1 2", "x", []), ("", "y", [])), WORDS)
    with pytest.raises(ValueError, match="has levels of names and a last one of numbers"):
        Sid(quantizer="taxonomy", levels=1)


def test_more_items_of_one_path_than_a_level_may_have_codes_are_refused(monkeypatch):
    monkeypatch.setattr("genrec.sid.readable.MOST", 4)
    with pytest.raises(InputError, match="5 items have the same names, wanted at most 4"):
        number_items(np.zeros((5, 1), np.int32), (3,), np.arange(5))


def test_names_do_not_depend_on_the_order_of_the_items():
    names, codes = sids(KITCHEN, TAXONOMY)
    order = np.array([3, 1, 4, 0, 2])
    turned = SidNames.learn(KITCHEN.take(order), TAXONOMY)
    assert turned.names == names.names
    again, _ = number_items(turned.encode(KITCHEN.take(order)), turned.level_sizes, order)
    np.testing.assert_array_equal(again, codes[order])


def test_the_nearest_path_is_the_own_one_and_then_those_that_differ_late():
    costs = PathCosts((3, 3, 3, 2))
    every = prefix_codes(nearest_prefixes(np.array([[1, 2, 0]], np.float32), costs, 27)[0], (3, 3, 3))
    assert every[0].tolist() == [1, 2, 0]
    assert every[1:3].tolist() == [[1, 2, 1], [1, 2, 2]]
    assert (every[:9, 0] == 1).all() and (every[9:, 0] != 1).all()
    last = costs.level_costs(np.array([[1, 2, 0]], np.float32), np.array([[1, 0, 0]]))
    assert last.tolist() == [[4.0, 4.0]]


@pytest.fixture
def world(tmp_path):
    return sid_world(tmp_path)


def made(world, settings: Sid) -> dict:
    return finish_readable(world / "data", world / "vectors", world / "out", settings, seed=0, threads=1)


@pytest.mark.parametrize("settings", [TAXONOMY.replace({"levels": 2}), WORDS])
def test_a_built_catalogue_has_one_sid_per_item_its_names_and_all_files(world, settings):
    metrics = made(world, settings)
    catalog, names = Catalog.load(world / "out"), SidNames.load(world / "out")
    health = json.loads((world / "out" / "sid_health.json").read_text())
    assert len(catalog) == N and metrics["collisions_after"] == 0 < metrics["collisions_before"]
    assert catalog.vectors_NF is not None and catalog.level_sizes[:-1] == names.level_sizes
    assert catalog.level_sizes == tuple(health["level_sizes"]) and "reconstruction" not in health
    assert (world / "out" / "sid_health.html").is_file()
    table = pq.read_table(world / "out" / "sids.parquet")
    items = pq.read_table(world / "data" / "items.parquet")
    assert table["codes"].to_pylist() == catalog.codes_NL.tolist()
    np.testing.assert_array_equal(names.encode(items), catalog.codes_NL[:, :-1].numpy())
    if settings.quantizer == "taxonomy":
        assert [names.path_of(row)[0] for row in table["codes"].to_pylist()[:3]] == ["group 0", "group 1", "group 2"]
        assert catalog.level_sizes == (7, 28)


def test_collaborative_vectors_are_kept_beside_the_names(world):
    made(world, TAXONOMY.replace({"levels": 2, "cf_weight": 1.0, "cf_dims": 8}))
    assert Catalog.load(world / "out").vectors_NF.shape == (N, 16 + 8)


class Zeros:
    """An encoder with the same vector for every text."""

    def encode(self, texts):
        return np.ones((len(texts), 16), np.float32)


def insert(world, *rows: tuple[str, str, list[str]]) -> list[tuple[str, ...]]:
    """Insert items, and return the names of their SIDs."""
    out, live = world / "out", world / "live"
    before = len(Catalog.load(catalog_updates.current(out, live)))
    fresh = shop(*rows).select(catalog_updates.TEXT)
    fresh = fresh.set_column(0, "id", pa.array([f"new{before + row}" for row in range(len(rows))]))
    catalog_updates.insert(out, live, fresh, Zeros, vectors=world / "vectors", embed=Embed())
    after = Catalog.load(catalog_updates.current(out, live))
    assert len(after) == before + len(rows) == len(np.unique(after.codes_NL, axis=0))
    return [SidNames.load(out).path_of(row) for row in after.codes_NL[before:].tolist()]


def test_a_new_item_takes_the_path_of_its_categories_and_the_next_number(world):
    made(world, TAXONOMY.replace({"levels": 2}))
    found = insert(world, ("x", "", ["all", "group 4"]), ("y", "", ["all", "never seen"]), ("z", "", []))
    assert found == [("group 4", "20"), ("other", "0"), ("other", "1")]


def test_a_new_item_of_a_full_path_goes_to_another_one_and_none_is_lost(world):
    made(world, TAXONOMY.replace({"levels": 2}))
    found = insert(world, *[("x", "", ["all", "group 4"])] * 9)
    assert [path for path in found if path[0] == "group 4"] == [("group 4", str(code)) for code in range(20, 28)]
    assert found[-1] == ("other", "0")


def test_a_new_item_takes_the_words_of_its_title(world):
    made(world, WORDS)
    assert insert(world, ("the thing", "", []))[0][:2] == ("thing", "other")


def test_names_that_cannot_be_read_are_refused_and_none_are_none(world):
    assert SidNames.load(world) is None
    (world / "sid_names.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        SidNames.load(world)


def test_an_item_of_a_full_path_takes_the_lowest_of_the_names_beside_it():
    sizes = (50, 200, 10)
    full = np.array([[3, 7, number] for number in range(10)], np.int32)
    found = nearest_free(np.array([[3, 7]], np.float32), PathCosts(sizes), prefix_numbers(full, sizes))
    assert prefix_codes(found, sizes).tolist() == [[3, 0, 0]]  # "other", not any sibling's name
