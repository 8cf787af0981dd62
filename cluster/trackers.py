"""Trackers that the figures of a run go to: TensorBoard, MLflow and Weights & Biases; none needs a server.

Each is a context manager ``(config, out) -> MetricLogger`` for the run whose artifact is made in ``out``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from genrec.config import Config
from genrec.errors import InputError

MetricLogger = Callable[[int, Mapping[str, float]], None]
"""Takes the figures of a step."""

NAMES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases"}
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}
"""What each tracker is written with: the first of these that is installed."""

EXTRA = "watch"
"""The extra of genrec that brings the packages."""

MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""By default MLflow tries for minutes, also when the process wants to end."""


def require_trackers(config: Config) -> None:
    """Refuse a tracker of ``compute.trackers`` whose package is missing, before any work.

    Raises:
        InputError: a package is not installed.
    """
    for name in config.compute.trackers:
        if not any(find_spec(package) for package in PACKAGES[name]):
            raise InputError(
                f"compute.trackers has {name}, whose package is not installed: pip install 'genrec[{EXTRA}]' or "
                f"pip install {PACKAGES[name][0]}, or leave {name} out"
            )


def run_name(config: Config, out: Path) -> str:
    """The name of a run in a tracker: the config's, and that of the directory which its result is made in."""
    return f"{config.name}-{out.name.removesuffix('.partial')}"


class ScalarWriter(Protocol):
    """A ``SummaryWriter``, TensorBoard's or tensorboardX's."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record one figure of one step."""
        ...

    def flush(self) -> None:
        """Write out what is recorded."""
        ...


@contextmanager
def tensorboard(config: Config, out: Path) -> Generator[MetricLogger]:
    """A scalar per figure under ``out/tensorboard``, written out at once so that the page is live."""
    writer = _summary_writer()(str(out / "tensorboard"))

    def write(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if name != "step":
                writer.add_scalar(f"grpo/{name}", value, step)
        writer.flush()

    yield write


def _summary_writer() -> Callable[[str], ScalarWriter]:
    """TensorBoard's writer, or tensorboardX's, which Ray Tune brings; both write the same files."""
    if find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    else:
        from tensorboardX import SummaryWriter
    return cast("Callable[[str], ScalarWriter]", SummaryWriter)


@contextmanager
def mlflow(config: Config, out: Path) -> Generator[MetricLogger]:
    """Metrics of a new MLflow run, in the experiment ``genrec``.

    They go to the tracking server ``compute.mlflow_uri``, or without one to the database ``<storage>/mlflow.db``.
    """
    for name, value in MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
    client: Any = import_module("mlflow")
    client.set_tracking_uri(config.compute.mlflow_uri or f"sqlite:///{config.storage_path.absolute() / 'mlflow.db'}")
    client.set_experiment("genrec")
    client.start_run(run_name=run_name(config, out))
    client.log_params({f"rewards.{name}": weight for name, weight in config.rewards.model_dump().items()})

    def write(step: int, figures: Mapping[str, float]) -> None:
        client.log_metrics({name.replace("@", "_at_"): value for name, value in figures.items()}, step=step)

    try:
        yield write
    finally:
        client.end_run()


@contextmanager
def wandb(config: Config, out: Path) -> Generator[MetricLogger]:
    """History of a new run of the project ``genrec``.

    Without ``WANDB_MODE=online`` in the environment it is kept under ``<storage>/wandb``, for ``wandb sync`` later.
    """
    client: Any = import_module("wandb")
    run = client.init(
        project="genrec",
        name=run_name(config, out),
        dir=str(config.storage_path),
        config=config.model_dump(mode="json"),
        mode=os.environ.get("WANDB_MODE", "offline"),
        reinit="create_new",
        settings=client.Settings(console="off", silent=True),
    )

    def write(step: int, figures: Mapping[str, float]) -> None:
        # A validation may come later than updates after it: wandb's own step only grows, so ours is a figure.
        run.log({**figures, "step": step})

    try:
        run.define_metric("*", step_metric="step")
        yield write
    finally:
        run.finish()


TRACKERS: Mapping[str, Callable[[Config, Path], AbstractContextManager[MetricLogger]]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}
