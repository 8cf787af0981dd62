"""Collisions are resolved at the least cost, whatever the order of the rows, and refused where nothing is free."""

import itertools
import time

import numpy as np
import pytest

from genrec.config import Sid
from genrec.errors import InputError
from genrec.sid import collisions, vector_subset
from genrec.sid.collisions import resolve
from genrec.sid.prefixes import nearest_prefixes, prefix_codes, prefix_numbers
from genrec.sid.quantizers.rqkmeans import RqKmeans
from genrec.sid.vector_subset import InMemory, VectorSubset, held_in_parts, packs_with_vectors


def on_a_line(*levels: list[float]) -> RqKmeans:
    """A residual quantizer of one-dimensional vectors with these codebooks."""
    quantizer = RqKmeans(Sid(levels=len(levels), codebook_size=len(levels[0])))
    quantizer.codebooks = [np.array(level, np.float32)[:, None] for level in levels]
    return quantizer


def vectors(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def fitted(items: int, codes: int = 8, seed: int = 0) -> tuple[RqKmeans, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((items, 8)).astype(np.float32)
    quantizer = RqKmeans(Sid(levels=3, codebook_size=codes, iterations=5))
    quantizer.fit(points)
    return quantizer, points


def test_items_without_a_twin_keep_their_codes():
    quantizer, points = fitted(300)
    before = quantizer.encode(points)
    after = resolve(before, points, quantizer)
    prefix = prefix_numbers(before[:, :-1], (8, 8))
    full = prefix_numbers(before, (8, 8, 8))
    twins = {p for p, f in zip(prefix, full, strict=True) if (full == f).sum() > 1}
    counts = {p: (prefix == p).sum() for p in prefix}
    touched = np.array([p in twins for p in prefix])
    assert max(counts.values()) <= 64 and touched.any() and not touched.all()
    assert len(np.unique(after, axis=0)) == 300
    if max(counts.values()) <= 8:
        np.testing.assert_array_equal(before[~touched], after[~touched])
        np.testing.assert_array_equal(before[:, :-1], after[:, :-1])


def test_a_shared_prefix_is_matched_at_the_least_total_cost():
    quantizer = on_a_line([0, 100, 200], [0, 1, 2])
    points = vectors(0.1, 0.2, 0.9)
    codes = resolve(quantizer.encode(points), points, quantizer)
    costs = quantizer.level_costs(points, np.zeros((3, 1), np.int32))
    best = min(sum(costs[i, code] for i, code in enumerate(order)) for order in itertools.permutations(range(3)))
    assert codes[:, 0].tolist() == [0, 0, 0]
    assert sum(costs[i, code] for i, code in enumerate(codes[:, 1])) == pytest.approx(best)


def test_a_full_prefix_keeps_its_nearest_items_and_passes_the_farthest_on():
    quantizer = on_a_line([0, 10, 50], [0, 1, 2])
    points = vectors(0.05, 0.1, 0.2, 4.0, 49.0)
    codes = resolve(quantizer.encode(points), points, quantizer)
    assert codes[:3, 0].tolist() == [0, 0, 0]
    assert codes[3, 0] == 1
    assert codes[4, 0] == 2


def test_passing_on_widens_until_a_far_prefix_has_room():
    quantizer = on_a_line(list(range(0, 400, 10)), list(range(40)))
    points = vectors(*[5.0] * 1500)
    codes = resolve(quantizer.encode(points), points, quantizer)
    assert len(np.unique(codes, axis=0)) == 1500
    used, counts = np.unique(codes[:, 0], return_counts=True)
    assert used.tolist() == list(range(38)) and (counts[:37] == 40).all()


def test_a_catalogue_of_exactly_all_sids_fits():
    quantizer, _ = fitted(64, codes=4)
    points = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    codes = resolve(quantizer.encode(points), points, quantizer)
    assert len(np.unique(codes, axis=0)) == 64


def test_more_items_than_sids_are_refused():
    quantizer, _ = fitted(64, codes=4)
    points = np.ones((65, 8), np.float32)
    with pytest.raises(
        InputError, match=r"65 items do not fit into 64 semantic IDs \(4 x 4 x 4\); raise sid.codebook_size"
    ):
        resolve(quantizer.encode(points), points, quantizer)


def test_the_result_does_not_depend_on_the_order_of_the_rows():
    quantizer, points = fitted(400)
    points[50:150] = points[50]
    rank = np.random.default_rng(2).permutation(400)
    order = np.random.default_rng(3).permutation(400)
    codes = resolve(quantizer.encode(points), points, quantizer, rank)
    shuffled = resolve(quantizer.encode(points[order]), points[order], quantizer, rank[order])
    np.testing.assert_array_equal(codes[order], shuffled)


def test_thousands_of_identical_vectors_get_distinct_sids_in_seconds():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((6000, 16)).astype(np.float32)
    points[:4000] = points[0]
    quantizer = RqKmeans(Sid(levels=3, codebook_size=32, iterations=3))
    quantizer.fit(points)
    start = time.perf_counter()
    codes = resolve(quantizer.encode(points), points, quantizer)
    assert time.perf_counter() - start < 20
    assert len(np.unique(codes, axis=0)) == 6000


def test_a_beam_as_wide_as_all_prefixes_finds_the_true_order():
    quantizer, points = fitted(200, codes=4)
    found = nearest_prefixes(points[:5], quantizer, 16)
    every = prefix_codes(np.arange(16), (4, 4))
    error = np.square(points[:5, None] - quantizer.decode(every)[None]).sum(-1)
    np.testing.assert_array_equal(found, np.argsort(error, axis=1))


def test_prefix_numbers_sort_as_codes_do_and_come_back():
    codes = np.array(list(itertools.product(range(3), range(5), range(2))), np.int32)
    numbers = prefix_numbers(codes, (3, 5, 2))
    assert numbers.tolist() == list(range(30))
    np.testing.assert_array_equal(prefix_codes(numbers, (3, 5, 2)), codes)


class Counting(InMemory):
    """Vectors that note how many of them were read at once."""

    def __init__(self, vectors_ND: np.ndarray) -> None:
        super().__init__(vectors_ND)
        self.reads: list[int] = []

    def read(self, rows: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) > 0).all(), "ascending"
        self.reads.append(len(rows))
        return super().read(rows)


def test_vectors_that_are_held_a_few_at_a_time_give_the_same_codes(monkeypatch):
    quantizer, points = fitted(500)
    points[::5] = points[0]
    before = quantizer.encode(points)
    monkeypatch.setattr(collisions, "CHUNK", 32)
    wanted = resolve(before, points, quantizer)
    monkeypatch.setattr(vector_subset, "HELD_BYTES", 40 * 4 * 8)
    reader = Counting(points)
    np.testing.assert_array_equal(resolve(before, reader, quantizer), wanted)
    assert len(reader.reads) > 10 and max(reader.reads) <= 40


def test_held_vectors_come_in_the_order_that_is_asked_for(monkeypatch):
    points = np.arange(20, dtype=np.float32)[:, None]
    held = VectorSubset.read(InMemory(points), np.array([7, 3, 11]))
    assert held.of(np.array([11, 7])).ravel().tolist() == [11, 7]
    monkeypatch.setattr(vector_subset, "HELD_BYTES", 4 * 4)
    rows = np.array([9, 2, 14, 5, 0, 19, 1])
    parts = list(held_in_parts(Counting(points), rows, 2))
    assert [part.tolist() for part, _ in parts] == [[9, 2], [14, 5], [0, 19], [1]]
    assert all(held.of(part).ravel().tolist() == part.tolist() for part, held in parts)
    packs = [[np.array([3]), np.array([1, 8])], [np.array([6])], [np.array([10, 12, 4, 2, 7])]]
    reader = Counting(points)
    found = [
        [held.of(group).ravel().tolist() for group in groups] for groups, held in packs_with_vectors(reader, packs)
    ]
    assert found == [[[3], [1, 8]], [[6]], [[10, 12, 4, 2, 7]]] and reader.reads == [4, 5]
