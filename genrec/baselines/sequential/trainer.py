"""The one trainer of the sequential baselines: Adam, validation after each epoch, the best epoch is kept."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.baselines.sequential.network import TrainedNetwork
from genrec.baselines.sequential.training_windows import TrainingWindows
from genrec.data.files import write_json
from genrec.errors import InputError
from genrec.progress import Progress, log_progress
from genrec.seeds import seed_of

LOG = logging.getLogger(__name__)

MODEL, BEST, MOMENTS, STATE = "model.safetensors", "best.safetensors", "moments.safetensors", "state.json"


class CheckpointStore(Protocol):
    """Where a training keeps its state (the methods of ``genrec.learning.checkpoints.Checkpoints``)."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The checkpoint that was saved last, as a local directory, or None."""
        ...

    def save(self, write: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
        """Keep what ``write`` puts into an empty directory."""
        ...


@dataclass
class Progressed:
    """How far a training is: ``curve`` has a point per epoch; ``best`` is the validation NDCG@10 of ``best_epoch``."""

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


class SequentialTrainer:
    """Trains ``network`` in place; after ``run`` it has the weights of the best validated epoch.

    All that is random is drawn from the seed and the number of the step, so a training that was killed and resumed
    ends with the same weights.

    Args:
        validate: the NDCG@10 of the network as it is.
        name: of the baseline, for messages.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        windows: TrainingWindows,
        validate: Callable[[], float],
        checkpoints: CheckpointStore,
        *,
        seed: int,
        device: torch.device,
        name: str = "baseline",
    ) -> None:
        self._network, self._windows, self._ndcg = network.to(device), windows, validate
        self._checkpoints, self._seed, self._device, self._name = checkpoints, seed, device, name
        self._settings = network.settings
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=self._settings.lr, weight_decay=self._settings.weight_decay
        )
        self._best: dict[str, Tensor] = {}
        self.state = Progressed()

    def run(self) -> Progressed:
        """Train until no epoch of the last ``patience`` was better; resumes from the latest checkpoint.

        Raises:
            InputError: a loss that is not finite.
        """
        self._resume()
        state, settings = self.state, self._settings
        while state.epoch < settings.epochs and state.epoch - state.best_epoch < settings.patience:
            start = time.perf_counter()
            loss = self._epoch(state.epoch)
            state.epoch += 1
            self._validate(loss)
            state.seconds += time.perf_counter() - start
            self._checkpoints.save(self._write, {"epoch": state.epoch, "ndcg@10": state.best})
            left = (settings.epochs - state.epoch) * state.seconds / state.epoch
            figures = {"loss": loss, "ndcg@10": state.curve[-1]["ndcg@10"], "best": state.best}
            log_progress(LOG, Progress("epoch", state.epoch, settings.epochs, left, figures, self._name))
        self._network.load_state_dict(self._best)
        self._network.eval()
        return state

    def _epoch(self, number: int) -> float:
        """One pass over the windows; returns the mean loss of a prediction."""
        self._network.train()
        total = torch.zeros(())
        # Batches of long windows have more predictions: each prediction weighs the same in all of them.
        share = len(self._windows.starts_S) / (self._windows.targets * self._settings.batch_size)
        for batch in self._windows.epoch(number, self._settings.batch_size, self._seed):
            torch.manual_seed(seed_of("baseline", self._seed, self.state.step))
            loss = self._network.loss(batch.to(self._device))
            self._optimizer.zero_grad(set_to_none=True)
            (loss * share).backward()
            self._optimizer.step()
            total += loss.detach().cpu()
            self.state.step += 1
        mean = float(total) / self._windows.targets
        if not math.isfinite(mean):
            raise InputError(
                f"{self._name}, epoch {number + 1}: got a loss of {mean}, wanted a finite one; lower its lr"
            )
        return mean

    def _validate(self, loss: float) -> None:
        state, score = self.state, self._ndcg()
        state.curve.append({"epoch": state.epoch, "loss": loss, "ndcg@10": score})
        if score > state.best:
            state.best, state.best_epoch = score, state.epoch
            self._best = self._network.weights()

    def _write(self, directory: Path) -> None:
        save_file(self._network.weights(), directory / MODEL)
        save_file(self._best, directory / BEST)
        moments = self._optimizer.state_dict()["state"]
        flat = {f"{row}.{name}": value for row, values in moments.items() for name, value in values.items()}
        save_file(flat, directory / MOMENTS)
        write_json(asdict(self.state), directory / STATE)

    def _resume(self) -> None:
        with self._checkpoints.latest() as directory:
            if directory is None:
                return
            self._network.load_state_dict(load_file(directory / MODEL))
            self._best = load_file(directory / BEST)
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in load_file(directory / MOMENTS).items():
                row, name = key.split(".", 1)
                moments.setdefault(int(row), {})[name] = value
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
            self.state = Progressed(**json.loads((directory / STATE).read_text(encoding="utf-8")))
