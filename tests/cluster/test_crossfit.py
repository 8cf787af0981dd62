"""Groups of policies that never saw the user: a policy for each fold of the users, a group for every query."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pipeline import made
from support.synthetic import tiny_config

from cluster.stages import sft
from genrec.config import Config
from genrec.data.folds import folds_of
from genrec.data.readers import read_queries, read_sequences
from genrec.errors import InputError
from genrec.learning.rl.fixed_groups import FixedGroups
from genrec.sid.catalog import Catalog

CROSSFIT = (
    "learning.rl.groups=crossfit",
    "learning.rl.objective=listwise",
    "learning.sft.epochs=1",
    "learning.rl.steps=3",
    "sid.quantizer=title",
)


@pytest.fixture(scope="module")
def config(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("storage"), shop, *CROSSFIT)


def test_every_query_gets_a_group_of_a_policy_that_never_saw_its_user(config: Config) -> None:
    data, trained = made(config, "prepare").path, made(config, "folds").path
    train = read_queries(data, "train")
    seen, digests = [], set()
    for fold in range(2):
        own = trained / f"fold-{fold}"
        users = {*read_queries(own / "data", "train")["user"].to_pylist()}
        assert {*read_sequences(own / "data")["user"].to_pylist()} == users
        assert read_queries(own / "data", "valid").equals(read_queries(data, "valid"))
        digests.add((own / "policy.safetensors").read_bytes())
        seen.append(users)
    every = {*train["user"].to_pylist()}
    assert seen[0] | seen[1] == every and not seen[0] & seen[1] and abs(len(seen[0]) - len(seen[1])) <= 1
    assert len(digests) == 2, "two policies"
    files = sorted(made(config, "groups").path.glob("part-*.parquet"))
    owner = dict(zip(train["id"].to_pylist(), train["user"].to_pylist(), strict=True))
    for fold, file in enumerate(files):
        ids = pq.read_table(file)["id"].to_pylist()
        assert not {owner[id_] for id_ in ids} & seen[fold], "the policy of this fold never saw them"
    written = pa.concat_tables(map(pq.read_table, files))
    assert sorted(written["id"].to_pylist()) == sorted(owner)
    curve = json.loads((made(config, "grpo").path / "curve.json").read_text())["curve"]
    updates = [record for record in curve if "loss" in record]
    assert len(updates) == 3 and updates[-1]["gradient_norm"] > 0


def test_a_fold_that_is_trained_is_not_trained_again(
    config: Config, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, work, names = tiny_config(tmp_path, shop, *CROSSFIT), sft.run_training, list[str]()

    def dies(loop: Any, spec: Any, name: str) -> None:
        names.append(name)
        if names == ["fold-0", "fold-1"]:
            raise KeyboardInterrupt
        work(loop, spec, name)

    monkeypatch.setattr(sft, "run_training", dies)
    with pytest.raises(KeyboardInterrupt):
        made(again, "folds")
    (unfinished,) = (tmp_path / "folds").glob("*.partial")
    before = (unfinished / "fold-0" / "policy.safetensors").stat().st_mtime_ns
    path = made(again, "folds").path
    assert (path / "fold-0" / "policy.safetensors").stat().st_mtime_ns == before
    same = made(config, "folds").path
    for fold in ("fold-0", "fold-1"):
        assert (path / fold / "policy.safetensors").read_bytes() == (same / fold / "policy.safetensors").read_bytes()


def test_policies_of_folds_learn_from_a_stream_where_the_config_says_so(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("all sequences were read into memory")

    monkeypatch.setattr(sft, "make_examples", refuse)
    config = tiny_config(tmp_path, shop, *CROSSFIT, "learning.sft.ingest=stream")
    assert {"valid_ndcg@10/0", "valid_ndcg@10/1"} <= {*made(config, "folds").metrics}


def test_more_folds_than_users_are_refused(config: Config) -> None:
    with pytest.raises(
        InputError, match=r"learning\.rl\.folds=500: got 60 users with training queries, wanted one for"
    ):
        made(config.replace({"learning.rl.folds": 500}), "folds")
    queries = read_queries(made(config, "prepare").path, "train")
    assert {*folds_of(queries, 60, seed=0).tolist()} == {*range(60)}, "no fold is without users"


def test_groups_of_other_folds_or_of_the_sft_policy_are_refused(config: Config) -> None:
    path, catalog = made(config, "groups").path, Catalog.load(made(config, "assign").path)
    for wanted in ("crossfit/3", "0123456789abcdef"):
        with pytest.raises(InputError, match=f"of another policy: got digest crossfit/2, wanted {wanted[:12]}"):
            FixedGroups(path, catalog.codes_NL, {"policy": wanted, "catalog": catalog.digest})


def test_a_config_that_learns_tasks_is_refused(config: Config) -> None:
    tasks = {"policy.tokenizer": "bytes", "policy.arch": "qwen3", "learning.sft.example_format": "tasks"}
    more = config.replace({**tasks, "learning.tasks.next_item": {"weight": 1.0}})
    with pytest.raises(InputError, match="crossfit trains next items alone, and the config learns tasks"):
        made(more, "folds")
