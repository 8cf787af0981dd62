"""Quantizers without a learned codebook: the encoder learns to meet the points of a fixed lattice."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genrec.sid.quantizers.autoencoder import BoundedAutoencoder, Codebook, FixedCodebook
from genrec.sid.quantizers.rqvae import RqVae
from genrec.sid.vectors import Floats

MOST_STEPS = 8
"""Points per dimension of an FSQ level, at most."""


class LatticeVae(RqVae):
    """An RQ-VAE with latents in (-1, 1) whose codebooks are lattices, each level's finer than the one before.

    A lattice of fewer than K points is repeated: the further codes are twins of the first ones, which ``encode`` never
    gives, but collision resolution may. ``sid.latent`` is not used: the lattices have a width of their own, and a level
    that is too small for it leaves some dimensions (those of one step) to the others.
    """

    @abstractmethod
    def _steps(self) -> tuple[tuple[int, ...], ...]:
        """Points per dimension of each level, (L, d); their product is at most the level's K."""

    @abstractmethod
    def _axis(self, steps: int) -> Floats:
        """The points of one dimension at the first level, (steps,)."""

    @abstractmethod
    def _shrink(self, steps: int) -> float:
        """How much finer a dimension is after a level that gave it so many steps."""

    def _make_net(self, width: int) -> BoundedAutoencoder:
        return BoundedAutoencoder(width, self.settings.hidden, len(self._steps()[0]))

    def _first_codebooks(self, data_ND: Tensor) -> list[Codebook]:
        assert isinstance(self._net, BoundedAutoencoder)
        self._net.spread(data_ND[:: max(1, len(data_ND) // 65536)])
        books: list[Codebook] = []
        scale_d = np.ones(len(self._steps()[0]), np.float32)
        for codes, steps_d in zip(self.level_sizes, self._steps(), strict=True):
            points_kd = np.array(list(itertools.product(*map(self._axis, steps_d))), np.float32)
            rows_Kd = np.resize(points_kd, (codes, len(scale_d))) * scale_d
            books.append(FixedCodebook(torch.from_numpy(rows_Kd.astype(np.float32)).to(data_ND.device)))
            scale_d = scale_d * np.array([self._shrink(steps) for steps in steps_d], np.float32)
        return books


class Fsq(LatticeVae):
    """FSQ (Mentzer et al., "Finite Scalar Quantization", 2023), residual over the levels.

    Each latent dimension is rounded to a few steps; a level's code numbers the combination. K codes are made of as many
    dimensions with at most 8 steps as leave the fewest codes unused, see ``fsq_steps``. No loss but reconstruction.
    """

    def _steps(self) -> tuple[tuple[int, ...], ...]:
        return fsq_steps(self.level_sizes)

    def _axis(self, steps: int) -> Floats:
        return np.linspace(-1, 1, steps, dtype=np.float32) if steps > 1 else np.zeros(1, np.float32)

    def _shrink(self, steps: int) -> float:
        return 1 / max(steps - 1, 1)

    def _level_loss(self, left_Bd: Tensor, chosen_Bd: Tensor, book: Codebook) -> Tensor:
        return left_Bd.new_zeros(())


class Lfq(LatticeVae):
    """LFQ (Yu et al., "Language Model Beats Diffusion", MAGVIT-v2, 2023, section 3.1), residual over the levels.

    A code is log2(K) sign bits of the latent; K that is no power of two uses the lower one. A smaller level has the
    bits of the first dimensions. Beside the commitment
    (``sid.beta``) the entropy loss ``sid.entropy`` x (mean entropy of a code - entropy of the mean code) makes every
    item sure of its code and all codes used.
    """

    def _steps(self) -> tuple[tuple[int, ...], ...]:
        bits_L = [int(math.log2(codes)) for codes in self.level_sizes]
        return tuple((2,) * bits + (1,) * (max(bits_L) - bits) for bits in bits_L)

    def _axis(self, steps: int) -> Floats:
        return np.array([-0.5, 0.5] if steps == 2 else [0.0], np.float32)

    def _shrink(self, steps: int) -> float:
        return 1 / steps

    def _level_loss(self, left_Bd: Tensor, chosen_Bd: Tensor, book: Codebook) -> Tensor:
        bit_d = book.rows_Kd.abs().amax(dim=0)
        own_d = bit_d > 0
        loss = entropy_loss(torch.sigmoid(4 * left_Bd[:, own_d] / bit_d[own_d]))
        commitment = functional.mse_loss(left_Bd[:, own_d], chosen_Bd[:, own_d].detach())
        return self.settings.beta * commitment + self.settings.entropy * loss


def entropy_loss(chance_Bd: Tensor) -> Tensor:
    """Mean entropy less entropy of the mean, in nats, summed over bits: -d·ln 2 at best (sure, and evenly spread).

    Bits are taken as independent, so K codes cost log2(K) terms (Yu et al. 2023, Eq. 6 and after).

    Args:
        chance_Bd: the chance that each bit is set.
    """
    return (_entropy(chance_Bd).mean(dim=0) - _entropy(chance_Bd.mean(dim=0))).sum()


def _entropy(chance: Tensor) -> Tensor:
    chance = chance.clamp(1e-6, 1 - 1e-6)
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log())


def fsq_steps(level_sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Steps per dimension of each level, (L, d), at most 8 each and as even as can be, of product at most its K.

    d is the number of dimensions that leaves the fewest SIDs unused; where it can be, every level divides all of them.

    >>> fsq_steps((256,)), fsq_steps((240, 64)), fsq_steps((4096, 2))
    (((4, 4, 4, 4),), ((6, 6, 6), (4, 4, 4)), ((8, 8, 8, 8), (2, 1, 1, 1)))
    """
    best: tuple[tuple[int, ...], ...] = ()
    best_rank = (False, 0)
    for dims in range(1, int(math.log2(max(level_sizes))) + 1):
        levels = tuple(_even_steps(codes, dims) for codes in level_sizes)
        rank = min(map(min, levels)) > 1, math.prod(map(math.prod, levels))
        if max(map(max, levels)) <= MOST_STEPS and rank > best_rank:
            best, best_rank = levels, rank
    return best


def _even_steps(codes: int, dims: int) -> tuple[int, ...]:
    steps = [int(codes ** (1 / dims) + 1e-9)] * dims
    for dim in range(dims):
        while math.prod(steps) // steps[dim] * (steps[dim] + 1) <= codes and steps[dim] == min(steps):
            steps[dim] += 1
    return tuple(steps)
