"""Policies answer queries on Ray Data: shards of queries go in, the best items of each come out, resumable by shard."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.data import parallel_map
from genrec.config import Config
from genrec.data.tables import read_queries

if TYPE_CHECKING:
    from genrec.inference.batch import KnnPrior, Split
    from genrec.inference.prior import RankedItems


def predict(
    config: Config,
    data: Path,
    catalog: Path,
    policy: Path,
    where: Path,
    *,
    split: Split = "test",
    mask_seen: bool = False,
    prior: KnnPrior | None = None,
    count: int | None = None,
    label: str = "answers",
) -> RankedItems:
    """The ``decode.width`` best items of each query of ``split``, in query order.

    Args:
        data, catalog, policy: directories of the queries, of the SIDs that may be answered, and of the policy.
        where: directory of the answers, one file per shard; shards that exist are not computed again.
        mask_seen: leave out items of a query's own history (a wider beam makes up for them).
        prior: steers the search; the answers come in its order.
        count: the first queries alone, so many or the rest of their shard more.
    """
    from genrec.baselines.train_log import recent_history
    from genrec.inference.batch import BatchPredictor, PredictionSpec, missing_shards, read_predictions, without_seen

    width, history = config.decode.width, config.data.max_history
    queries = read_queries(data, split)
    wide = width + history if mask_seen else width
    make = partial(BatchPredictor, PredictionSpec(config, data, catalog, policy, split, where, wide, prior))
    wanted = len(queries) if count is None else min(count, len(queries))
    parallel_map(config, make, missing_shards(where, wanted, config.evaluation.shard_queries), label=label)
    beams = read_predictions(where)
    if not mask_seen:
        return beams
    return without_seen(beams, recent_history(queries.slice(0, len(beams.items_QK)), history), width)
