"""Full, LoRA and QLoRA training of a tiny pretrained backbone, in float32 and bfloat16."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.synthetic import random_catalog
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from genrec.config import Lora, PolicyConfig, Rewards, Rl
from genrec.errors import InputError
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.rollout import LocalRollouts
from genrec.learning.sft.batches import Rows
from genrec.learning.sft.losses import SftLoss
from genrec.policy.backbone import build, load, save
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy as Model
from genrec.policy.packed_weights import frozen_bytes
from genrec.policy.prompts import AFTER, BEFORE, SYSTEM
from genrec.sid.catalog import Catalog
from genrec.types import Query

HISTORIES = [[1, 2], [3], [4, 5, 6], [7, 8]]
TARGETS = [3, 9, 7, 11]
FORMS = [("full", "float32"), ("full", "bfloat16"), ("lora", "float32"), ("lora", "bfloat16"), ("qlora", "bfloat16")]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return random_catalog(40, (8, 8, 8))


def tiny_backbone(directory: Path, *extra: str, tied: bool = True, positions: int = 128) -> str:
    words = sorted({*f"{SYSTEM} {BEFORE} {AFTER}".replace(".", " ").replace(":", " ").split(), *extra})
    vocabulary = {"<pad>": 0, "<unk>": 1} | {word: number for number, word in enumerate(words, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(directory)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(shape).save_pretrained(directory)
    return str(directory)


def settings(path: str, form: str, dtype: str = "float32") -> PolicyConfig:
    if form == "qlora":
        pytest.importorskip("bitsandbytes")
    lora = Lora(rank=4, alpha=8, dropout=0.0)
    return PolicyConfig(kind="pretrained", path=path, finetuning=form, dtype=dtype, lora=lora)  # type: ignore[arg-type]


def train(policy: Model, loss: SftLoss, steps: int = 6) -> list[float]:
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2)
    losses = []
    for _ in range(steps):
        value = loss(policy, Rows([*HISTORIES], torch.tensor(TARGETS)))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize(("form", "dtype"), FORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_form_learns_in_float32_parameters_and_loads_again(
    tmp_path: Path, catalog: Catalog, form: str, dtype: str, tied: bool
) -> None:
    chosen = settings(tiny_backbone(tmp_path / "backbone", tied=tied), form, dtype)
    policy, prompts = build(chosen, catalog, max_history=4, seed=0)
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    losses = train(policy, SftLoss(prompts, catalog))
    assert losses[-1] < 0.8 * losses[0]
    save(policy, dict(policy.snapshot(0).tensors), catalog, {}, tmp_path / "policy")
    again, _ = load(chosen, catalog, tmp_path / "policy", max_history=4, seed=0)
    encoded = prompts.encode(HISTORIES)
    with torch.no_grad():
        mine, theirs = (beam(p.eval(), *encoded, catalog.trie, 5) for p in (policy, again))
    assert torch.equal(mine.codes_BWL, theirs.codes_BWL)
    assert torch.equal(mine.logp_BWL, theirs.logp_BWL)


def test_full_trains_everything_and_lora_a_small_part(tmp_path: Path, catalog: Catalog) -> None:
    path = tiny_backbone(tmp_path)
    whole, _ = build(settings(path, "full"), catalog, max_history=4, seed=0)
    part, _ = build(settings(path, "lora"), catalog, max_history=4, seed=0)
    assert sum(p.numel() for p in whole.trainable().values()) == sum(p.numel() for p in whole.parameters())
    kinds = ("lora_", "trainable_tokens", "items.")
    assert all(any(kind in name for kind in kinds) for name in part.trainable())


@pytest.mark.parametrize("form", ["full", "lora"])
def test_attention_of_bfloat16_training_on_a_cpu_has_the_gradients_of_float32(
    tmp_path: Path, catalog: Catalog, form: str
) -> None:
    path, gradients = tiny_backbone(tmp_path), {}
    for name, dtype, own in (("exact", "float32", True), ("ours", "bfloat16", True), ("torch's", "bfloat16", False)):
        policy, prompts = build(settings(path, form, dtype), catalog, max_history=4, seed=0)
        if not own:
            policy.model.set_attn_implementation("sdpa")
        SftLoss(prompts, catalog)(policy, Rows([*HISTORIES], torch.tensor(TARGETS))).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None])
    off = {name: (gradients[name] - gradients["exact"]).norm() / gradients["exact"].norm() for name in gradients}
    assert 0 < off["ours"] < 0.02
    assert off["ours"] < 1.1 * off["torch's"]


def test_adding_adapters_says_nothing_that_a_user_could_not_act_on(tmp_path: Path, catalog: Catalog) -> None:
    path = tiny_backbone(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(settings(path, "lora"), catalog, max_history=4, seed=0)


@pytest.mark.parametrize("tied", [True, False])
def test_qlora_answers_nearly_as_the_whole_weights_do_and_is_a_third_of_their_size(
    tmp_path: Path, catalog: Catalog, tied: bool
) -> None:
    path = tiny_backbone(tmp_path, tied=tied)
    forms = {
        form: build(settings(path, form, "bfloat16"), catalog, max_history=4, seed=0) for form in ("lora", "qlora")
    }
    codes_B1L = catalog.codes_NL[TARGETS][:, None]
    found = {}
    for form, (policy, prompts) in forms.items():
        with torch.no_grad():
            found[form] = score(policy.eval(), *prompts.encode(HISTORIES), codes_B1L, catalog.trie).logp_BGL
    assert torch.allclose(found["lora"], found["qlora"], atol=0.1)
    sizes = {form: frozen_bytes(policy.model) for form, (policy, _) in forms.items()}
    assert sizes["qlora"] < 0.4 * sizes["lora"]


def test_random_weights_are_the_same_architecture_untrained_and_drawn_from_the_seed(
    tmp_path: Path, catalog: Catalog
) -> None:
    pretrained = settings(tiny_backbone(tmp_path), "full")
    untrained = pretrained.replace({"weights": "random"})

    def weights(chosen: PolicyConfig, seed: int) -> dict[str, torch.Tensor]:
        policy, _ = build(chosen, catalog, max_history=4, seed=seed)
        return {name: tensor for name, tensor in policy.trainable().items() if "proj" in name}

    first, again, other = (weights(untrained, seed) for seed in (1, 1, 2))  # the backbone on disk has seed 0
    known = weights(pretrained, 0)
    assert first.keys() == known.keys() and len(first) > 10
    for name, tensor in first.items():
        assert tensor.shape == known[name].shape and torch.equal(tensor, again[name])
        assert not torch.equal(tensor, other[name]) and not torch.equal(tensor, known[name])


@pytest.mark.parametrize("form", ["full", "lora", "qlora"])
def test_grpo_steps_from_every_form_and_its_reference_stays(tmp_path: Path, catalog: Catalog, form: str) -> None:
    policy, prompts = build(settings(tiny_backbone(tmp_path), form), catalog, max_history=4, seed=0)
    options = Rl(steps=2, queries=4, group=6, lr=1e-3, warmup=0.0, kl=0.1, sft=0.3, micro_queries=2)
    queries = [Query(i, i, tuple(h), t) for i, (h, t) in enumerate(zip(HISTORIES, TARGETS, strict=True))]
    rollouts = LocalRollouts(policy, prompts, catalog.trie, options, seed=0)
    known = RewardContext(catalog.codes_NL, [""] * 40)
    rewards = Rewards(hit=1.0, rank_log=0.0, prefix=0.5, diversity=0.0)
    reward = RewardFunction(rewards, known, active_terms(rewards))
    learner = GrpoLearner(policy, prompts, catalog.trie, reward, options, Accelerator(cpu=True))
    first = learner.snapshot()
    records = [learner.update(rollouts.collect(rollouts.submit(queries, learner.snapshot()))) for _ in range(2)]
    assert records[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert records[1]["kl"] > 1e-6
    assert all(torch.equal(learner.reference[name], tensor) for name, tensor in first.tensors.items())


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, catalog: Catalog) -> None:
    path = tiny_backbone(tmp_path)
    grads = []
    for recompute in (False, True):
        policy, prompts = build(settings(path, "lora"), catalog, max_history=4, seed=0)
        if recompute:
            policy.recompute_activations()
        policy.train()
        loss = SftLoss(prompts, catalog, softmax="trie", smoothing=0.0)
        loss(policy, Rows([*HISTORIES], torch.tensor(TARGETS))).backward()
        grads.append([p.grad for p in policy.trainable().values()])
    assert policy.model.is_gradient_checkpointing
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_a_tokenizer_that_has_sid_tokens_is_refused(tmp_path: Path, catalog: Catalog) -> None:
    path = tiny_backbone(tmp_path, "<a_0>")
    with pytest.raises(InputError, match="already has 1 of the SID tokens"):
        build(settings(path, "lora"), catalog, max_history=4, seed=0)


def test_histories_longer_than_the_context_are_refused_with_what_fits(tmp_path: Path, catalog: Catalog) -> None:
    path = tiny_backbone(tmp_path, positions=64)
    with pytest.raises(InputError, match=r"64 positions; data\.max_history=(\d+) fits") as refused:
        build(settings(path, "lora"), catalog, max_history=40, seed=0)
    fits = int(str(refused.value).rpartition("=")[2].split()[0])
    build(settings(path, "lora"), catalog, max_history=fits, seed=0)
    with pytest.raises(InputError):
        build(settings(path, "lora"), catalog, max_history=fits + 1, seed=0)


@pytest.mark.parametrize("window", [16, 400])
def test_an_attention_window_that_a_prompt_exceeds_is_refused(tmp_path: Path, catalog: Catalog, window: int) -> None:
    path = Path(tiny_backbone(tmp_path))
    about = json.loads((path / "config.json").read_text())
    kinds = ["sliding_attention"] * about["num_hidden_layers"]
    changed = {"sliding_window": window, "use_sliding_window": True, "layer_types": kinds}
    (path / "config.json").write_text(json.dumps(about | changed))
    if window == 400:
        build(settings(str(path), "lora"), catalog, max_history=4, seed=0)
        return
    with pytest.raises(InputError, match=r"has attention windows of 16 tokens; data\.max_history=0 fits"):
        build(settings(str(path), "lora"), catalog, max_history=4, seed=0)
