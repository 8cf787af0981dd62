"""The last training before serving: on validation events too, for the chosen steps, and never on the test."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pipeline import made
from support.service import HEADERS, KEY, client_of, make_service
from support.synthetic import chain_shop, tiny_config

import genrec
from cluster import pipeline
from cluster.update.run_update import update_run
from genrec.baselines.train_log import train_log
from genrec.data.readers import read_queries, read_sequences
from genrec.data.refit import refit_sequences, write_refit_data
from genrec.data.tables import SEQUENCES
from genrec.errors import InputError
from genrec.learning.sft.batches import DenseExamples
from genrec.learning.sft.dense_windows import count_windows
from genrec.learning.sft.trainer import SftTrainer

SETTINGS = ("sid.quantizer=title", "sid.cf_weight=0", "learning.refit=true", "decode.prior=itemknn_nodes")


def test_validation_becomes_training_and_events_from_the_first_test_on_stay_out_of_it() -> None:
    row = {"user": 0, "user_id": "a", "items": [4, 2, 7, 1, 9], "split": [0, 1, 2, 3, 2], "times": [1, 2, 3, 4, 5]}
    untested = {"user": 1, "user_id": "b", "items": [1, 2], "split": [0, 2], "times": [1, 2]}
    columns = {name: [one[name] for one in (row, untested)] for name in row}
    columns |= {"events": [list("abcde"), None], "values": [None, [1.0, 2.0]]}
    found = refit_sequences(pa.table(columns, schema=SEQUENCES))
    assert found["split"].to_pylist() == [[0, 1, 1, 3, 3], [0, 1]]
    for name in ("items", "times", "events", "values"):
        assert found[name].to_pylist() == columns[name]
    assert train_log(found, 10).items_E.tolist() == [4, 2, 7, 1, 2]
    assert count_windows(found, history=5) == 2 and DenseExamples(found, 5).take(np.arange(2)).items_BI.max() == 7


def test_a_refitted_run_is_reported_beside_the_strict_one_and_served(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), *SETTINGS)
    report = pipeline.run(config, "evaluate")
    strict = pipeline.run(config.replace({"learning.refit": False}), "evaluate")["evaluate"]
    metrics, before = (json.loads((one.path / "metrics.json").read_text()) for one in (report["evaluate"], strict))
    assert {"refit_model", "refit_itemknn"} <= set(metrics) and not any(name.startswith("refit") for name in before)
    for name in ("model", "baselines", "headline", "sid_path"):
        assert metrics[name] == before[name], "the strict rows do not depend on the refit"
    data = report["refit"].path / "data"
    targets = {split: read_queries(data, split).num_rows for split in ("train", "valid", "test")}
    old = {split: read_queries(report["prepare"].path, split).num_rows for split in ("train", "valid", "test")}
    assert targets == {"train": old["train"] + old["valid"], "valid": 0, "test": old["test"]}
    events = [len(train_log(read_sequences(one), 24).items_E) for one in (report["prepare"].path, data)]
    assert events[1] == events[0] + old["valid"]
    html = (report["evaluate"].path / "report.html").read_text()
    assert "Model, trained on train + valid" in html
    about = json.loads((report["evaluate"].path / "recommender.json").read_text())
    assert about["parts"]["policy"] == f"refit/{report['refit'].key}"
    assert genrec.load(tmp_path / "storage" / "runs" / "tiny").recommend(["i3", "i4", "i5"], k=3)[0].id == "i6"


def test_a_refitted_run_serves_and_updates_users_with_their_whole_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENREC_API_KEY", KEY)
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), *SETTINGS)
    made(config, "evaluate")
    with client_of(make_service(tmp_path / "storage", "tiny")) as client:
        found = client.post("/v1/recommend", json={"user": "u0", "k": 1}, headers=HEADERS).json()
    assert found["items"][0]["id"] == "i8", "u0 bought i0 … i7, the last one in the test"
    log = pa.table({"user_id": ["u0", "u0"], "item_id": ["i7", "i8"], "timestamp": [7, 1_000_000]})
    pq.write_table(log, tmp_path / "new.parquet")
    quick = {"learning.update.steps": 1, "learning.update.held_out": 1e-9}
    done = update_run(tmp_path / "storage" / "runs" / "tiny", tmp_path / "new.parquet", None, quick)
    assert done.counts["known"] == 1 and done.counts["new"] == 1, "the test event is known"
    assert "old" in done.curve[0], "the guard looks at queries of before, which no training has seen"
    (written,) = (tmp_path / "storage" / "update").glob("*/data")
    query = read_queries(written, "train").to_pylist()[-1]
    assert (query["user_id"], query["history"], query["target"]) == ("u0", [3, 4, 5, 6, 7], 8)
    assert bool(done.run) == (written.parent / "policy.json").is_file(), "a refused policy is not kept"


def test_a_refit_has_the_schedule_of_the_training_whose_steps_were_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int] = []
    first = SftTrainer.__init__

    def noted(self: SftTrainer, *given: object, **options: object) -> None:
        first(self, *given, **options)  # type: ignore[arg-type]
        totals.append(self.total_steps // self._epochs.steps)

    monkeypatch.setattr(SftTrainer, "__init__", noted)
    settings = (*SETTINGS, "learning.sft.epochs=0", "learning.sft.batch_size=1", "learning.sft.eval_steps=50")
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), *settings, "learning.sft.patience=1")
    pipeline.run(config, "refit")
    assert totals == [19, 19], "60 train sequences are 19 epochs of 60 steps"


def test_a_killed_refit_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = chain_shop(tmp_path / "shop")
    whole, killed = (tiny_config(tmp_path / name, shop, *SETTINGS) for name in ("whole", "killed"))
    expected = (made(whole, "refit").path / "policy.safetensors").read_bytes()
    made(killed, "sft")
    step = SftTrainer._step

    def dies(self: SftTrainer, number: int) -> dict[str, float]:
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SftTrainer, "_step", dies)
        made(killed, "refit")
    assert (made(killed, "refit").path / "policy.safetensors").read_bytes() == expected


def test_without_validation_events_or_with_tasks_it_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), *SETTINGS)
    prepared = made(config, "prepare").path
    for part in (prepared / "queries" / "valid").iterdir():
        part.unlink()
    pq.write_table(read_queries(prepared, "test").slice(0, 0), prepared / "queries" / "valid" / "part-00000.parquet")
    with pytest.raises(InputError, match=r"learning\.refit=false"):
        write_refit_data(prepared, tmp_path / "refit")
    learned = {"learning.sft.example_format": "tasks", "learning.tasks.semantic_recovery.weight": 1.0}
    tasks = config.replace({**learned, "policy.tokenizer": "bytes", "policy.arch": "qwen3"})
    with pytest.raises(InputError, match=r"learning\.refit=true trains next items alone"):
        pipeline.STAGES["refit"].plan(pipeline.StageRun(tasks, {}))
