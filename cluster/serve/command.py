"""``genrec serve``: Ray, Ray Serve and the application in one command, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.interruption import end_with_line, take_handlers_back
from cluster.serve.locks import FEWEST_CHARACTERS, KEY_VARIABLE, api_key
from cluster.session import configure_process, connect
from genrec.config import Config
from genrec.errors import InputError
from genrec.inference.run_place import RunPlace

if TYPE_CHECKING:
    from cluster.serve.application import ServeArguments

LOG = logging.getLogger(__name__)

APPLICATION = "genrec"
SERVE_VARIABLES = {
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_ID_HEADER": "x-request-id",
    # The routes are coroutines and search in a thread of their own, so they need no other thread or loop to wait in.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}


def serve(run: Path | str, second: Path | str | None, share: float, changes: Mapping[str, object]) -> None:
    """Serve ``run``, and ``second`` to a share of the users, until interrupted.

    Raises:
        InputError: a run that cannot be served, an unknown setting, or a port that is taken.
    """
    config = read_settings(run, second, changes)
    configure_process(config)
    from cluster.serve.application import ServeArguments

    others = {} if second is None else {"second_run": str(second), "second_share": share}
    serve_until_interrupted(
        ServeArguments.model_validate({"run": str(run), **others, **config.serve.model_dump()}), config
    )


def read_settings(run: Path | str, second: Path | str | None, changes: Mapping[str, object]) -> Config:
    """The config of ``run`` with ``changes`` to its sections serve and compute.

    Raises:
        InputError: no finished run is there; the runs have not one storage; or another section is changed.
    """
    record = RunPlace.find(run).read(parts=False)
    if second is not None and RunPlace.find(second).read(parts=False).storage != record.storage:
        raise InputError(f"{second} and {run} lie in two storages; wanted two runs of one storage")
    if others := [key for key in changes if not key.startswith(("serve.", "compute."))]:
        raise InputError(
            f"got {others[0]}: a run is served as it was evaluated; wanted keys of serve and compute, such as "
            "serve.port=8080"
        )
    return record.config.replace({"storage": str(record.storage), **changes})


def start(arguments: ServeArguments, config: Config) -> str:
    """Start the application and wait until it is ready; returns its address.

    Raises:
        InputError: Ray cannot be started or joined, the port is taken, or the run fails its smoke test.
    """
    set_serve_variables()
    connect(config)
    from ray import serve as ray_serve

    from cluster.serve.application import build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _refuse_taken_port(arguments)
    try:
        ray_serve.start(
            http_options={
                "host": arguments.host,
                "port": arguments.port,
                "request_timeout_s": None,
            },
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        ray_serve.run(build(arguments), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise InputError(f"the service did not start: {_reason(str(error))}") from None
    take_handlers_back()
    return f"http://{arguments.host}:{arguments.port}"


def set_serve_variables() -> None:
    """Set what Ray Serve reads from the environment as it is imported, where nothing else is set."""
    for name, value in SERVE_VARIABLES.items():
        os.environ.setdefault(name, value)


def serve_until_interrupted(arguments: ServeArguments, config: Config) -> None:
    """Serve in this process's Ray until Ctrl-C or SIGTERM."""
    address = start(arguments, config)
    end_with_line("the service has ended")
    LOG.info("ready: %s (POST /v1/recommend; %s/docs has every route)", address, address)
    if api_key() is None:
        LOG.warning(
            "no API key: inserts, removals and reloads are refused; set %s (%d characters or more) to allow them",
            KEY_VARIABLE,
            FEWEST_CHARACTERS,
        )
    threading.Event().wait()


def _refuse_taken_port(arguments: ServeArguments) -> None:
    import socket

    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((arguments.host, arguments.port))
        except OSError as error:
            raise InputError(
                f"cannot listen at {arguments.host}:{arguments.port} ({error}); set serve.port or serve.host"
            ) from None


def _reason(message: str) -> str:
    """The line of a failed deployment's message that says why, without its traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [line for line in lines if "InputError" in line]
    return (told[-1].partition("InputError:")[2] if told else lines[0] if lines else message).strip()
