"""This process and Ray: the environment that both need, and joining or starting a cluster."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.interruption import handles_signals, take_handlers_back
from cluster.ray_failures import ending_with_ray
from genrec.config import Config
from genrec.errors import InputError, MachineError

LOG = logging.getLogger(__name__)

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

KEPT = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1), "MALLOC_MMAP_THRESHOLD_": (-3, 2**25)}
"""glibc's variables, ``mallopt``'s numbers for them, and bytes: freed ones to keep, and the size mapped by itself."""

WANTED_ADDRESS = (
    "wanted: HOST:6379 or ray://HOST:10001 of a cluster that runs (see `ray status`), auto for one on this machine, "
    "or none, which starts one; the dashboard's http address is for `ray job submit` alone"
)


def configure_process(config: Config) -> None:
    """Set, before ray or transformers are imported, what this process and those that it starts read from outside.

    No telemetry and no progress bars of libraries; an allocator that keeps freed memory; and the model hub is offline
    unless the config names a model of it.
    """
    silence_libraries()
    keep_freed_memory()
    if not _names_a_hub_model(config):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def silence_libraries() -> None:
    """Switch off telemetry and progress bars of ray, transformers and the hub; variables that are set already stay.

    So does the warning of bitsandbytes, which is imported with peft, that it has no fast kernel for 4 bits on a CPU.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of having each tensor's pages made anew: decoding is an eighth faster.

    Processes that start later read it from the environment. Does nothing where the C library is another.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, (option, size) in KEPT.items():
        if mallopt is not None and name not in os.environ:
            os.environ[name] = str(size)
            mallopt(option, size)


def require_packages(config: Config) -> None:
    """Refuse a config whose optional packages are not installed, before any work.

    Raises:
        InputError: ``policy.finetuning=qlora`` without bitsandbytes, or a ZeRO strategy without DeepSpeed.
    """
    strategy, policy = config.compute.strategy, config.policy
    four_bit = policy.kind == "pretrained" and policy.finetuning == "qlora"
    wanted = {
        "bitsandbytes": (four_bit, "policy.finetuning=qlora", "policy.finetuning=lora"),
        "deepspeed": (strategy != "ddp", f"compute.strategy={strategy}", "compute.strategy=ddp"),
    }
    for package, (is_wanted, key, instead) in wanted.items():
        if is_wanted and find_spec(package) is None:
            raise InputError(f"{key} needs {package}, which is not installed: pip install {package}, or take {instead}")


def connect(config: Config) -> None:
    """Join the cluster of ``compute.address`` (or ``RAY_ADDRESS``), else start one in this machine; once.

    Raises:
        MachineError: no Ray answers there, or none can be started here.
    """
    import ray

    if ray.is_initialized():
        return
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not _is_whole(config.storage):
        raise MachineError(
            f"storage={config.storage!r} lies in the job's temporary copy of the working directory and would be lost; "
            "give an absolute path that every node sees, or a URL such as s3://BUCKET/PATH"
        )
    address = config.compute.address or os.environ.get("RAY_ADDRESS") or "local"
    require_ray_at(address)
    passed = {name: os.environ[name] for name in (*QUIET, "HF_HUB_OFFLINE") if name in os.environ}
    options: dict[str, Any] = (
        {} if address != "local" else {"object_store_memory": config.compute.object_store_mb * 2**20}
    )
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    watched = handles_signals() and not address.startswith("ray://")
    try:
        with ending_with_ray(address == "local") if watched else nullcontext():
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": passed},
                **options,
            )
    except Exception as error:  # Ray raises bare ones, where a process of its own is slow to start or dies meanwhile.
        ray.shutdown()
        raise MachineError(_why_no_ray(address, error)) from error
    take_handlers_back()
    _quieten_ray_data()


def _is_whole(storage: str) -> bool:
    return "://" in storage or Path(storage).is_absolute()


def joins_cluster(config: Config) -> bool:
    """Whether Ray is a cluster that was there before, which may have other machines and may grow."""
    return bool(config.compute.address or os.environ.get("RAY_ADDRESS"))


def require_ray_at(address: str, timeout_s: float = 5.0) -> None:
    """Refuse an address at which no Ray answers: ``ray.init`` would wait for it for minutes.

    Raises:
        MachineError: nothing that speaks gRPC is at ``address`` (HOST:PORT or ray://HOST:PORT) within ``timeout_s``.
    """
    import grpc

    place = address.removeprefix("ray://")
    if place in ("local", "auto"):
        return
    if "://" in place or not re.fullmatch(r".+:\d+", place):
        raise MachineError(f"the Ray cluster's address is {address!r}; {WANTED_ADDRESS}")
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    with grpc.insecure_channel(place) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError:
            raise MachineError(
                f"no Ray cluster answers at {address} (compute.address, or the variable RAY_ADDRESS) within "
                f"{timeout_s:g} s; {WANTED_ADDRESS}"
            ) from None


def _why_no_ray(address: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if address != "local":
        locked = (
            "; if it has token authentication, set RAY_AUTH_MODE=token" if "RAY_AUTH_MODE" not in os.environ else ""
        )
        return f"could not join the Ray cluster at {address}: {reason}; {WANTED_ADDRESS}{locked}"
    return (
        f"Ray could not start on this machine: {reason}; wanted: a writable temporary folder with a short path "
        "(RAY_TMPDIR), free ports and enough shared memory (compute.object_store_mb); compute.workers=0 "
        "compute.data_actors=0 needs no Ray"
    )


def require_resources(config: Config, what: str, cpus: float, gpus: float) -> None:
    """Refuse to wait forever for resources that this machine lacks; on a cluster, which may grow, only warn.

    Raises:
        MachineError: a local Ray has fewer CPUs or GPUs than ``what`` asks for.
    """
    import ray

    have = ray.cluster_resources()
    if have.get("CPU", 0.0) >= cpus and have.get("GPU", 0.0) >= gpus:
        return
    message = (
        f"{what} asks for {cpus:g} CPUs and {gpus:g} GPUs, "
        f"Ray has {have.get('CPU', 0.0):g} and {have.get('GPU', 0.0):g}; "
        "lower the numbers in the config's compute section, or take another configs/ file for where to run"
    )
    if joins_cluster(config):
        LOG.warning("%s; waiting for the cluster to grow", message)
        return
    raise MachineError(message)


def _quieten_ray_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _names_a_hub_model(config: Config) -> bool:
    names = [config.embed.model]
    if config.policy.kind == "pretrained":
        names.append(config.policy.path)
    return any(name not in ("minilm", "smollm2") and not Path(name).exists() for name in names)
