"""DDP, ZeRO-2 and ZeRO-3 on two workers: one loss curve, and checkpoints that any of them resumes."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from support.synthetic import random_catalog
from support.two_workers import joined
from test_finetuning import tiny_backbone
from torch import distributed, multiprocessing

from benchmarks.harness import WITHOUT_ROWS
from genrec.config import Config, Lora, PolicyConfig, Sft
from genrec.errors import InputError

ROWS = {"sft": {"example_format": "rows"}}
QLORA = {"kind": "pretrained", "finetuning": "qlora"}
SCRATCH = PolicyConfig(hidden=32, layers=2, heads=4, dropout=0.0)


@dataclass(frozen=True)
class Case:
    """A run of ``strategy``; it begins after three of six steps of another run if ``start`` names one."""

    name: str
    strategy: str
    policy: PolicyConfig
    start: str = ""


def cases(backbone: str) -> list[Case]:
    shape = {"kind": "pretrained", "path": backbone, "prompt": "question"}
    adapters = PolicyConfig.model_validate({**shape, "lora": Lora(rank=4, dropout=0.0), "items": WITHOUT_ROWS})
    return [
        Case("ddp", "ddp", SCRATCH),
        Case("zero2", "zero2", SCRATCH),
        Case("zero3", "zero3", SCRATCH),
        Case("ddp from zero3", "ddp", SCRATCH, "zero3"),
        Case("zero2 from ddp", "zero2", SCRATCH, "ddp"),
        Case("zero3 from zero2", "zero3", SCRATCH, "zero2"),
        Case("lora ddp", "ddp", adapters),
        Case("lora zero2", "zero2", adapters),
        Case("lora zero3", "zero3", adapters),
    ]


class KeptCheckpoints:
    """Keeps every checkpoint under ``out`` and begins from ``start``."""

    def __init__(self, out: Path, start: Path | None, rank: int) -> None:
        self._out, self._start, self._rank = out, start, rank

    def latest(self) -> AbstractContextManager[Path | None]:
        return nullcontext(self._start)

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        if self._rank == 0:
            directory = self._out / f"step-{metrics['step']}"
            directory.mkdir(parents=True, exist_ok=True)
            write(directory)
        distributed.barrier()


def train(rank: int, root: Path, case: Case) -> None:
    from accelerate import Accelerator

    from cluster.train import deepspeed_config
    from genrec.evaluation.validate import Search, Validator
    from genrec.learning.sft.batches import Epochs, RowExamples
    from genrec.learning.sft.losses import SftLoss
    from genrec.learning.sft.trainer import SftTrainer
    from genrec.policy.backbone import build

    catalog = random_catalog(40, (8, 8, 8))
    policy, prompts = build(case.policy, catalog, max_history=6, seed=1)
    rows = {
        "id": [*range(27)],
        "user": [*range(27)],
        "history": [list(range(i % 5 + 1)) for i in range(27)],
        "target": [*range(1, 28)],
    }
    shape = {"epochs": 2, "lr": 1e-2, "batch_size": 9, "micro_batch": 4, "checkpoint_every": 1}
    settings = Sft.model_validate({"example_format": "rows", "ema_decay": 0.0, **shape})
    accelerator = Accelerator(cpu=True)
    start = root / case.start / "step-3" if case.start else None
    state = SftTrainer(
        policy,
        SftLoss(prompts, catalog, softmax="trie", smoothing=0.0),
        Epochs(RowExamples(pa.table(rows)), 9, seed=2),
        settings,
        seed=0,
        accelerator=accelerator,
        checkpoints=KeptCheckpoints(root / case.name, start, rank),
        validate=Validator(
            pa.table(rows).slice(0, 7), prompts, catalog.trie, accelerator, count=7, search=Search(10), batch_size=4
        ),
        deepspeed=deepspeed_config(case.strategy),
    ).run()
    if rank == 0:
        (root / f"{case.name}.json").write_text(json.dumps(state.curve))


def work(rank: int, root: Path, runs: list[Case]) -> None:
    with joined(rank, root):
        for case in runs:
            train(rank, root, case)


def test_the_strategies_have_one_curve_and_resume_each_other(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    runs = cases(tiny_backbone(tmp_path / "backbone", tied=False))
    multiprocessing.spawn(work, (tmp_path, runs), nprocs=2)
    for case in runs:
        plain = "lora ddp" if case.policy.kind == "pretrained" else "ddp"
        curve = json.loads((tmp_path / f"{plain}.json").read_text())
        assert curve[-1]["loss"] < curve[0]["loss"]
        for mine, theirs in zip(json.loads((tmp_path / f"{case.name}.json").read_text()), curve, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5), case.name
        for file in ("policy", "optimizer"):
            wanted = load_file(tmp_path / plain / "step-6" / f"{file}.safetensors")
            tensors = load_file(tmp_path / case.name / "step-6" / f"{file}.safetensors")
            assert set(tensors) == set(wanted)
            for key, tensor in wanted.items():
                assert torch.allclose(tensors[key], tensor, rtol=1e-3, atol=1e-4), (case.name, key)
    shutil.rmtree(tmp_path)


def test_packages_that_a_config_needs_are_asked_for_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import session

    monkeypatch.setattr(session, "find_spec", lambda name: None)
    session.require_packages(Config())
    wanted = {
        "bitsandbytes": Config.model_validate({"policy": QLORA, "learning": ROWS}),
        "deepspeed": Config.model_validate({"compute": {"strategy": "zero2"}}),
    }
    for package, config in wanted.items():
        with pytest.raises(InputError, match=f"pip install {package}"):
            session.require_packages(config)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"compute": {"strategy": "zero2", "workers": 0}}, "workers must be 1 or more"),
        ({"policy": {"finetuning": "qlora"}}, "is for pretrained"),
        (
            {"policy": QLORA, "learning": ROWS, "compute": {"strategy": "zero3"}},
            "zero3",
        ),
        (
            {
                "policy": {"kind": "pretrained"},
                "learning": {
                    **ROWS,
                    "stages": {"sid_embeddings": {"steps": 3, "tasks": {"next_item": {"weight": 1.0}}}},
                },
                "compute": {"strategy": "zero3"},
            },
            "zero2 or ddp for learning.stages",
        ),
    ],
)
def test_forms_and_strategies_that_do_not_fit_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(bad)
