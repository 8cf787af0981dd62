"""Batches of a stream: every window once an epoch, the same for any number of workers, from any step on."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.data.files import write_parquet
from genrec.data.readers import sequence_files
from genrec.data.tables import SEQUENCES
from genrec.learning.sft.batches import Dense, DenseExamples
from genrec.learning.sft.streaming import StreamedEpochs, WindowStream, count_file_windows

HISTORY, BATCH = 3, 4
Window = tuple[str, tuple[int, ...], tuple[bool, ...], tuple[str | None, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files of users with one to thirty events, one file without a train target."""
    directory, rng, user = tmp_path_factory.mktemp("data"), np.random.default_rng(0), 0
    for part, users in enumerate((7, 1, 12, 3, 9)):
        rows = list[Mapping[str, object]]()
        for _ in range(users):
            length = int(rng.integers(1, 30))
            split = [0] * length if part == 3 else [0, *[1] * length][:length]
            types = [("view", "buy", None)[one] for one in rng.integers(0, 3, length)]
            row = {"user": user, "user_id": f"u{user}", "items": rng.integers(0, 99, length), "split": split}
            rows.append(row | {"times": np.sort(rng.integers(0, 999, length)), "events": types})
            user += 1
        write_parquet(pa.Table.from_pylist(rows, SEQUENCES), directory / "sequences" / f"part-{part:05}.parquet")
    return directory


def stream_of(data: Path, pool: int = 12, seed: int = 0) -> WindowStream:
    windows_F = tuple(count_file_windows(file, HISTORY) for file in sequence_files(data))
    return WindowStream(data, windows_F, HISTORY, BATCH, pool, seed, with_context=True)


def windows_of(batch: Dense) -> Iterator[Window]:
    assert batch.context is not None
    names = [*batch.context.names, None]
    for row, user in enumerate(batch.users):
        size = int((batch.items_BI[row] >= 0).sum())
        assert not batch.target_BI[row, size:].any()
        kinds = tuple(names[one] for one in batch.context.event_BI[row, :size])
        values = (one[row, :size].tolist() for one in (batch.items_BI, batch.target_BI, batch.context.time_BI))
        items, scored, times = map(tuple, values)
        yield user, items, scored, kinds, times


def batch_of(epochs: StreamedEpochs, step: int, rank: int = 0, world: int = 1) -> tuple[list[Window], int, int]:
    """The worker's windows, and the windows and targets of the whole batch."""
    pieces, targets = epochs.micro_batches(step, 3, rank, world)
    windows = list[Window]()
    for piece in pieces:
        assert isinstance(piece, Dense) and len(piece.users) <= 3
        windows += windows_of(piece)
    return windows, epochs.count(step), targets


@pytest.mark.parametrize("pool", [BATCH, 12, 1000])
def test_an_epoch_has_every_window_of_memory_once_in_an_order_of_its_own(data: Path, pool: int) -> None:
    tables = [pq.read_table(file) for file in sequence_files(data)]
    memory = DenseExamples(tables, HISTORY, with_context=True)
    whole = memory.take(np.arange(len(memory.lengths())))
    epochs = StreamedEpochs(stream_of(data, pool))
    assert epochs.steps == -(-len(memory.lengths()) // BATCH)
    orders = []
    for epoch in range(2):
        found = [batch_of(epochs, epoch * epochs.steps + step) for step in range(epochs.steps)]
        windows = [one for batch, *_ in found for one in batch]
        assert sorted(windows, key=repr) == sorted(windows_of(whole), key=repr)
        assert sum(targets for *_, targets in found) == whole.targets
        assert all(count == len(batch) <= BATCH for batch, count, _ in found)
        orders.append(windows)
    assert orders[0] != orders[1]
    assert orders[0] != [
        one for step in range(epochs.steps) for one in batch_of(StreamedEpochs(stream_of(data, pool, seed=1)), step)[0]
    ]


def test_a_pool_reads_only_the_files_that_hold_its_windows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genrec.learning.sft import streaming

    stream, opened = stream_of(data, BATCH), list[Path]()
    read = streaming.stream_sequence_file
    monkeypatch.setattr(streaming, "stream_sequence_file", lambda file, names: opened.append(file) or read(file, names))
    for pool in range(stream.pools):
        opened.clear()
        rows = stream.read(pool, 0, 1)
        assert rows.num_rows == 1
        assert len(opened) == len(stream.parts(pool)) <= 3
    assert stream.windows_F[3] == 0 and sequence_files(data)[3] not in opened


@pytest.mark.parametrize("world", [2, 3, 7])
def test_workers_share_each_batch(data: Path, world: int) -> None:
    stream = stream_of(data)
    alone = StreamedEpochs(stream)
    workers = [StreamedEpochs(stream) for _ in range(world)]
    for step in range(stream.steps + 2):
        wanted, count, targets = batch_of(alone, step)
        parts = [batch_of(epochs, step, rank, world) for rank, epochs in enumerate(workers)]
        assert all(found[1:] == (count, targets) for found in parts)
        assert sorted(one for found, *_ in parts[:count] for one in found) == sorted(wanted)
        assert all(found == [wanted[0]] for found, *_ in parts[count:])


def test_a_run_goes_on_at_any_step_and_skips_what_it_had_learned(data: Path) -> None:
    stream = stream_of(data)
    epochs = StreamedEpochs(stream)
    wanted = [batch_of(epochs, step) for step in range(2 * stream.steps)]
    for start in range(2 * stream.steps):
        assert batch_of(StreamedEpochs(stream), start) == wanted[start]
    assert batch_of(epochs, 1) == wanted[1]
    assert [epochs.names(1)] == [[f"user {user}" for user, *_ in wanted[1][0]]]


@pytest.mark.parametrize("begins", [2, 3, None])
def test_what_a_stream_that_begins_after_the_wanted_step_lacks_is_read_here(data: Path, begins: int | None) -> None:
    stream = stream_of(data, BATCH)
    alone, steps = StreamedEpochs(stream), range(1, 6)

    def late(step: int, rank: int, world: int) -> list[pa.Table]:
        return [] if begins is None else [stream.read(pool, rank, world) for pool in range(begins, 6)]

    found = StreamedEpochs(stream, late)
    assert [batch_of(found, step) for step in steps] == [batch_of(alone, step) for step in steps]


def test_a_stream_with_a_gap_is_an_error(data: Path) -> None:
    stream = stream_of(data, BATCH)
    broken = StreamedEpochs(stream, lambda step, rank, world: [stream.read(pool, rank, world) for pool in (0, 2)])
    with pytest.raises(RuntimeError, match="goes on at step 2, wanted 1"):
        broken.micro_batches(1, 2, 0, 1)


def test_without_context_a_batch_has_none(data: Path) -> None:
    (piece, *_), _ = StreamedEpochs(replace(stream_of(data), with_context=False)).micro_batches(0, 9, 0, 1)
    assert isinstance(piece, Dense) and piece.context is None and len(piece.users) == BATCH
