"""Manifests of a cluster: are they complete, and is there room in them for what a config asks of Ray?

A manifest that Kubernetes accepts may still wait forever: a typing error is dropped without a word, and an actor that
fits on no node is never placed. ``check`` finds both before anything is started.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from cluster.node_kinds import (
    Demand,
    NodeKind,
    Resources,
    kube_nodes,
    launcher_nodes,
    require_pod,
    require_room,
    shown,
)
from genrec.config import Compute, Config, load_config
from genrec.errors import InputError

if TYPE_CHECKING:
    from jsonschema import ValidationError

SCHEMA = Path(__file__).with_name("manifests") / "schema.yaml"
TAKE_CONFIGS = ("prepare", "embed", "assign", "sft", "grpo", "tune", "refit", "evaluate", "full", "bench")
COMMAND = re.compile(r"(?:genrec\s+|python -m workflows\.)(\w+)\s+(.*)")


@dataclass(frozen=True)
class ManifestReport:
    """A manifest that was checked: its kind, its kinds of nodes, and the processes for which there is room."""

    kind: str
    nodes: Sequence[NodeKind]
    demands: Sequence[Demand]

    def table(self) -> str:
        """The report in lines."""
        nodes = [f"  up to {node.most} {node.name}: {shown(node.resources)}" for node in self.nodes]
        demands = [f"  {one.count} {one.what}, each {shown(one.each)}" for one in self.demands]
        parts = [f"{self.kind}: complete"]
        parts += [*(["nodes:", *nodes] if nodes else []), *(["room for:", *demands] if demands else [])]
        return "\n".join(parts)


def check(file: Path, words: Sequence[str] = ()) -> ManifestReport:
    """Check the manifest ``file``; ``words`` (configs and key=value) say what runs there, unless a job's command does.

    Raises:
        InputError: it cannot be read, does not fit the schema, or has no room for what runs there.
    """
    manifest = _read(file)
    kind = str(manifest.get("kind", "Ray launcher"))
    require_schema(manifest, file)
    spec = _cluster_spec(manifest)
    nodes = launcher_nodes(manifest) if kind == "Ray launcher" else list(kube_nodes(spec, file)) if spec else []
    if kind == "CronJob":
        require_pod(_cron_pod(manifest)["spec"], f"{file}: jobTemplate")
    demands = _demands(manifest, words, file)
    if nodes:
        require_room(nodes, demands, file)
    return ManifestReport(kind, nodes, demands)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: got {type(content).__name__}; wanted one manifest, a mapping")
    return cast("Mapping[str, Any]", content)


@cache
def _schema(kube: bool) -> Mapping[str, Any]:
    """The schema of KubeRay's manifests, or Ray's own of its launcher's files."""
    if kube:
        return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text(encoding="utf-8"))


def require_schema(manifest: Mapping[str, Any], file: Path) -> None:
    """Refuse a manifest with a field that is missing, unknown or of the wrong type.

    Raises:
        InputError: with the place and what was wanted there.
    """
    from jsonschema import validators

    kube = "apiVersion" in manifest or "kind" in manifest
    schema = _schema(kube)
    if kube:
        kinds = [one["$ref"].rpartition("/")[2] for one in schema["oneOf"]]
        if manifest.get("kind") not in kinds:
            raise InputError(f"{file}: got kind {manifest.get('kind')!r}; wanted one of {kinds}, or a Ray launcher's")
        schema = {**schema, "oneOf": [{"$ref": f"#/$defs/{manifest['kind']}"}]}
    validator = validators.validator_for(schema)(schema)
    errors = [leaf for error in validator.iter_errors(manifest) for leaf in _leaves(error)]
    if errors:
        deepest = max(errors, key=lambda error: len(error.absolute_path))
        place = ".".join(str(part) for part in deepest.absolute_path) or "its top"
        raise InputError(f"{file}: at {place}: {deepest.message}")


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    if not error.context:
        yield error
    for inner in error.context or ():
        yield from _leaves(inner)


def _cluster_spec(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The cluster inside a manifest of KubeRay; None where it has none of its own."""
    spec = manifest.get("spec", {})
    if manifest.get("kind") == "RayCluster":
        return spec
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig")


def _demands(manifest: Mapping[str, Any], words: Sequence[str], file: Path) -> list[Demand]:
    if manifest.get("kind") == "RayService":
        return _service_demands(manifest["spec"]["serveConfigV2"], file)
    command = _command(manifest)
    found = [*(_arguments(command, file) if command else ()), *words]
    if not found:
        return []
    config = load_config([word for word in found if "=" not in word], [word for word in found if "=" in word])
    return compute_demands(config)


def _command(manifest: Mapping[str, Any]) -> str | None:
    """What a RayJob or a CronJob runs, as a shell's line."""
    if manifest.get("kind") == "RayJob":
        return manifest["spec"]["entrypoint"]
    if manifest.get("kind") == "CronJob":
        container = _cron_pod(manifest)["spec"]["containers"][0]
        return shlex.join([*container.get("command", ()), *container.get("args", ())])
    return None


def _cron_pod(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest["spec"]["jobTemplate"]["spec"]["template"]


def _arguments(command: str, file: Path) -> list[str]:
    """The configs and key=value of a genrec command, options left out; none where it takes a run, such as update."""
    match = COMMAND.search(" ".join(command.split()))
    if match is None:
        raise InputError(f"{file}: got the command {command!r}; wanted genrec VERB CONFIG... [KEY=VALUE]...")
    if match[1] not in TAKE_CONFIGS:
        return []
    return [word for word in shlex.split(match[2]) if not word.startswith("-")]


def compute_demands(config: Config) -> list[Demand]:
    """What ``compute`` asks of Ray."""
    compute = config.compute
    kinds = {
        "training workers": ("worker", compute.workers, compute.worker_cpus, compute.worker_gpus),
        "rollout actors": ("rollout", compute.rollout_actors, compute.rollout_cpus, compute.rollout_gpus),
        "data actors": ("data", compute.data_actors, compute.data_cpus, compute.data_gpus),
    }
    return [
        Demand(what, count, {"CPU": cpus, "GPU": gpus, **_custom_of(compute, name)}, f"compute.{name}_*")
        for what, (name, count, cpus, gpus) in kinds.items()
        if count
    ]


def _custom_of(compute: Compute, name: str) -> Resources:
    return getattr(compute, f"{name}_resources")


def _service_demands(text: str, file: Path) -> list[Demand]:
    """The replicas of each application; its arguments are checked by the service's own types."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    from cluster.serve.application import ServeArguments
    from genrec.config.section import describe

    where = f"{file}: serveConfigV2"
    try:
        deployed = ServeDeploySchema.model_validate(yaml.safe_load(text))
        wanted = [ServeArguments.model_validate(one.args) for one in deployed.applications]
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}") from None
    return [Demand("replicas", one.replicas, {"CPU": one.cpus, "GPU": one.gpus}, "args") for one in wanted]
