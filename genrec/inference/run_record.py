"""What a finished run leaves for serving: ``recommender.json`` in the directory of its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.baselines.itemknn import KnnSettings
from genrec.config import Config
from genrec.errors import InputError

RECORD = "recommender.json"
"""What a run's record is called, in the directory of its report."""


@dataclass(frozen=True)
class ServedPrior:
    """The prior that a run is served with, as validation chose it.

    ``kind``: ``none``, ``itemknn`` (mixed with the policy's probabilities, see ``inference.prior``) or
    ``itemknn_nodes`` (on the nodes of the trie, see ``policy.decoding.node_prior``). A weight of 0 is no prior.
    ``head_weight``: of the policy's own item head in its search; ``value_weight``: of a value network.
    """

    kind: str = "none"
    weight: float = 0.0
    power: float = 1.0
    settings: KnnSettings | None = None
    head_weight: float = 0.0
    value_weight: float = 0.0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ServedPrior:
        """The ``prior`` of ``recommender.json``; figures of its tuning are left out."""
        weight = float(content["weight"])
        settings = KnnSettings(**content["settings"]) if weight else None
        kind, power = content.get("kind", "none"), float(content.get("power", 1.0))
        others = (float(content.get(name, 0.0)) for name in ("head_weight", "value_weight"))
        return cls(kind, weight, power, settings, *others)


@dataclass(frozen=True)
class RunRecord:
    """A finished run: its config with the storage that it lies in now, the directories of its parts, and its prior.

    ``mask_seen``: whether items of the history are never recommended; ``event``: the type of event that a request asks
    for if it names none, None where the log has no types.
    """

    config: Config
    storage: Path
    data: Path
    catalog: Path
    policy: Path
    prior: ServedPrior
    mask_seen: bool
    event: str | None = None

    @property
    def live(self) -> Path:
        """The directory of the later changes of the catalogue."""
        return self.storage / "live" / self.catalog.name

    @classmethod
    def read(cls, directory: Path) -> RunRecord:
        """The run whose report is in ``directory``, ``<storage>/runs/<name>``.

        Raises:
            InputError: no finished run is there, its record cannot be read, or its model searches by a value network.
        """
        directory = directory.expanduser()
        storage = directory.resolve().parent.parent
        try:
            content = json.loads((directory / RECORD).read_text(encoding="utf-8"))
            config = Config.model_validate({**content["config"], "storage": str(storage)})
            if "backbone" in content["parts"]:  # of an imported run, whose model lies in its storage
                config = config.replace({"policy.path": str(_inside(storage, content["parts"]["backbone"]))})
            record = cls(
                config,
                storage,
                *(_inside(storage, content["parts"][part]) for part in ("data", "catalog", "policy")),
                prior=ServedPrior.from_json(content["prior"]),
                mask_seen=bool(content["mask_seen"]),
                event=content.get("event"),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{directory} holds no finished run that can be read ({error}); make one with `genrec full`"
            ) from error
        if record.prior.value_weight:
            raise InputError(
                f"{directory} was evaluated with a value network of weight {record.prior.value_weight:g} in its "
                "search, and what serves, exports or updates a run has none; make it again with decode.value=false"
            )
        return record


def _inside(storage: Path, part: str) -> Path:
    """``storage/part``; ValueError where that lies elsewhere."""
    path = storage / part
    if ".." in path.parts or not path.is_relative_to(storage):
        raise ValueError(f"its part {part!r} lies outside of {storage}")
    return path
