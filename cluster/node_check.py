"""Nodes of a cluster, before work is sent to them: do they have the package, and see the storage?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from genrec.config import Config
from genrec.data.files import write_text
from genrec.data.object_store import ObjectStore
from genrec.errors import InputError, MachineError

if TYPE_CHECKING:
    from ray import ObjectRef

LOG = logging.getLogger(__name__)

ANSWER_S = 120.0
"""Seconds in which a node must answer: time for its first process to import what it needs."""

_checked = set[tuple[str, str]]()
"""Nodes and storages that were checked, each once in a command."""


def require_nodes(config: Config) -> None:
    """Refuse a cluster with a node that has not this package, or does not see ``storage``; each is asked once.

    A cluster of one node is not asked.

    Raises:
        MachineError: with the address of the node, what it lacks, and the remedy.
    """
    import ray

    nodes = {str(node["NodeID"]): node for node in ray.nodes() if node["Alive"]}
    fresh = {key: node for key, node in nodes.items() if (key, config.storage) not in _checked}
    if len(nodes) > 1 and fresh:
        _ask(config, fresh)
    _checked.update((key, config.storage) for key in fresh)


def _ask(config: Config, nodes: Mapping[str, Mapping[str, Any]]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token, place = uuid4().hex, config.storage_path / ".nodes"
    file = place / token
    if not config.is_remote:
        write_text(token, file)
    try:
        answers = {
            key: ray.remote(num_cpus=0, max_retries=0)(missing_on_node)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False))
            .remote(config, file)
            for key in nodes
        }
        for key, answer in answers.items():
            if missing := _answer(answer):
                raise MachineError(f"node {nodes[key]['NodeManagerAddress']} of the Ray cluster {missing}")
    finally:
        file.unlink(missing_ok=True)


def _answer(answer: ObjectRef[str]) -> str:
    """What a node said; empty where it lacks nothing, or is gone."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, TaskUnschedulableError

    try:
        return ray.get(answer, timeout=ANSWER_S)
    except TaskUnschedulableError:
        return ""
    except GetTimeoutError:
        return f"does not answer within {ANSWER_S:g} s; end it, or run this again when it is ready"
    except (RayError, ImportError) as error:
        line = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return (
            f"cannot run this package: {line.strip()}; every node needs it and its dependencies, as in "
            "cluster/manifests/Dockerfile, or as a job's --working-dir"
        )


def missing_on_node(config: Config, file: Path) -> str:
    """On a node: what it lacks to work for ``config``; empty where it lacks nothing.

    Args:
        file: what the command wrote under a storage that is a directory.
    """
    if config.is_remote:
        try:
            ObjectStore(config.storage).require_usable(f".probe-{file.name}-{uuid4().hex}")
        except InputError as error:
            return f"cannot use the {error}"
        return ""
    if file.is_file():
        return ""
    return (
        f"does not see storage={config.storage_path}: a file that was written there is not on it; wanted a file system "
        "that all nodes mount at the same path, or a URL such as s3://BUCKET/PATH"
    )
