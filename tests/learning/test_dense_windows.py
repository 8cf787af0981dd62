"""Windows as places in flat arrays are those that are cut from each user's list."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from genrec.data import readers
from genrec.data.files import write_parquet
from genrec.data.readers import stream_sequences
from genrec.data.tables import SEQUENCES
from genrec.learning.sft.batches import DenseExamples

HISTORY = 3
LENGTHS = (1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 23, 5, 40)
TYPES = (None, "view", "buy", "click")


def sequences() -> pa.Table:
    """Users of each length, some without a train target, some with gaps in their train part or without event types."""
    rng = np.random.default_rng(0)
    rows = []
    for user, length in enumerate(LENGTHS * 3):
        split = [0, *rng.choice([0, 1, 1], max(0, length - 3)), 2, 3][:length] if user % 4 else [0] * length
        types = None if user % 5 == 0 else [TYPES[one] for one in rng.integers(0, 4, length)]
        row = {"user": user, "user_id": f"u{user}", "items": rng.integers(0, 99, length), "split": split}
        rows.append(row | {"times": np.sort(rng.integers(0, 999, length)), "events": types})
    return pa.Table.from_pylist(rows, SEQUENCES)


def by_hand(table: pa.Table) -> list[tuple[str, list[int], list[bool], list[str | None], list[int]]]:
    """User, items, whether each is scored, types and times of every window."""
    found = []
    for row in table.to_pylist():
        scored = np.array(row["split"]) == 1
        scored[:1] = False
        end = int(scored.nonzero()[0].max(initial=-1)) + 1
        types = row["events"] or [None] * len(scored)
        for start in [0, *range(HISTORY, end - HISTORY - 1, HISTORY)]:
            part = slice(start, min(start + 2 * HISTORY + 1, end))
            fresh = scored[part].copy()
            fresh[: HISTORY + 1 if start else 0] = False
            if fresh.any():
                found.append((row["user_id"], row["items"][part], fresh.tolist(), types[part], row["times"][part]))
    return found


@pytest.mark.parametrize("rows", [5, 1 << 15])
def test_windows_of_a_stream_are_those_cut_from_each_users_list(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "STREAM_ROWS", rows)
    write_parquet(sequences(), tmp_path / "sequences" / "part-00000.parquet")
    parts = stream_sequences(tmp_path, ["user_id", "items", "split", "times", "events"])
    examples, wanted = DenseExamples(parts, HISTORY, with_context=True), by_hand(sequences())
    assert examples.lengths().tolist() == [len(items) for _, items, *_ in wanted]
    order = np.random.default_rng(1).permutation(len(wanted))
    batch = examples.take(order)
    assert batch.context is not None and batch.targets == examples.targets(order) == sum(sum(one[2]) for one in wanted)
    assert list(batch.users) == [wanted[row][0] for row in order]
    names = [*batch.context.names, None]
    for row, (_, items, scored, types, times) in zip(range(len(order)), [wanted[row] for row in order], strict=True):
        size = len(items)
        assert batch.items_BI[row, :size].tolist() == items and (batch.items_BI[row, size:] == -1).all()
        assert batch.target_BI[row, :size].tolist() == scored and not batch.target_BI[row, size:].any()
        assert [names[one] for one in batch.context.event_BI[row, :size]] == types
        assert batch.context.time_BI[row, :size].tolist() == times
