"""Tables for the last training before serving: what was validation is training, and the test stays out.

A shop that serves today would not leave its newest purchases unused: once validation has chosen the settings, the same
training is done with train and validation events.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.data.files import link_file, write_parquet
from genrec.data.readers import read_queries, read_sequences
from genrec.data.tables import QUERIES, QUERY_CONTEXT, SEQUENCES, SPLIT_CODES
from genrec.data.train_counts import write_train_counts
from genrec.errors import InputError

COPIED = ("items.parquet", "stats.json")


def write_refit_data(source: Path, out: Path) -> None:
    """The data directory ``source`` with its validation events as train events, in ``out``; test queries as they are.

    Sequences end before the first test event, so nothing that is trained on or counted has seen one. Validation is
    empty. Files of items are linked where the file system can.

    Raises:
        InputError: ``source`` has no validation query.
    """
    train, valid, test = (read_queries(source, split) for split in ("train", "valid", "test"))
    if not valid.num_rows:
        raise InputError(
            "learning.refit=true trains on validation events too, and there is none; set learning.refit=false or give "
            "the data a validation split (data.split)"
        )
    for name, table in (("train", pa.concat_tables([train, valid])), ("valid", valid.slice(0, 0)), ("test", test)):
        write_parquet(table.cast(pa.schema([*QUERIES, *QUERY_CONTEXT])), out / "queries" / name / "part-00000.parquet")
    write_parquet(refit_sequences(read_sequences(source)), out / "sequences" / "part-00000.parquet")
    for name in COPIED:
        link_file(source / name, out / name)
    write_train_counts(out)


def refit_sequences(sequences: pa.Table) -> pa.Table:
    """``sequences`` up to each user's first test event, with validation events as train events."""
    test, valid, train = (SPLIT_CODES[name] for name in ("test", "valid", "train"))
    columns = {name: sequences[name].to_pylist() for name in sequences.column_names}
    lists = [name for name in sequences.column_names if pa.types.is_list(sequences.schema.field(name).type)]
    for row, codes in enumerate(columns["split"]):
        (tested,) = np.nonzero(np.array(codes) == test)
        end = int(tested[0]) if len(tested) else len(codes)
        for name in lists:
            if columns[name][row] is not None:
                columns[name][row] = columns[name][row][:end]
        columns["split"][row] = [train if code == valid else code for code in columns["split"][row]]
    return pa.table(columns, schema=sequences.schema).cast(SEQUENCES)
