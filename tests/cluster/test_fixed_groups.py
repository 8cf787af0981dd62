"""Groups that are generated once: made by shards, learned from again and again, refused where they do not belong."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pipeline import made
from support.synthetic import tiny_config

from cluster import pipeline
from cluster.stages import groups
from cluster.stages.groups import GroupWriter
from genrec.config import Config
from genrec.data.readers import read_queries
from genrec.errors import InputError
from genrec.learning.rl.fixed_groups import FixedGroups
from genrec.sid.catalog import Catalog
from genrec.types import Query, Snapshot

FIXED = (
    "learning.rl.groups=fixed",
    "learning.rl.objective=listwise",
    "learning.sft.epochs=2",
    "learning.rl.steps=9",
    "learning.rl.lr=1e-2",
    "learning.rl.warmup=0",
)


@pytest.fixture(scope="module")
def config(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("storage"), shop, *FIXED)


def origin(directory: Path) -> dict[str, str]:
    """What the groups in ``directory`` say they are of."""
    metadata = pq.read_schema(directory / "part-00000.parquet").metadata
    return {key.decode(): value.decode() for key, value in metadata.items() if key in (b"policy", b"catalog")}


def written(directory: Path) -> pa.Table:
    """All groups in ``directory``, by query."""
    return pa.concat_tables(map(pq.read_table, sorted(directory.glob("part-*.parquet")))).sort_by("id")


def test_a_run_learns_from_groups_that_were_generated_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    generated = made(config, "groups")
    monkeypatch.setattr(groups, "GroupWriter", lambda spec: pytest.fail("groups were generated again"))
    monkeypatch.setattr(
        "genrec.learning.rl.rollout.LocalRollouts.submit", lambda *given: pytest.fail("there was a rollout")
    )
    curve = json.loads((made(config, "grpo").path / "curve.json").read_text())["curve"]
    assert generated.metrics["groups"] == read_queries(made(config, "prepare").path, "train").num_rows
    updates = [record for record in curve if "loss" in record]
    assert [record["step"] for record in updates] == list(range(1, 10))
    assert all(record["zero_advantage_groups"] == 0 for record in updates)
    assert [record["staleness"] for record in updates] == list(range(9)), "all groups are of the SFT policy"
    assert updates[-1]["gradient_norm"] > 0 and "clip_fraction" not in updates[-1]
    losses = [record["surrogate"] for record in updates]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    other_rewards = config.replace({"rewards.prefix": 0.5})
    assert made(other_rewards, "groups").path == generated.path, "any rewards are paid on the same groups"


def test_a_killed_generation_goes_on_and_gives_the_same_groups(
    config: Config, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "SHARD_QUERIES", 32)
    again = tiny_config(tmp_path, shop, *FIXED)
    work, shards = GroupWriter.__call__, list[int]()

    def dies(self: GroupWriter, shard: int) -> dict[str, int]:
        if shard == 2 and shards == [0, 1]:
            raise KeyboardInterrupt
        shards.append(shard)
        return work(self, shard)

    monkeypatch.setattr(GroupWriter, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        made(again, "groups")
    shards.append(-1)
    path = made(again, "groups").path
    assert shards[:4] == [0, 1, -1, 2] and len(set(shards)) == len(shards)
    tables = [written(folder) for folder in (path, made(config, "groups").path)]
    assert tables[0].to_pydict() == tables[1].to_pydict()


def test_the_queries_of_fixed_groups_can_be_drawn(config: Config) -> None:
    drawn = made(config.replace({"learning.rl.fixed_queries": 40}), "groups")
    every = written(made(config, "groups").path)["id"].to_pylist()
    ids = written(drawn.path)["id"].to_pylist()
    assert len(set(ids)) == 40 and set(ids) < set(every)


@pytest.mark.parametrize("name", ["policy", "catalog"])
def test_groups_of_another_policy_or_catalogue_are_refused(config: Config, name: str) -> None:
    path = made(config, "groups").path
    codes_NL = Catalog.load(made(config, "assign").path).codes_NL
    mine = origin(path)
    assert FixedGroups(path, codes_NL, mine)
    with pytest.raises(InputError, match=f"groups of another {name}: got digest {mine[name][:12]}, wanted 0000.*again"):
        FixedGroups(path, codes_NL, {**mine, name: "0" * 64})


def test_missing_groups_and_queries_without_one_are_refused(config: Config, tmp_path: Path) -> None:
    path, codes_NL = made(config, "groups").path, Catalog.load(made(config, "assign").path).codes_NL
    with pytest.raises(InputError, match=r"no part-\*.parquet with fixed groups; run the stage groups first"):
        FixedGroups(tmp_path, codes_NL, {})
    with pytest.raises(InputError, match="got query 9999999, which has no fixed group"):
        FixedGroups(path, codes_NL, {}).submit([Query(9999999, 0, (1,), 2)], Snapshot(0, {}))


def test_rewards_that_never_differ_within_a_group_are_refused(config: Config) -> None:
    path = made(config, "groups").path
    fixed = FixedGroups(path, Catalog.load(made(config, "assign").path).codes_NL, origin(path))

    def equal(given: Sequence[object]) -> None:
        for group in given:
            group.rewards_G = group.items_G * 0.0  # type: ignore[attr-defined]

    queries = read_queries(made(config, "prepare").path, "train")
    with pytest.raises(InputError, match=r"fixed groups of which none has two different rewards.*learning\.rl\.group"):
        fixed.informative(queries, equal, config.learning.rl)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_ray_generates_and_learns_what_one_process_does(config: Config, shop: Path, tmp_path: Path) -> None:
    numbers = ("compute.workers=1", "compute.rollout_actors=1", "compute.rollout_cpus=0.25", "compute.data_actors=1")
    there = tiny_config(tmp_path, shop, *FIXED, *numbers)
    here = pipeline.run(config, "grpo")
    found = {**here, "groups": pipeline.run_stage(there, "groups", here)}
    tables = [written(one["groups"].path) for one in (here, found)]
    assert tables[0].equals(tables[1], check_metadata=True)
    learned = pipeline.run_stage(there, "grpo", found)
    weights = [(one.path / "policy.safetensors").read_bytes() for one in (here["grpo"], learned)]
    assert weights[0] == weights[1]
