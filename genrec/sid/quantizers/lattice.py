"""Quantizers with fixed codebooks: the encoder learns to place latents near the points of a lattice."""

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
"""Most points per dimension of an FSQ level."""


class LatticeVae(RqVae):
    """An RQ-VAE with latents in (-1, 1) whose codebooks are lattices, each level's finer than the one before.

    A lattice with fewer than K points is repeated up to K rows: ``encode`` never returns a repeated row, but collision
    resolution may assign it. ``sid.latent`` is not used: the lattices define the number of dimensions. A small level
    may have only one point in some dimensions, and so leaves these to the other levels.
    """

    @abstractmethod
    def _steps(self) -> tuple[tuple[int, ...], ...]:
        """Points per dimension of each level, (L, d); their product is at most the level's K."""

    @abstractmethod
    def _axis(self, steps: int) -> Floats:
        """The points of one dimension at the first level, (steps,)."""

    @abstractmethod
    def _shrink(self, steps: int) -> float:
        """The factor by which a dimension's range shrinks after a level with this number of steps."""

    def _make_net(self, width: int) -> BoundedAutoencoder:
        return BoundedAutoencoder(width, self.settings.hidden, len(self._steps()[0]))

    def _first_codebooks(self, data_ND: Tensor) -> list[Codebook]:
        assert isinstance(self._net, BoundedAutoencoder)
        self._net.standardise(data_ND[:: max(1, len(data_ND) // 65536)])
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

    Each latent dimension is rounded to one of a few points; a level's code is the number of the combination. Dimensions
    and points are chosen so that the fewest codes are unused (``fsq_steps``). The loss is the reconstruction error
    only.
    """

    def _steps(self) -> tuple[tuple[int, ...], ...]:
        return fsq_steps(self.level_sizes)

    def _axis(self, steps: int) -> Floats:
        return np.linspace(-1, 1, steps, dtype=np.float32) if steps > 1 else np.zeros(1, np.float32)

    def _shrink(self, steps: int) -> float:
        return 1 / max(steps - 1, 1)

    def _level_loss(self, residual_Bd: Tensor, chosen_Bd: Tensor, book: Codebook) -> Tensor:
        return residual_Bd.new_zeros(())


class Lfq(LatticeVae):
    """LFQ (Yu et al., "Language Model Beats Diffusion", MAGVIT-v2, 2023, section 3.1), residual over the levels.

    A code is made of the signs of floor(log2 K) latent dimensions; a smaller level uses the first of them. The loss of
    a level is ``sid.beta`` · |r - sg(e)|² / d + ``sid.entropy`` · ``entropy_loss``, for residual r and its lattice
    point e.
    """

    def _steps(self) -> tuple[tuple[int, ...], ...]:
        bits_L = [int(math.log2(codes)) for codes in self.level_sizes]
        return tuple((2,) * bits + (1,) * (max(bits_L) - bits) for bits in bits_L)

    def _axis(self, steps: int) -> Floats:
        return np.array([-0.5, 0.5] if steps == 2 else [0.0], np.float32)

    def _shrink(self, steps: int) -> float:
        return 1 / steps

    def _level_loss(self, residual_Bd: Tensor, chosen_Bd: Tensor, book: Codebook) -> Tensor:
        bit_d = book.rows_Kd.abs().amax(dim=0)
        own_d = bit_d > 0
        loss = entropy_loss(torch.sigmoid(4 * residual_Bd[:, own_d] / bit_d[own_d]))
        commitment = functional.mse_loss(residual_Bd[:, own_d], chosen_Bd[:, own_d].detach())
        return self.settings.beta * commitment + self.settings.entropy * loss


def entropy_loss(p_Bd: Tensor) -> Tensor:
    """Σ_bits [mean_B H(p) - H(mean_B p)] in nats, with the entropy H of a bit that is set with probability p.

    The minimum -d·ln 2 is reached when every item is certain of its bits and each bit is set for half of the items.
    Bits are treated as independent, so K codes need log2(K) terms. Source: Yu et al. (2023), Eq. 6 and below.

    Args:
        p_Bd: the probability (B, d) that each bit is set.
    """
    return (_entropy(p_Bd).mean(dim=0) - _entropy(p_Bd.mean(dim=0))).sum()


def _entropy(p_x: Tensor) -> Tensor:
    p_x = p_x.clamp(1e-6, 1 - 1e-6)
    return -(p_x * p_x.log() + (1 - p_x) * (1 - p_x).log())


def fsq_steps(level_sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Points per dimension of each level, (L, d): at most 8, as even as possible, with a product of at most K_l.

    d is the number of dimensions that leaves the fewest SIDs unused; if possible, every level has at least two points
    in every dimension.

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
