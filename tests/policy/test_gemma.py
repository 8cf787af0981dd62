"""Gemma as a backbone: the scale of its input embeddings is applied to SID rows too, and other kinds are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.synthetic import random_catalog
from support.tiny_lm import tiny_tokenizer
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig, PreTrainedModel

from benchmarks.harness import WITHOUT_ROWS
from genrec.config import Lora, PolicyConfig
from genrec.errors import InputError
from genrec.policy.backbone import build, load, save
from genrec.policy.decoding.beam import beam
from genrec.policy.model import Policy, input_scale

CATALOG = random_catalog(40, (6, 6, 6))
FAMILIES: dict[str, Any] = {"gemma": GemmaConfig, "gemma2": Gemma2Config, "gemma3": Gemma3TextConfig}
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def tiny_gemma(directory: Path, family: str = "gemma3", **changes: Any) -> Path:
    """A random Gemma of two layers with a byte-level tokenizer."""
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    own = {"final_logit_softcapping": None} if family != "gemma" else {}
    torch.manual_seed(0)
    config = FAMILIES[family](vocab_size=len(tokenizer), **{**SHAPE, **own, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def policy_of(path: Path, finetuning: str, dtype: str = "float32") -> tuple[Policy, Any]:
    """The policy, whose SID rows are drawn at random, and its prompts."""
    fields = {"kind": "pretrained", "path": str(path), "finetuning": finetuning, "dtype": dtype, "items": WITHOUT_ROWS}
    settings = PolicyConfig.model_validate({**fields, "lora": Lora(rank=2, dropout=0.0)})
    policy, prompts = build(settings, CATALOG, max_history=4, seed=0)
    rows, part = policy.sid_tables()[0]
    with torch.no_grad():
        rows[part].normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return policy.eval(), prompts


def plain_model(path: Path, policy: Policy) -> PreTrainedModel:
    """The model itself, without the policy: its own table of embeddings, extended by the policy's SID rows."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path)
    model.resize_token_embeddings(policy.sids.base + policy.sids.count, mean_resizing=False)
    rows, part = policy.sid_tables()[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[policy.sids.base :] = rows[part]
    return model.eval()


@pytest.mark.parametrize("finetuning", ["full", "lora"])
@pytest.mark.parametrize("family", ["gemma", "gemma3"])
@torch.no_grad()
def test_logits_and_searches_are_those_of_the_models_own_forward(tmp_path: Path, family: str, finetuning: str) -> None:
    path = tiny_gemma(tmp_path, family)
    policy, prompts = policy_of(path, finetuning)
    plain = plain_model(path, policy)
    assert input_scale(policy.model) == pytest.approx(32**0.5)
    tokens_BP, mask_BP = prompts.encode([[3, 9, 1, 7]])
    assert (tokens_BP >= policy.sids.base).sum() == 12
    expected = plain(input_ids=tokens_BP).logits
    positions_BP = torch.arange(tokens_BP.shape[1])[None]
    causal = torch.ones(tokens_BP.shape[1], tokens_BP.shape[1]).tril().bool()[None, None]
    found = policy.vocabulary_logits(policy.hidden(tokens_BP, positions_BP, causal))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    beams = beam(policy, tokens_BP, mask_BP, CATALOG.trie, 4)
    for codes_L, logp in zip(beams.codes_BWL[0], beams.logp_BW[0], strict=True):
        sequence = torch.cat([tokens_BP[0], policy.sids.tokens(codes_L)])[None]
        logits = plain(input_ids=sequence).logits[0, tokens_BP.shape[1] - 1 :]
        total = 0.0
        for level, code in enumerate(codes_L.tolist()):
            same = (CATALOG.codes_NL[:, :level] == codes_L[:level]).all(-1)
            allowed = policy.sids.token(level, CATALOG.codes_NL[same, level].unique())
            own = int(policy.sids.token(level, torch.tensor(code)))
            total += float(logits[level, own] - logits[level, allowed].logsumexp(0))
        assert float(logp) == pytest.approx(total, abs=1e-3)


@torch.no_grad()
def test_frozen_bfloat16_weights_and_packed_ones_round_the_scale_as_the_model_does(tmp_path: Path) -> None:
    path = tiny_gemma(tmp_path, hidden_size=40)
    policy, _ = policy_of(path, "lora", "bfloat16")
    table: Any = policy.model.get_input_embeddings()
    text = table.token_adapter.base_layer
    codes = policy.sids.tokens(CATALOG.codes_NL[:3])
    rows = policy.sid_tables()[0][0]
    scale = text.embed_scale.to(torch.bfloat16)
    assert float(scale) != 40**0.5
    expected = (rows[codes - policy.sids.base] * scale.float()).bfloat16()
    torch.testing.assert_close(policy._embed_tokens(codes), expected, rtol=0, atol=0)


@torch.no_grad()
def test_packed_embeddings_keep_the_scale(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    path = tiny_gemma(tmp_path, hidden_size=64, head_dim=32)
    policy, _ = policy_of(path, "qlora", "bfloat16")
    plain = plain_model(path, policy)
    table: Any = plain.get_input_embeddings()
    tokens = torch.cat([torch.arange(40), policy.sids.tokens(CATALOG.codes_NL[:5]).flatten()])[None]
    found, expected = policy._embed_tokens(tokens).float(), table(tokens)
    assert float((found - expected).norm() / expected.norm()) < 0.01


def test_a_policy_of_gemma_trains_and_is_loaded_again(tmp_path: Path) -> None:
    path = tiny_gemma(tmp_path / "lm")
    policy, prompts = policy_of(path, "lora")
    optimizer = torch.optim.AdamW(policy.train().trainable().values(), lr=1e-2)
    tokens_BP, _ = prompts.encode([[3, 9, 1, 7]])
    causal = torch.ones(tokens_BP.shape[1], tokens_BP.shape[1]).tril().bool()[None, None]
    losses = []
    for _ in range(4):
        hidden = policy.hidden(tokens_BP, torch.arange(tokens_BP.shape[1])[None], causal)[0, -1]
        loss = -policy.level_logits(hidden, 0).log_softmax(-1)[2]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    save(policy, policy.snapshot(0).tensors, CATALOG, {}, tmp_path / "policy")
    settings = PolicyConfig(kind="pretrained", path=str(path), lora=Lora(rank=2, dropout=0.0), items=WITHOUT_ROWS)
    again, _ = load(settings, CATALOG, tmp_path / "policy", max_history=4, seed=5)
    assert again.snapshot(0).digest == policy.snapshot(0).digest


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {}, "the layers of gemma2"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"use_bidirectional_attention": True}, "attention in both directions"),
        ("gemma3", {"sliding_window": 16}, "attention windows of 16 tokens"),
    ],
)
def test_what_is_not_exact_is_still_refused(tmp_path: Path, family: str, changes: dict[str, Any], message: str) -> None:
    path = tiny_gemma(tmp_path, family)
    about = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(about | changes))
    with pytest.raises(InputError, match=message):
        policy_of(path, "lora")
