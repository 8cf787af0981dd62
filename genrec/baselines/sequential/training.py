"""A sequential baseline trained, chosen on validation among a few settings, and ready to rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch

from genrec.baselines.material import Material
from genrec.baselines.sequential.network import TrainedNetwork
from genrec.baselines.sequential.scoring import SequentialBaseline
from genrec.baselines.sequential.trainer import CheckpointStore, Progressed, SequentialTrainer
from genrec.baselines.sequential.training_windows import training_windows
from genrec.config import SID_BASELINES, NetworkSettings
from genrec.errors import InputError
from genrec.seeds import generator_of, seed_of

NETWORKS: Mapping[str, str] = MappingProxyType(
    {
        "sasrec": "genrec.baselines.sequential.sasrec:SasRec",
        "sasrec_bce": "genrec.baselines.sequential.sasrec:SasRec",
        "bsarec": "genrec.baselines.sequential.bsarec:BsaRec",
        "gru4rec": "genrec.baselines.sequential.gru4rec:Gru4Rec",
        "bert4rec": "genrec.baselines.sequential.bert4rec:Bert4Rec",
        "hstu": "genrec.baselines.sequential.hstu:Hstu",
        "tiger": "genrec.baselines.sequential.tiger:Tiger",
    }
)
"""Module and class of each network; they are imported by name, so that one's code is no part of another's key."""

NEAR: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "dropout": (0.2, 0.3, 0.4, 0.5, 0.6),
        "lr": (5e-4, 1e-3, 2e-3),
        "hidden": (64, 96, 128),
        "weight_decay": (0.0, 0.1),
    }
)
"""What further trainings draw from."""


def module_of(name: str) -> str:
    """The module of the network ``name``."""
    return NETWORKS[name].split(":")[0]


def make_network(
    name: str, material: Material, settings: NetworkSettings, catalog: Sized | None = None
) -> TrainedNetwork:
    """The untrained network ``name``; its weights are drawn from the seed of ``material``.

    Args:
        catalog: a ``Catalog``, for ``SID_BASELINES``. (Its module is not imported here: its code would be part of the
            key of every network.)

    Raises:
        InputError: ``catalog`` is missing where it is needed, or has another number of items than the log.
    """
    module, _, kind = NETWORKS[name].partition(":")
    torch.manual_seed(seed_of("baseline weights", material.seed))
    network, n_items = getattr(import_module(module), kind), material.log.n_items
    if name not in SID_BASELINES:
        return network(n_items, material.max_history, settings)
    if catalog is None or len(catalog) != n_items:
        came = "none" if catalog is None else f"those of {len(catalog)} items"
        raise InputError(f"{name}: got semantic IDs: {came}, wanted those of {n_items} items; run `genrec assign`")
    return network(catalog, settings)


def settings_tried(settings: NetworkSettings, count: int, seed: int) -> Iterator[NetworkSettings]:
    """``settings`` themselves, then ``count`` - 1 others with values drawn from ``NEAR``."""
    yield settings
    random = generator_of("baseline settings", seed)
    for _ in range(count - 1):
        drawn: dict[str, Any] = {name: values[random.integers(len(values))] for name, values in NEAR.items()}
        yield settings.replace(drawn)


def train_network(
    name: str,
    material: Material,
    settings: NetworkSettings,
    checkpoints: CheckpointStore,
    device: torch.device,
    catalog: Sized | None = None,
) -> tuple[SequentialBaseline, Progressed]:
    """The trained baseline ``name``, and how its training went; resumes from the newest of ``checkpoints``.

    Args:
        catalog: that of ``make_network``.

    Raises:
        InputError: a wrong ``catalog``, nothing to learn from, or a loss that is not finite.
    """
    network = make_network(name, material, settings, catalog)
    windows = training_windows(material.log, material.max_history, network.form)
    model = SequentialBaseline(network.to(device))
    trainer = SequentialTrainer(
        network, windows, lambda: material.ndcg(model), checkpoints, seed=material.seed, device=device, name=name
    )
    return model, trainer.run()
