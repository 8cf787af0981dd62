"""The parts of ``gpu_check``: each measures something on a GPU, or on the CPU in a rehearsal, and keeps its figures."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.decode import ON_GPU, measure
from benchmarks.harness import WITHOUT_ROWS, Bench, in_process, random_catalog, timed
from cluster import pipeline
from cluster.artifacts import Artifact, finished_artifact
from cluster.session import configure_process
from cluster.train import read_summary
from genrec.config import PolicyConfig, load_config
from genrec.data.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from genrec.policy.model import Policy
    from genrec.policy.prompts import Prompts
    from genrec.sid.catalog import Catalog

LOG = logging.getLogger(__name__)


class Figures(dict[str, Any]):
    """Figures by name, written to ``file`` whenever one is added: a part that is ended early keeps what it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def add(self, **figures: float | str) -> None:
        """Add ``figures`` and write all of them; a part that is ended meanwhile leaves the file as it was."""
        self.update(figures)
        write_text(json.dumps(self), self._file)


@dataclass(frozen=True)
class Machine:
    """Where a part runs: the device, whether it is a rehearsal, and the finished stages of the bundle."""

    device: str
    rehearse: bool
    artifacts: Path

    def size(self, real: int, rehearsal: int) -> int:
        """``real``, or ``rehearsal`` in a rehearsal."""
        return rehearsal if self.rehearse else real

    def finished(self) -> dict[str, Artifact]:
        """The bundle's artifacts by the name of their stage."""
        found = (finished_artifact(folder.parent.name, folder) for folder in self.artifacts.glob("*/*"))
        return {one.name: one for one in found if one is not None}


def exactness(machine: Machine, figures: Figures) -> None:
    """Beams, log-probabilities and gradients on the device compared with those on the CPU, for two families of models.

    ``same_items``: the share of places of the ranking with the same item; ``logp``: the largest difference;
    ``gradient``: ‖g − g_cpu‖ / ‖g_cpu‖ over all weights.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for arch in ("gpt2", "qwen3"):
        catalog = random_catalog(machine.size(3686, 200), generator)
        policy, prompts = _random_policy(arch, catalog)
        histories = torch.randint(len(catalog.codes_NL), (machine.size(64, 4), 10), generator=generator).tolist()
        expected = _answers(policy, prompts, catalog, histories, "cpu")
        policy.to(machine.device)
        found = _answers(policy, prompts, catalog, histories, machine.device)
        figures.add(**{f"{arch}_float32_{name}": value for name, value in found.compared(expected).items()})
        policy.precision = torch.bfloat16
        found = _answers(policy, prompts, catalog, histories, machine.device)
        figures.add(**{f"{arch}_bfloat16_{name}": value for name, value in found.compared(expected).items()})
        policy.precision = torch.float32
        figures.add(**{f"{arch}_same_as_generate": _same_as_generate(policy, prompts, catalog, histories[:8])})


@dataclass(frozen=True)
class _DeviceAnswers:
    """Items (B, W) and their log-probabilities, log-probabilities (B, G) of candidates, and their gradient (Θ,)."""

    items_BW: Tensor
    logp_BW: Tensor
    scored_BG: Tensor
    gradient: Tensor

    def compared(self, other: _DeviceAnswers) -> dict[str, float]:
        """How far these answers are from ``other``."""
        same_BW = self.items_BW == other.items_BW
        return {
            "same_items": float(same_BW.float().mean()),
            "logp": float((self.logp_BW - other.logp_BW)[same_BW].abs().max()),
            "scored_logp": float((self.scored_BG - other.scored_BG).abs().max()),
            "gradient": float((self.gradient - other.gradient).norm() / other.gradient.norm()),
        }


def _random_policy(arch: str, catalog: Catalog) -> tuple[Policy, Prompts]:
    """Random weights that are large enough for answers to differ from item to item."""
    import torch

    from genrec.policy.backbone import build

    shape = {"arch": arch, "hidden": 128, "layers": 4, "heads": 4, "dropout": 0.0}
    settings = PolicyConfig.model_validate(shape).replace(items=WITHOUT_ROWS)
    policy, prompts = build(settings, catalog, max_history=10, seed=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return policy.eval(), prompts


def _answers(
    policy: Policy, prompts: Prompts, catalog: Catalog, histories: Sequence[Sequence[int]], device: str
) -> _DeviceAnswers:
    import torch

    from genrec.policy.decoding.beam import beam
    from genrec.policy.decoding.score import score

    tokens_BP, mask_BP = (part.to(device) for part in prompts.encode(histories))
    trie = catalog.trie.to(device)
    beams = beam(policy, tokens_BP, mask_BP, trie, 50)
    candidates_BGL = catalog.codes_NL[: 16 * len(histories)].unflatten(0, (len(histories), -1)).to(device)
    policy.zero_grad()
    scored = score(policy, tokens_BP, mask_BP, candidates_BGL, trie).logp_BGL.sum(-1)
    scored.mean().backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in policy.parameters() if p.grad is not None])
    policy.zero_grad()
    return _DeviceAnswers(beams.items_BW.cpu(), beams.logp_BW.cpu(), scored.detach().cpu(), gradient)


def _same_as_generate(policy: Policy, prompts: Prompts, catalog: Catalog, histories: Sequence[Sequence[int]]) -> float:
    from benchmarks.references.hf_generate import generate
    from genrec.policy.decoding.beam import beam

    tokens_BP, mask_BP = (part.to(policy.device) for part in prompts.encode(histories))
    codes_BWL = beam(policy, tokens_BP, mask_BP, catalog.trie.to(policy.device), 20).codes_BWL
    found = generate(policy, tokens_BP, mask_BP, catalog, 20)
    return float((found == policy.sids.tokens(codes_BWL)).float().mean())


LANGUAGE_MODEL = [
    "policy.kind=pretrained",
    "policy.path=smollm2",
    "policy.finetuning=full",
    "policy.dtype=bfloat16",
    "policy.sid_init=text",
    "policy.items={input: none, head: false}",
    "learning.sft.epochs=8",
    "learning.sft.eval_every=1",
    "learning.sft.patience=2",
    "learning.sft.lr=3e-4",
    "learning.sft.batch_size=64",
    "learning.sft.micro_batch=64",
    "learning.sft.eval_queries=1000",
    "learning.rl.lr=2e-5",
    "learning.rl.steps=50",
    "learning.rl.queries=64",
    "learning.rl.micro_queries=64",
    "learning.rl.checkpoint_every=1000",
    "learning.rl.eval_every=25",
    "learning.rl.eval_queries=1000",
    "decode.prior=none",
]
"""Overrides of the config of Industrial: SmolLM2-135M with all weights, whole sequences behind one instruction.

50 updates of GRPO, about a second each alone on a card: 200 beside the other parts would outlast the check.
"""


def language_model(machine: Machine, figures: Figures) -> None:
    """SmolLM2-135M with all weights on Industrial: the curve of SFT, GRPO with its config's rewards, the test."""
    _train_smollm2(machine, figures)


def lora(machine: Machine, figures: Figures) -> None:
    """``language_model`` with adapters of rank 64 in place of all weights, as the recipes have them."""
    adapters = "policy.lora={rank: 64, alpha: 128, dropout: 0.05}"
    _train_smollm2(machine, figures, "policy.finetuning=lora", adapters, "learning.sft.lr=5e-4")


def random_weights(machine: Machine, figures: Figures) -> None:
    """``language_model`` from random weights: what pretraining is worth."""
    _train_smollm2(machine, figures, "policy.weights=random")


def _train_smollm2(machine: Machine, figures: Figures, *settings: str) -> None:
    stages = ("sft", "grpo") if machine.rehearse else ("sft", "grpo", "evaluate")
    _run_stages(machine, figures, ["industrial"], [*LANGUAGE_MODEL, *settings], stages)


def pipeline_on_one_card(machine: Machine, figures: Figures) -> None:
    """``industrial.yaml`` as it is, from the tables and semantic IDs of the bundle to the report."""
    on_ray = find_spec("ray") is not None
    figures.add(on_ray=str(on_ray))
    _run_stages(machine, figures, ["industrial", "cpu" if machine.rehearse else "a100"], on_ray=on_ray)


def _run_stages(
    machine: Machine,
    figures: Figures,
    names: Sequence[str],
    settings: Sequence[str] = (),
    stages: Sequence[str] = ("sft", "grpo", "evaluate"),
    *,
    on_ray: bool = False,
) -> None:
    """``stages`` on the bundle's tables and semantic IDs; the test's figures, seconds and peak memory."""
    overrides = [*settings, f"compute.device={machine.device}"]
    if machine.rehearse:
        overrides += ["learning.sft.max_steps=2", "learning.sft.batch_size=8", "learning.sft.micro_batch=8"]
        overrides += ["learning.sft.eval_queries=16", "learning.rl.steps=2", "learning.rl.queries=4"]
        overrides += ["learning.rl.eval_queries=16", "learning.rl.micro_queries=4", "evaluation.bootstrap=20"]
        overrides += ["decode.prior=none"]
    with tempfile.TemporaryDirectory() as storage:
        config = load_config(list(names), [f"storage={storage}", *overrides])
        config = config if on_ray else in_process(config)
        configure_process(config)
        made = machine.finished()
        for stage in stages:
            with _peak_memory(machine, figures, stage):
                made[stage] = pipeline.run_stage(config, stage, made)
            figures.add(**{f"{stage}_{name}": value for name, value in made[stage].metrics.items()})
            if stage == "evaluate":
                figures.add(metrics=(made[stage].path / "metrics.json").read_text(encoding="utf-8"))
            else:
                checks = [record for record in read_summary(made[stage].path)["curve"] if "ndcg@10" in record]
                figures.add(**{f"{stage}_curve": json.dumps(checks)})


@contextmanager
def _peak_memory(machine: Machine, figures: Figures, label: str) -> Generator[None]:
    """Seconds, and the peak of the device's memory that this process took."""
    import torch

    cuda = machine.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    yield
    figures.add(**{f"{label}_seconds": time.perf_counter() - started})
    if cuda:
        figures.add(**{f"{label}_peak_gib": torch.cuda.max_memory_allocated() / 2**30})


SHAPES: Mapping[str, Mapping[str, int]] = {
    "qwen3_0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_key_value_heads": 8},
    "qwen3_1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_key_value_heads": 8},
}
TEXT_TOKENS = 151_936
"""Of Qwen3's vocabulary."""


def shapes(machine: Machine, figures: Figures) -> None:
    """An SFT step of 16 rows, rollouts of 16 queries and a GRPO step of 16 queries of 16 candidates, 100 items each.

    Weights and optimizer in float32, matrix products in bfloat16. ``tokens_per_s`` counts the prompts' tokens.
    """
    for name, shape in SHAPES.items():
        with _kept_apart(name, machine, figures):
            _measure_shape(name, shape, machine, figures)


@contextmanager
def _kept_apart(label: str, machine: Machine, figures: Figures) -> Generator[None]:
    """A piece of a part that costs the other pieces nothing when it fails, nor memory when it is over.

    What went wrong is kept under ``<label>_failed``, with which the part ends as one that failed.
    """
    try:
        yield
    except Exception as error:
        LOG.exception("%s failed", label)
        figures.add(**{f"{label}_failed": repr(error)[:400]})
    _free_memory(machine)


def _free_memory(machine: Machine) -> None:
    """Give what the last model took back to the card."""
    import torch

    gc.collect()
    if machine.device == "cuda":
        torch.cuda.empty_cache()


def _measure_shape(name: str, shape: Mapping[str, int], machine: Machine, figures: Figures) -> None:
    import torch

    from genrec.policy.decoding.beam import beam
    from genrec.policy.decoding.score import score

    generator, rows, group = torch.Generator().manual_seed(0), machine.size(16, 2), 16
    catalog = random_catalog(machine.size(3686, 200), generator)
    policy, prompts = _of_shape(shape, catalog, machine)
    histories = torch.randint(len(catalog.codes_NL), (rows, machine.size(100, 3)), generator=generator).tolist()
    tokens_BP, mask_BP = (part.to(machine.device) for part in prompts.encode(histories))
    drawn_BG = torch.randint(len(catalog.codes_NL), (rows, group), generator=generator)
    trie, candidates_BGL = catalog.trie.to(machine.device), catalog.codes_NL[drawn_BG].to(machine.device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=True)

    def update(codes_BGL: Tensor) -> None:
        (-score(policy, tokens_BP, mask_BP, codes_BGL, trie).logp_BGL.sum(-1).mean()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    work: dict[str, Callable[[], object]] = {
        "sft": lambda: update(candidates_BGL[:, :1]),
        "rollouts": lambda: beam(policy, tokens_BP, mask_BP, trie, group),
        "grpo": lambda: update(candidates_BGL),
    }
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    figures.add(**{f"{name}_parameters": float(parameters), f"{name}_prompt_tokens": float(tokens_BP.shape[1])})
    for label, call in work.items():
        with _peak_memory(machine, figures, f"{name}_{label}"):
            call()
        seconds = min(timed(call) for _ in range(machine.size(3, 1)))
        figures.add(**{f"{name}_{label}_prompts_per_s": rows / seconds})
        figures.add(**{f"{name}_{label}_tokens_per_s": tokens_BP.numel() / seconds})


def _of_shape(shape: Mapping[str, int], catalog: Catalog, machine: Machine) -> tuple[Policy, Prompts]:
    """A Qwen3 of random weights, made on the device; in a rehearsal two narrow layers."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from genrec.policy.model import Policy
    from genrec.policy.prompts import Prompts, SidTokens

    text = machine.size(TEXT_TOKENS, 1000)
    sids = SidTokens(text, catalog.level_sizes)
    sizes: dict[str, Any] = dict(shape) if not machine.rehearse else {"hidden_size": 64, "num_hidden_layers": 2}
    with torch.device(machine.device):
        model = Qwen3ForCausalLM(
            Qwen3Config(vocab_size=text + sids.count, head_dim=128, tie_word_embeddings=True, **sizes)
        )
    policy = Policy(model, sids, precision=torch.bfloat16)
    return policy.eval(), Prompts(catalog, sids, [1] * 40, [2] * 10, 0, 100)


def decoding(machine: Machine, figures: Figures) -> None:
    """The searches of ``bench decode`` at the width and depth of Qwen3-1.7B, with every head's own keys and values.

    ``generate`` holds the prompt once for each beam, in float32 as attention gets it: 28 layers · 2 · 2,048 · 4 bytes =
    459 KB for each of 1,000 tokens. That is 46 GB for 100 beams, which a card of 80 GB holds, and 118 GB for 256; where
    a reference finds no room, ``no_room_for_…`` says so, and the others are measured.
    """
    real = dataclasses.replace(ON_GPU, vocabularies=(("v152k", 152_000),), rounds=2, searches_only=True)
    small = dataclasses.replace(real, layers=1, hidden=64, heads=2, items=300, many_items=1000, histories=(5,))
    config = load_config([], ["compute.threads=2"])
    for width, batch in ((50, machine.size(2, 1)), (256, 1)):
        size = dataclasses.replace(small if machine.rehearse else real, widths=(width,), batch=batch)

        def tell(bench: Bench, width: int = width) -> None:
            figures.add(**{f"w{width}_{name}": value for name, value in bench.figures.items()})
            figures.add(**{f"w{width}_ratio_{name}": value for name, value in bench.ratios.items()})

        with _kept_apart(f"w{width}", machine, figures):
            tell(measure(config, size, machine.device, tell))


def nccl(machine: Machine, figures: Figures) -> None:
    """Ten steps of a small policy as one worker of a process group (NCCL on a GPU), and alone: equal losses."""
    losses: dict[str, list[float]] = {}
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for label, env in (("alone", {}), ("ddp", group)):
        os.environ.update(env)
        _forget_process_state()
        with tempfile.TemporaryDirectory() as storage:
            config = load_config(
                ["industrial"],
                [
                    f"storage={storage}",
                    f"compute.device={machine.device}",
                    "policy.dtype=bfloat16",
                    "learning.sft.max_steps=10",
                    "learning.sft.eval_queries=64",
                    f"learning.sft.batch_size={machine.size(512, 16)}",
                ],
            )
            made = pipeline.run_stage(in_process(config), "sft", machine.finished())
            curve = read_summary(made.path)["curve"]
        losses[label] = [record["loss"] for record in curve if "loss" in record]
        figures.add(**{f"{label}_loss": losses[label][-1]})
    import torch.distributed as dist

    figures.add(backend=dist.get_backend() if dist.is_initialized() else "none")
    figures.add(difference=abs(losses["alone"][-1] - losses["ddp"][-1]))


def _forget_process_state() -> None:
    """accelerate keeps how a process was started; forget it, so that the environment is read again."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # pyright: ignore[reportPrivateUsage]


WORK: Mapping[str, Callable[[Machine, Figures], None]] = {
    "exactness": exactness,
    "language_model": language_model,
    "lora": lora,
    "random_weights": random_weights,
    "pipeline": pipeline_on_one_card,
    "shapes": shapes,
    "decoding": decoding,
    "nccl": nccl,
}


def main() -> None:
    """``python -m benchmarks.gpu_parts NAME ARTIFACTS RESULT [rehearse]``, which ``gpu_check`` calls."""
    import torch

    name, artifacts, result, *rest = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    rehearse = bool(rest)
    machine = Machine("cpu" if rehearse else "cuda", rehearse, Path(artifacts))
    figures = Figures(Path(result))
    figures.add(card=torch.cuda.get_device_name() if machine.device == "cuda" else "none", torch=torch.__version__)
    WORK[name](machine, figures)
    if failed := [label for label in figures if label.endswith("_failed")]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
