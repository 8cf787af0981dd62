"""decode.value from end to end: the stage, its weight, the report; what is refused; off, nothing of it exists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

import genrec
from cluster.artifacts import Artifact
from cluster.pipeline import STAGES, stages_needed
from cluster.policy_predictor import PolicyPredictor, TunedSearch, tuned_baselines
from cluster.stages.value import SUMMARY
from genrec.baselines.train_log import recent_history
from genrec.config import Config, Decode
from genrec.data.readers import read_queries
from genrec.errors import InputError
from genrec.inference.batch import Answering, read_predictions
from genrec.inference.fusion import VALUE_WEIGHTS
from genrec.inference.run_record import RECORD
from genrec.policy.decoding.node_values import FILE

SETTINGS = ("learning.sft.epochs=2", "learning.rl.steps=2", "decode.width=10", "evaluation.ks=[1,10]")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A short run that searches by values."""
    directory = tmp_path_factory.mktemp("value")
    return tiny_config(directory / "storage", chain_shop(directory / "shop"), *SETTINGS, "decode.value=true")


@pytest.fixture(scope="module")
def report(config: Config) -> Artifact:
    """Its evaluation."""
    return made(config, "evaluate")


def test_validation_chooses_its_weight_and_the_model_is_compared_with_the_policy(
    config: Config, report: Artifact
) -> None:
    metrics = json.loads((report.path / "metrics.json").read_text())
    prior = metrics["prior"]
    assert prior["value_weight"] in VALUE_WEIGHTS and prior["valid_ndcg@10"] >= prior["valid_ndcg@10_without_value"]
    assert ("policy" in metrics) == bool(prior["value_weight"])
    where = report.path / "predictions" / "grpo"
    searched = {f"{path.parent.name}/{path.name}" for path in where.glob("*/*")} - {"test/model"}
    assert searched == {
        *("valid/guided", "valid/guided-value"),
        *("test/policy", "test/sid_path", "test/item_head"),
    }
    plain, steered = (read_predictions(where / "valid" / name) for name in ("guided", "guided-value"))
    assert plain.value_QK is not None and steered.value_QK is not None
    stage = made(config, "value")
    assert (stage.path / FILE).is_file() and json.loads((stage.path / SUMMARY).read_text())["queries"] == 60


@pytest.mark.parametrize("prior", ["none", "itemknn", "itemknn_nodes"])
def test_a_search_with_a_weight_answers_the_test_with_it(
    config: Config, report: Artifact, prior: str, tmp_path: Path
) -> None:
    other = config.replace({"decode.prior": prior})
    inputs = {name: made(config, name) for name in ("prepare", "assign", "grpo", "value")}
    tuned = predictor_at(other, inputs, tmp_path).tuned(read_queries(inputs["prepare"].path, "valid"))
    assert tuned.kind == prior and tuned.ndcg is not None
    assert tuned.ndcg_without is not None and tuned.ndcg >= tuned.ndcg_without
    test = read_queries(inputs["prepare"].path, "test")
    recent_QH = recent_history(test, other.data.max_history)
    answers = [
        predictor_at(other, inputs, tmp_path / str(weight)).tested(replace(tuned, value=weight), recent_QH)
        for weight in (0.0, 4.0)
    ]
    (own, plain_QK), (own_again, steered_QK) = answers
    assert (own["policy"].items_QK == own_again["policy"].items_QK).all()
    assert plain_QK.shape == steered_QK.shape and (plain_QK != steered_QK).any()


def predictor_at(config: Config, inputs: dict[str, Artifact], where: Path) -> PolicyPredictor:
    """A predictor with answers of its own."""
    return PolicyPredictor(config, inputs, "grpo", tuned_baselines(config, inputs["prepare"].path), where)


def test_a_run_whose_search_has_values_is_not_served(config: Config, report: Artifact, tmp_path: Path) -> None:
    run = Path(config.storage) / "runs" / "tiny"
    record = json.loads((run / RECORD).read_text())
    record["prior"]["value_weight"] = 0.0
    (run / RECORD).write_text(json.dumps(record))
    assert genrec.load(run).recommend(["i3", "i4"], k=2)
    record["prior"]["value_weight"] = 1.0
    (run / RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"value network of weight 1 .* decode\.value=false"):
        genrec.load(run)


def test_without_the_stage_a_search_by_values_is_refused(config: Config, report: Artifact, tmp_path: Path) -> None:
    inputs = {name: made(config, name) for name in ("prepare", "assign", "grpo")}
    predictor = predictor_at(config, inputs, tmp_path)
    with pytest.raises(InputError, match=r"no stage made one; set decode\.value=false"):
        predictor.tuned(read_queries(inputs["prepare"].path, "valid"))


def test_off_it_leaves_no_trace(config: Config) -> None:
    off = config.replace({"decode.value": False})
    assert "value" not in [stage.name for stage in stages_needed(off, "evaluate")]
    assert "value" in [stage.name for stage in stages_needed(config, "evaluate")] and "value" in STAGES
    assert "value" not in Decode().search_settings() and Decode(value=True).search_settings()["value"] is True
    assert "value_weight" not in TunedSearch(1.0, 1.0).as_json() and Answering().value_weight is None


@pytest.mark.parametrize("key", ["learning.refit", "learning.rl.served"])
def test_what_does_not_fit_is_refused(config: Config, key: str) -> None:
    with pytest.raises(InputError, match=rf"decode\.value=true: {key}.*or decode\.value=false"):
        config.replace({key: True, "decode.prior": "itemknn_nodes"})
