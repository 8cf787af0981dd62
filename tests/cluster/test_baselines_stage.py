"""The stage ``baselines``: rows that are made once, rows that fail, and both in the report."""

import errno
import json

import pytest
from support.pipeline import made
from support.synthetic import tiny_config

from cluster import baseline_rows, pipeline
from cluster.stages import baselines
from genrec.baselines.ranking_files import RANKING, read_ranking, write_ranking
from genrec.data.object_store import explained
from genrec.errors import BeingWrittenError, InputError, MachineError
from genrec.learning.checkpoints import refusing_failed_writes

NETWORK = [f"baselines.sasrec.{one}" for one in ("hidden=16", "layers=1", "epochs=6", "batch_size=16", "lr=1e-2")]


def test_rows_stand_in_the_report_and_one_that_fails_is_said_there(shop, tmp_path, caplog):
    names = "[popularity,itemknn,repeat_last,star,als,sasrec]"
    fast = ["learning.sft.epochs=1", "learning.rl.steps=1", "baselines.counted=3"]
    config = tiny_config(tmp_path / "st", shop, f"evaluation.baselines={names}", *NETWORK, *fast)
    report = made(config, "evaluate").path
    metrics = json.loads((report / "metrics.json").read_text())
    assert list(metrics["baselines"]) == ["popularity", "itemknn", "star", "als", "sasrec"]
    assert metrics["baselines"]["star"]["hr@10"] > metrics["baselines"]["popularity"]["hr@10"]
    assert metrics["baseline_settings"]["sasrec"]["best_epoch"] >= 1
    assert "never repeats" in caplog.text or "seen items are masked" in metrics["baselines_failed"]["repeat_last"]
    page = (report / "report.html").read_text()
    assert "No row of Repeat-last" in page and "SASRec" in page
    again = pipeline.run(config, "baselines")["baselines"]
    assert again.skipped and "to try it again, delete" in caplog.text


def test_another_row_or_a_changed_one_leaves_the_others_as_they_are(shop, tmp_path):
    def rows(*overrides):
        return made(tiny_config(tmp_path / "st", shop, *NETWORK, *overrides), "baselines").metrics["rows"]

    one = rows("evaluation.baselines=[sasrec]")
    two = rows("evaluation.baselines=[sasrec,text]", "baselines.bsarec.lr=0.5")
    assert one["sasrec"]["key"] == two["sasrec"]["key"] and set(two) == {"sasrec", "text"}
    assert rows("evaluation.baselines=[sasrec]", "baselines.sasrec.lr=2e-2")["sasrec"]["key"] != one["sasrec"]["key"]


TIGER = [
    f"baselines.tiger.{one}"
    for one in ("hidden=16", "layers=1", "heads=2", "inner=32", "epochs=8", "batch_size=16", "lr=1e-2", "users=4")
]


def test_tiger_reads_the_semantic_ids_and_the_other_rows_do_not(shop, tmp_path):
    def needed(*names):
        config = tiny_config(tmp_path, shop, f"evaluation.baselines=[{','.join(names)}]")
        return {stage.name for stage in pipeline.stages_needed(config, "baselines")}

    assert needed("sasrec") == {"prepare", "baselines"} and "assign" in needed("sasrec", "tiger")
    config = tiny_config(tmp_path / "st", shop, *NETWORK, *TIGER, "evaluation.baselines=[tiger]", "sid.cf_weight=0")
    stage = made(config, "baselines")
    row = stage.metrics["rows"]["tiger"]
    assert row["settings"]["valid_ndcg@10"] > 0.3 and row["settings"]["beam"] == 100
    ranked = read_ranking(stage.path / "tiger" / RANKING, 60)
    assert ranked.max() < 24 and all(len(set(one[one >= 0])) == (one >= 0).sum() for one in ranked)
    inputs = json.loads((tmp_path / "st/baseline" / row["key"] / "manifest.json").read_text())["inputs"]
    assert set(inputs) == {"prepare", "assign"}
    sasrec = baseline_rows.make_row(config, "sasrec", pipeline.run(config, "prepare", "assign"))
    assert set(json.loads((sasrec.path / "manifest.json").read_text())["inputs"]) == {"prepare"}


def test_without_more_baselines_there_is_no_such_stage(shop, tmp_path):
    stages = [stage.name for stage in pipeline.stages_needed(tiny_config(tmp_path, shop), "evaluate")]
    assert "baselines" not in stages


def test_further_trainings_are_compared_on_validation(shop, tmp_path):
    config = tiny_config(tmp_path / "st", shop, *NETWORK, "evaluation.baselines=[sasrec]", "baselines.trained=2")
    row = baseline_rows.make_row(config, "sasrec", pipeline.run(config, "prepare"))
    scores = [
        json.loads((row.path / f"training-{number}/curve.json").read_text())["valid_ndcg@10"] for number in (0, 1)
    ]
    assert row.metrics["settings"]["valid_ndcg@10"] == max(scores) and row.metrics["settings"]["tried"] == 2


def test_a_missing_library_names_its_extra(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("genrec.baselines.factors.find_spec", lambda name: None)
    config = tiny_config(tmp_path / "st", shop, "evaluation.baselines=[als,text]")
    found = made(config, "baselines").metrics
    assert "genrec[baselines]" in found["failed"]["als"] and set(found["rows"]) == {"text"}


def test_semantic_ids_that_are_given_bring_no_vectors_for_text(shop, tmp_path):
    config = tiny_config(tmp_path / "st", shop, "evaluation.baselines=[text]")
    with pytest.raises(InputError, match="compare item vectors"):
        baseline_rows.make_row(config, "text", pipeline.run(config, "prepare"))


def test_a_name_that_does_not_exist_or_comes_twice_is_refused(shop, tmp_path):
    with pytest.raises(InputError, match="Input should be"):
        tiny_config(tmp_path, shop, "evaluation.baselines=[sasrek]")
    with pytest.raises(InputError, match="twice"):
        tiny_config(tmp_path, shop, "evaluation.baselines=[itemknn,itemknn]")


def test_rankings_of_other_queries_are_refused(tmp_path):
    import numpy as np

    ranked = np.array([[1, 2, -1], [0, 4, 3]])
    write_ranking(ranked, tmp_path / RANKING)
    assert np.array_equal(read_ranking(tmp_path / RANKING, 2), ranked)
    with pytest.raises(InputError, match="2 queries, wanted 3"):
        read_ranking(tmp_path / RANKING, 3)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_network_trained_on_ray_ranks_as_one_trained_here(shop, tmp_path):
    import numpy as np

    ranked = []
    for workers in (0, 2):
        where = tmp_path / str(workers)
        config = tiny_config(where, shop, *NETWORK, "evaluation.baselines=[sasrec]", f"compute.workers={workers}")
        row = baseline_rows.make_row(config, "sasrec", pipeline.run(config, "prepare"))
        assert not list(row.path.glob("training-0/*checkpoint*")) and not (row.path / "training-0/train").exists()
        ranked.append(read_ranking(row.path / RANKING, 60))
    assert np.array_equal(*ranked)


def test_a_row_that_another_command_makes_is_not_left_out_of_the_report(shop, tmp_path, monkeypatch):
    def busy(*arguments):
        raise BeingWrittenError("another process is writing it")

    monkeypatch.setattr(baseline_rows, "make_row", busy)
    config = tiny_config(tmp_path, shop, "evaluation.baselines=[itemknn,als]")
    with pytest.raises(BeingWrittenError):
        baselines._make(config, {}, tmp_path)


def test_a_row_that_a_store_or_a_disk_failed_is_not_a_baseline_that_cannot_be_made(shop, tmp_path, monkeypatch):
    def full(*arguments):
        with refusing_failed_writes("the disk"):
            raise OSError(errno.ENOSPC, "No space left on device")

    def gone(*arguments):
        raise explained(OSError("AWS Error NETWORK_CONNECTION"), "s3://shop/genrec")

    config = tiny_config(tmp_path, shop, "evaluation.baselines=[itemknn,als]")
    for fails in (full, gone):
        monkeypatch.setattr(baseline_rows, "make_row", fails)
        with pytest.raises(MachineError, match=r"; or leave als out of the baselines$"):
            baselines._make(config, {}, tmp_path)
