"""The mixtures of tasks that a policy learns: from a run's items, queries and a teacher's texts to its stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import teacher
from cluster.train import PolicyParts, RunSpec
from genrec.config import Config, Tasks
from genrec.data.files import write_json
from genrec.data.readers import read_items, read_queries, read_train_queries
from genrec.data.tables import Split
from genrec.seeds import seed_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from genrec.learning.sft.batches import RowExamples
    from genrec.learning.sft.losses import SftLoss
    from genrec.learning.sft.stages import TrainingStage
    from genrec.learning.tasks.examples import ExampleBuilder
    from genrec.learning.tasks.mixture import Mixture
    from genrec.policy.chat.chat_format import ChatFormat
    from genrec.policy.prompts import Prompts
    from genrec.sid.catalog import Catalog

LOG = logging.getLogger(__name__)

MIXTURE = "mixture.json"
"""Next to the policy: per stage and task the examples of an epoch, and the share of SIDs in what is learned."""


def training_stages(spec: RunSpec, built: PolicyParts, loss: SftLoss, accelerator: Accelerator) -> list[TrainingStage]:
    """The stages of ``learning.stages`` and then ``learning.sft``, each with its mixture; rank 0 writes ``MIXTURE``."""
    from genrec.learning.sft.batches import Epochs, RowExamples
    from genrec.learning.sft.stages import TrainingStage, settings_of
    from genrec.learning.tasks.loss import MixedLoss
    from genrec.learning.tasks.mixture import MixtureEpochs

    config, learning = spec.config, spec.config.learning
    with_context = config.policy.context.is_on
    queries = RowExamples(read_train_queries(spec.data, with_context=with_context), with_context=with_context)
    make = _mixtures(spec, built, queries)
    mixed = MixedLoss(loss, built.catalog.trie.to(accelerator.device))
    size, statistics, stages = learning.sft.batch_size, dict[str, Any](), list[TrainingStage]()
    for name, stage in learning.stages.on().items():
        seed, rows_only = seed_of(name, config.seed), name == "sid_embeddings"
        mixture = make(stage.tasks, seed)
        epochs = MixtureEpochs(mixture, size, seed)
        own = settings_of(stage, learning.sft, epochs.steps, rows_only=rows_only)
        section = f"learning.stages.{name}"
        stages.append(TrainingStage(name, own, epochs, mixed, rows_only=rows_only, section=section))
        statistics[name] = mixture.statistics()
    again = learning.sft.loss.second_pass
    if learning.sft.example_format == "tasks":
        mixture = make(learning.tasks, config.seed)
        epochs = MixtureEpochs(mixture, size, config.seed, again)
        stages.append(TrainingStage("instruction", learning.sft, epochs, mixed))
        statistics["instruction"] = mixture.statistics()
    else:
        stages.append(TrainingStage("next item", learning.sft, Epochs(queries, size, config.seed, again), loss))
    if accelerator.is_main_process:
        _keep_statistics(statistics, spec.out)
    return stages


def _keep_statistics(statistics: Mapping[str, Any], out: Path) -> None:
    from genrec.learning.tasks.mixture import table

    write_json(statistics, out / MIXTURE)
    for name, found in statistics.items():
        LOG.info("mixture of %s:\n%s", name, table(found))


def _mixtures(spec: RunSpec, built: PolicyParts, queries: RowExamples) -> Callable[[Tasks, int], Mixture]:
    """From weights of tasks and a seed to their mixture over the run's items and train queries."""
    from genrec.learning.tasks.mixture import Mixture

    config, taught = spec.config, teacher.read_texts(spec.out)
    settings = config.learning.instruction
    builder = make_example_builder(spec, built.catalog, "train", settings.languages, taught)
    chat_format = make_chat_format(config, built.prompts, built.catalog)
    room = int(built.policy.model.config.max_position_embeddings)

    def mixture(tasks: Tasks, seed: int) -> Mixture:
        return Mixture(tasks, builder, queries, chat_format, seed=seed, max_tokens=room, balance=settings.balance)

    return mixture


def make_example_builder(
    spec: RunSpec,
    catalog: Catalog,
    split: Split,
    languages: Sequence[str],
    taught: Mapping[tuple[str, int, str], str] | None = None,
) -> ExampleBuilder:
    """Builds examples about the run's items, the queries of ``split`` and, for ``train``, windows of whole sequences.

    Windows of another split are of its histories.
    """
    from genrec.learning.tasks.examples import ExampleBuilder
    from genrec.learning.tasks.item_fields import ItemFields
    from genrec.policy.chat.templates import load_language

    settings, queries = spec.config.learning.instruction, read_queries(spec.data, split)
    item_fields = ItemFields(read_items(spec.data), settings)
    return ExampleBuilder(
        item_fields,
        [load_language(name) for name in languages],
        settings,
        queries["history"].to_pylist(),
        queries["target"].to_pylist(),
        sequences=_train_sequences(spec.data, len(item_fields)) if split == "train" else None,
        absent=catalog.removed,
        taught=taught,
    )


def _train_sequences(data: Path, n_items: int) -> list[list[int]]:
    """The train part of each user's sequence, oldest first."""
    import numpy as np

    from genrec.baselines.train_log import read_train_log

    log = read_train_log(data, n_items)
    ends = np.flatnonzero(np.diff(log.users_E)) + 1
    return [part.tolist() for part in np.split(log.items_E, ends)]


def make_chat_format(config: Config, prompts: Prompts, catalog: Catalog) -> ChatFormat:
    """The conversations of the config's policy as tokens."""
    from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer

    return ChatFormat(load_tokenizer(config.policy, config.backbones_path), prompts.sids, catalog, prompts.form)
