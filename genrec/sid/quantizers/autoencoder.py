"""The parts of an RQ-VAE: the network, and how a batch of latents meets the codebooks in training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Losses = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]
"""Reconstruction error, commitment, and per level the residuals (B, d) and the codes (B,) that they chose."""
RESTART_UNTIL = 0.8
"""Dead codes restart during this share of the epochs; the rest lets the codebooks settle."""


class Autoencoder(nn.Module):
    """Two mirrored ReLU networks: D → hidden → latent, and back."""

    def __init__(self, width: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.encoder = _layers((width, *hidden, latent))
        self.decoder = _layers((latent, *reversed(hidden), width))


class ResidualAutoencoder(Autoencoder):
    """Encoder z = x + f(x) and decoder x = z + g(z) of one width D; f and g start at 0."""

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__(width, hidden, width)
        self.encoder, self.decoder = _Skip(self.encoder), _Skip(self.decoder)


class BoundedAutoencoder(Autoencoder):
    """An autoencoder whose latents lie in (-1, 1)."""

    def __init__(self, width: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__(width, hidden, latent)
        self.encoder.append(nn.Tanh())

    @torch.no_grad()
    def spread(self, data_ND: Tensor) -> None:
        """Scale the encoder's last layer so that the latents of these inputs fill the box from the start."""
        last = self.encoder[-2]
        assert isinstance(last, nn.Linear)
        before_Nd = self.encoder[:-1](data_ND)
        scale_d = 1 / before_Nd.std(dim=0).clamp(min=1e-6)
        last.bias.copy_((last.bias - before_Nd.mean(dim=0)) * scale_d)
        last.weight.mul_(scale_d[:, None])


class _Skip(nn.Sequential):
    """x + layers(x), the last of which starts at 0."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__(*layers)
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def _layers(widths: Sequence[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def assign_codes(left_Bd: Tensor, codebook_Kd: Tensor, sinkhorn: float) -> Tensor:
    """The code of each residual, (B,): the nearest, or with ``sinkhorn`` > 0 the likeliest under balanced use.

    Balanced use is optimal transport with entropy ``sinkhorn`` (relative to the mean cost) to codes of equal mass,
    50 iterations. Source: Zheng et al., "LC-Rec" (2024), Eq. 6-8.
    """
    cost_BK = torch.cdist(left_Bd, codebook_Kd).square()
    if sinkhorn == 0:
        return cost_BK.argmin(dim=1)
    logits_BK = -cost_BK / (sinkhorn * cost_BK.mean().clamp(min=1e-12))
    for _ in range(50):
        logits_BK = logits_BK - logits_BK.logsumexp(dim=0, keepdim=True)
        logits_BK = logits_BK - logits_BK.logsumexp(dim=1, keepdim=True)
    return logits_BK.argmax(dim=1)


def pass_gradient(latents_Bd: Tensor, quantized_Bd: Tensor, estimator: str) -> Tensor:
    """The quantized latents, with a gradient to the latents.

    ``straight_through`` copies the gradient (van den Oord et al. 2017); ``rotation`` turns and scales it as the latent
    was turned and scaled onto its code (Fifty et al., "Restructuring Vector Quantization with the Rotation Trick",
    2024, Eq. 4-6).
    """
    if estimator == "straight_through":
        return latents_Bd + (quantized_Bd - latents_Bd).detach()
    with torch.no_grad():
        from_Bd = functional.normalize(latents_Bd, dim=1)
        onto_Bd = functional.normalize(quantized_Bd, dim=1)
        middle_Bd = functional.normalize(from_Bd + onto_Bd, dim=1)
        scale_B1 = quantized_Bd.norm(dim=1, keepdim=True) / latents_Bd.norm(dim=1, keepdim=True).clamp(min=1e-12)
    turned_Bd = (
        latents_Bd
        - 2 * middle_Bd * (middle_Bd * latents_Bd).sum(1, keepdim=True)
        + 2 * onto_Bd * (from_Bd * latents_Bd).sum(1, keepdim=True)
    )
    return scale_B1 * turned_Bd


class Codebook:
    """One level in training: its rows, how often each is used, and EMA sums when it learns by averages."""

    def __init__(self, rows_Kd: Tensor, decay: float | None) -> None:
        self.rows_Kd = rows_Kd.clone().requires_grad_(decay is None)
        self._decay = decay
        self._size_K = torch.ones(len(rows_Kd), device=rows_Kd.device)
        self._sum_Kd = rows_Kd.clone()
        self.used_K = torch.zeros_like(self._size_K)

    @property
    def learns_by_gradient(self) -> bool:
        """Whether ``rows_Kd`` belongs to the optimizer."""
        return self._decay is None

    @property
    def has_dead(self) -> bool:
        """Whether a code was chosen by no item since the last restart."""
        return bool((self.used_K == 0).any())

    def observe(self, left_Bd: Tensor, code_B: Tensor) -> None:
        """Count the codes of a batch, and move EMA rows towards the residuals that chose them."""
        self.absorb(*self.tally(left_Bd, code_B))

    def tally(self, left_Bd: Tensor, code_B: Tensor) -> tuple[Tensor, Tensor]:
        """How often each code was chosen (K,), and for EMA rows the sum of what chose it (K, d), else (0, d)."""
        count_K = torch.bincount(code_B, minlength=len(self.rows_Kd)).to(left_Bd.dtype)
        if self._decay is None:
            return count_K, left_Bd[:0]
        return count_K, torch.zeros_like(self._sum_Kd).index_add_(0, code_B, left_Bd)

    @torch.no_grad()
    def absorb(self, count_K: Tensor, sum_Kd: Tensor) -> None:
        """Take in what ``tally`` found, of this batch or of several workers' parts of it, added up."""
        self.used_K += count_K
        if self._decay is not None:
            self._size_K.lerp_(count_K, 1 - self._decay)
            self._sum_Kd.lerp_(sum_Kd, 1 - self._decay)
            alive_K = self._size_K > 1e-3
            self.rows_Kd[alive_K] = self._sum_Kd[alive_K] / self._size_K[alive_K, None]

    @torch.no_grad()
    def restart_dead(self, left_Nd: Tensor, generator: torch.Generator) -> int:
        """Put each code that no item chose since the last call onto a random residual; returns how many."""
        dead = torch.nonzero(self.used_K == 0).flatten()
        if len(dead):
            rows = torch.randint(len(left_Nd), (len(dead),), generator=generator).to(left_Nd.device)
            self.rows_Kd[dead] = left_Nd[rows]
            self._sum_Kd[dead], self._size_K[dead] = left_Nd[rows], 1.0
        self.used_K.zero_()
        return len(dead)

    def state(self) -> dict[str, Tensor]:
        """All that training changes, by name."""
        names = {"rows": self.rows_Kd, "size": self._size_K, "sum": self._sum_Kd, "used": self.used_K}
        return {name: value.detach() for name, value in names.items()}


class FixedCodebook(Codebook):
    """One level of a lattice: its points are given, nothing moves them."""

    def __init__(self, rows_Kd: Tensor) -> None:
        super().__init__(rows_Kd, decay=1.0)

    def tally(self, left_Bd: Tensor, code_B: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing to count."""
        return self.used_K[:0], left_Bd[:0]

    def absorb(self, count_K: Tensor, sum_Kd: Tensor) -> None:
        """Nothing to learn."""

    @property
    def has_dead(self) -> bool:
        """Never: nothing is counted."""
        return False

    def restart_dead(self, left_Nd: Tensor, generator: torch.Generator) -> int:
        """Nothing to restart: 0."""
        return 0


def make_optimizer(
    net: nn.Module, books: Sequence[Codebook], lr: float, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.CosineAnnealingLR]:
    """AdamW over the network and the codebooks that learn by gradient, its rate falling to 0 over the steps."""
    learned = [book.rows_Kd for book in books if book.learns_by_gradient]
    optimizer = torch.optim.AdamW([*net.parameters(), *learned], lr=lr, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
