"""Supervised training on tasks and in stages: ``cluster.train.sft_loop`` with more than one kind of example."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.run_spec import RunSpec
from cluster.stages.teacher import read_reasons
from genrec.config import Config, Tasks
from genrec.data.files import write_json

MIXTURE = "mixture.json"
"""Beside the policy: per stage and task the examples of an epoch, and the share of SIDs in what is learned."""


def is_wanted(config: Config) -> bool:
    """Whether the config asks for tasks or stages."""
    return config.learning.sft.example_format == "tasks" or bool(config.learning.stages.on())


def train_stages(
    job: RunSpec, policy: Any, prompts: Any, catalog: Any, loss: Any, *, options: Mapping[str, Any]
) -> Any:
    """Every stage of ``learning.stages`` that is on, then ``learning.sft``; the ``TrainingState`` of the last."""
    from genrec.data.tables import read_queries
    from genrec.learning.sft.batches import Epochs, RowExamples
    from genrec.learning.sft.stages import TrainingStage, run_stages, settings_of
    from genrec.learning.tasks.loss import MixedLoss
    from genrec.learning.tasks.mixture import MixtureEpochs, table

    config, learning, accelerator = job.config, job.config.learning, options["accelerator"]
    queries = RowExamples(read_queries(job.data, "train"))
    make = _mixtures(job, policy, prompts, catalog, queries)
    mixed = MixedLoss(loss, catalog.trie.to(accelerator.device))
    size, statistics, phases = learning.sft.batch_size, dict[str, Any](), list[TrainingStage]()
    for name, stage in learning.stages.on().items():
        mixture = make(stage.tasks)
        epochs, rows_only = MixtureEpochs(mixture, size, config.seed), name == "sid_embeddings"
        own = settings_of(stage, learning.sft, epochs.steps, rows_only=rows_only)
        phases.append(TrainingStage(name, own, epochs, mixed, rows_only=rows_only))
        statistics[name] = mixture.statistics()
    if learning.sft.example_format == "tasks":
        mixture = make(learning.tasks)
        phases.append(TrainingStage("instruction", learning.sft, MixtureEpochs(mixture, size, config.seed), mixed))
        statistics["instruction"] = mixture.statistics()
    else:
        phases.append(TrainingStage("next item", learning.sft, Epochs(queries, size, config.seed), loss))
    if accelerator.is_main_process:
        write_json(statistics, job.out / MIXTURE)
        print("\n".join(f"[sft] mixture of {name}:\n{table(found)}" for name, found in statistics.items()), flush=True)
    return run_stages(policy, phases, **options)


def _mixtures(job: RunSpec, policy: Any, prompts: Any, catalog: Any, queries: Any) -> Any:
    """A function from ``Tasks`` to their mixture over the job's items and train queries."""
    from genrec.learning.tasks.mixture import Mixture

    config = job.config
    writer = make_example_builder(job, catalog, "train", config.learning.instruction.languages, read_reasons(job.out))
    form = chat_format(job, prompts, catalog)
    room = int(policy.model.config.max_position_embeddings)

    def mixture(tasks: Tasks) -> Mixture:
        return Mixture(tasks, writer, queries, form, seed=config.seed, max_tokens=room)

    return mixture


def make_example_builder(job: RunSpec, catalog: Any, split: str, languages: Sequence[str], reasons: Any = None) -> Any:
    """Writes conversations about the job's items and the queries of ``split``."""
    from genrec.data.tables import read_items, read_queries
    from genrec.learning.tasks.examples import ExampleBuilder
    from genrec.learning.tasks.item_fields import ItemFields
    from genrec.policy.chat.templates import load_language

    settings, queries = job.config.learning.instruction, read_queries(job.data, split)
    return ExampleBuilder(
        ItemFields(read_items(job.data), settings),
        [load_language(name) for name in languages],
        settings,
        queries["history"].to_pylist(),
        queries["target"].to_pylist(),
        absent=catalog.removed,
        reasons=reasons,
    )


def chat_format(job: RunSpec, prompts: Any, catalog: Any) -> Any:
    """The conversations of the job's policy as tokens."""
    from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer

    return ChatFormat(load_tokenizer(job.config.policy, job.backbones), prompts.sids, catalog)


def key_of(config: Config) -> dict[str, Any]:
    """What a stage's result depends on here; nothing where tasks and stages are off."""
    if not is_wanted(config):
        return {}
    names = ("stages", "tasks", "instruction")
    return json.loads(config.learning.model_dump_json(include=set(names)))
