"""The whole path on a shop whose answer is known, in one process and on Ray."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

import genrec
from cluster import pipeline
from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.data import _accepted, _Actor
from cluster.stages.grpo import grpo_loop
from cluster.stages.sft import sft_loop
from cluster.train import REFUSED, RunSpec, _worker_entry, run_training
from genrec.config import Config, Dimension, load_config, to_yaml
from genrec.data.readers import read_items, read_queries
from genrec.errors import InputError, MachineError, packed_error, unpacked_error
from genrec.evaluation.search_choice import ENDED
from genrec.evaluation.search_record import SearchRecord
from genrec.inference.batch import read_predictions
from genrec.inference.fusion import HEAD_WEIGHTS
from genrec.sid.catalog import Catalog

ROOT = Path(__file__).parents[2]
LRS = (3e-4, 1e30)
"""The config's own learning rate, and one with which a run diverges."""


@pytest.fixture(scope="module")
def config(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("storage"), shop)


@pytest.fixture(scope="module")
def report(config: Config) -> Artifact:
    return made(config, "evaluate")


def test_the_model_learns_the_chain_and_metrics_have_their_form(report: Artifact) -> None:
    metrics = json.loads((report.path / "metrics.json").read_text())
    assert metrics["model"]["item"]["hr@10"] > 0.9
    assert set(metrics["baselines"]) == {"popularity", "transition", "itemknn"}
    for level in ("item", "sid"):
        assert {f"{m}@{k}" for m in ("hr", "ndcg") for k in (1, 3, 5, 10, 20, 50)} <= set(metrics["model"][level])
    low, high = metrics["ci95"]["model"]["item"]["ndcg@10"]
    assert low <= metrics["model"]["item"]["ndcg@10"] <= high
    for stage in ("prepare", "assign", "sft", "grpo"):
        assert metrics["stages"][stage]["wall_s"] > 0
        assert metrics["stages"][stage]["peak_rss_mb"] > 0
    page = (report.path / "report.html").read_text()
    assert metrics["headline"].split()[0] in page
    assert set(metrics["speed"]) - set(metrics["baselines"]) == {"model", "sft"}
    for name in ("sid_path", "item_head"):
        bins = metrics["calibration"][name]["first"]["bins"]
        first = sum(one["hits"] * one["queries"] for one in bins) / metrics["queries"]
        assert first == pytest.approx(metrics[name]["item"]["hr@1"]), "the curve is of the ranking that it is named by"


def test_the_report_says_what_reinforcement_learning_bought_and_what_it_cost(report: Artifact) -> None:
    metrics = json.loads((report.path / "metrics.json").read_text())
    trade = metrics["rl_trade"]["metrics"]
    assert {
        "ndcg@10",
        "hr@50",
        "tail_hr@50",
        "value@10",
        "categories@10",
        "category_entropy@10",
        "new_items@10",
    } == set(trade) - {"hr@10"}
    for policy, system in (("sft", "sft"), ("rl", "model")):
        assert trade["ndcg@10"][policy] == pytest.approx(metrics[system]["item"]["ndcg@10"])
        assert trade["categories@10"][policy] == pytest.approx(metrics["spread"][system]["unique_categories@10"])
        assert trade["value@10"][policy] == pytest.approx(metrics["goals"][system]["value@10"])
    assert set(metrics["goals"]) == set(metrics["spread"])
    cost = metrics["rl_trade"]["cost"]
    assert cost["steps"] == 6 and cost["wall_s"] > 0 and cost["sft_wall_s"] > 0
    section = (report.path / "report.html").read_text().split("What reinforcement learning bought, and what it cost")[1]
    for shown in ("Categories@10", "New items@10", "Value@10", "Tail HR@50", "6 updates"):
        assert shown in section.split("<h2>")[0]


def test_a_second_run_does_nothing(report: Artifact, config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    again = made(config, "evaluate")
    assert again.skipped
    assert again.path == report.path
    assert "starts" not in caplog.text and caplog.text.count("done already") == 6


def test_a_loaded_run_recommends_the_next_item(report: Artifact, config: Config) -> None:
    recommender = genrec.load(Path(config.storage) / "runs" / "tiny")
    found = recommender.recommend(["i3", "i4", "i5"], k=3)
    following = [recommender.recommend([f"i{i}", f"i{i + 1}", f"i{i + 2}"], k=3) for i in range(20)]
    hits = [f"i{i + 3}" in {one.id for one in best} for i, best in enumerate(following)]
    assert sum(hits) > 10
    assert all(one.title.endswith(f"thing number {one.id[1:]}") for one in found if one.title is not None)
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    with pytest.raises(InputError, match="unknown"):
        recommender.recommend(["never heard of"])
    with pytest.raises(InputError, match="no finished run"):
        genrec.load(config.storage)


def test_another_config_goes_to_another_directory(report: Artifact, config: Config) -> None:
    other = config.replace({"rewards.hit": 2.0})
    assert made(other, "sft").path == made(config, "sft").path
    assert made(other, "grpo").path != made(config, "grpo").path


def test_a_policy_of_other_sids_is_refused(report: Artifact, config: Config, tmp_path: Path) -> None:
    sizes = config.replace({"sid.codebook_size": 12})
    spec = RunSpec(
        config, made(config, "prepare").path, made(sizes, "assign").path, tmp_path, start=made(config, "sft").path
    )
    with pytest.raises(InputError, match="trained on the catalogue"):
        spec.build()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sid.codebook_size=25"], r"24 items cannot fill 25 codes per level; set sid\.codebook_size=16"),
        (["sid.levels=2", "sid.codebook_size=4"], r"24 items do not fit into 16 semantic IDs"),
        (["sid.cf_dims=23"], r"sid\.cf_dims=23 needs more than 24 items, there are 24"),
        (["sid.quantizer=taxonomy"], "no item has a category or a brand"),
        (["learning.rl.generation=slate", "learning.rl.slate=25"], "lists of 25 distinct items, and the catalogue has"),
    ],
)
def test_what_a_later_stage_cannot_do_with_the_items_is_refused_before_they_are_embedded(
    overrides: list[str], message: str, shop: Path, tmp_path: Path
) -> None:
    plain = shutil.copytree(shop, tmp_path / "plain")
    pq.write_table(pq.read_table(shop / "items.parquet").select(["id", "title"]), plain / "items.parquet")
    config = tiny_config(tmp_path / "storage", plain, *overrides)
    with pytest.raises(InputError, match=message):
        pipeline.run(config, "evaluate")
    assert made(config, "prepare").skipped and not (tmp_path / "storage" / "embed").exists()


@pytest.mark.parametrize("items", [2, 10])
def test_a_tiny_catalogue_goes_the_whole_way(items: int, tmp_path: Path) -> None:
    overrides = ("sid.codebook_size=2", "sid.levels=4", "sid.cf_weight=0", "learning.sft.max_steps=2")
    slates = ("learning.rl.steps=1", "learning.rl.generation=slate", "learning.rl.slate=2")
    shop = chain_shop(tmp_path / "shop", users=12, items=items)
    metrics = json.loads(
        (made(tiny_config(tmp_path, shop, *overrides, *slates), "evaluate").path / "metrics.json").read_text()
    )
    assert metrics["model"]["item"]["hr@10"] == 1


def test_the_policy_alone_is_judged_before_the_mixture(config: Config, report: Artifact) -> None:
    mixed = config.replace({"name": "mixed", "decode.prior": "itemknn", "decode.prior_weight": 0.5})
    judged = made(mixed, "evaluate")
    metrics = json.loads((judged.path / "metrics.json").read_text())
    assert metrics["prior"]["weight"] == 0.5
    assert metrics["policy"]["item"] == json.loads((report.path / "metrics.json").read_text())["model"]["item"]
    assert "trained policy alone" in metrics["headline"].split(":")[0]
    assert metrics["speed"]["model"]["per_query_s"] > metrics["speed"]["policy"]["per_query_s"], "mixing takes time"
    assert set(metrics["paired_policy"]) == set(metrics["baselines"])
    found = genrec.load(Path(config.storage) / "runs" / "mixed").recommend(["i3", "i4", "i5"], k=3)
    assert found[0].id == "i6"


def test_a_prior_on_nodes_is_judged_and_served_alike(config: Config, report: Artifact) -> None:
    steered = config.replace({"name": "steered", "decode.prior": "itemknn_nodes", "decode.prior_weight": 0.5})
    judged = made(steered, "evaluate")
    metrics = json.loads((judged.path / "metrics.json").read_text())
    prior = metrics["prior"]
    where = judged.path / "predictions" / "grpo"
    searched = {f"{path.parent.name}/{path.name}" for path in where.glob("*/*")}
    assert searched == {
        *("valid/guided", "valid/guided-itemknn"),
        *("test/policy", "test/sid_path", "test/item_head", "test/model"),
    }
    assert prior["kind"] == "itemknn_nodes" and prior["weight"] == 0.5
    assert prior["head_weight"] in HEAD_WEIGHTS
    assert {"policy", "sid_path", "item_head"} <= set(metrics["paired"])
    recommender = genrec.load(Path(config.storage) / "runs" / "steered")
    data = made(config, "prepare").path
    ids, queries = read_items(data)["id"].to_pylist(), read_queries(data, "test")
    beams = read_predictions(where / "test" / "model")
    for history, items_K in zip(queries["history"].to_pylist()[:5], beams.items_QK, strict=False):
        found = recommender.recommend([ids[item] for item in history], k=3)
        scores = [one.score for one in found]
        unseen = [ids[item] for item in items_K.tolist() if item >= 0 and item not in history]
        assert [one.id for one in found] == unseen[:3], "the shop's users never repeat an item"
        assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1


def test_a_run_that_its_guard_stopped_stays_stopped(config: Config, report: Artifact, tmp_path: Path) -> None:
    paths = [made(config, stage).path for stage in ("prepare", "assign", "sft")]
    rl = config.learning.rl.replace({"guard_drop": 0.0, "lr": 0.5, "eval_every": 1, "sft": 0.0})
    wild = config.replace({"learning.rl": rl})
    curves = []
    for _ in range(2):
        spec = RunSpec(wild, paths[0], paths[1], tmp_path, start=paths[2])
        grpo_loop(spec)
        curves.append(json.loads((tmp_path / "curve.json").read_text()))
        (tmp_path / "curve.json").unlink()
    assert curves[0]["stopped"]
    assert curves[0] == curves[1]


def test_a_stage_that_fails_leaves_nothing_that_looks_finished(config: Config) -> None:
    def broken(path: Path) -> dict[str, int]:
        (path / "half.txt").write_text("half")
        raise RuntimeError("lost power")

    def run(work: object) -> Artifact:
        return make_artifact(config, Recipe("broken", {}, (__name__,)), work)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError):
        run(broken)
    folder = Path(config.storage) / "broken"
    assert not list(folder.glob("*/manifest.json"))
    done = run(lambda path: {"found": len(list(path.glob("*.txt")))})
    assert done.metrics["found"] == 1
    assert not list(folder.glob("*.partial"))


def command(config: Config, verb: str, file: Path) -> list[str]:
    file.write_text(to_yaml(config))
    return [sys.executable, "-m", f"workflows.{verb}", str(file)]


def test_training_killed_with_sigkill_ends_with_the_weights_of_an_undisturbed_run(
    config: Config, report: Artifact, shop: Path, tmp_path: Path
) -> None:
    killed = tiny_config(tmp_path / "storage", shop)
    for stage in ("prepare", "embed", "assign"):
        shutil.copytree(Path(config.storage) / stage, tmp_path / "storage" / stage)
    run = command(killed, "grpo", tmp_path / "config.yaml")
    for stage, number in (("sft", 2), ("grpo", 1)):
        process = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        pattern = f"{stage}/*.partial/checkpoints/checkpoint-*"
        while not any(int(p.name.rpartition("-")[2]) >= number for p in (tmp_path / "storage").glob(pattern)):
            assert time.monotonic() < deadline
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(run, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for stage in ("sft", "grpo"):
        weights = [(made(c, stage).path / "policy.safetensors").read_bytes() for c in (config, killed)]
        assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def on_ray(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    numbers = ("compute.workers=1", "compute.rollout_actors=2", "compute.rollout_cpus=0.25", "compute.data_actors=1")
    return tiny_config(tmp_path_factory.mktemp("ray"), shop, *numbers)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_actors_of_ray_data_make_the_catalogue_of_one_process(config: Config, on_ray: Config) -> None:
    here, there = (Catalog.load(made(one, "assign").path) for one in (config, on_ray))
    assert here.digest == there.digest


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_on_ray_whose_learner_is_killed_gives_the_weights_of_one_process(
    config: Config, on_ray: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies_once(spec: RunSpec) -> None:
        import ray.train

        from cluster.stages.grpo import grpo_loop
        from cluster.train import RayCheckpoints

        save, died = RayCheckpoints.save, spec.out / "died"
        if died.exists() and ray.train.get_checkpoint():
            (spec.out / "resumed").touch()

        def save_or_die(self: RayCheckpoints, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
            if metrics["step"] == 6 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, write, metrics)

        RayCheckpoints.save = save_or_die
        grpo_loop(spec)

    with monkeypatch.context() as patch:  # The run in this process below is not to die.
        patch.setattr("cluster.stages.grpo.grpo_loop", dies_once)
        there = made(on_ray, "grpo").path
    assert (there / "died").exists() and (there / "resumed").exists()
    curves = [json.loads((path / "curve.json").read_text()) for path in (made(config, "grpo").path, there)]
    assert curves[0]["curve"][1:] == curves[1]["curve"][1:]
    for stage in ("sft", "grpo"):
        weights = [(made(c, stage).path / "policy.safetensors").read_bytes() for c in (config, on_ray)]
        assert weights[0] == weights[1]


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_bad_input_in_a_training_worker_is_one_clear_error(config: Config, report: Artifact, tmp_path: Path) -> None:
    pair = config.replace({"compute.workers": 2, "compute.max_failures": 0})
    lost = RunSpec(pair, made(config, "prepare").path, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="no readable catalogue"):
        run_training(sft_loop, lost, "sft")
    large = replace(lost, config=pair.replace({"compute.worker_cpus": 64.0}))
    with pytest.raises(InputError, match="asks for 128 CPUs"):
        run_training(sft_loop, large, "sft")


def refuses() -> None:
    raise InputError("no such catalogue")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refusal_is_left_in_a_file_and_raised_where_other_workers_wait(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.train

    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: workers))
    if workers == 1:
        _worker_entry(refuses, tmp_path)
    else:
        with pytest.raises(InputError):
            _worker_entry(refuses, tmp_path)
    assert str(unpacked_error((tmp_path / REFUSED).read_text())) == "no such catalogue"


@pytest.mark.parametrize("kind", [InputError, MachineError])
def test_an_error_of_the_machine_is_one_still_where_another_process_meets_it(
    kind: type[InputError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.train

    def refuse(shard: int = 0) -> dict[str, Any]:
        raise kind("the store \x00 is gone")

    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: 1))
    _worker_entry(refuse, tmp_path)  # type: ignore[arg-type]
    left = unpacked_error((tmp_path / REFUSED).read_text())
    row = _Actor(lambda: refuse, None)({"shard": 3})
    with pytest.raises(InputError) as raised:
        _accepted(row)
    for error in (left, raised.value):
        assert type(error) is kind and str(error) == r"the store \x00 is gone"


def test_workers_that_are_started_after_a_refusal_end_at_once(tmp_path: Path) -> None:
    (tmp_path / REFUSED).write_text(packed_error(InputError("no such catalogue")))
    _worker_entry(lambda: pytest.fail("the work began again"), tmp_path)


def test_a_full_run_that_searches_first_goes_on_with_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[tuple[str, ...], float]] = []

    def run(config: Config, until: Sequence[str], reward_file: Path | None) -> dict[str, object]:
        ran.append((tuple(until), config.rewards.prefix))
        return {until[0]: SimpleNamespace(metrics={"tuned": {"rewards.prefix": 0.25}})}

    monkeypatch.setattr(pipeline, "_run", run)
    config = tiny_config(tmp_path, tmp_path, "tune.in_full=true", "rewards.prefix=0.5")
    assert set(pipeline.run(config, "evaluate")) == {"tune", "evaluate"}
    assert ran == [(("tune",), 0.5), (("evaluate",), 0.25)]
    monkeypatch.setattr(pipeline, "require_models", lambda config, stages: refuse(stages))
    with pytest.raises(InputError, match="evaluate cannot"):
        pipeline.run(config, "evaluate")
    assert len(ran) == 2, "what cannot end does not begin with hours of search"


def refuse(stages: Sequence[str]) -> None:
    if "evaluate" in stages:
        raise InputError("evaluate cannot be made")


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_ranks_its_trials_and_reports_those_that_failed(report: Artifact, config: Config) -> None:
    space = {"rewards.prefix": Dimension(low=0.0, high=0.5), "learning.rl.lr": Dimension(kind="choice", values=LRS)}
    small = config.replace({"tune.trials": 4, "tune.steps": 2, "tune.seeds": 2, "tune.searcher": "optuna"})
    found = made(small.replace({"tune.space": space, "tune.max_concurrent": 2}), "tune")
    record = SearchRecord.read(found.path)
    assert [one.values for one in record.trials][:1] == [{"rewards.prefix": 0.0, "learning.rl.lr": 3e-4}]
    assert record.default.id == record.trials[0].id
    ended = [one for one in record.trials if one.status == "finished"]
    for trial in ended:
        about = json.loads((found.path / "runs" / trial.id / "curve.json").read_text())
        checks = {point["step"]: point["ndcg@10"] for point in about["curve"] if "ndcg@10" in point}
        assert trial.metrics["ndcg@10"] == checks[about["best_step"]]
        assert [point["step"] for point in trial.curve] == sorted(checks)
        assert trial.steps == about["steps"] == 2, "a trial is as long as tune.steps says"
        assert "kl" in trial.audit and "prefix=" in trial.name
    for trial in record.trials:
        assert trial.status in ("finished", "diverged") and (trial.status == "finished") == (trial.error is None)
    rows = [row["ndcg@10"] for row in json.loads((found.path / "trials.json").read_text()) if row["status"] in ENDED]
    assert rows == sorted(rows, reverse=True) and len(record.default.seeds) == 2
    assert record.winner is not None and load_config([found.path / "tuned.yaml"])
