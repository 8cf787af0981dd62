"""Policies answer queries on Ray Data: shards of queries go in, the best items of each come out, resumable by shard."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.data import parallel_map
from genrec.config import Config
from genrec.data.readers import read_queries

if TYPE_CHECKING:
    from genrec.inference.batch import Answering, KnnPrior, Split
    from genrec.inference.prior import RankedItems


def predict(
    config: Config,
    data: Path,
    catalog: Path,
    policy: Path,
    where: Path,
    answerings: Mapping[str, Answering],
    *,
    split: Split = "test",
    mask_seen: bool = False,
    prior: KnnPrior | None = None,
    value: Path | None = None,
    label: str = "answers",
) -> dict[str, RankedItems]:
    """The ``decode.width`` best items of each query of ``split``, in query order, for each way of ``answerings``.

    Args:
        data, catalog, policy: directories of the queries, of the SIDs that may be answered, and of the policy.
        where: directory of the answers, a folder for each way; shards that exist are not computed again.
        prior: ItemKNN, for ways that give it a weight.
        value: directory of the value network, for ways that read it.
        mask_seen: leave out items of a query's own history (a wider beam makes up for them).
    """
    from genrec.baselines.train_log import recent_history
    from genrec.data.shards import missing_shards
    from genrec.inference.batch import BatchPredictor, PredictionSpec, read_predictions, without_seen

    width, history = config.decode.width, config.data.max_history
    queries = read_queries(data, split)
    wide = width + history if mask_seen else width
    spec = PredictionSpec(config, data, catalog, policy, split, where, wide, answerings, prior, value)
    make = partial(BatchPredictor, spec)
    places = {name: where / name for name in answerings}
    shards = missing_shards(list(places.values()), len(queries), config.evaluation.shard_queries)
    parallel_map(config, make, shards, label=label)
    found = {name: read_predictions(place) for name, place in places.items()}
    if not mask_seen:
        return found
    recent_QH = recent_history(queries, history)
    return {name: without_seen(one, recent_QH, width) for name, one in found.items()}
