"""Small worlds whose answers are known, shared by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.harness import WITHOUT_ROWS
from genrec.config import Config, Items, PolicyConfig, load_config
from genrec.policy.backbone import build
from genrec.policy.model import Policy as Model
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog

TINY = PolicyConfig(hidden=32, layers=1, heads=2, dropout=0.0)


def random_catalog(items: int, sizes: tuple[int, ...], seed: int = 0) -> Catalog:
    """``items`` distinct SIDs drawn at random."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(int(np.prod(sizes)), size=items, replace=False)
    return Catalog(torch.tensor(np.stack(np.unravel_index(flat, sizes), axis=1)), sizes)


def small_policy(
    catalog: Catalog, arch: str = "gpt2", seed: int = 1, items: Items = WITHOUT_ROWS
) -> tuple[Model, Prompts]:
    """An untrained policy with weights large enough that its answers differ from item to item."""
    settings = PolicyConfig(arch=arch, hidden=32, layers=2, heads=4, dropout=0.0, items=items)  # type: ignore[arg-type]
    policy, prompts = build(settings, catalog, max_history=6, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1 and not parameter.any():  # What begins at zero would take no part.
                parameter.normal_(std=0.1, generator=generator)
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return policy.eval(), prompts


def chain_shop(directory: Path, users: int = 60, items: int = 24, length: int = 8) -> Path:
    """A shop whose every user walks the catalogue in order: item i is always followed by item i + 1.

    Writes ``items.parquet`` and ``interactions.parquet`` in the canonical columns.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kinds = ("tooth", "hair", "soap", "paper")
    titles = [f"{kinds[i % 4]} thing number {i}" for i in range(items)]
    table = {
        "id": [f"i{i}" for i in range(items)],
        "title": titles,
        "description": [f"a {title} for the house" for title in titles],
        "brand": [f"brand {i % 3}" for i in range(items)],
        "categories": [["shop", kinds[i % 4]] for i in range(items)],
    }
    pq.write_table(pa.table(table), directory / "items.parquet")
    rows = [(f"u{u}", f"i{(u * 5 + step) % items}", 1000 * u + step) for u in range(users) for step in range(length)]
    users_, items_, times = zip(*rows, strict=True)
    log = {"user_id": list(users_), "item_id": list(items_), "timestamp": list(times)}
    pq.write_table(pa.table(log), directory / "interactions.parquet")
    return directory


def tiny_config(storage: Path, shop: Path, *overrides: str) -> Config:
    """A whole run in seconds, in this process unless overridden."""
    return load_config(
        [],
        [
            f"storage={storage}",
            f"data.path={shop}",
            "name=tiny",
            "data.max_history=5",
            "data.shards=2",
            "embed.max_tokens=16",
            "sid.codebook_size=8",
            "sid.cf_weight=1.0",
            "sid.cf_dims=8",
            "policy.hidden=32",
            "policy.layers=1",
            "policy.heads=2",
            "policy.dropout=0.1",
            "learning.sft.epochs=6",
            "learning.sft.lr=1e-2",
            "learning.sft.batch_size=16",
            "learning.sft.micro_batch=16",
            "learning.sft.checkpoint_every=3",
            "learning.rl.steps=6",
            "learning.rl.queries=16",
            "learning.rl.group=4",
            "learning.rl.rollout_chunk=8",
            "learning.rl.eval_every=3",
            "learning.rl.checkpoint_every=2",
            "learning.rl.guard_drop=1.0",
            "decode.width=50",
            "evaluation.bootstrap=50",
            "evaluation.shard_queries=32",
            "compute.device=cpu",
            "compute.threads=1",
            "compute.workers=0",
            "compute.data_actors=0",
            *overrides,
        ],
    )


def tiny_pretrained(directory: Path, *, tied: bool, words: int = 30, hidden: int = 32) -> Path:
    """A random Qwen3 of two layers, saved with a tokenizer that knows the words w0, w1, …"""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {"<unk>": 0} | {f"w{i}": i + 1 for i in range(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory
