"""One baseline as one artifact: ``<storage>/baseline/<key>`` holds how it ranks the test queries, and its settings.

So a baseline is made once, whoever asks for it, and changing one leaves the others as they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifacts import Artifact, Recipe, make_artifact
from cluster.session import configure_process
from cluster.train import (
    CURVE,
    RunSpec,
    make_accelerator,
    make_checkpoints,
    read_summary,
    run_training,
    training_summary,
)
from genrec.config import SID_BASELINES, Config, NetworkSettings
from genrec.data.files import write_json
from genrec.errors import InputError, MachineError

if TYPE_CHECKING:
    from genrec.baselines.material import Material
    from genrec.baselines.ranking import Baseline
    from genrec.sid.catalog import Catalog

STAGE_NAME = "baseline"
MODEL = "model.safetensors"
DEPTH = 100
"""Items ranked for each test query; more where ``evaluation.ks`` ask for more."""

COMPARES_TEXTS = ("star", "text")
USES_IMPLICIT = ("als", "bpr")


def is_trained(name: str) -> bool:
    """Whether the baseline ``name`` is a network."""
    from genrec.baselines.sequential.training import NETWORKS

    return name in NETWORKS


def is_drawn(name: str) -> bool:
    """Whether another seed makes another baseline ``name``."""
    return is_trained(name) or name in USES_IMPLICIT


def make_row(config: Config, name: str, inputs: Mapping[str, Artifact]) -> Artifact:
    """The artifact of the baseline ``name``; a killed training goes on.

    Raises:
        InputError: the baseline cannot be made of this data, or on this machine.
    """
    used = {stage: inputs[stage] for stage in _needed(name) if stage in inputs}
    work = partial(_train if is_trained(name) else _count, config, name, used)
    return make_artifact(config, Recipe(STAGE_NAME, row_settings(config, name), _code(name), list(used.values())), work)


def make_row_or_reason(config: Config, name: str, inputs: Mapping[str, Artifact]) -> Artifact | str:
    """``make_row``, or in one line why there is no such baseline: others go on.

    Raises:
        MachineError: the row can be made, later or elsewhere.
    """
    try:
        return make_row(config, name, inputs)
    except MachineError as error:
        raise type(error)(f"{error}; or leave {name} out of the baselines") from error
    except (InputError, RuntimeError, ArithmeticError, MemoryError, ImportError) as error:
        return f"{error}".partition("\n")[0] or type(error).__name__


def _needed(name: str) -> tuple[str, ...]:
    """The stages that the baseline ``name`` reads."""
    if name in SID_BASELINES:
        return ("prepare", "assign")
    return ("prepare", "embed") if name in COMPARES_TEXTS else ("prepare",)


def row_settings(config: Config, name: str) -> dict[str, Any]:
    """What a baseline depends on, besides its data and its code."""
    baselines = config.baselines
    settings: dict[str, Any] = {
        "name": name,
        "seed": config.seed,
        "max_history": config.data.max_history,
        "depth": depth(config),
        "eval_queries": baselines.eval_queries,
    }
    if is_trained(name):
        return settings | {"trained": baselines.trained, "settings": section(config, name).result_settings()}
    return settings | {"budget": _budget(config, name)} | _implicit_version(name)


def depth(config: Config) -> int:
    """Items that are ranked for each test query."""
    return max(DEPTH, *config.evaluation.ks)


def section(config: Config, name: str) -> NetworkSettings:
    """The settings of the network ``name``."""
    return getattr(config.baselines, name)


def _budget(config: Config, name: str) -> int:
    """Settings that are tried of a baseline that is no network."""
    return config.baselines.factored if name in USES_IMPLICIT else config.baselines.counted


def _implicit_version(name: str) -> dict[str, str]:
    """The version of the library behind the baseline: another one is another result."""
    if name not in USES_IMPLICIT:
        return {}
    try:
        return {"implicit": metadata.version("implicit")}
    except metadata.PackageNotFoundError:
        return {"implicit": ""}


def _code(name: str) -> tuple[str, ...]:
    from genrec.baselines.sequential.training import module_of

    if is_trained(name):
        return ("genrec.baselines.sequential.training", module_of(name))
    return ("genrec.baselines.neighbours",)


def _material(config: Config, data: Path) -> Material:
    from genrec.baselines.material import Material

    history, queries = config.data.max_history, config.baselines.eval_queries
    return Material.read(data, history, seed=config.seed, eval_queries=queries)


def _catalog(name: str, directory: Path | None) -> Catalog | None:
    """The semantic IDs in ``directory``, for a baseline that writes them."""
    from genrec.sid.catalog import Catalog

    return Catalog.load(directory) if name in SID_BASELINES and directory is not None else None


def _count(config: Config, name: str, inputs: Mapping[str, Artifact], out: Path) -> Mapping[str, Any]:
    """Tune a baseline that needs no training loop."""
    from genrec.baselines.neighbours import tune_neighbours

    started, data = time.perf_counter(), inputs["prepare"].path
    material, vectors = _material(config, data), inputs["embed"].path if "embed" in inputs else None
    tuned = tune_neighbours(name, material, vectors, _budget(config, name))
    seconds = time.perf_counter() - started
    return _ranked(config, material, tuned.model, data, out, {**tuned.settings, "seconds": round(seconds, 2)})


def _train(config: Config, name: str, inputs: Mapping[str, Artifact], out: Path) -> Mapping[str, Any]:
    """Train a network as often as ``baselines.trained`` says, and rank with the best of them on validation."""
    import torch
    from safetensors.torch import load_file

    from genrec.baselines.sequential.scoring import SequentialBaseline
    from genrec.baselines.sequential.training import make_network, settings_tried

    data, sids = inputs["prepare"].path, inputs["assign"].path if "assign" in inputs else None
    # A network of this size gains nothing from more workers than one.
    alone = config.with_workers(min(1, config.compute.workers))
    tried = list(settings_tried(section(config, name), config.baselines.trained, config.seed))
    scores: list[float] = []
    for number, settings in enumerate(tried):
        where = out / f"training-{number}"
        spec = RunSpec(alone, data, sids or data, where)
        run_training(partial(training_loop, name, settings), spec, f"{name} {number}")
        scores.append(float(training_summary(where)["valid_ndcg@10"]))
    best = max(range(len(tried)), key=scores.__getitem__)
    material = _material(config, data)
    network = make_network(name, material, tried[best], _catalog(name, sids))
    network.load_state_dict(load_file(out / f"training-{best}" / MODEL))
    about = read_summary(out / f"training-{best}")
    figures = {key: about[key] for key in ("valid_ndcg@10", "best_epoch", "epochs", "seconds", "parameters")}
    torch.set_num_threads(config.compute.threads)
    shown = {**tried[best].model_dump(mode="json"), **figures, "tried": len(tried)}
    return _ranked(config, material, SequentialBaseline(network), data, out, shown)


def training_loop(name: str, settings: NetworkSettings, spec: RunSpec) -> None:
    """One training of the network ``name``; ``spec.out`` gets the weights of the best epoch, and ``curve.json``."""
    configure_process(spec.config)
    from safetensors.torch import save_file

    from genrec.baselines.sequential.training import train_network

    device = make_accelerator(spec.config).device
    material, catalog = _material(spec.config, spec.data), _catalog(name, spec.catalog)
    model, state = train_network(name, material, settings, make_checkpoints(spec), device, catalog)
    spec.out.mkdir(parents=True, exist_ok=True)
    save_file(model.network.weights(), spec.out / MODEL)
    about = {"valid_ndcg@10": state.best, "best_epoch": state.best_epoch, "epochs": state.epoch}
    about |= {"seconds": round(state.seconds, 2), "parameters": sum(one.numel() for one in model.network.parameters())}
    write_json({**about, "curve": asdict(state)["curve"]}, spec.out / CURVE)


def _ranked(
    config: Config, material: Material, model: Baseline, data: Path, out: Path, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Rank the test queries, keep the ranking, and return the metrics of the artifact."""
    from genrec.baselines.material import users_of
    from genrec.baselines.ranking import rank
    from genrec.baselines.ranking_files import RANKING, write_ranking
    from genrec.baselines.train_log import recent_history
    from genrec.data.readers import read_queries

    test, masks = read_queries(data, "test"), material.log.mask_seen
    recent_QH, users_Q = recent_history(test, config.data.max_history), users_of(test)
    started = time.perf_counter()
    ranked_QK = rank(model, recent_QH, depth(config), mask_seen=masks, users_Q=users_Q)
    per_query = (time.perf_counter() - started) / max(1, len(recent_QH))
    write_ranking(ranked_QK, out / RANKING)
    return {"settings": dict(settings), "ms_per_query": round(1000 * per_query, 4)}
