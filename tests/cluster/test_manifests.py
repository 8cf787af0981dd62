"""Manifests: those that come with the package are complete, and an impossible one is refused before it is applied."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

import cluster
from cluster.manifest import check, compute_demands
from cluster.node_kinds import amount
from genrec.config import load_config
from genrec.errors import InputError
from workflows.cli import command_line

MANIFESTS = Path(cluster.__path__[0]) / "manifests"
WORDS = {"cluster": ["kuberay"], "launcher": ["kuberay"], "nightly": ["a100"]}
NAMES = ("cluster", "full", "launcher", "nightly", "service")

Manifest = dict[str, Any]


def read(name: str) -> Manifest:
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8"))


def group(manifest: Manifest, name: str) -> Manifest:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return next(one for one in spec["workerGroupSpecs"] if one["groupName"] == name)


def container(one: Manifest) -> Manifest:
    return one["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", NAMES)
def test_each_manifest_is_complete_and_has_room_for_its_config(name: str) -> None:
    report = check(MANIFESTS / f"{name}.yaml", WORDS.get(name, ()))
    assert report.demands, "nothing was compared"
    assert name == "nightly" or len(report.nodes) > 1


def test_every_manifest_is_tested() -> None:
    assert {file.stem for file in MANIFESTS.glob("*.yaml")} == {*NAMES, "schema"}


def test_the_commands_of_manifests_are_of_the_command_line() -> None:
    (night,) = read("nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for command in ([*night["command"], *night["args"]], read("full")["spec"]["entrypoint"].split()):
        context = click.Context(command_line)
        verb = command_line.get_command(context, command[1])
        assert command[0] == "genrec" and verb is not None
        with verb.make_context(command[1], command[2:], parent=context) as parsed:
            assert parsed.params


def test_the_launcher_s_file_is_what_ray_up_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private import util

    util.validate_config(util.prepare_config(read("launcher")))


def test_the_nodes_of_a_job_and_of_a_lasting_cluster_are_the_same() -> None:
    assert read("full")["spec"]["rayClusterSpec"] == read("cluster")["spec"]


def test_versions_are_those_of_the_constraints() -> None:
    root = MANIFESTS.parents[1]
    (version,) = re.findall(r"^ray==(.+)$", (root / "constraints.txt").read_text(), re.M)
    assert {read("cluster")["spec"]["rayVersion"], read("service")["spec"]["rayClusterConfig"]["rayVersion"]} == {
        version
    }
    for line in re.findall(r"pip install.*", (MANIFESTS / "Dockerfile").read_text()):
        assert "-c constraints.txt" in line
    for source in re.findall(r"^COPY (.+) \S+$", (MANIFESTS / "Dockerfile").read_text(), re.M):
        assert all((root / name).exists() for name in source.split())


def remove(manifest: Manifest) -> None:
    del group(manifest, "learners")["maxReplicas"]


def misspell(manifest: Manifest) -> None:
    group(manifest, "learners")["maxReplica"] = 4


def ask_above_the_limit(manifest: Manifest) -> None:
    container(group(manifest, "data"))["resources"]["requests"]["memory"] = "64Gi"


def halve_a_card(manifest: Manifest) -> None:
    for part in container(group(manifest, "learners"))["resources"].values():
        part["nvidia.com/gpu"] = "500m"


def forget_the_limits(manifest: Manifest) -> None:
    del container(group(manifest, "data"))["resources"]


def forget_a_volume(manifest: Manifest) -> None:
    group(manifest, "data")["template"]["spec"]["volumes"] = []


def start_more_than_the_most(manifest: Manifest) -> None:
    group(manifest, "data")["replicas"] = 9


def quote_once(manifest: Manifest) -> None:
    group(manifest, "data")["rayStartParams"]["resources"] = "cpu_node: 1"


def shrink_the_nodes(manifest: Manifest) -> None:
    for part in container(group(manifest, "learners"))["resources"].values():
        part["cpu"] = "4"


def drop_spot(manifest: Manifest) -> None:
    del group(manifest, "rollouts")["rayStartParams"]["resources"]


def name_another_unit(manifest: Manifest) -> None:
    container(group(manifest, "data"))["resources"]["limits"]["memory"] = "32 GB"


def run_something_else(manifest: Manifest) -> None:
    manifest["spec"]["entrypoint"] = "python train.py"


def ask_for_more(manifest: Manifest) -> None:
    manifest["spec"]["entrypoint"] += " compute.rollout_actors=5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, "spec.rayClusterSpec.workerGroupSpecs.1: 'maxReplicas' is a required property"),
        (misspell, "'maxReplica' was unexpected"),
        (ask_above_the_limit, "requests memory 64Gi, above its limit 32Gi"),
        (halve_a_card, "nvidia.com/gpu must be a whole number"),
        (forget_the_limits, r"limits lack \['cpu', 'memory'\]"),
        (forget_a_volume, r"mounts \['cache'\], which are not among the pod's volumes"),
        (start_more_than_the_most, "got replicas 9 with minReplicas 0 and maxReplicas 8"),
        (quote_once, "wanted JSON in quotes"),
        (shrink_the_nodes, "2 training workers ask for 6 CPU, 1 GPU, 0.001 on_demand each, and it fits on no node"),
        (drop_spot, "4 rollout actors ask for 6 CPU, 1 GPU, 0.001 spot each, and it fits on no node"),
        (name_another_unit, "32 GB"),
        (run_something_else, "got the command 'python train.py'; wanted genrec VERB"),
        (ask_for_more, "5 rollout actors .* there is room for 4"),
    ],
)
def test_an_impossible_job_is_refused_with_its_place(
    tmp_path: Path, change: Callable[[Manifest], None], message: str
) -> None:
    manifest = read("full")
    change(manifest)
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        check(file)


def test_workers_and_rollout_actors_share_the_cards_of_a_cluster(tmp_path: Path) -> None:
    manifest = read("full")
    group(manifest, "rollouts")["maxReplicas"] = 2
    manifest["spec"]["entrypoint"] = "genrec full industrial cluster data.path=/data storage=/shared"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(
        InputError, match=r"training workers and rollout actors run together and ask for 8 GPU; .* have 4"
    ):
        check(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{run: /shared/x, replica: 2}", "replica"),
        ("{run: /shared/x, replicas: 4, max_replicas: 2}", "serve.max_replicas=2 is below serve.replicas=4"),
        ("{run: /shared/x, cpus: 8}", "1 replicas ask for 8 CPU each, and it fits on no node"),
    ],
)
def test_the_service_s_arguments_are_checked_by_its_own_types(tmp_path: Path, args: str, message: str) -> None:
    manifest = read("service")
    text = manifest["spec"]["serveConfigV2"]
    manifest["spec"]["serveConfigV2"] = re.sub(r"args: .*", f"args: {args}", text)
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(InputError, match=re.escape(message)):
        check(tmp_path / "service.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "kind: Pod\n", "a: [", "\x00", "spec: {}\nkind: RayJob\n"])
def test_what_is_no_manifest_is_one_message(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    result = CliRunner().invoke(command_line, ["manifest", str(file)])
    assert result.exit_code == 2 and result.output.startswith(f"error: {file}"), result.output


def test_the_command_prints_what_there_is_room_for() -> None:
    result = CliRunner().invoke(command_line, ["manifest", str(MANIFESTS / "cluster.yaml"), "kuberay"])
    assert result.exit_code == 0
    assert "up to 4 rollouts: 8 CPU, 1 GPU, 1 spot" in result.output
    assert "4 data actors, each 7 CPU, 0.001 cpu_node" in result.output


def test_amounts_are_those_of_kubernetes() -> None:
    assert [amount(text, "") for text in ("500m", "2", "1.5", "2Gi", "1k")] == [0.5, 2, 1.5, 2 * 2**30, 1000]


def test_a_run_in_one_process_asks_ray_for_nothing() -> None:
    changes = ["compute.workers=0", "compute.rollout_actors=0", "compute.data_actors=0"]
    assert compute_demands(load_config([], changes)) == []
