"""The benchmarks by name, and how one is run: the stages that it needs first, then its module's ``run``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType

from benchmarks.harness import Bench
from cluster import pipeline
from genrec.config import Config
from genrec.errors import unknown_name

BENCHMARKS: Mapping[str, str] = MappingProxyType(
    {
        "assign": "semantic IDs of up to a million items, compared with bare faiss: speed, memory, cost per item",
        "assign-scale": "assign and collaborative factors on catalogues that grow: memory, time per item",
        "decode": "tree decoding compared with generate and with a logits processor on a Python dict",
        "recommend": "where the time of a recommendation goes: p50 and p95 of each part; batches beside one by one",
        "sft": "whole sequences or rows, softmax of a level or the vocabulary, a LoRA step and the HF Trainer's",
        "rl": "a GRPO update compared with an SFT step and with public code; rollout actors, measured and simulated",
        "transport": "weights from a learner to two actors: the object store, pickled tensors, a broadcast",
        "insert": "hit rate of held-out items, inserted into the catalogue without training, and of the other items",
        "tokenizers": "every quantizer: collisions, code use, neighbours, seconds; NDCG@10 of policies trained on them",
        "baselines": "the field's baselines, tuned on validation, beside the figures published for them",
        "policy": "semantic IDs, item head, both, and both with ItemKNN, beside ItemKNN; and each part left out",
        "events": "event types, time gaps and the event asked for in the prompt: NDCG@10 by event, beside ItemKNN",
        "losses": "the same fine-tuning with each supervised loss and softmax: NDCG@10, HR@10, also by popularity",
        "tasks": "what other tasks give to, or take from, the next item at equal steps: NDCG@10, HR@10",
        "chat": "conversations with a policy: the share that ends, with an item where one belongs, and the right one",
        "rewards": "GRPO with each reward or setting: the gain over SFT, the tail, coverage, what the updates did",
        "tradeoff": "weight of a reward against its goal (categories, new items, purchases) and against NDCG@10",
        "rl-quality": "each part of reinforcement learning with settings that validation chose, the best of them, and "
        "what they cost, beside SFT",
        "tune": "a search compared with the same GRPO runs by hand; ASHA with random search on the same trials",
        "recipes": "the recipes of the design documents trained whole, SFT and RL, beside what was claimed of them",
        "searches": "beams with and without priors, diverse and stochastic beams, samples: NDCG, coverage, validity",
        "stream": "a log in six parts by time: NDCG@10 and minutes of a frozen, an updated and a retrained policy",
        "serve": "the HTTP service under load: batches beside single searches, latency, memory, changes, kills",
        "exact-match": "SFT policies on their own training queries: loss, e^-loss, draws that match, accuracy by level",
        "cold-start": "beams by rank, with and without the trie: IDs that do not exist, rare items, and the time",
        "scale": "logs of a million and ten million events: memory and time of what holds a whole log",
        "chaos": "a small `full` whose processes are killed at random, again and again: its files are compared with an "
        "undisturbed run's",
    }
)
"""What each benchmark measures, in one line."""


def module_of(name: str) -> ModuleType:
    """The module of the benchmark ``name``: ``benchmarks.<name>``, with ``_`` for ``-``."""
    return import_module(f"benchmarks.{name.replace('-', '_')}")


def run(name: str, config: Config) -> Bench:
    """Run the benchmark ``name``, after the stages in its module's ``NEEDS``; finished ones are found and skipped.

    Raises:
        InputError: an unknown name, or bad input of a stage or of the benchmark.
    """
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    module = module_of(name)
    return module.run(config, pipeline.run(config, *module.NEEDS))
