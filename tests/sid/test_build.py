"""Vectors to a catalogue: what is quantized, published SIDs, files that fit each other, and the health page."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from support.sid_worlds import SETTINGS, N, build, sequences, sid_world

from genrec.config import Sid
from genrec.data.readers import count_items, read_item_rows
from genrec.data.shards import shard_path
from genrec.errors import InputError
from genrec.policy.sid_text import write_sid
from genrec.sid import float16_vectors, health, health_page
from genrec.sid.build import finish_published, finish_quantized
from genrec.sid.catalog import Catalog
from genrec.sid.codes import read_codes, write_codes
from genrec.sid.health import collisions, level_use, measure, neighbour_agreement, pair_agreement, tree_shape
from genrec.sid.inputs import fuse
from genrec.sid.published import published_codes, resolve_published
from genrec.sid.train_events import TrainEvents
from genrec.sid.vector_subset import InMemory


@pytest.fixture
def world(tmp_path):
    return sid_world(tmp_path)


def test_a_built_catalogue_has_one_sid_per_item_and_all_its_files(world):
    metrics = build(world, world / "out")
    catalog = Catalog.load(world / "out")
    table = pq.read_table(world / "out" / "sids.parquet")
    assert len(catalog) == N and catalog.level_sizes == (8, 8, 8)
    assert table["id"].to_pylist()[:2] == ["sku000", "sku001"]
    assert table["codes"].to_pylist() == catalog.codes_NL.tolist()
    assert metrics["collisions_before"] > 0.05 and metrics["collisions_after"] == 0
    assert len(metrics["perplexity"]) == 3 and metrics["fit"]["fit_s"] >= 0


def test_a_killed_assignment_continues_to_the_same_catalogue(world):
    build(world, world / "a")
    build(world, world / "b", kill_after=2)
    fitted = (world / "b" / "quantizer" / "quantizer.safetensors").stat().st_mtime_ns
    build(world, world / "b")
    assert (world / "b" / "quantizer" / "quantizer.safetensors").stat().st_mtime_ns == fitted
    assert (world / "a" / "sids.parquet").read_bytes() == (world / "b" / "sids.parquet").read_bytes()
    assert Catalog.load(world / "a").digest == Catalog.load(world / "b").digest


@pytest.mark.parametrize("quantizer", ["rqkmeans", "rqvae"])
def test_text_and_collaborative_vectors_are_quantized_together(world, quantizer):
    settings = SETTINGS.replace(
        {"quantizer": quantizer, "cf_weight": 0.5, "cf_dims": 8, "epochs": 3, "hidden": (16,), "latent": 4}
    )
    metrics = build(world, world / "out", settings)
    assert metrics["collisions_after"] == 0
    assert (world / "out" / "cf" / "part-00000.parquet").is_file()


@pytest.mark.parametrize("quantizer", ["title", "random", "hierarchical"])
def test_quantizers_that_need_more_or_know_less_are_built_too(world, quantizer):
    metrics = build(world, world / "out", SETTINGS.replace({"quantizer": quantizer}))
    figures = json.loads((world / "out" / "sid_health.json").read_text())
    assert metrics["collisions_after"] == 0 and len(Catalog.load(world / "out")) == N
    assert ("reconstruction" in figures) == (quantizer == "hierarchical")
    assert "neighbour_agreement" in figures and (world / "out" / "sid_health.html").is_file()


def test_a_suffix_tells_items_of_one_sid_apart_and_moves_none(world):
    metrics = build(world, world / "out", SETTINGS.replace({"collisions": "suffix"}))
    catalog, before = Catalog.load(world / "out"), read_codes(world / "out" / "codes", N, (8, 8, 8))
    assert catalog.level_sizes[:3] == (8, 8, 8) and catalog.level_sizes[3] >= 12
    np.testing.assert_array_equal(catalog.codes_NL[:, :3], before)
    assert metrics["collisions_before"] > 0.05 and metrics["collisions_after"] == 0
    twins = catalog.codes_NL[::10].numpy()
    assert sorted(twins[:, 3].tolist()) == list(range(twins[:, 3].min(), twins[:, 3].min() + 12))


def test_three_levels_and_a_suffix_are_four_levels_whose_last_tells_collisions_apart_in_text_too(world):
    build(world, world / "out", SETTINGS.replace({"collisions": "suffix"}))
    catalog = Catalog.load(world / "out")
    texts = [write_sid(codes, catalog.level_sizes, "numbered") for codes in catalog.codes_NL.tolist()]
    assert catalog.levels == 4 and len(set(texts)) == N
    assert texts[0].count("<|sid_") == 4 and texts[0].endswith(f"<|sid_{24 + int(catalog.codes_NL[0, 3])}|>")
    twins = {text.rpartition("<")[0] for text in texts[::10]}
    assert len(twins) == 1


def test_one_level_and_a_suffix_hold_any_catalogue(world):
    settings = Sid(quantizer="vq", levels=1, codebook_size=16, iterations=5, collisions="suffix")
    build(world, world / "out", settings)
    assert len(Catalog.load(world / "out")) == N


def test_collisions_that_stay_are_measured_but_make_no_trie(world):
    metrics = build(world, world / "out", SETTINGS.replace({"collisions": "none"}))
    assert metrics["collisions_after"] == metrics["collisions_before"] > 0.05
    assert (world / "out" / "sid_health.html").is_file()
    with pytest.raises(InputError, match=r"share a semantic ID.*sid.collisions=resolve or suffix"):
        Catalog.load(world / "out")


@pytest.mark.parametrize("collisions", ["suffix", "none"])
def test_published_sids_may_keep_their_collisions(world, collisions):
    settings = Sid(quantizer="given", column="published", levels=2, codebook_size=64, collisions=collisions)
    metrics = finish_published(world / "data", world / "out", settings)
    table = pq.read_table(world / "out" / "sids.parquet")["codes"].to_pylist()
    assert [codes[:2] for codes in table] == [[1, row % 6] for row in range(N)]
    assert (metrics["collisions_after"] == 0) == (collisions == "suffix")


def test_the_health_page_shows_titles_as_text_and_a_heat_map_of_categories(world):
    build(world, world / "out")
    page = (world / "out" / "sid_health.html").read_text()
    figures = json.loads((world / "out" / "sid_health.json").read_text())
    assert "&lt;b&gt;thing" in page and "<b>thing" not in page
    assert "Level-1 codes by category" in page and page.count("<svg") == 2
    assert figures["neighbour_agreement"][0] > 0.8
    assert figures["bought_together"]["together"][0] > figures["bought_together"]["random"][0] + 0.4
    assert any(
        "collided before resolution" in warning and "sid.codebook_size" in warning for warning in figures["warnings"]
    )


def test_vectors_of_another_catalogue_are_refused(world):
    (world / "vectors" / "part-00001.parquet").unlink()
    with pytest.raises(InputError, match="vectors of 60 items, wanted 120"):
        build(world, world / "out")
    assert not (world / "out").exists()


def test_codes_that_do_not_fit_the_catalogue_are_refused(tmp_path):
    write_codes(np.zeros((4, 3), np.int32), 0, shard_path(tmp_path, 0))
    write_codes(np.full((2, 3), 9, np.int32), 4, shard_path(tmp_path, 1))
    for items, sizes, message in (
        (7, (8, 8, 8), "6 items"),
        (6, (8, 8), r"\[3\] codes, wanted 2"),
        (6, (8, 8, 8), "up to"),
    ):
        with pytest.raises(InputError, match=message):
            read_codes(tmp_path, items, sizes)


def test_published_sids_are_taken_and_later_twins_move_to_the_lowest_free_code(world):
    settings = Sid(quantizer="given", column="published", levels=2, codebook_size=64)
    metrics = finish_published(world / "data", world / "out", settings)
    codes = Catalog.load(world / "out").codes_NL.numpy()
    assert metrics["collisions_before"] == pytest.approx(1 - 6 / N) and metrics["collisions_after"] == 0
    assert codes[:6].tolist() == [[1, group] for group in range(6)]
    assert codes[6].tolist() == [1, 6]
    assert sorted(map(tuple, codes[codes[:, 0] == 1].tolist())) == [(1, code) for code in range(64)]
    assert sorted(map(tuple, codes[codes[:, 0] == 0].tolist())) == [(0, code) for code in range(N - 64)]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("other", None, "sid.column=other is no column.*published"),
        ("published", None, "1 of 2 items have no SID of 2 codes"),
        ("published", ["<a_1>", "<b_4>"], "codes 2…4 at level 2.*sid.codebook_size=5"),
        ("published", ["<a_1_2>", "<b_0>"], "must hold lists.*<a_1_2>"),
    ],
)
def test_published_sids_that_do_not_fit_are_refused(column, value, message):
    items = pa.table({"item": [0, 1], "published": pa.array([["<a_0>", "<b_2>"], value], pa.list_(pa.string()))})
    with pytest.raises(InputError, match=message):
        published_codes(items, column, (4, 4))


def test_published_integers_are_read_as_they_are():
    items = pa.table({"sid": pa.array([[0, 3], [2, 1]], pa.list_(pa.int16()))})
    codes = published_codes(items, "sid", (4, 4))
    assert codes.tolist() == [[0, 3], [2, 1]]
    np.testing.assert_array_equal(resolve_published(codes, (4, 4)), codes)


def test_half_vectors_are_the_bytes_that_the_library_writes(tmp_path, monkeypatch):
    points = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    monkeypatch.setattr(float16_vectors, "BLOCK", 16)
    float16_vectors.write_float16_vectors(InMemory(points), tmp_path / "ours")
    save_file({"vectors_NF": torch.from_numpy(points).half()}, tmp_path / "wanted")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "wanted").read_bytes()


def test_the_health_of_many_items_is_that_of_a_sample_with_its_error(world, monkeypatch):
    build(world, world / "out", SETTINGS.replace({"collisions": "none"}))
    whole = json.loads((world / "out" / "sid_health.json").read_text())
    assert "errors" not in whole and "sampled_items" not in whole
    for module in (health, health_page):
        monkeypatch.setattr(module, "POOL", 80)
    finish_quantized(world / "data", world / "vectors", world / "out", SETTINGS.replace({"collisions": "none"}), 1)
    sampled = json.loads((world / "out" / "sid_health.json").read_text())
    assert sampled["sampled_items"] == 80 and sampled["collisions_before"] == whole["collisions_before"]
    for name in ("reconstruction", "neighbour_agreement"):
        errors = sampled["errors"][name]
        assert len(errors) == 3 and all(0 < error < 0.2 for error in errors)
    off = np.abs(np.subtract(sampled["reconstruction"], whole["reconstruction"]))
    assert (off <= 1.5 * np.array(sampled["errors"]["reconstruction"])).all()
    page = (world / "out" / "sid_health.html").read_text()
    assert "80 items drawn at random" in page and "±" in page


def test_some_rows_of_the_item_table_come_in_the_order_that_is_asked_for(world):
    found = read_item_rows(world / "data", np.array([7, 119, 0]), ("id", "title"))
    assert found.column_names == ["id", "title"] and found["id"].to_pylist() == ["sku007", "sku119", "sku000"]
    assert count_items(world / "data") == N
    with pytest.raises(InputError, match="not found"):
        count_items(world / "vectors")


def test_fused_distances_are_the_weighted_sum_of_the_parts_distances():
    rng = np.random.default_rng(0)
    text, cf = rng.standard_normal((2, 5)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
    distances = [np.square(np.subtract(*fuse(text, cf, *weights))).sum() for weights in ((1, 0), (0, 1), (0.7, 0.3))]
    assert distances[2] == pytest.approx(0.49 * distances[0] + 0.09 * distances[1], rel=1e-5)
    with pytest.raises(InputError, match="both 0"):
        fuse(text, cf, 0, 0)


def test_health_numbers_of_a_tree_that_is_known():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]], np.int32)
    assert collisions(codes, (4, 2), np.array([7, 1, 1, 1])) == {"rate": 0.25, "items": 2.0, "traffic": 0.2}
    first, second = level_use(codes, (4, 2))
    assert (first["used"], first["dead"], first["perplexity"]) == (2, 2, pytest.approx(2))
    assert first["gini"] == pytest.approx(0.5) and second["gini"] == pytest.approx(0.25)
    assert tree_shape(codes, (4, 2)) == [{"branching": 2.0, "forced": 0.0}, {"branching": 1.5, "forced": 0.5}]
    pairs = pair_agreement(np.array([0, 2, 0, 1]), np.array([1, 3, 2, 1]), codes, (4, 2))
    assert pairs["together"] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_neighbours_agree_where_codes_follow_the_vectors():
    angles = np.linspace(0, 1, 22)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    vectors[11:] = -vectors[11:]
    halves = np.repeat([[0, 0], [1, 0]], 11, axis=0).astype(np.int32)
    assert neighbour_agreement(vectors, halves, (2, 1)) == [1.0, 1.0]
    assert neighbour_agreement(vectors, np.tile([[0, 0], [1, 0]], (11, 1)).astype(np.int32), (2, 1))[0] < 0.6


def test_a_collapsed_level_is_a_warning_with_its_remedy():
    log = TrainEvents.of(sequences([(0, 0), (1, 1)]))
    one_code = np.stack([np.zeros(64), np.arange(64)], axis=1).astype(np.int32)
    outliers = np.stack([np.maximum(np.arange(64) - 48, 0), np.arange(64)], axis=1).astype(np.int32)
    outliers[:49, 0] = 0
    (collapsed,) = measure(one_code, one_code, (64, 64), log)["warnings"]
    assert "level 1 uses 1 of 64 codes" in collapsed and "sid.codebook=ema" in collapsed
    found = measure(outliers, outliers, (16, 64), log)["warnings"]
    assert any("level 1 has perplexity" in line and "sid.quantizer=rqvae" in line for line in found)
