"""How weights get from a learner to two rollout actors: what Ray's object store takes, and what a broadcast would.

Three ways take turns: ``store``, a ``Snapshot`` as the learner sends it (arrays that the receivers map); ``pickled``,
the same tensors as Ray sends them by itself; ``broadcast``, one collective of all three processes, with NCCL where the
cluster has three GPUs, else with gloo. Each ends when both receivers have copied the weights into their own.
"""

from __future__ import annotations

import socket
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Bench, interleaved_timings, ratio
from cluster.artifacts import Artifact
from genrec.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from genrec.types import Snapshot

NEEDS: tuple[str, ...] = ()
SIZES_MB = (22, 540)
"""Adapters of a small language model, and all weights of one of 135 million parameters in float32."""
TENSOR_MB = 2
RECEIVERS = 2


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """Milliseconds of each way at each size, and the others' ratio to the store's."""
    return measure(config, SIZES_MB, rounds=5)


def measure(config: Config, sizes_mb: tuple[int, ...], rounds: int) -> Bench:
    """The same for other sizes."""
    import ray

    from cluster.session import connect

    connect(config)
    bench, gpus = Bench("transport"), int(ray.cluster_resources().get("GPU", 0) > RECEIVERS)
    make: Any = ray.remote(num_cpus=0.1, num_gpus=gpus)(_Peer)
    for size_mb in sizes_mb:
        peers: list[Any] = [make.remote(rank, size_mb) for rank in range(1 + RECEIVERS)]
        address = ray.get(peers[0].address.remote())
        ray.get([peer.join.remote(address) for peer in peers])
        sender, receivers = peers[0], peers[1:]

        def sent(what: str, sender: Any = sender, receivers: Any = receivers) -> None:
            weights = getattr(sender, what).remote()
            ray.get([receiver.adopt.remote(weights) for receiver in receivers])

        def broadcast(peers: Any = peers) -> None:
            ray.get([peer.broadcast.remote() for peer in peers])

        ways = {"store": lambda: sent("snapshot"), "pickled": lambda: sent("tensors"), "broadcast": broadcast}
        seconds = interleaved_timings(ways, rounds)
        bench.figures |= {f"{way}_{size_mb}_mb_ms": 1000 * statistics.median(took) for way, took in seconds.items()}
        for way in ("pickled", "broadcast"):
            bench.ratios[f"{way}_over_store_{size_mb}_mb"] = ratio(seconds[way], seconds["store"])
        for peer in peers:
            ray.kill(peer)
    return bench


class _Peer:
    """A learner (rank 0) or a rollout actor with weights of ``size_mb``; runs as a Ray actor."""

    def __init__(self, rank: int, size_mb: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._rank, self._device = rank, "cuda" if torch.cuda.is_available() else "cpu"
        shape = (TENSOR_MB * 2**18,)
        self._own = {
            f"tensor-{number}": torch.full(shape, float(rank == 0), device=self._device)
            for number in range(max(1, size_mb // TENSOR_MB))
        }

    def address(self) -> str:
        """Where the others join this one."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, address: str) -> None:
        """Make the group of all three."""
        import torch.distributed as dist

        backend = "nccl" if self._device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=address, rank=self._rank, world_size=1 + RECEIVERS)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self._own.items()}

    def snapshot(self) -> Snapshot:
        """The same as a snapshot; its digest, which costs the same on every way, is left out."""
        from genrec.types import Snapshot

        found = Snapshot(0, self.tensors())
        found.__dict__["digest"] = ""
        return found

    def adopt(self, weights: Snapshot | dict[str, Tensor]) -> None:
        """Copy weights into the own ones."""
        tensors = weights if isinstance(weights, dict) else weights.tensors
        for name, tensor in tensors.items():
            self._own[name].copy_(tensor)
        self._check()

    def broadcast(self) -> None:
        """Send the weights, or receive them."""
        import torch.distributed as dist

        for tensor in self._own.values():
            dist.broadcast(tensor, 0)
        self._check()

    def _check(self) -> None:
        assert all(float(tensor[-1]) == 1.0 for tensor in self._own.values())
