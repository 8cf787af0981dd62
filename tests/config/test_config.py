import subprocess
import sys
from pathlib import Path

import pytest

from genrec.config import load_config, to_yaml
from genrec.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("learning: {grpo: {lr: 1.0e-3, steps: 5}}")
    (tmp_path / "b.yaml").write_text("learning: {grpo: {lr: 1.0e-4}}")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["learning.rl.kl=0.7"])
    assert (config.learning.rl.lr, config.learning.rl.steps, config.learning.rl.kl) == (1e-4, 5, 0.7)


def test_an_unknown_key_names_its_file_and_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("learning: {grpo: {learning_rate: 1.0}}")
    with pytest.raises(InputError, match=r"learning\.grpo\.learning_rate.*mine\.yaml.*nearest known key"):
        load_config([file])
    with pytest.raises(InputError, match=r"'learning\.grpo\.stpes'.*'learning\.grpo\.steps'"):
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
        "policy.hidden=100",
        "tune.space.foo=[0.0,1.0]",
        "policy.kind=pretrained",
        "decode.width=5",
        "storage=s3://bucket/x",
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(override: str) -> None:
    key = override.split("=")[0]
    named = {"tune.space.foo": "tune.space", "policy.kind": "learning.sft.example_format"}.get(key, key)
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        load_config([], [override])


def test_a_missing_file_broken_yaml_and_a_bare_word_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- 1")
    for files, overrides, message in (
        ([tmp_path / "none.yaml"], [], "not found"),
        ([tmp_path / "broken.yaml"], [], "not valid YAML"),
        ([tmp_path / "list.yaml"], [], "mapping"),
        ([], ["nonsense"], "not of the form"),
    ):
        with pytest.raises(InputError, match=message):
            load_config(files, overrides)


def test_the_shown_config_loads_back_to_itself(tmp_path: Path) -> None:
    config = load_config([], ["rewards.prefix=0.25", "tune.space.prefix=[0.0,1.0]"])
    (tmp_path / "shown.yaml").write_text(to_yaml(config))
    assert load_config([tmp_path / "shown.yaml"]) == config


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda f: f.name)
def test_every_shipped_config_is_valid(file: Path) -> None:
    before = [CONFIGS / "versions" / "v1.yaml"] if file.name == "qwen2.5-3b.yaml" else []
    load_config([*before, file])


@pytest.mark.parametrize("version", sorted(CONFIGS.glob("versions/*.yaml")), ids=lambda f: f.stem)
@pytest.mark.parametrize("data", ["demo", "industrial", "beauty"])
@pytest.mark.parametrize("place", ["cpu", "a100", "cluster"])
def test_every_version_goes_with_every_data_set_and_machine(version: Path, data: str, place: str) -> None:
    config = load_config([CONFIGS / f"{data}.yaml", version, CONFIGS / f"{place}.yaml"])
    assert config.policy.kind == "pretrained"
    assert config.name == version.stem
    if version.stem == "three_stage":
        return
    alone = load_config([version])
    assert config.rewards == alone.rewards, "a data set's own rewards are no part of a recipe"
    for name in ("objective", "kl", "sft", "average", "advantage", "generation"):
        assert getattr(config.learning.rl, name) == getattr(alone.learning.rl, name), name


@pytest.mark.parametrize("version", sorted(CONFIGS.glob("versions/*.yaml")), ids=lambda f: f.stem)
def test_every_version_goes_with_the_large_model_and_keeps_its_own_method(version: Path) -> None:
    small = load_config([CONFIGS / "industrial.yaml", version, CONFIGS / "a100.yaml"])
    large = load_config([CONFIGS / "industrial.yaml", version, CONFIGS / "qwen2.5-3b.yaml", CONFIGS / "a100.yaml"])
    assert large.policy.path == "Qwen/Qwen2.5-3B-Instruct" != small.policy.path
    assert large.compute.gradient_checkpointing and large.learning.sft.batch_size == 256
    for name in ("sid", "rewards"):
        assert getattr(large, name) == getattr(small, name)
    assert large.policy.finetuning == small.policy.finetuning
    assert large.learning.sft.loss == small.learning.sft.loss
    assert large.learning.rl.objective == small.learning.rl.objective


def test_the_versions_differ_in_tokenizer_loss_and_rewards() -> None:
    v1, v2, v3, v4 = (load_config([CONFIGS / "versions" / f"v{number}.yaml"]) for number in (1, 2, 3, 4))
    assert [c.sid.quantizer for c in (v1, v2, v3, v4)] == ["rqvae", "rqkmeans_balanced", "rqvae", "rqvae"]
    assert v4.sid.codebook == "ema" != v1.sid.codebook
    assert [c.learning.sft.loss.weights for c in (v1, v2, v3, v4)] == [(), ("rare",), ("focal",), ("hard",)]
    assert len({c.rewards.model_dump_json() for c in (v1, v2, v3, v4)}) == 4


def test_show_prints_the_config_without_importing_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['sft', 'configs/demo.yaml', 'seed=7', '--show']\n"
        "from workflows.door import main\n"
        "try: main(lambda c: None, None)\n"
        "finally: assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout
    assert "name: demo" in done.stdout


def test_bad_input_ends_with_code_2_and_one_message() -> None:
    command = [sys.executable, "-m", "workflows.sft", "learning.sft.lrr=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown config key")
    assert "Traceback" not in done.stderr
