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
from genrec.data.train_part import flat_column
from genrec.errors import InputError

COPIED = ("items.parquet", "stats.json")


def write_refit_data(source: Path, out: Path) -> None:
    """The data directory ``source`` with its validation events as train events, in ``out``; test queries as they are.

    Nothing that is trained on or counted sees a test event; see ``refit_sequences``. Validation is empty. Files of
    items are linked where the file system can.

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
    """``sequences`` with validation events as train events; from a user's first test event on all are test events.

    The test events stay, because serving and updates need a user's whole history. Their code keeps them out of all
    that is trained on or counted.
    """
    split_E, lengths_U = flat_column(sequences, "split")
    ends_U = np.cumsum(lengths_U)
    tests_E = np.append(0, np.cumsum(split_E == SPLIT_CODES["test"]))
    is_tested_E = tests_E[1:] > np.repeat(tests_E[ends_U - lengths_U], lengths_U)
    split_E = np.where(split_E == SPLIT_CODES["valid"], SPLIT_CODES["train"], split_E)
    split_E = np.where(is_tested_E, SPLIT_CODES["test"], split_E).astype(np.int8)
    split_U = pa.ListArray.from_arrays(pa.array(np.append(0, ends_U).astype(np.int32)), pa.array(split_E))
    return sequences.set_column(sequences.column_names.index("split"), "split", split_U).cast(SEQUENCES)
