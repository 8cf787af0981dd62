"""The same application on Ray Serve: typed arguments, a replica that is killed, and changes from outside."""

import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError
from support.served import serve as make_runs

from benchmarks.load import LoadClient
from benchmarks.serve import replicas_of
from cluster.serve.application import ServeArguments, build
from genrec.errors import InputError
from genrec.sid import catalog_updates

ASKED = {"history": ["i1", "i2"], "k": 3}


def test_the_builder_takes_the_arguments_of_the_command_line_and_refuses_others(tmp_path: Path) -> None:
    assert ServeArguments.model_validate({"run": "x", "replicas": "2", "max_replicas": "4"}).settings.max_replicas == 4
    with pytest.raises(ValidationError, match="replica"):
        ServeArguments.model_validate({"run": "x", "replica": "2"})
    with pytest.raises(InputError, match="no finished run"):
        build(ServeArguments(run=str(tmp_path)))


@pytest.mark.ray
@pytest.mark.slow  # two starts of a replica, of some seconds each
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_replica_comes_back_and_serves_the_catalogue_as_it_is_then(tmp_path: Path) -> None:
    from ray import serve

    make_runs(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(build(ServeArguments(run=str(tmp_path / "storage/runs/alone"), cpus=0.1)), route_prefix="/shop")
        client = LoadClient(f"http://127.0.0.1:{port}/shop")
        first = client.ask("POST", "/v1/recommend", ASKED).content
        best = first["items"][0]["id"]
        assert first["served"]["catalog"] == "made/made"
        assert client.ask("DELETE", f"/v1/items/{best}").status in (401, 403)

        assigned, live = tmp_path / "storage/assign/made", tmp_path / "storage/live/made"
        catalog_updates.remove(assigned, live, [best])
        changed = client.ask("POST", "/v1/recommend", ASKED).content
        assert best not in [item["id"] for item in changed["items"]]

        [replica] = replicas_of("default")
        replica.kill()
        with suppress(psutil.Error):
            replica.wait(5)
        deadline, answer = time.monotonic() + 60, client.ask("POST", "/v1/recommend", ASKED)
        while answer.status != 200 and time.monotonic() < deadline:
            answer = client.ask("POST", "/v1/recommend", ASKED)
        assert answer.content["items"] == changed["items"]
    finally:
        serve.shutdown()
