from importlib import resources
from pathlib import Path

import pytest

from genrec.config import Config, Section, known_keys, load_config, packaged_file, packaged_names, to_yaml
from genrec.config.loading import RENAMED, renamed
from genrec.config.packaged import find_config
from genrec.errors import InputError

VERSIONS = [name for name in packaged_names() if name.startswith("versions/")]


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("learning: {rl: {lr: 1.0e-3, steps: 5}}")
    (tmp_path / "b.yaml").write_text("learning: {rl: {lr: 1.0e-4}}")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["learning.rl.kl=0.7"])
    assert (config.learning.rl.lr, config.learning.rl.steps, config.learning.rl.kl) == (1e-4, 5, 0.7)


def test_an_unknown_key_names_its_file_and_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("learning: {rl: {learning_rate: 1.0}}")
    with pytest.raises(InputError, match=r"learning\.rl\.learning_rate.*mine\.yaml.*nearest known key"):
        load_config([file])
    with pytest.raises(InputError, match=r"'learning\.rl\.stpes'.*'learning\.rl\.steps'"):
        load_config([], ["learning.rl.stpes=3"])


@pytest.mark.parametrize(
    "override",
    [
        "learning.rl.group=1",
        "policy.dropout=1.5",
        "data.split=random",
        "seed=x",
        "decode.prior_weight=3",
        "rewards.hit=.inf",
        "policy.hidden=90",
        "tune.space.foo=[0.0,1.0]",
        "learning.sft.example_format=tasks",
        "decode.width=5",
        "evaluation.ks=[1,5]",
        "evaluation.ks=[]",
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(override: str) -> None:
    key = override.split("=")[0]
    named = {"tune.space.foo": "tune.space"}.get(key, key)
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        load_config([], [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compute.workers=2", "compute.min_workers=3"], r"compute\.min_workers=3 is above compute\.workers=2"),
        (["compute.workers=0", "compute.min_workers=1"], r"compute\.min_workers=1 is above compute\.workers=0"),
        (["compute.workers=3", "compute.min_workers=1", "learning.rl.queries=32"], r"may be \[3\]"),
        (["compute.workers=5", "compute.min_workers=3", "learning.rl.queries=12"], r"may be \[5\]"),
        (
            ["compute.workers=2", "compute.min_workers=1", "learning.rl.objective=ppo"],
            r"results depend with learning\.rl\.objective=ppo",
        ),
        (
            ["compute.workers=2", "compute.min_workers=1", "learning.rl.oversample=2"],
            r"results depend with learning\.rl\.oversample above 1",
        ),
    ],
)
def test_a_range_of_workers_that_cannot_be_kept_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config([], overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning.sft.example_format=rows", "reads whole sequences"),
        ("learning.sft.loss.second_pass=0.3", "has no second pass"),
        ("learning.refit=true", r"learning\.refit joins whole tables"),
        ("learning.sft.pool=100", r"pool=100 is smaller than a batch .*=128"),
    ],
)
def test_a_stream_is_refused_what_needs_the_whole_training_set(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config([], ["learning.sft.ingest=stream", override])


def test_a_missing_file_broken_yaml_and_a_bare_word_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- 1")
    for files, overrides, message in (
        ([tmp_path / "none.yaml"], [], "not found"),
        ([tmp_path / "broken.yaml"], [], "not valid YAML of config keys: while parsing .* in .*, line [0-9]+, column"),
        ([tmp_path / "list.yaml"], [], "mapping"),
        ([], ["nonsense"], "not of the form"),
    ):
        with pytest.raises(InputError, match=message):
            load_config(files, overrides)


def test_the_shown_config_loads_back_to_itself(tmp_path: Path) -> None:
    config = load_config([], ["rewards.prefix=0.25", "tune.space.prefix=[0.0,1.0]"])
    (tmp_path / "shown.yaml").write_text(to_yaml(config))
    assert load_config([tmp_path / "shown.yaml"]) == config


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(old: str, new: str, tmp_path: Path) -> None:
    assert new in known_keys(), "the new name must exist"
    with pytest.raises(InputError, match=f"config key '{old}' in the command line .* has a new name: '{new}'"):
        load_config([], [f"{old}=1"])
    (tmp_path / "old.yaml").write_text(to_yaml_of(f"{old}.inner"))
    with pytest.raises(InputError, match=rf"config key '{old}\.inner' in .*old\.yaml has a new name: '{new}\.inner'"):
        load_config([tmp_path / "old.yaml"])


def to_yaml_of(key: str) -> str:
    """YAML that sets a dotted key."""
    names = key.split(".")
    return ": {".join(names) + ": 1" + "}" * (len(names) - 1)


def test_a_section_that_was_renamed_gives_the_new_names_of_its_keys() -> None:
    assert renamed("learning.grpo.steps") == "learning.rl.steps"
    assert renamed("learning.grpo.average") == "learning.rl.ema_decay"
    assert (
        renamed("learning.stages.rows.tasks.next_item.weight")
        == "learning.stages.sid_embeddings.tasks.next_item.weight"
    )
    assert renamed("learning.rl.steps") is None


def test_no_key_has_both_an_old_name_and_a_new_one() -> None:
    assert not set(RENAMED) & set(known_keys())


def test_a_config_is_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = load_config(["demo", "cpu"])
    assert by_name.name == "demo" and by_name.compute.device == "cpu"
    assert load_config(["demo.yaml", "cpu.yaml"]) == by_name
    assert find_config("versions/v1") == packaged_file("versions/v1.yaml")
    for name in packaged_names():
        assert resources.files("configs").joinpath(f"{name}.yaml").is_file()
    for name in ("deepspeed/zero2.json", "deepspeed/zero3.json"):
        assert packaged_file(name).is_file()


def test_what_a_wheel_must_hold_is_found_as_package_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for package, name in (
        ("cluster", "runtime_env.yaml"),
        ("genrec", "sid/health.html.j2"),
        ("genrec", "evaluation/report/report.html.j2"),
        ("genrec", "policy/chat/languages/en.yaml"),
        ("genrec", "policy/chat/languages/zh.yaml"),
    ):
        assert resources.files(package).joinpath(name).is_file(), name


def test_a_file_of_the_working_directory_wins_over_the_packaged_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("name: mine")
    assert load_config(["demo.yaml"]).name == "mine"
    assert load_config(["demo"]).name == "demo"


@pytest.mark.parametrize(
    ("given", "nearest"), [("dmeo", "demo"), ("cpux.yaml", "cpu"), ("configs/industrail.yaml", "industrial")]
)
def test_an_unknown_config_is_refused_with_the_nearest_name(given: str, nearest: str) -> None:
    with pytest.raises(
        InputError, match=rf"not found: {given}; wanted: .*a100, beauty.*\(the nearest is '{nearest}'\)"
    ):
        load_config([given])


@pytest.mark.parametrize(
    "override",
    [
        "learning.sft.micro_batch=1",
        "learning.sft.checkpoint_every=1",
        "learning.rl.micro_queries=1",
        "learning.rl.rollout_chunk=1",
        "embed.batch_size=1",
        "decode.batch_size=1",
        "decode.prompt_cache_mb=0",
        "tune.max_concurrent=3",
        "compute.threads=7",
        "compute.device=cuda",
        "learning.instruction.teacher.timeout_s=1.0",
        "learning.instruction.teacher.concurrency=2",
    ],
)
def test_a_setting_of_speed_is_no_part_of_the_result_settings(override: str) -> None:
    changed = load_config([], [override])
    assert changed != Config()
    assert changed.result_settings() == Config().result_settings()


@pytest.mark.parametrize("override", ["learning.sft.lr=1.0", "rewards.settings.horizon=7", "seed=1", "data.shards=8"])
def test_any_other_setting_is_part_of_the_result_settings(override: str) -> None:
    assert load_config([], [override]).result_settings() != Config().result_settings()


def test_result_settings_hold_every_field_that_is_not_marked_speed() -> None:
    def check(section: Section, settings: dict[str, object]) -> None:
        for name, field in type(section).model_fields.items():
            assert (name in settings) == (section.effect_of(field) == "result"), name
            if isinstance(value := getattr(section, name), Section):
                check(value, settings[name])  # type: ignore[arg-type]

    check(Config(), Config().result_settings())
    assert Config().result_settings()["compute"] == {}


@pytest.mark.parametrize("name", packaged_names())
def test_every_packaged_config_is_valid_and_names_its_command(name: str) -> None:
    load_config(["versions/v1", name] if name == "qwen2.5-3b" else [name])
    head = [line for line in packaged_file(f"{name}.yaml").read_text().splitlines() if line.startswith("#   genrec ")]
    assert len(head) == 1
    words = head[0].split()[3:]
    assert name in words
    load_config([word for word in words if "=" not in word], [word for word in words if "=" in word])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("data", ["demo", "industrial", "beauty"])
@pytest.mark.parametrize("machine", ["cpu", "a100", "cluster"])
def test_every_version_goes_with_every_data_set_and_machine(version: str, data: str, machine: str) -> None:
    config = load_config([data, version, machine])
    assert config.policy.kind == "pretrained"
    assert f"versions/{config.name}" == version
    if config.name == "three_stage":
        return
    alone = load_config([version])
    assert config.rewards == alone.rewards, "a data set's own rewards are no part of a version"
    for name in ("objective", "kl", "sft", "ema_decay", "advantage", "generation"):
        assert getattr(config.learning.rl, name) == getattr(alone.learning.rl, name), name


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_goes_with_the_large_model_and_keeps_its_own_method(version: str) -> None:
    small = load_config(["industrial", version, "a100"])
    large = load_config(["industrial", version, "qwen2.5-3b", "a100"])
    assert large.policy.path == "Qwen/Qwen2.5-3B-Instruct" != small.policy.path
    assert large.compute.gradient_checkpointing and large.learning.sft.batch_size == 256
    for name in ("sid", "rewards"):
        assert getattr(large, name) == getattr(small, name)
    assert large.policy.finetuning == small.policy.finetuning
    assert large.learning.sft.loss == small.learning.sft.loss
    assert large.learning.rl.objective == small.learning.rl.objective


@pytest.mark.parametrize("key", ["data.path", "compute.mlflow_uri"])
def test_urls_with_a_password_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} has a password"):
        load_config([], ["compute.trackers=[mlflow]", f"{key}=https://me:secret@host/place"])
