"""Quantizers: vectors to codes and back. They share one interface and are chosen by name.

To add one: subclass ``Quantizer`` (or ``ResidualQuantizer``) in a file of this package, and add it to ``REGISTRY`` and
to the choices of ``sid.quantizer``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from genrec.config import Sid
from genrec.errors import InputError
from genrec.sid.quantizers.base import Quantizer, read_model

REGISTRY = {
    "rqkmeans": "genrec.sid.quantizers.rqkmeans:RqKmeans",
    "rqkmeans_balanced": "genrec.sid.quantizers.balanced:BalancedRqKmeans",
    "rqkmeans_plus": "genrec.sid.quantizers.rqkmeans_plus:RqKmeansPlus",
    "rqvae": "genrec.sid.quantizers.rqvae:RqVae",
    "vq": "genrec.sid.quantizers.rqkmeans:Vq",
    "pq": "genrec.sid.quantizers.product:ProductKmeans",
    "opq": "genrec.sid.quantizers.product:OptimizedProductKmeans",
    "hierarchical": "genrec.sid.quantizers.hierarchical:Hierarchical",
    "fsq": "genrec.sid.quantizers.lattice:Fsq",
    "lfq": "genrec.sid.quantizers.lattice:Lfq",
    "random": "genrec.sid.quantizers.controls:Random",
    "title": "genrec.sid.quantizers.controls:Title",
}

__all__ = ["REGISTRY", "Quantizer", "load_quantizer", "make_quantizer"]


def make_quantizer(settings: Sid, *, seed: int = 0, threads: int = 1, device: str = "auto") -> Quantizer:
    """The quantizer that ``sid.quantizer`` names, not fitted yet; InputError for ``given``, which is not fitted."""
    return _class_of(settings.quantizer)(settings, seed=seed, threads=threads, device=device)


def load_quantizer(directory: Path, *, threads: int = 1) -> Quantizer:
    """The fitted quantizer that ``save`` wrote into ``directory``, on the CPU; InputError if unreadable."""
    settings, _ = read_model(directory)
    quantizer = _class_of(settings.quantizer)(settings, threads=threads, device="cpu")
    quantizer.load(directory)
    return quantizer


def _class_of(name: str) -> type[Quantizer]:
    if name not in REGISTRY:
        raise InputError(f"sid.quantizer={name} cannot be fitted; choose one of {sorted(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)
