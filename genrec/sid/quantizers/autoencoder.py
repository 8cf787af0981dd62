"""The parts of an RQ-VAE: the networks, the assignment of latents to codes, and codebooks in training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from genrec.errors import InputError

Losses = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]
"""Reconstruction error, commitment, and per level the residuals (B, d) and their codes (B,)."""
RESTART_UNTIL = 0.8
"""Unused codes are restarted during this fraction of the epochs; in the rest the codebooks converge."""


class Autoencoder(nn.Module):
    """Two mirrored ReLU networks: D → hidden → latent, and back."""

    def __init__(self, width: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.encoder = _layers((width, *hidden, latent))
        self.decoder = _layers((latent, *reversed(hidden), width))


class ResidualAutoencoder(Autoencoder):
    """Encoder z = x + f(x) and decoder x = z + g(z), all of width D; f and g are 0 at the start."""

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__(width, hidden, width)
        self.encoder, self.decoder = _Skip(self.encoder), _Skip(self.decoder)


class BoundedAutoencoder(Autoencoder):
    """An autoencoder whose latents lie in (-1, 1)."""

    def __init__(self, width: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__(width, hidden, latent)
        self.encoder.append(nn.Tanh())

    @torch.no_grad()
    def standardise(self, data_ND: Tensor) -> None:
        """Set the encoder's last layer so that the latents of these inputs have mean 0 and deviation 1 before tanh."""
        last = self.encoder[-2]
        assert isinstance(last, nn.Linear)
        before_Nd = self.encoder[:-1](data_ND)
        scale_d = 1 / before_Nd.std(dim=0).clamp(min=1e-6)
        last.bias.copy_((last.bias - before_Nd.mean(dim=0)) * scale_d)
        last.weight.mul_(scale_d[:, None])


class _Skip(nn.Sequential):
    """x + layers(x), whose last layer is initialised to 0."""

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


def assign_codes(residual_Bd: Tensor, codebook_Kd: Tensor, sinkhorn: float) -> Tensor:
    """The code (B,) of each residual (B, d): the nearest row of the codebook (K, d), or a balanced choice.

    With ``sinkhorn`` > 0 it is the likeliest code under entropic optimal transport to codes of equal mass, with entropy
    ``sinkhorn`` relative to the mean cost and 50 Sinkhorn iterations.
    Source: Zheng et al., "LC-Rec" (2024), Eq. 6-8.
    """
    cost_BK = torch.cdist(residual_Bd, codebook_Kd).square()
    if sinkhorn == 0:
        return cost_BK.argmin(dim=1)
    logits_BK = -cost_BK / (sinkhorn * cost_BK.mean().clamp(min=1e-12))
    for _ in range(50):
        logits_BK = logits_BK - logits_BK.logsumexp(dim=0, keepdim=True)
        logits_BK = logits_BK - logits_BK.logsumexp(dim=1, keepdim=True)
    return logits_BK.argmax(dim=1)


def pass_gradient(latents_Bd: Tensor, quantized_Bd: Tensor, estimator: str) -> Tensor:
    """The quantized latents (B, d), through which gradients reach the latents (B, d).

    ``straight_through`` copies the gradient (van den Oord et al. 2017). ``rotation`` rotates and scales it in the way
    that maps the latent onto its code (Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", 2024,
    Eq. 4-6).
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
    """One level in training: its rows (K, d), how often each is used, and moving averages if ``decay`` is given.

    Source of the moving averages (EMA): van den Oord et al., "Neural Discrete Representation Learning" (2017), A.1.
    """

    def __init__(self, rows_Kd: Tensor, decay: float | None) -> None:
        self.rows_Kd = rows_Kd.clone().requires_grad_(decay is None)
        self._decay = decay
        self._size_K = torch.ones(len(rows_Kd), device=rows_Kd.device)
        self._sum_Kd = rows_Kd.clone()
        self.used_K = torch.zeros_like(self._size_K)

    @property
    def learns_by_gradient(self) -> bool:
        """Whether the optimizer updates ``rows_Kd``."""
        return self._decay is None

    @property
    def has_dead(self) -> bool:
        """Whether a code was not used since the last restart."""
        return bool((self.used_K == 0).any())

    def update(self, residual_Bd: Tensor, code_B: Tensor) -> None:
        """Count the codes (B,) of a batch, and move EMA rows towards the mean of their residuals (B, d)."""
        self.apply(*self.statistics(residual_Bd, code_B))

    def statistics(self, residual_Bd: Tensor, code_B: Tensor) -> tuple[Tensor, Tensor]:
        """Uses of each code (K,), and the sum of each code's residuals (K, d): (0, d) if rows learn by gradient."""
        count_K = torch.bincount(code_B, minlength=len(self.rows_Kd)).to(residual_Bd.dtype)
        if self._decay is None:
            return count_K, residual_Bd[:0]
        return count_K, torch.zeros_like(self._sum_Kd).index_add_(0, code_B, residual_Bd)

    @torch.no_grad()
    def apply(self, count_K: Tensor, sum_Kd: Tensor) -> None:
        """Update from ``statistics`` of a batch, or from their sum over the ranks' parts of it."""
        self.used_K += count_K
        if self._decay is not None:
            self._size_K.lerp_(count_K, 1 - self._decay)
            self._sum_Kd.lerp_(sum_Kd, 1 - self._decay)
            alive_K = self._size_K > 1e-3
            self.rows_Kd[alive_K] = self._sum_Kd[alive_K] / self._size_K[alive_K, None]

    @torch.no_grad()
    def restart_dead(self, residual_Nd: Tensor, generator: torch.Generator) -> int:
        """Move each code that was not used since the last call to a random residual; returns how many."""
        dead = torch.nonzero(self.used_K == 0).flatten()
        if len(dead):
            rows = torch.randint(len(residual_Nd), (len(dead),), generator=generator).to(residual_Nd.device)
            self.rows_Kd[dead] = residual_Nd[rows]
            self._sum_Kd[dead], self._size_K[dead] = residual_Nd[rows], 1.0
        self.used_K.zero_()
        return len(dead)

    def state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        names = {"rows": self.rows_Kd, "size": self._size_K, "sum": self._sum_Kd, "used": self.used_K}
        return {name: value.detach() for name, value in names.items()}


class FixedCodebook(Codebook):
    """One level of a lattice, whose points (K, d) do not change."""

    def __init__(self, rows_Kd: Tensor) -> None:
        super().__init__(rows_Kd, decay=1.0)

    def statistics(self, residual_Bd: Tensor, code_B: Tensor) -> tuple[Tensor, Tensor]:
        """Empty tensors: nothing is counted."""
        return self.used_K[:0], residual_Bd[:0]

    def apply(self, count_K: Tensor, sum_Kd: Tensor) -> None:
        """Do nothing: the points are fixed."""

    @property
    def has_dead(self) -> bool:
        """Always False: uses are not counted."""
        return False

    def restart_dead(self, residual_Nd: Tensor, generator: torch.Generator) -> int:
        """Return 0: the points are fixed."""
        return 0


def make_optimizer(
    net: nn.Module, books: Sequence[Codebook], lr: float, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.CosineAnnealingLR]:
    """AdamW over the network and the codebooks that learn by gradient, with cosine decay to 0 over ``steps``."""
    learned = [book.rows_Kd for book in books if book.learns_by_gradient]
    optimizer = torch.optim.AdamW([*net.parameters(), *learned], lr=lr, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def require_finite_error(epoch: int, totals_2: Tensor, lr: float) -> None:
    """Refuse an epoch (from 1) whose error and commitment (2,) are not finite.

    Raises:
        InputError: one of them is NaN or infinite.
    """
    if not bool(totals_2.isfinite().all()):
        error, commitment = totals_2.tolist()
        raise InputError(
            f"sid.quantizer: after epoch {epoch} the reconstruction error is {error:g} and the commitment loss "
            f"{commitment:g}, wanted finite numbers; lower sid.lr={lr:g}"
        )
