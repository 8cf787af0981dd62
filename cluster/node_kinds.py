"""Kinds of nodes: what Ray has to give on each, and whether there is room for what a config asks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.errors import InputError

_DECIMAL = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
UNITS: Mapping[str, float] = _DECIMAL | {f"{unit}i": 2.0 ** (10 * power) for power, unit in enumerate("KMGTP", start=1)}
GPU = "nvidia.com/gpu"

Resources = Mapping[str, float]


@dataclass(frozen=True)
class NodeKind:
    """A kind of node: what Ray has to give on each (CPU, GPU, custom resources), and how many there are at most."""

    name: str
    resources: Resources
    most: int

    def holds(self, one: Resources) -> int:
        """How many processes that ask for ``one`` fit on all nodes of this kind."""
        fits = [int(self.resources.get(name, 0.0) / amount + 1e-9) for name, amount in one.items() if amount]
        return self.most * min(fits, default=10**6)


@dataclass(frozen=True)
class Demand:
    """Processes that run at the same time, and what each asks of Ray; ``keys`` are the config's that say so."""

    what: str
    count: int
    each: Resources
    keys: str


def kube_nodes(spec: Mapping[str, Any], file: Path) -> Iterator[NodeKind]:
    """The head and the worker groups of a RayCluster's ``spec``; ``file`` is named in errors.

    Raises:
        InputError: a group or a pod that is impossible.
    """
    head = spec["headGroupSpec"]
    yield NodeKind("head", _ray_resources(head, f"{file}: headGroupSpec"), 1)
    for group in spec.get("workerGroupSpecs", ()):
        name = group["groupName"]
        low, most = group["minReplicas"], group["maxReplicas"]
        if not low <= group.get("replicas", low) <= most:
            raise InputError(
                f"{file}: group {name}: got replicas {group.get('replicas', low)} with minReplicas {low} and "
                f"maxReplicas {most}; wanted minReplicas <= replicas <= maxReplicas"
            )
        yield NodeKind(name, _ray_resources(group, f"{file}: group {name}"), most * group.get("numOfHosts", 1))


def _ray_resources(group: Mapping[str, Any], where: str) -> Resources:
    """What Ray will have on a node of ``group``: from ``rayStartParams`` where they say it, else the pod's limits."""
    started = group.get("rayStartParams", {})
    limits = require_pod(group["template"]["spec"], where)
    custom = _custom(started.get("resources", ""), where) | {
        name: amount(value, where) for name, value in group.get("resources", {}).items()
    }
    own = {"CPU": float(int(limits.get("cpu", 0.0))), "GPU": limits.get(GPU, 0.0)} | custom
    named = {"CPU": started.get("num-cpus"), "GPU": started.get("num-gpus")}
    return own | {name: amount(value, where) for name, value in named.items() if value is not None}


def _custom(text: str, where: str) -> dict[str, float]:
    """Custom resources as ``ray start`` reads them: JSON, in KubeRay's manifests inside a further pair of quotes."""
    try:
        inner = json.loads(text or "{}")
        found = json.loads(inner) if isinstance(inner, str) else inner
        return {str(name): float(value) for name, value in found.items()}
    except (ValueError, AttributeError, TypeError):
        raise InputError(
            f'{where}: rayStartParams.resources is {text!r}; wanted JSON in quotes, such as \'"{{\\"spot\\": 1}}"\''
        ) from None


def require_pod(pod: Mapping[str, Any], where: str) -> dict[str, float]:
    """The limits of a pod's first container: CPUs, bytes, cards; every container must be possible.

    Raises:
        InputError: a request above its limit, half a card, a mount without its volume, or no limits of CPU and memory.
    """
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for container in pod["containers"]:
        place = f"{where}: container {container['name']}"
        _require_possible(container.get("resources", {}), place)
        if missing := {mount["name"] for mount in container.get("volumeMounts", ())} - volumes:
            raise InputError(f"{place}: mounts {sorted(missing)}, which are not among the pod's volumes")
    limits = pod["containers"][0].get("resources", {}).get("limits", {})
    if missing := {"cpu", "memory"} - set(limits):
        raise InputError(f"{where}: limits lack {sorted(missing)}; Ray takes what a node has from them")
    return {name: amount(value, where) for name, value in limits.items()}


def _require_possible(resources: Mapping[str, Any], where: str) -> None:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for name, value in requests.items():
        if name in limits and amount(value, where) > amount(limits[name], where):
            raise InputError(f"{where}: requests {name} {value}, above its limit {limits[name]}; the pod is refused")
    for name in {GPU} & {*limits, *requests}:
        got = {amount(part[name], where) for part in (limits, requests) if name in part}
        if len(got) > 1 or not min(got).is_integer() or name not in limits:
            raise InputError(f"{where}: {name} must be a whole number, and the same in limits and requests")


def amount(value: str | float, where: str) -> float:
    """A Kubernetes quantity as a number: "500m" is 0.5, "2Gi" is 2 · 2³⁰.

    Raises:
        InputError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(value))
    if match is None or match[2] not in UNITS:
        raise InputError(f"{where}: got the amount {value!r}; wanted a number, with a unit such as m, G or Gi")
    return float(match[1]) * UNITS[match[2]]


def launcher_nodes(manifest: Mapping[str, Any]) -> list[NodeKind]:
    """The kinds of nodes of a Ray launcher's file."""
    head, most = manifest.get("head_node_type"), int(manifest.get("max_workers", 0))
    kinds: Mapping[str, Any] = manifest.get("available_node_types", {})
    return [
        NodeKind(
            name,
            {key: float(value) for key, value in kind["resources"].items()},
            1 if name == head else min(most, kind.get("max_workers", 0)),
        )
        for name, kind in kinds.items()
    ]


def require_room(nodes: Sequence[NodeKind], demands: Sequence[Demand], file: Path) -> None:
    """Refuse demands that cannot be met however the processes are placed.

    Training workers and rollout actors run at the same time; data actors before and after.

    Raises:
        InputError: a process that fits on no node, or more of them than all nodes together hold.
    """
    for one in demands:
        room = sum(node.holds(one.each) for node in nodes)
        if room < one.count:
            kinds = "; ".join(f"up to {node.most} {node.name} with {shown(node.resources)}" for node in nodes)
            fit = f"there is room for {room}" if room else "it fits on no node"
            raise InputError(
                f"{file}: {one.count} {one.what} ask for {shown(one.each)} each, and {fit} ({kinds}); change the "
                f"nodes, or {one.keys}"
            )
    together = [one for one in demands if one.what != "data actors"]
    for name in {name for one in together for name in one.each}:
        asked = sum(one.count * one.each.get(name, 0.0) for one in together)
        have = sum(node.most * node.resources.get(name, 0.0) for node in nodes)
        if asked > have:
            names = " and ".join(one.what for one in together)
            raise InputError(
                f"{file}: {names} run together and ask for {asked:g} {name}; all nodes have {have:g}; change them, "
                "or the config's compute section"
            )


def shown(resources: Resources) -> str:
    """Resources in words, without those that are 0."""
    return ", ".join(f"{value:g} {name}" for name, value in resources.items() if value) or "nothing"
