"""Seeds of random draws: every use has a stream of its own, named and numbered, so that nobody adds seeds."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(use: str, *numbers: int) -> int:
    """A 64-bit seed for one use of randomness: a hash (BLAKE2b) of its name and numbers.

    ``seed_of("dropout", seed, step, rank)``. Sums share draws: seed 0 at step 1 would be seed 1 at step 0. Of a hash,
    two uses share a seed with probability 2^-64; torch reads the low 32 bits of it on the CPU, all of it on a GPU.
    """
    text = "/".join((use, *map(str, numbers)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator_of(use: str, *numbers: int) -> np.random.Generator:
    """NumPy's generator for one use of randomness (see ``seed_of``)."""
    return np.random.default_rng(seed_of(use, *numbers))
