"""The last layer computes only the positions that are needed, in every supported family, and falls back to all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from support.synthetic import random_catalog, small_policy
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from genrec.policy.decoding import last_layer
from genrec.policy.decoding.tree import prompt_mask, prompt_positions
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts, SidTokens

CATALOG = random_catalog(60, (6, 6, 6))
HISTORIES = [[1, 2, 3], [5], [9, 8, 7, 6, 5, 4], [0, 0]]
NEEDED = 2
"""Positions at the end of the prompt whose hidden states are read."""

FAMILIES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma3": Gemma3TextConfig,
}


def policy_of(family: str) -> Policy:
    """A random model of two layers over 2 special tokens and the SIDs of ``CATALOG``."""
    sids = SidTokens(2, CATALOG.level_sizes)
    if family == "gpt2":
        config: Any = GPT2Config(vocab_size=2 + sids.count, n_positions=96, n_embd=32, n_layer=2, n_head=4)
    else:
        config = FAMILIES[family](
            vocab_size=2 + sids.count,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=96,
        )
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config).eval(), sids)


def last_layer_of(policy: Policy) -> Any:
    body: Any = policy.model.base_model
    return next(module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module) == 2)[-1]


def mlp_widths(policy: Policy) -> list[int]:
    """Filled with the number of positions of every call of the last layer's MLP."""
    widths: list[int] = []
    last_layer_of(policy).mlp.register_forward_hook(lambda _, args, out: widths.append(args[0].shape[1]))
    return widths


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    prompts = Prompts(CATALOG, SidTokens(2, CATALOG.level_sizes), [1], [], 0, 6)
    tokens_BP, mask_BP = prompts.encode(HISTORIES)
    return tokens_BP, prompt_positions(mask_BP), prompt_mask(mask_BP)


@pytest.mark.parametrize("family", ["gpt2", *FAMILIES])
@torch.no_grad()
def test_only_the_needed_positions_are_computed_and_states_and_cache_stay_the_same(family: str) -> None:
    policy, prompt = policy_of(family), inputs()
    start = prompt[0].shape[1] - NEEDED
    whole, short = policy.new_cache(), policy.new_cache()
    expected_BPD = policy.hidden(*prompt, whole)
    widths = mlp_widths(policy)
    found_BPD = policy.hidden(*prompt, short, start=start)
    changed = (
        f"the {family} layer of transformers {transformers.__version__} breaks an assumption of "
        "genrec/policy/decoding/last_layer.py (they are numbered at its head): {}; adapt the hooks, or call no "
        "`last_layer.install` for this family"
    )
    assert widths == [NEEDED], changed.format(f"its last MLP computed {widths} positions, wanted [{NEEDED}]")
    same = torch.allclose(found_BPD[:, start:], expected_BPD[:, start:], atol=1e-5)
    assert same, changed.format("the needed hidden states differ from those of the whole forward")
    for index, (ours, theirs) in enumerate(zip(short.layers, whole.layers, strict=True)):
        same = torch.allclose(ours.keys, theirs.keys, atol=1e-5) and torch.allclose(
            ours.values, theirs.values, atol=1e-5
        )
        assert same, changed.format(f"the cached keys or values of layer {index} differ")


@torch.no_grad()
def test_a_layer_that_takes_no_cache_computes_every_position() -> None:
    policy, prompt = policy_of("qwen3"), inputs()
    layer = last_layer_of(policy)
    original = layer.forward

    def renamed(hidden_states: Tensor, **options: Any) -> Any:
        return original(hidden_states, **options)

    layer.forward = renamed
    widths = mlp_widths(policy)
    length = prompt[0].shape[1]
    expected_BPD = policy.hidden(*prompt)
    found_BPD = policy.hidden(*prompt, start=length - NEEDED)
    assert widths == [length, length]
    assert torch.equal(found_BPD, expected_BPD)


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_a_layer_that_never_writes_to_the_cache_is_an_error_and_no_wrong_answer(masked: bool) -> None:
    policy, prompt = policy_of("qwen3"), inputs()
    layer = last_layer_of(policy)
    original = layer.forward

    def cacheless(hidden_states: Tensor, past_key_values: object = None, **options: Any) -> Any:
        return original(hidden_states, **(options if masked else options | {"attention_mask": None}))

    layer.forward = cacheless
    with pytest.raises(
        RuntimeError, match="size of tensor" if masked else r"cached no keys and values; wanted one call"
    ):
        policy.hidden(*prompt, start=prompt[0].shape[1] - NEEDED)


def test_layers_in_training_mode_compute_every_position() -> None:
    policy, prompt = policy_of("llama"), inputs()
    widths = mlp_widths(policy)
    policy.train().hidden(*prompt, start=4)
    assert widths == [prompt[0].shape[1]]


def test_a_body_without_a_list_of_layers_is_left_alone() -> None:
    policy, _ = small_policy(CATALOG, "qwen3")
    assert last_layer.install(policy.model.base_model, 2)
    assert not last_layer.install(policy.model.base_model, 7)
