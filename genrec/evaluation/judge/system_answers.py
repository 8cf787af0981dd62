"""``answers.parquet``: what each system would show to a sample of test users, in words.

One row per user: ``query``, the row of the test query; ``history``, titles, oldest first; then one column per system,
lists of titles, best first. Two of them are yardsticks: ``target``, what the user chose in fact, and ``random``, items
drawn from the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.files import write_parquet
from genrec.errors import InputError
from genrec.metrics import IntArray

FILE = "answers.parquet"
SAMPLE, TOP, RECENT = 1000, 10, 50
"""Users of the file, items of each system, and events of each history."""

YARDSTICKS = ("target", "random")
OTHERS = ("query", "history")


def write_answers(
    queries: pa.Table, items: pa.Table, systems: Mapping[str, IntArray], path: Path, *, seed: int = 0
) -> None:
    """Write the answers to a seeded sample of the test queries.

    Args:
        queries: a query table of Q rows.
        items: the item table.
        systems: rankings (Q, K) by name, -1 for none.
    """
    rng = np.random.default_rng([seed, 2])
    rows = np.sort(rng.permutation(len(queries))[:SAMPLE])
    words, sample = shown_items(items), queries.take(rows)
    drawn_QK = rng.integers(0, len(words), (len(rows), TOP))
    histories = [history[-RECENT:] for history in sample["history"].to_pylist()]
    columns: dict[str, Sequence[object]] = {
        "query": rows.tolist(),
        "history": [[words[item] for item in history] for history in histories],
        "target": [[words[item]] for item in sample["target"].to_pylist()],
        "random": [[words[item] for item in row] for row in drawn_QK.tolist()],
    }
    for name, ranked_QK in systems.items():
        columns[name] = [[words[item] for item in row if item >= 0] for row in ranked_QK[rows, :TOP].tolist()]
    kinds = {name: pa.int64() if name == "query" else pa.list_(pa.string()) for name in columns}
    write_parquet(pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()}), path)


def shown_items(items: pa.Table) -> list[str]:
    """Each item in words: its title, or its id without one; and the finest of its categories."""
    named = zip(items["id"].to_pylist(), items["title"].to_pylist(), items["categories"].to_pylist(), strict=True)
    return [f"{title or id_} ({path[-1]})" if path else title or id_ for id_, title, path in named]


def read_answers(run: Path, systems: Sequence[str] = ()) -> pa.Table:
    """The answers of a run's ``systems``, or of all, and the two yardsticks.

    Raises:
        InputError: the run has no answers, or none of a system.
    """
    try:
        table = pq.ParquetFile(run / FILE).read()
    except FileNotFoundError:
        raise InputError(
            f"{run} holds no {FILE}: wanted the directory of a finished run, such as storage/runs/demo; "
            "runs of older versions are made again by genrec evaluate"
        ) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{run / FILE} cannot be read: {error}; make the run again with genrec evaluate") from None
    lists = [name for name in table.column_names if table.schema.field(name).type == pa.list_(pa.string())]
    known = [name for name in lists if name not in (*YARDSTICKS, *OTHERS)]
    if missing := sorted({*OTHERS, *YARDSTICKS} - set(table.column_names)):
        raise InputError(f"{run / FILE} lacks {', '.join(missing)}; make the run again with genrec evaluate")
    if unknown := [name for name in systems if name not in known]:
        raise InputError(f"judge.systems names {unknown}; wanted: some of {known}")
    return table.select([*OTHERS, *(systems or known), *YARDSTICKS])
