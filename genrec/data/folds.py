"""Folds of the users: tables to train a policy on that never sees the users whom it will generate for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.data.files import link_file, write_parquet
from genrec.data.readers import query_files, read_queries, read_sequences
from genrec.data.train_counts import write_train_counts
from genrec.errors import InputError
from genrec.metrics import IntArray
from genrec.seeds import generator_of


def folds_of(queries: pa.Table, count: int, seed: int) -> IntArray:
    """The fold (Q,) of each query's user, 0 … ``count`` - 1: users are drawn at random into folds of equal size.

    Raises:
        InputError: there are more folds than users.
    """
    users, user_Q = np.unique(queries["user"].to_numpy(), return_inverse=True)
    if len(users) < count:
        raise InputError(
            f"learning.rl.folds={count}: got {len(users)} users with training queries, wanted one for each fold at "
            "least; lower it, or set learning.rl.groups=fixed"
        )
    return (generator_of("folds", seed).permutation(len(users)) % count)[user_Q]


def write_fold_data(source: Path, out: Path, fold: int, count: int, seed: int) -> int:
    """The data directory ``source`` without the train queries and sequences of a fold's users, in ``out``.

    Validation and test stay as they are. Returns the number of users that were left out.
    """
    train, sequences = read_queries(source, "train"), read_sequences(source)
    left_out_Q = folds_of(train, count, seed) == fold
    users = np.unique(train["user"].to_numpy()[left_out_Q])
    kept_S = ~np.isin(sequences["user"].to_numpy(), users)
    write_parquet(train.filter(pa.array(~left_out_Q)), out / "queries" / "train" / "part-00000.parquet")
    write_parquet(sequences.filter(pa.array(kept_S)), out / "sequences" / "part-00000.parquet")
    others = [file for split in ("valid", "test") for file in query_files(source, split)]
    for file in (source / "items.parquet", source / "stats.json", *others):
        link_file(file, out / file.relative_to(source))
    write_train_counts(out)
    return len(users)
