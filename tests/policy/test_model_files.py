"""A model whose files are damaged is refused before anything is trained; a prompt does not depend on the day."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.synthetic import random_catalog
from support.tiny_lm import TEMPLATE, tiny_lm, tiny_tokenizer

from cluster.content import model_content, require_models
from genrec.config import Config, PolicyConfig, load_config
from genrec.errors import InputError
from genrec.policy import prompts as prompt_text
from genrec.policy.backbone import build, load, save
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.templates import Message
from genrec.policy.prompts import SYSTEM, SidTokens, apply_template, instruction
from genrec.sid.encoders import CausalEncoder, SentenceEncoder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
CATALOG = random_catalog(20, (4, 4, 4))


def settings(directory: Path) -> PolicyConfig:
    return PolicyConfig(kind="pretrained", path=str(directory), finetuning="full")


def config_of(model: Path, storage: Path) -> Config:
    keys = {"policy.kind": "pretrained", "policy.path": model, "policy.finetuning": "full", "embed.model": model}
    keys |= {"learning.sft.example_format": "rows", "embed.kind": "causal", "storage": storage}
    return load_config([], [f"{key}={value}" for key, value in keys.items()])


def unlink(*names: str) -> Callable[[Path], None]:
    return lambda directory: [(directory / name).unlink() for name in names] and None


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(text) and None


def cut_off(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickle_alone(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def drop_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def index_of_a_missing_shard(directory: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


FAULTS = {
    "no tokenizer": (unlink("tokenizer.json", "tokenizer_config.json"), "the tokenizer is missing"),
    "no config": (unlink("config.json"), "config.json is missing"),
    "no weights": (unlink("model.safetensors"), "the weights .* are missing"),
    "weights are a pointer": (write("model.safetensors", POINTER), r"model\.safetensors is a Git LFS pointer"),
    "tokenizer is a pointer": (write("tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS pointer"),
    "template is a pointer": (write("chat_template.jinja", POINTER), r"chat_template\.jinja is a Git LFS pointer"),
    "template is empty": (write("chat_template.jinja", ""), r"chat_template\.jinja is empty"),
    "weights are empty": (write("model.safetensors", ""), r"model\.safetensors is empty"),
    "config is cut off": (write("config.json", '{"model_type": "qw'), r"config\.json cannot be read"),
    "weights are cut off": (cut_off, r"model\.safetensors cannot be read"),
    "weights are a pickle": (pickle_alone, "a pickle can run code"),
    "a shard is missing": (index_of_a_missing_shard, "1 files of weights are missing"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_model_is_refused_by_policies_and_encoders_and_before_the_first_stage(
    model: Path, fault: str
) -> None:
    damage, message = FAULTS[fault]
    damage(model)
    config = config_of(model, model / "storage")
    options = {"max_tokens": 8, "batch_size": 1, "device": "cpu"}
    with pytest.raises(InputError, match=rf"policy\.path=.*{message}.*copy the model again"):
        build(config.policy, CATALOG, max_history=4, seed=0)
    with pytest.raises(InputError, match=message):
        load_tokenizer(config.policy, None)
    with pytest.raises(InputError, match=rf"embed\.model=.*{message}"):
        CausalEncoder(str(model), pooling="mean", **options)
    with pytest.raises(InputError, match=message):
        SentenceEncoder(str(model), **options)
    for stage in ("embed", "sft"):
        with pytest.raises(InputError, match=message):
            require_models(config, [stage])
    require_models(config, ["prepare"])


def test_a_whole_model_with_other_files_beside_it_is_taken(model: Path) -> None:
    (model / "training_args.bin").write_bytes(b"\x80\x04")
    (model / "original").mkdir()
    (model / "original" / "consolidated.00.pth").write_bytes(b"\x80\x04")
    require_models(config_of(model, model / "storage"), ["embed", "sft"])
    build(settings(model), CATALOG, max_history=4, seed=0)


def test_weights_that_would_be_random_are_refused(model: Path) -> None:
    drop_a_tensor(model)
    with pytest.raises(InputError, match=r"1 of the model's tensors are missing.*q_proj.*would be random"):
        build(settings(model), CATALOG, max_history=4, seed=0)


def test_a_tokenizer_without_a_vocabulary_is_refused(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {}, "merges": []}
    (model / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"turns .* into none"):
        build(settings(model), CATALOG, max_history=4, seed=0)


def test_a_path_without_a_directory_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory with a model is there"):
        build(settings(tmp_path / "nowhere"), CATALOG, max_history=4, seed=0)


def test_code_beside_a_models_files_is_never_run(model: Path) -> None:
    about = json.loads((model / "config.json").read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (model / "config.json").write_text(json.dumps({**about, "model_type": "evil", "auto_map": auto}))
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(model / 'ran')!r}).touch()\nclass Evil: pass\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        build(settings(model), CATALOG, max_history=4, seed=0)
    assert not (model / "ran").exists()


def test_changed_weights_under_the_same_path_are_another_run_and_a_trained_policy_refuses_them(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out, options = tmp_path_factory.mktemp("policy"), {"max_history": 4, "seed": 0}
    config = config_of(model, out / "storage")
    key = model_content(config.policy.path, config)
    policy, _ = build(config.policy, CATALOG, **options)
    save(policy, policy.snapshot(0).tensors, CATALOG, {}, out)
    for cache in (None, out / "cache"):
        load(config.policy, CATALOG, out, cache=cache, **options)
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    assert model_content(config.policy.path, config) != key
    for cache in (None, out / "cache"):
        with pytest.raises(InputError, match=r"was trained with the model .* were changed"):
            load(config.policy, CATALOG, out, cache=cache, **options)


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + m['content'] + '.' }}{% endfor %}"


@pytest.mark.parametrize("template", [NO_SYSTEM + TEMPLATE, DROPS_SYSTEM])
def test_a_template_without_a_system_role_gets_its_text_in_the_users_message(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    prefix, suffix = instruction(tokenizer)
    assert SYSTEM in tokenizer.decode(prefix) and suffix
    form = ChatFormat(tokenizer, SidTokens(len(tokenizer), CATALOG.level_sizes), CATALOG)
    conversation = [Message("system", ("Be kind.",)), Message("user", ("Hi",)), Message("assistant", ("Ho",))]
    text = tokenizer.decode(form.encode(conversation).tokens_S)
    assert text.index("user") < text.index("Be kind.\n\nHi") < text.index("Ho")


BROKEN = ["{{ raise_exception('no') }}", "{{ 'hello' }}", "{{ nothing.at.all }}", "{% if %}"]


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_cannot_write_the_prompt_is_one_clear_error(template: str) -> None:
    with pytest.raises(InputError, match="the tokenizer's chat template cannot write messages of the roles"):
        instruction(tiny_tokenizer(template))


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y %H:%M:%S')", 'strftime_now( "%d %b %Y %H:%M:%S" )'])
def test_a_template_that_prints_the_date_writes_the_same_prompt_tomorrow(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = f"{{% if strftime_now is defined %}}{{{{ 'Today: ' + {call} }}}}{{% endif %}}"
    tokenizer, turn = tiny_tokenizer(guarded + TEMPLATE), [{"role": "user", "content": "Hi"}]
    today = apply_template(tokenizer, turn)
    assert today.startswith("Today: 01 Jan 2025 00:00:00")

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2040, 1, 2)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert "2040" in tokenizer.apply_chat_template(turn, tokenize=False)
    assert apply_template(tokenizer, turn) == today
    assert prompt_text.TEMPLATE_DATE.year == 2025


@pytest.mark.parametrize("call", ["strftime_now(form)", "[1, 2] | random", "lipsum()"])
def test_a_template_whose_text_would_change_is_refused(call: str) -> None:
    with pytest.raises(InputError, match="another prompt tomorrow"):
        instruction(tiny_tokenizer(f"{{% set form = '%Y' %}}{{{{ {call} }}}}{TEMPLATE}"))
