"""A policy goes on learning in this process: examples, loss, validators of old and new queries, trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from genrec.config import Config
from genrec.errors import InputError
from genrec.evaluation.validate import Search, Validator
from genrec.learning.sft.batches import RowExamples
from genrec.learning.update.drift_loss import DriftLoss
from genrec.learning.update.update_trainer import UpdateResult, UpdateTrainer
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateTask:
    """What an update learns from: a policy for ``catalog``, its prompts, and queries (schema ``QUERIES``).

    ``new``, ``old``: to learn from; ``valid``: those that the guard looks at, by the name of the set.
    """

    policy: Policy
    prompts: Prompts
    catalog: Catalog
    new: pa.Table
    old: pa.Table
    valid: Mapping[str, pa.Table]
    search: Search


def update_policy(task: UpdateTask, config: Config, accelerator: Accelerator) -> UpdateResult:
    """Train ``task.policy`` by ``learning.update``; its weights are those of the last step afterwards.

    Raises:
        InputError: no new query to learn from, or no validation query at all.
    """
    settings, with_context = config.learning.update, config.policy.context.is_on
    if not task.new.num_rows:
        raise InputError(
            "the new events hold no query to learn from: each needs an event before it; give more of them, or a lower "
            f"learning.update.held_out={settings.held_out:g}"
        )
    sets = {name: queries for name, queries in task.valid.items() if queries.num_rows}
    if not sets:
        raise InputError("there is no validation query, of old or of new events; the guard would see nothing")
    policy = task.policy.to(accelerator.device)
    validators = {
        name: Validator(
            queries,
            task.prompts,
            task.catalog.trie,
            accelerator,
            count=settings.eval_queries,
            search=task.search,
            batch_size=config.decode.batch_size,
        )
        for name, queries in sets.items()
    }

    def judge(version: Policy) -> dict[str, Tensor]:
        return {name: one.values(one.rankings(version))["ndcg@10"] for name, one in validators.items()}

    loss = DriftLoss(
        task.prompts,
        task.catalog,
        policy.snapshot(0).tensors,
        head_weight=config.policy.items.weight,
        kl=settings.kl,
    )
    new = RowExamples(task.new, with_context=with_context)
    old = RowExamples(task.old, with_context=with_context) if task.old.num_rows else None
    LOG.info("learning from %d new and %d old queries", task.new.num_rows, task.old.num_rows)
    return UpdateTrainer(policy, new, old, loss, settings, judge=judge, seed=config.seed).run()
