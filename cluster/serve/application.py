"""The service as a Ray Serve application, from typed arguments.

    serve run cluster.serve.application:build run=storage/runs/demo
    serve deploy service.yaml        import_path: cluster.serve.application:build, args: {run: storage/runs/demo}

``genrec serve RUN`` and the manifest of a RayService (KubeRay) name the same function. The HTTP ingress and the model
are one process: a second hop would cost more than a search of a small policy, and replicas scale both.
"""

from __future__ import annotations

import logging
import sys
from uuid import uuid4

from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from starlette.types import ASGIApp

from cluster.serve.runs_file import RunsFile, Split
from genrec.config import Serve
from genrec.inference.run_place import RunPlace

SWITCH_S = 0.001
"""A replica's thread gives way after so long: the event loop must not wait 5 ms for each turn of the search's."""


class ServeArguments(Serve):
    """What is served, and how: ``serve`` of the config, and the runs.

    All fields are flat, so that ``serve run … key=value`` can give each of them.
    """

    run: str = Field(
        description="a finished run's report, <storage>/runs/<name>: a directory that every node sees, or a URL"
    )
    second_run: str | None = Field(default=None, description="another run of the same storage, served beside it")
    second_share: float = Field(default=0.5, ge=0, le=1, description="of the users, who get the second run")

    @property
    def settings(self) -> Serve:
        """The arguments without the runs."""
        return Serve.model_validate({name: getattr(self, name) for name in Serve.model_fields})


def build(arguments: ServeArguments) -> Application:
    """The application; it refuses what cannot be served before any replica starts.

    Raises:
        InputError: no finished run is there.
    """
    places = [RunPlace.find(run) for run in _runs(arguments)]
    for place in places:
        place.read(parts=False)
    shared = RunsFile(places[0].storage, uuid4().hex[:12])
    split = Split(arguments.second_share if arguments.second_run else 0.0)
    return _deployment(arguments).bind(places, split, arguments.settings, shared)


def _runs(arguments: ServeArguments) -> list[str]:
    return [arguments.run, arguments.second_run] if arguments.second_run else [arguments.run]


def _deployment(arguments: Serve) -> serve.Deployment:
    scaled = None
    if arguments.max_replicas is not None:
        scaled = AutoscalingConfig(
            min_replicas=arguments.replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=arguments.ongoing_per_replica,
        )
    deployed = serve.deployment(
        name="genrec",
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        max_ongoing_requests=4 * arguments.max_queue,
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=arguments.timeout_s,
        logging_config={"enable_access_log": False},  # RequestGuard writes a line for each request.
        num_replicas=None if scaled else arguments.replicas,
        autoscaling_config=scaled,
    )
    return deployed(serve.ingress(None)(Replica))


class Replica:
    """A process of the service: it is ready when its runs are loaded and have passed their smoke tests."""

    def __init__(self, places: list[RunPlace], split: Split, settings: Serve, shared: RunsFile) -> None:
        from cluster.serve.service import HttpService  # Here, since who deploys needs no model.

        sys.setswitchinterval(SWITCH_S)
        _log_where_serve_logs()
        self._service = HttpService(places, split, settings, shared)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The ASGI application; Ray Serve asks for it once."""
        from cluster.serve.http_app import make_app

        return make_app(self._service)

    def check_health(self) -> None:
        """Called by Ray Serve; an error makes it start another replica."""
        if self._service.closing:
            raise RuntimeError("the service is closing")


def _log_where_serve_logs() -> None:
    """Write the lines of ``RequestGuard`` to this replica's log file, which ``serve`` and Ray's dashboard show."""
    own = logging.getLogger("cluster.serve")
    own.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        own.addHandler(handler)
