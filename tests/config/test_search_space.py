"""Which spaces a search may have, and what a config becomes in a trial."""

from pathlib import Path

import pytest

from genrec.config import Config, load_config, to_yaml
from genrec.config.search_space import (
    corners,
    dimensions,
    nested,
    own_values,
    remakes_earlier_stages,
    require_valid_corners,
    trial_config,
)
from genrec.errors import InputError


def config(*overrides: str) -> Config:
    return load_config([], list(overrides))


def test_the_short_form_is_a_uniform_weight_and_a_dotted_key_any_other() -> None:
    found = config(
        "tune.space.prefix=[0.1,1.0]",
        "tune.space.learning.rl.kl={kind: loguniform, low: 0.01, high: 1}",
        "tune.space.learning.rl={group: {kind: int, low: 4, high: 16}}",
    )
    kinds = {key: one.kind for key, one in dimensions(found).items()}
    assert kinds == {"rewards.prefix": "uniform", "learning.rl.kl": "loguniform", "learning.rl.group": "int"}
    assert own_values(found) == {"rewards.prefix": 0.0, "learning.rl.kl": 0.1, "learning.rl.group": 16}
    assert Config.model_validate(found.model_dump()) == found, "a shown config loads back"


def test_an_own_reward_of_the_user_is_searched_by_its_name() -> None:
    found = config("rewards.custom.mine=0.5", "tune.space.mine=[0,1]")
    assert own_values(found) == {"rewards.custom.mine": 0.5}
    assert trial_config(found, {"rewards.custom.mine": 0.75}).rewards.custom == {"mine": 0.75}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.space.learning.rl.kll=[0,1]"], "nearest are .'learning.rl.kl'"),
        (["tune.space.data.split={kind: choice, values: [given]}"], "cannot be searched"),
        (["tune.space.learning.rl.steps={kind: int, low: 1, high: 9}"], "cannot be searched"),
        (["tune.space.learning.rl=[0,1]"], "cannot be searched"),
        (["tune.space.prefix=[1,0]"], "low end must lie below the high end"),
        (["tune.space.prefix=[1,1]"], "low end must lie below the high end"),
        (["tune.space.prefix=[1]"], "wanted .low, high."),
        (["tune.space.prefix={kind: choice, values: []}"], "at least one"),
        (["tune.space.prefix={kind: choice, values: [1, 1]}"], "names one twice"),
        (["tune.space.prefix={kind: loguniform, low: 0, high: 1}"], "low above 0"),
        (["tune.space.prefix={kind: int, low: 0.5, high: 2}"], "whole numbers"),
        (["tune.space.prefix={kind: normal, low: 0, high: 2}"], "kind"),
        (["tune.space.prefix=[0,1]", "tune.space.rewards.prefix=[0,1]"], "twice"),
        (["tune.objectives=[reward]"], "tune.objectives"),
        (["tune.searcher=grid"], "wants kind grid, choice or int"),
        (["tune.searcher=grid", "tune.space.hit={kind: int, low: 1, high: 9}"], "has 9 points, and tune.trials is 4"),
        (["tune.space.hit={kind: grid, values: [1]}"], "is for tune.searcher=grid"),
        (["tune.gpu_hours=1"], "compute.worker_gpus is 0"),
        (["tune.hours=0"], "tune.hours"),
        (["tune.finalists=5"], "cannot be"),
        (["tune.searcher=pb2", "tune.scheduler=asha"], "take tune.scheduler=none"),
        (["tune.scheduler=asha", "tune.objectives=[ndcg@10,hr@50]"], "one metric"),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_the_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.space.learning.rl.ratio_clip=[0.5,1.5]"], "ratio_clip=1.5"),
        (["tune.space.learning.rl.objective={kind: choice, values: [grpo, 3]}"], "objective=3"),
        (["tune.space.learning.rl.group={kind: uniform, low: 2.5, high: 4}"], "group=2.5"),
        (
            ["tune.space.learning.rl={objective: {kind: choice, values: [grpo, gspo]}, "
             "advantage: {kind: choice, values: [auto, sibling]}}"],
            "advantage=sibling",
        ),
    ],
)  # fmt: skip
def test_a_space_with_values_that_make_no_config_is_refused_before_any_trial(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        require_valid_corners(config(*overrides))


def test_the_corners_of_a_large_space_are_one_key_at_a_time_and_all_at_once() -> None:
    few = dimensions(config("tune.space.prefix=[0,1]", "tune.space.hit={kind: choice, values: [1, 2, 3]}"))
    assert len(list(corners(few))) == 6
    many = dict.fromkeys((f"key{number}" for number in range(10)), next(iter(few.values())))
    found = list(corners(many))
    assert len(found) == 22 and sum(len(one) == 10 for one in found) == 2


def test_a_trial_is_as_long_as_the_search_says_and_validated_as_often() -> None:
    found = trial_config(config("tune.steps=20", "tune.validations=5"), {"rewards.prefix": 0.3}, seed=7)
    rl = found.learning.rl
    assert (rl.steps, rl.eval_every, found.rewards.prefix, found.seed) == (20, 4, 0.3, 7)


def test_values_are_nested_as_a_config_file_has_them() -> None:
    assert nested({"learning.rl.kl": 0.1, "rewards.hit": 2}) == {"learning": {"rl": {"kl": 0.1}}, "rewards": {"hit": 2}}


def test_keys_of_sft_and_of_semantic_ids_need_stages_of_their_own() -> None:
    assert not remakes_earlier_stages(["rewards.hit", "learning.rl.kl"])
    assert remakes_earlier_stages(["rewards.hit", "learning.sft.lr"])
    assert remakes_earlier_stages(["sid.codebook_size"])
    assert remakes_earlier_stages(["learning.rl.group"], fixed_groups=True)
    assert not remakes_earlier_stages(["learning.rl.lr"], fixed_groups=True)


def test_a_dimension_takes_the_place_of_one_of_another_form(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "tune:\n  space:\n    prefix: {kind: choice, values: [0, 1]}\n    learning.rl.kl: [0, 1]\n"
        "    learning: {rl: {lr: [0.1, 0.2]}}\n"
    )
    overrides = [
        "tune.space.prefix=[0.0,0.5]",
        "tune.space.learning.rl.kl={kind: choice, values: [1, 2]}",
        "tune.space.learning.rl.lr={kind: loguniform, low: 0.01, high: 0.2}",
        "tune.space.policy.kind={kind: choice, values: [scratch]}",
        "tune.space.hit.kind=int",
        "tune.space.hit.low=0",
        "tune.space.hit.high=3",
    ]
    space = load_config([file], overrides).tune.space
    assert {name: one.model_dump() for name, one in space.items()} == {
        "prefix": [0.0, 0.5],
        "learning.rl.kl": {"kind": "choice", "values": [1, 2]},
        "learning.rl.lr": {"kind": "loguniform", "low": 0.01, "high": 0.2},
        "policy.kind": {"kind": "choice", "values": ["scratch"]},
        "hit": {"kind": "int", "low": 0, "high": 3},
    }
    shown = tmp_path / "shown.yaml"
    shown.write_text(to_yaml(load_config([file], overrides)))
    assert load_config([shown], overrides[:1]).tune.space == space


def test_a_seed_that_some_library_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"seed.*less than 4294967296"):
        load_config([], ["seed=20240115120000"])
