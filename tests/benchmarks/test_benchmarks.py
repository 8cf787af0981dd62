"""The benchmarks that train small policies: held-out items that are inserted, and tokenizers side by side."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import insert, tokenizers
from genrec.config import Config, Sid, to_yaml
from genrec.data.holdout import hold_out, pick_items
from genrec.data.tables import read_items, read_queries, read_sequences, validate_queries
from genrec.errors import InputError
from genrec.evaluation.intervals import over_runs
from genrec.sid.catalog import Catalog
from genrec.sid.quantizers import REGISTRY
from workflows import bench, embed, prepare

KMEANS = {name: REGISTRY[name] for name in ("rqkmeans", "vq", "rqvae")}


class Numbers:
    """Texts that name a number lie on a circle, so that items i and i + 1 are neighbours."""

    def encode(self, texts):
        where = np.array([int("".join(c for c in text.split("\n")[0] if c.isdigit())) for text in texts]) / 6
        return np.stack([np.cos(where), np.sin(where), np.cos(3 * where), np.sin(3 * where)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genrec.sid.embed.make_encoder", lambda settings, device: Numbers())
        patch.setattr("genrec.sid.build.write_page", lambda *page: None)
        settings = ("sid.cf_weight=0", "sid.codebook_size=4", "sid.epochs=5", "bench.items=4", "bench.seeds=2")
        config = tiny_config(tmp_path_factory.mktemp("storage"), chain_shop(tmp_path_factory.mktemp("shop")), *settings)
        embed.run(config)
        yield config


def changed(config: Config, **bench_settings) -> Config:
    return config.model_copy(update={"bench": config.bench.model_copy(update=bench_settings)})


def test_held_out_items_leave_no_trace_in_the_data_but_are_asked_for(config, tmp_path):
    data = prepare.run(config).path
    held = np.array([3, 7])
    hold_out(data, held, tmp_path)
    old, new = read_items(data)["id"].to_pylist(), read_items(tmp_path / "data")["id"].to_pylist()
    order = [*new, *pq.read_table(tmp_path / "held.parquet")["id"].to_pylist()]
    assert new == [name for row, name in enumerate(old) if row not in held] and order[22:] == ["i3", "i7"]
    for split in ("train", "valid", "test"):
        validate_queries(read_queries(tmp_path / "data", split), 22, config.data.max_history)
    before, after = (
        {row["id"]: row for row in read_queries(directory, "test").to_pylist()}
        for directory in (data, tmp_path / "asked")
    )
    assert {order[row["target"]] for row in after.values()} > {"i3", "i7"}
    for name, row in after.items():
        assert order[row["target"]] == old[before[name]["target"]]
        left = [old[item] for item in before[name]["history"] if item not in held]
        assert [order[item] for item in row["history"]] == left
    events = read_sequences(tmp_path / "data").to_pylist()
    for ours, theirs in zip(events, read_sequences(data).to_pylist(), strict=True):
        kept = [place for place, item in enumerate(theirs["items"]) if item not in held]
        assert [order[item] for item in ours["items"]] == [old[theirs["items"][place]] for place in kept]
        for column in ("split", "times"):
            assert ours[column] == [theirs[column][place] for place in kept]


def test_items_that_are_asked_for_are_held_out_first(config):
    asked = read_queries(prepare.run(config).path, "test")
    targets = set(asked["target"].to_pylist())
    few, many = (set(pick_items(asked, 24, count, 0).tolist()) for count in (4, 12))
    assert few <= targets and len(few) == 4 and len(many) == 12
    assert set(pick_items(asked.slice(0, 1), 24, 3, 0).tolist()) > set(asked["target"].to_pylist()[:1])
    with pytest.raises(InputError, match="half at most"):
        pick_items(asked, 24, 13, 0)


def test_an_inserted_item_is_found_without_training_and_the_others_stay(config, monkeypatch):
    outputs = prepare.run(config), embed.run(config)
    found = insert.run(config, *outputs)
    assert found.figures["held_hr@10_absent"] == found.figures["held_hr@50_absent"] == 0
    assert found.figures["held_hr@50_nearest"] == 1 and found.figures["held_hr@10_nearest"] > 0
    assert found.figures["others_hr@10_absent"] > 0.5
    assert abs(found.figures["others_hr@10_change"]) < 0.3
    assert found.figures["held_queries"] + found.figures["other_queries"] == 60
    place = Path(config.storage) / "bench" / "insert" / "insert"
    catalogs = [Catalog.load(path.parent) for path in place.glob("*/**/catalog.json")]
    assert len(catalogs) == 2 and {len(catalog) for catalog in catalogs} == {24}
    monkeypatch.setattr("cluster.train.sft_loop", None)
    assert insert.run(config, *outputs).figures == found.figures
    with pytest.raises(InputError, match="cannot place"):
        insert.run(config.model_copy(update={"sid": config.sid.model_copy(update={"quantizer": "given"})}), *outputs)


def test_the_command_prints_the_figures_and_refuses_bad_input_with_code_two(config, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("workflows.bench.configure_process", lambda config: None)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    monkeypatch.setattr("sys.argv", ["bench", "insert", str(tmp_path / "run.yaml"), "--json"])
    bench.main()
    shown = capsys.readouterr().out.splitlines()
    assert json.loads(shown[-1])["figures"]["held_hr@10_absent"] == 0
    monkeypatch.setattr("sys.argv", ["bench", "insert", str(tmp_path / "run.yaml"), "bench.items=20"])
    with pytest.raises(SystemExit) as refused:
        bench.main()
    assert refused.value.code == 2 and "half at most" in capsys.readouterr().err


def test_every_quantizer_has_a_row_and_the_chosen_ones_a_policy(config, monkeypatch):
    outputs = prepare.run(config), embed.run(config)
    chosen = changed(config, rows=("rqkmeans", "random"))
    found = tokenizers.run(chosen, *outputs)
    about = json.loads((Path(config.storage) / "bench" / "tokenizers" / "tiny.json").read_text())
    assert set(about["rows"]) == {*REGISTRY, "rqvae_ema", "rqkmeans_text", "rqkmeans_cf", "rqkmeans_fused"}
    assert not [name for name, row in about["rows"].items() if "refused" in row]
    for name, row in about["rows"].items():
        assert row["collisions_after"] == 0 <= row["collisions_before"] < 1, name
        assert len(row["codes_used"]) == len(row["perplexity"]) == len(row["neighbours_of_text"])
        assert row["fit_s"] >= 0 and row["assign_s"] >= 0
        assert (row["error"] is None) == (name in ("random", "title"))
    assert about["rows"]["rqkmeans_text"]["error"] == about["rows"]["rqkmeans"]["error"]
    ours, theirs = about["policies"]["rqkmeans"], about["policies"]["random"]
    assert set(ours["seeds"]) == {"0", "1"} and ours["ndcg@10"]["low"] < ours["ndcg@10"]["mean"]
    means = [np.mean([s["hr@10"] for s in row["seeds"].values()]) for row in (ours, theirs)]
    assert theirs["hr@10_difference"]["mean"] == pytest.approx(means[1] - means[0])
    assert ours["hr@10_difference"] == {"mean": 0, "low": 0, "high": 0}
    assert "| rqkmeans |" in found.table() and "[95 % t interval]" in found.table()
    monkeypatch.setattr("cluster.train.sft_loop", None)
    monkeypatch.setattr("genrec.sid.fit.make_quantizer", None)
    assert tokenizers.run(chosen, *outputs).table() == found.table()


def test_published_sids_are_a_row_where_the_items_have_them():
    assert "given" not in tokenizers.sections(Sid(), ["item", "id"])
    settings = tokenizers.sections(Sid(cf_weight=0.5, codebook="ema"), ["item", "sid"])
    assert settings["given"].quantizer == "given"
    assert settings["rqvae"].codebook == "gradient" and settings["rqvae_ema"].codebook == "ema"
    assert settings["vq"].level_sizes == (256,) and settings["vq"].collisions == "suffix"
    assert settings["rqkmeans_fused"].cf_weight == 0.5


def test_a_row_that_does_not_exist_or_cannot_be_made_is_told(config, monkeypatch):
    outputs = prepare.run(config), embed.run(config)
    with pytest.raises(InputError, match="the rows for this data"):
        tokenizers.run(changed(config, rows=("rqkmean",)), *outputs)
    monkeypatch.setattr("genrec.sid.quantizers.REGISTRY", {"pq": REGISTRY["pq"], "opq": REGISTRY["opq"], **KMEANS})
    wide = config.model_copy(update={"name": "wide", "sid": config.sid.model_copy(update={"levels": 5})})
    found = tokenizers.run(wide, *outputs)
    assert "pq is left out: vectors of 4 dimensions cannot be cut into 5 slices" in found.table()
    with pytest.raises(InputError, match="5 slices"):
        tokenizers.run(changed(wide, rows=("pq",)), *outputs)


def test_intervals_over_runs_are_those_of_students_t():
    assert over_runs([0.5]) == {"mean": 0.5, "low": None, "high": None}
    found = over_runs([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["high"] == pytest.approx(2 + 4.302653 / 3**0.5)
    with pytest.raises(InputError, match="no runs"):
        over_runs([])
