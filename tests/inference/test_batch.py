"""Batch prediction: the shard files hold what one search over all queries finds, from a spec that survives pickling."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

from genrec.baselines.itemknn import KnnSettings
from genrec.baselines.train_log import recent_history
from genrec.data.readers import read_queries
from genrec.data.shards import missing_shards, shard_path
from genrec.inference.batch import (
    Answering,
    BatchPredictor,
    KnnPrior,
    PredictionSpec,
    make_node_prior,
    read_predictions,
    without_seen,
)
from genrec.inference.prior import RankedItems
from genrec.policy.backbone import build, save
from genrec.policy.decoding.beam import beam
from genrec.sid.catalog import Catalog

WIDTH = 6
WEIGHT = 2.0
"""Of the prior."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> PredictionSpec:
    """An untrained policy for 24 items with SIDs of two codes, and the 60 test queries of a chain shop."""
    directory = tmp_path_factory.mktemp("batch")
    config = tiny_config(directory / "storage", chain_shop(directory / "shop"), "decode.batch_size=10")
    data = made(config, "prepare").path
    codes_NL = np.stack(np.divmod(np.arange(24), 6), axis=1)
    catalog = Catalog(torch.from_numpy(codes_NL), (4, 6))
    catalog.save(directory / "catalog")
    policy, _ = build(config.policy, catalog, max_history=5, seed=3)
    save(policy, dict(policy.snapshot(0).tensors), catalog, {}, directory / "policy")
    places = (data, directory / "catalog", directory / "policy")
    return PredictionSpec(config, *places, "test", directory / "out", WIDTH, {"own": Answering()})


def whole(spec: PredictionSpec, prior: KnnPrior | None = None, head_weight: float = 0.0) -> RankedItems:
    """One search over all queries at once."""
    catalog = Catalog.load(spec.catalog)
    policy, prompts = build(spec.config.policy, catalog, max_history=5, seed=3)
    queries = read_queries(spec.data, spec.split)
    nodes = None
    if prior is not None:
        scores = prior.scorer(spec.data, Catalog.load(spec.catalog))(recent_history(queries, 5))
        nodes = make_node_prior(catalog.trie, catalog.codes_NL, scores, WEIGHT)
    inputs = prompts.encode(queries["history"].to_pylist())
    found = beam(policy.eval(), *inputs, catalog.trie, WIDTH, prior=nodes, head_weight=head_weight)
    return RankedItems(found.items_BW.numpy(), found.logp_BW.numpy())


def test_shards_hold_what_one_search_over_all_queries_finds_in_query_order(spec: PredictionSpec) -> None:
    predictor = BatchPredictor(pickle.loads(pickle.dumps(spec)))
    own = spec.out / "own"
    assert missing_shards([own], 60, 32) == [0, 1]
    assert [predictor(shard)["queries"] for shard in (1, 0)] == [28, 32]
    assert missing_shards([own], 60, 32) == [] and missing_shards([own], 65, 32) == [2]
    assert missing_shards([own, spec.out / "other"], 60, 32) == [0, 1]
    found, expected = read_predictions(own), whole(spec)
    assert np.array_equal(found.items_QK, expected.items_QK)
    np.testing.assert_allclose(found.logp_QK, expected.logp_QK, atol=1e-5)
    ids = pa.concat_tables(pq.read_table(shard_path(own, shard)) for shard in (0, 1))["id"]
    assert ids.to_pylist() == read_queries(spec.data, "test")["id"].to_pylist()


def test_a_prior_guides_the_search_and_leaves_the_log_probabilities_the_policys_own(
    spec: PredictionSpec, tmp_path: Path
) -> None:
    prior = KnnPrior(KnnSettings(), mask_seen=False)
    ways = {
        "guided": Answering(prior_weight=WEIGHT),
        "both": Answering(head_weight=0.5, prior_weight=WEIGHT),
        "head": Answering(head_alone=True),
        "plain": Answering(),
    }
    predictor = BatchPredictor(replace(spec, out=tmp_path, answerings=ways, prior=prior))
    for shard in (0, 1):
        predictor(shard)
    read = {name: read_predictions(tmp_path / name) for name in ways}
    found, expected, plain = read["guided"], whole(spec, prior), whole(spec)
    assert np.array_equal(read["plain"].items_QK, plain.items_QK)
    assert np.array_equal(read["both"].items_QK, whole(spec, prior, head_weight=0.5).items_QK)
    assert read["both"].head_QK is not None and (np.diff(read["head"].logp_QK, axis=1) <= 0).all()
    assert np.array_equal(found.items_QK, expected.items_QK)
    np.testing.assert_allclose(found.logp_QK, expected.logp_QK, atol=1e-5)
    assert not np.array_equal(found.items_QK, plain.items_QK)
    assert (np.diff(found.logp_QK, axis=1) > 0).any()


def test_seen_items_are_replaced_by_the_next_best_and_padded_where_there_are_none() -> None:
    beams = RankedItems(np.array([[4, 7, 2, 9], [1, 2, 3, -1]]), np.log(np.array([[0.4, 0.3, 0.2, 0.1]] * 2)))
    found = without_seen(beams, np.array([[7, 4], [1, 3]]), 2)
    assert found.items_QK.tolist() == [[2, 9], [2, -1]]
    assert np.exp(found.logp_QK[0]) == pytest.approx([0.2, 0.1])
