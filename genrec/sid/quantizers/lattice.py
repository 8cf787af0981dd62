"""Quantizers without a learned codebook: the encoder learns to meet the points of a fixed lattice."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod

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
    gives, but collision resolution may. ``sid.latent`` is not used: the lattice has its own width.
    """

    @abstractmethod
    def _lattice(self) -> Floats:
        """The points (k, d) of the first level, k ≤ K."""

    @property
    @abstractmethod
    def _shrink(self) -> Floats:
        """How much finer each level is than the one before, (d,)."""

    def _make_net(self, width: int) -> BoundedAutoencoder:
        return BoundedAutoencoder(width, self.settings.hidden, self._lattice().shape[1])

    def _first_codebooks(self, data_ND: Tensor) -> list[Codebook]:
        assert isinstance(self._net, BoundedAutoencoder)
        self._net.spread(data_ND[:: max(1, len(data_ND) // 65536)])
        points_kd = self._lattice()
        books: list[Codebook] = []
        for level, codes in enumerate(self.level_sizes):
            rows_Kd = np.resize(points_kd, (codes, points_kd.shape[1])) * self._shrink**level
            books.append(FixedCodebook(torch.from_numpy(rows_Kd.astype(np.float32)).to(data_ND.device)))
        return books


class Fsq(LatticeVae):
    """FSQ (Mentzer et al., "Finite Scalar Quantization", 2023), residual over the levels.

    Each latent dimension is rounded to a few steps; a level's code numbers the combination. K codes are made of as many
    dimensions with at most 8 steps as leave the fewest codes unused, see ``fsq_steps``. No loss but reconstruction.
    """

    def _lattice(self) -> Floats:
        axes = [np.linspace(-1, 1, steps) for steps in fsq_steps(min(self.level_sizes))]
        return np.array(list(itertools.product(*axes)), np.float32)

    @property
    def _shrink(self) -> Floats:
        steps_d = np.array(fsq_steps(min(self.level_sizes)))
        return (1 / (steps_d - 1)).astype(np.float32)

    def _level_loss(self, left_Bd: Tensor, chosen_Bd: Tensor, book: Codebook) -> Tensor:
        return left_Bd.new_zeros(())


class Lfq(LatticeVae):
    """LFQ (Yu et al., "Language Model Beats Diffusion", MAGVIT-v2, 2023, section 3.1), residual over the levels.

    A code is log2(K) sign bits of the latent; K that is no power of two uses the lower one. Beside the commitment
    (``sid.beta``) the entropy loss ``sid.entropy`` x (mean entropy of a code - entropy of the mean code) makes every
    item sure of its code and all codes used.
    """

    def _lattice(self) -> Floats:
        bits = int(math.log2(min(self.level_sizes)))
        return np.array(list(itertools.product((-0.5, 0.5), repeat=bits)), np.float32)

    @property
    def _shrink(self) -> Floats:
        return np.array(0.5, np.float32)

    def _level_loss(self, left_Bd: Tensor, chosen_Bd: Tensor, book: Codebook) -> Tensor:
        bit = book.rows_Kd.abs().max()
        chance_Bd = torch.sigmoid(4 * left_Bd / bit)
        loss = entropy_loss(chance_Bd)
        commitment = functional.mse_loss(left_Bd, chosen_Bd.detach())
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


def fsq_steps(codes: int) -> tuple[int, ...]:
    """Steps per dimension, at most 8 each and as even as can be, whose product comes nearest to ``codes`` from below.

    >>> fsq_steps(256), fsq_steps(240), fsq_steps(4)
    ((4, 4, 4, 4), (6, 6, 6), (4,))
    """
    best: tuple[int, ...] = ()
    for dims in range(1, int(math.log2(codes)) + 1):
        steps = [int(codes ** (1 / dims) + 1e-9)] * dims
        for dim in range(dims):
            while math.prod(steps) // steps[dim] * (steps[dim] + 1) <= codes and steps[dim] == min(steps):
                steps[dim] += 1
        if max(steps) <= MOST_STEPS and math.prod(steps) > math.prod(best or (1,)):
            best = tuple(steps)
    return best
