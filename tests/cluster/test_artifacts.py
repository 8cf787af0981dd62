"""Keys hold what changes a result and only that; unfinished work is kept, named, and never mixed."""

import logging
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

from cluster import artifacts, fingerprint, pipeline
from cluster.artifacts import PENDING, Artifact, Recipe, make_artifact
from cluster.stages import prepare
from cluster.stages.plan import StageRun
from genrec.config import Config
from genrec.data.files import temporary_beside
from genrec.errors import InputError, MachineError


def key_of(config: Config, stage: str) -> str:
    """The key of a stage whose inputs are made up: nothing is computed."""
    inputs = {
        name: Artifact(name, Path("/none"), "0", {}, True) for name in pipeline.reads(pipeline.STAGES[stage], config)
    }
    declared = pipeline.STAGES[stage]
    plan = declared.plan(StageRun(config, inputs))
    return Recipe(stage, plan.settings, (declared.code,), list(inputs.values())).key


@pytest.mark.parametrize(
    "override",
    [
        "learning.sft.micro_batch=4",
        "learning.sft.checkpoint_every=7",
        "learning.rl.micro_queries=2",
        "learning.rl.rollout_chunk=3",
        "decode.batch_size=3",
        "decode.prompt_cache_mb=0",
        "embed.batch_size=2",
        "compute.threads=3",
        "compute.workers=2",
        "compute.data_actors=2",
        "tune.max_concurrent=2",
    ],
)
def test_what_changes_the_speed_alone_changes_no_key(shop: Path, tmp_path: Path, override: str) -> None:
    plain, other = tiny_config(tmp_path, shop), tiny_config(tmp_path, shop, override)
    assert {name: key_of(plain, name) for name in pipeline.STAGES} == {
        name: key_of(other, name) for name in pipeline.STAGES
    }


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("data.max_history=4", {"prepare", "sft", "folds", "served", "value"}),
        ("embed.max_tokens=8", {"embed"}),
        ("sid.iterations=3", {"assign"}),
        ("learning.sft.lr=1e-4", {"sft", "folds"}),
        ("policy.hidden=64", {"sft", "folds"}),  # Other stages know the policy by their input.
        ("learning.rl.lr=1e-4", {"grpo", "tune"}),
        ("rewards.prefix=0.5", {"grpo", "tune"}),
        ("learning.rl.group=6", {"groups", "grpo", "tune"}),
        ("learning.rl.guard.goal=value@10", {"grpo", "tune"}),
        ("rewards.settings.rare=2", {"grpo", "tune", "evaluate"}),
        ("tune.trials=9", {"tune"}),
        ("decode.width=60", {"evaluate", "served"}),
        ("decode.value=true", {"evaluate", "served"}),
        ("seed=5", {"assign", "sft", "folds", "served", "groups", "grpo", "tune", "value", "evaluate"}),
    ],
)
def test_what_changes_a_result_changes_the_keys_of_its_stages(
    shop: Path, tmp_path: Path, override: str, stages: set[str]
) -> None:
    plain, other = tiny_config(tmp_path, shop), tiny_config(tmp_path, shop, override)
    assert {name for name in pipeline.STAGES if key_of(plain, name) != key_of(other, name)} == stages


@pytest.mark.parametrize(
    ("fixed", "piece", "stage", "counts"),
    [
        ("learning.sft.loss.weights=[hard]", "learning.sft.micro_batch=4", "sft", True),
        ("learning.rl.oversample=2", "compute.workers=2", "grpo", True),
        ("learning.rl.advantage=batch_std", "compute.workers=2", "grpo", False),
        ("learning.rl.objective=ppo", "compute.workers=2", "grpo", False),
        ("learning.rl.objective=dapo", "compute.workers=2", "grpo", False),
        ("learning.rl.generation=sample", "learning.rl.rollout_chunk=3", "grpo", False),
    ],
)
def test_where_a_result_depends_on_the_pieces_their_size_is_in_the_key(
    shop: Path, tmp_path: Path, fixed: str, piece: str, stage: str, counts: bool
) -> None:
    plain, other = tiny_config(tmp_path, shop, fixed), tiny_config(tmp_path, shop, fixed, piece)
    assert (key_of(plain, stage) != key_of(other, stage)) == counts


def test_vectors_of_the_two_precisions_never_share_a_directory(shop: Path, tmp_path: Path) -> None:
    keys = {key_of(tiny_config(tmp_path, shop, f"compute.device={device}"), "embed") for device in ("cpu", "cuda")}
    assert len(keys) == 2


def test_the_same_bytes_in_another_folder_are_the_same_run(shop: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(shop, tmp_path / "moved"))
    first, second = (tiny_config(tmp_path / "storage", folder) for folder in (shop, moved))
    artifact = made(first, "prepare")
    again = made(second, "prepare")
    assert not artifact.skipped and again.skipped and again.path == artifact.path
    log = chain_shop(tmp_path / "other", users=11)
    assert made(tiny_config(tmp_path / "storage", log), "prepare").path != artifact.path


def test_code_counts_and_comments_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "probe_of_code.py"

    def digest(text: str) -> str:
        module.write_text(text)
        for cached in (fingerprint._file, fingerprint._tree, fingerprint._tree_digest, fingerprint._imports):
            cached.cache_clear()
        return fingerprint.code_digest("probe_of_code")

    first = digest('"""One."""\ndef f(x):\n    return x + 1\n')
    assert digest('"""Two."""\n\n# why\ndef f(x):\n    """Say."""\n    return (x + 1)\n') == first
    assert digest('"""One."""\ndef f(x):\n    return x + 2\n') != first
    through = "def f(x):\n    from genrec.sid import {name}\n    return {name}\n"
    assert digest(through.format(name="trie")) != digest(through.format(name="catalog"))
    fingerprint._tree.cache_clear()


def test_every_stage_is_fingerprinted_with_the_method_behind_it() -> None:
    for name, module in {
        "prepare": "genrec.data.partition",
        "embed": "genrec.sid.embed",
        "assign": "genrec.sid.collisions",
        "sft": "genrec.learning.sft.trainer",
        "grpo": "genrec.learning.rl.objectives",
        "evaluate": "genrec.policy.decoding.beam",
    }.items():
        assert module in fingerprint.modules_used(pipeline.STAGES[name].code), name
        assert "genrec.config.learning" not in fingerprint.modules_used(pipeline.STAGES[name].code)


def test_work_that_other_code_began_is_kept_told_and_not_used(
    shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, shop)

    def dies(folder: Path) -> dict[str, int]:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("lost power")

    with pytest.raises(RuntimeError):
        make_artifact(config, Recipe("probe", {"a": 1}, ("cluster.stages.embed",)), dies)
    (begun,) = (tmp_path / "probe").glob("*.partial")
    caplog.set_level(logging.INFO)
    done = make_artifact(
        config, Recipe("probe", {"a": 1}, ("cluster.stages.assign",)), lambda folder: {"found": [*folder.glob("*.txt")]}
    )
    assert done.metrics["found"] == [] and (begun / "half.txt").is_file()
    assert f"{begun.name} was begun by other code" in caplog.text
    caplog.clear()
    make_artifact(config, Recipe("probe", {"a": 2}, ("cluster.stages.assign",)), lambda folder: {})
    assert "begun by other code" not in caplog.text


def test_a_killed_stage_goes_on_in_its_directory(shop: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, shop)

    def dies(folder: Path) -> dict[str, int]:
        (folder / "half.txt").write_text("half")
        temporary_beside(folder / "weights.safetensors").write_text("cut off")
        raise RuntimeError("lost power")

    recipe = Recipe("probe", {}, (__name__,))
    with pytest.raises(RuntimeError):
        make_artifact(config, recipe, dies)
    done = make_artifact(config, recipe, lambda folder: {"half": (folder / "half.txt").is_file()})
    assert done.metrics["half"] and not (done.path / PENDING).exists()
    assert not list(done.path.glob(".*")), "what was being written as it died is gone"
    assert not list(done.path.parent.glob("*.lock")), "a finished stage leaves no lock"


def test_the_seconds_of_a_stage_are_those_of_all_runs_that_worked_at_it(shop: Path, tmp_path: Path) -> None:
    config, recipe = tiny_config(tmp_path, shop), Recipe("probe", {}, (__name__,))

    def dies_after_100_s(folder: Path) -> dict[str, int]:
        written, last_s = folder / "half.txt", (folder / PENDING).stat().st_mtime + 100
        written.write_text("so far")
        os.utime(written, (last_s, last_s))
        raise RuntimeError("lost power")

    for _ in range(3):
        with pytest.raises(RuntimeError):
            make_artifact(config, recipe, dies_after_100_s)
    done = make_artifact(config, recipe, lambda folder: {})
    assert 300 <= done.metrics["wall_s"] < 400


def test_a_refused_stage_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    def refuses(folder: Path) -> dict[str, int]:
        raise InputError("no")

    with pytest.raises(InputError):
        make_artifact(tiny_config(tmp_path, shop), Recipe("probe", {}, (__name__,)), refuses)
    assert not list((tmp_path / "probe").iterdir())


def test_two_runs_on_one_storage_do_not_write_one_directory(shop: Path, tmp_path: Path) -> None:
    config, recipe = tiny_config(tmp_path, shop), Recipe("probe", {}, (__name__,))
    (tmp_path / "probe").mkdir()
    with (
        FileLock(f"{tmp_path / 'probe' / recipe.key}.partial.lock"),
        pytest.raises(InputError, match="another process is writing"),
    ):
        make_artifact(config, recipe, lambda folder: {})


def test_a_run_that_is_refused_leaves_the_other_what_it_has_begun(shop: Path, tmp_path: Path) -> None:
    config, recipe = tiny_config(tmp_path, shop), Recipe("probe", {}, (__name__,))

    def work(folder: Path) -> dict[str, int]:
        with pytest.raises(InputError, match="another process is writing"):
            make_artifact(config, recipe, lambda _: {})
        assert (folder / PENDING).is_file(), "it holds no result yet, and is the other's all the same"
        assert Path(f"{folder}.lock").is_file()
        return {}

    assert make_artifact(config, recipe, work).path.is_dir()


def test_a_run_begins_while_another_one_removes_the_directory_that_it_left_empty(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, recipe = tiny_config(tmp_path, shop), Recipe("probe", {}, (__name__,))
    partial = tmp_path / "probe" / f"{recipe.key}.partial"

    class Late(FileLock):
        def acquire(self, *args: Any, **options: Any) -> Any:
            shutil.rmtree(partial)
            return super().acquire(*args, **options)

    monkeypatch.setattr(artifacts, "FileLock", Late)
    assert make_artifact(config, recipe, lambda folder: {"there": folder.is_dir()}).metrics["there"]


def test_a_lock_that_another_run_took_over_is_not_removed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, recipe = tiny_config(tmp_path, shop), Recipe("probe", {}, (__name__,))
    file = tmp_path / "probe" / f"{recipe.key}.partial.lock"
    next_one = FileLock(file)

    class Watched(FileLock):
        def release(self, *args: Any, **options: Any) -> None:
            super().release(*args, **options)
            next_one.acquire(timeout=0)

    monkeypatch.setattr(artifacts, "FileLock", Watched)
    make_artifact(config, recipe, lambda folder: {})
    with pytest.raises(Timeout):
        FileLock(file).acquire(timeout=0)
    next_one.release()


def test_a_full_run_checks_its_source_once(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = prepare.open_source
    monkeypatch.setattr(prepare, "open_source", lambda settings: opened.append(settings) or real(settings))
    pipeline.run(tiny_config(tmp_path, shop), "assign")
    assert len(opened) == 1


def test_a_stage_says_which_inputs_are_missing(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sft reads \['prepare', 'assign'\].*missing"):
        pipeline.run_stage(tiny_config(tmp_path, shop), "sft", {})


def test_templates_of_the_users_own_are_in_the_key_by_content(shop: Path, tmp_path: Path) -> None:
    packaged = resources.files("genrec.policy.chat") / "languages" / "en.yaml"
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    for file in (mine, other):
        file.write_bytes(packaged.read_bytes())

    def key(file: Path) -> str:
        tasks = ["learning.sft.example_format=tasks", "learning.tasks.semantic_anchoring.weight=1"]
        more = ["policy.tokenizer=bytes", "policy.arch=qwen3", *tasks, f"learning.instruction.languages=[{file}]"]
        return key_of(tiny_config(tmp_path, shop, *more), "sft")

    before = key(mine)
    assert key(other) == before
    mine.write_text(mine.read_text("utf-8") + "\n# changed\n", "utf-8")
    assert key(mine) != before


def test_machines_that_are_not_there_cost_no_work_that_is_done(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, shop, "compute.in_process_below_mb=0", "compute.data_actors=0")
    real = prepare._map

    def dies(spec: prepare.PrepareSpec, make: object, shards: list[int], label: str) -> None:
        if label == "sort and filter":
            raise RuntimeError("lost power")
        real(spec, make, shards, label)

    monkeypatch.setattr(prepare, "_map", dies)
    with pytest.raises(RuntimeError):
        pipeline.run(config, "prepare")
    begun = next((tmp_path / "prepare").glob("*.partial"))
    read = sorted((begun / "scratch" / "scatter").rglob("*"))
    monkeypatch.setattr(prepare, "_map", real)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(MachineError, match="no Ray cluster answers"):
        pipeline.run(config.replace({"compute.data_actors": 1, "compute.address": "127.0.0.1:1"}), "prepare")
    assert read and sorted((begun / "scratch" / "scatter").rglob("*")) == read


def test_a_log_that_stops_coming_leaves_what_was_read_of_it(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, shop, "compute.data_actors=0")
    for error, is_kept in ((MachineError("the log was cut off"), True), (InputError("no number"), False)):

        def stops(
            spec: prepare.PrepareSpec, make: object, shards: list[int], label: str, error: Exception = error
        ) -> None:
            (spec.scratch / "scatter").mkdir()
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(prepare, "_map", stops)
            with pytest.raises(type(error)):
                pipeline.run(config, "prepare")
        assert bool(list(tmp_path.glob("prepare/*.partial/scratch/scatter"))) == is_kept
        shutil.rmtree(tmp_path / "prepare")


def test_a_column_that_is_named_as_it_is_called_is_no_other_key(shop: Path, tmp_path: Path) -> None:
    plain = pipeline.run(tiny_config(tmp_path, shop), "prepare")["prepare"]
    for columns in ({"user_id": "user_id"}, {"timestamp": "timestamp", "title": "title"}):
        named = tiny_config(tmp_path, shop).replace({"data.columns": columns})
        assert pipeline.run(named, "prepare")["prepare"].path == plain.path
    other = tiny_config(tmp_path, shop).replace({"data.columns": {"brand": "title"}})
    assert pipeline.run(other, "prepare")["prepare"].path != plain.path


def test_a_directory_without_its_manifest_is_made_again(shop: Path, tmp_path: Path) -> None:
    config, recipe = tiny_config(tmp_path, shop), Recipe("probe", {}, (__name__,))
    (tmp_path / "probe" / recipe.key).mkdir(parents=True)
    (tmp_path / "probe" / recipe.key / "half.txt").write_text("a copy that was cut off")
    assert [file.name for file in make_artifact(config, recipe, lambda folder: {}).path.glob("*.txt")] == []
