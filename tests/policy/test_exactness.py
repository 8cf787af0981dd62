"""The decoder against brute force and against ``generate``, over random models, catalogues, paddings and dtypes."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from support.synthetic import random_catalog
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from benchmarks.references.hf_generate import generate, generate_with_processor
from genrec.policy.backbone import PAD
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts, SidTokens
from genrec.sid.catalog import Catalog

TEXT = 5
"""Tokens of the vocabulary before the SIDs."""


@dataclass(frozen=True)
class World:
    """A model, a catalogue and a batch of histories, all drawn from one seed."""

    policy: Policy
    prompts: Prompts
    catalog: Catalog
    histories: list[list[int]]
    width: int

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The left-padded prompts and their mask."""
        return self.prompts.encode(self.histories)


def config_of(family: str, vocabulary: int, draw: random.Random) -> PretrainedConfig:
    heads = draw.choice([2, 4])
    tied, layers = draw.random() < 0.5, draw.choice([1, 2, 3])
    if family == "gpt2":
        return GPT2Config(vocab_size=vocabulary, n_positions=96, n_embd=32, n_layer=layers, n_head=heads)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, heads]),
        "max_position_embeddings": 96,
        "tie_word_embeddings": tied,
    }
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "mistral": MistralConfig}
    return kinds[family](**shape, **({"head_dim": 16} if family == "qwen3" else {}))


def world(family: str, seed: int, dtype: torch.dtype = torch.float32) -> World:
    """Levels of 1 to 9 codes, 1 to 40 items, beams from 1 to more than there are items, prompts of unequal length."""
    draw = random.Random(f"{family} {seed}")
    sizes = tuple(draw.randint(1, 9) for _ in range(draw.randint(1, 4)))
    items = draw.randint(1, min(40, int(torch.tensor(sizes).prod())))
    catalog = random_catalog(items, sizes, seed)
    sids = SidTokens(TEXT, sizes)
    torch.manual_seed(seed)
    config = config_of(family, TEXT + sids.count, draw)
    config.initializer_range = 0.3
    config.eos_token_id, config.bos_token_id, config.pad_token_id = None, 1, PAD
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    prompts = Prompts(catalog, sids, prefix=[1], suffix=[2] * draw.randint(0, 2), pad=PAD, max_items=6)
    histories = [
        [draw.randrange(len(catalog)) for _ in range(draw.randint(1, 6))] for _ in range(draw.choice([1, 3, 5]))
    ]
    return World(Policy(model, sids), prompts, catalog, histories, draw.choice([1, 2, 5, 10, 64]))


FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "mistral")
WORLDS = [(family, seed) for family in FAMILIES for seed in range(12)]


@pytest.mark.parametrize(("family", "seed"), WORLDS)
@torch.no_grad()
def test_wide_beams_are_the_ranking_of_the_whole_catalogue_by_the_plain_model(family: str, seed: int) -> None:
    made = world(family, seed)
    found = beam(made.policy, *made.inputs, made.catalog.trie, 64)
    expected_BN = plain_scores(made)
    for row, expected_N in enumerate(expected_BN):
        items = found.items_BW[row][found.items_BW[row] >= 0]
        assert sorted(items.tolist()) == list(range(len(made.catalog)))
        torch.testing.assert_close(found.logp_BW[row, : len(items)], expected_N[items], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("family", "seed"), WORLDS)
@torch.no_grad()
def test_any_beam_holds_distinct_items_of_the_catalogue_best_first(family: str, seed: int) -> None:
    made = world(family, seed)
    found = beam(made.policy, *made.inputs, made.catalog.trie, made.width)
    expected_BN = plain_scores(made)
    for row, items_W in enumerate(found.items_BW):
        items = items_W[items_W >= 0]
        assert len(items.unique()) == len(items) and len(items) <= min(made.width, len(made.catalog))
        assert (made.catalog.codes_NL[items] == found.codes_BWL[row, : len(items)]).all()
        torch.testing.assert_close(found.logp_BW[row, : len(items)], expected_BN[row][items], atol=2e-4, rtol=2e-4)
        assert (found.logp_BW[row, : len(items)].diff() <= 0).all()


@pytest.mark.parametrize("decode", [generate, generate_with_processor])
@pytest.mark.parametrize(("family", "seed"), [(family, seed) for family in FAMILIES for seed in (100, 101, 102)])
@torch.no_grad()
def test_beams_are_those_of_generate(family: str, seed: int, decode: object) -> None:
    made = world(family, seed)
    # generate fills up with invalid beams where there are fewer prefixes than beams
    width = min(made.width, int(made.catalog.codes_NL[:, 0].unique().numel()))
    ours = beam(made.policy, *made.inputs, made.catalog.trie, width)
    theirs = decode(made.policy, *made.inputs, made.catalog, width)  # type: ignore[operator]
    assert (made.policy.sids.tokens(ours.codes_BWL) == theirs).all()


@pytest.mark.parametrize("decode", [generate, generate_with_processor])
@torch.no_grad()
def test_generate_is_compared_in_the_precision_of_the_policy(decode: object) -> None:
    made, found = world("qwen3", 100), set[torch.dtype]()
    made.policy.precision = torch.bfloat16
    linear = next(module for module in made.policy.model.modules() if isinstance(module, torch.nn.Linear))
    linear.register_forward_hook(lambda _module, _inputs, output: found.add(output.dtype))
    decode(made.policy, *made.inputs, made.catalog, 1)  # type: ignore[operator]
    assert found == {torch.bfloat16}


@pytest.mark.parametrize(("family", "seed"), [(family, seed) for family in FAMILIES for seed in (200, 201)])
@torch.no_grad()
def test_bfloat16_answers_with_the_scores_that_its_own_model_gives(family: str, seed: int) -> None:
    made = world(family, seed, torch.bfloat16)
    found = beam(made.policy, *made.inputs, made.catalog.trie, 64)
    for row, expected_N in enumerate(plain_scores(made)):
        items = found.items_BW[row][found.items_BW[row] >= 0]
        assert sorted(items.tolist()) == list(range(len(made.catalog)))
        torch.testing.assert_close(found.logp_BW[row, : len(items)], expected_N[items], atol=0.25, rtol=0.05)


@pytest.mark.parametrize(("family", "seed"), [(family, seed) for family in FAMILIES for seed in (300, 301, 302)])
def test_gradients_of_shared_scoring_are_those_of_the_plain_model(family: str, seed: int) -> None:
    made = world(family, seed)
    weights_BN = torch.randn(len(made.histories), len(made.catalog), generator=torch.Generator().manual_seed(seed))

    def gradient(logp_BN: torch.Tensor) -> torch.Tensor:
        made.policy.zero_grad()
        (logp_BN * weights_BN).sum().backward()
        return torch.cat([p.grad.flatten() for p in made.policy.trainable().values() if p.grad is not None])

    codes_BNL = made.catalog.codes_NL.expand(len(made.histories), -1, -1)
    shared = gradient(score(made.policy, *made.inputs, codes_BNL, made.catalog.trie).logp_BGL.sum(-1))
    plain = gradient(plain_scores(made))
    torch.testing.assert_close(shared, plain, atol=1e-3 * float(plain.abs().max()), rtol=1e-3)


def plain_scores(made: World) -> torch.Tensor:
    """log p of every item after every history, (B, N), by the model's own forward over whole unpadded sequences."""
    codes_NL, sids = made.catalog.codes_NL, made.policy.sids
    same_LNN = torch.stack(
        [(codes_NL[:, None, :level] == codes_NL[None, :, :level]).all(-1) for level in range(codes_NL.shape[1])]
    )
    rows = []
    for history in made.histories:
        prompt_P = made.prompts.encode([history])[0][0]
        tokens_NS = torch.cat([prompt_P.expand(len(codes_NL), -1), sids.tokens(codes_NL)], 1)
        logits_NLV = made.policy.model(input_ids=tokens_NS).logits[:, len(prompt_P) - 1 : -1].float()
        total_N = torch.zeros(len(codes_NL))
        for level in range(codes_NL.shape[1]):
            own_NN = logits_NLV[:, level, sids.token(level, codes_NL[:, level])]
            coded_NK = torch.nn.functional.one_hot(codes_NL[:, level], sids.level_sizes[level])
            seen_NK = (same_LNN[level].long() @ coded_NK) > 0
            block_NK = logits_NLV[:, level, sids.token(level, torch.arange(sids.level_sizes[level]))]
            total_N = total_N + own_NN.diagonal() - block_NK.masked_fill(~seen_NK, -torch.inf).logsumexp(-1)
        rows.append(total_N)
    return torch.stack(rows)
