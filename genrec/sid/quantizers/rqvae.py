"""RQ-VAE: an autoencoder with residually quantized latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genrec.seeds import seed_of
from genrec.sid.distributed.collectives import ProcessGroup, scan_statistics
from genrec.sid.distributed.rqvae_parallel import ParallelTraining
from genrec.sid.distributed.vector_stream import Stream
from genrec.sid.quantizers.autoencoder import (
    RESTART_UNTIL,
    Autoencoder,
    Codebook,
    Losses,
    assign_codes,
    make_optimizer,
    pass_gradient,
    require_finite_error,
)
from genrec.sid.quantizers.base import BLOCK, ResidualQuantizer, Tensors, nearest
from genrec.sid.quantizers.kmeans import kmeans
from genrec.sid.vectors import Floats


class RqVae(ResidualQuantizer):
    """RQ-VAE (Zeghidour et al. 2021; for semantic IDs: Rajput et al., "TIGER", 2023, section 3.1).

    Loss: |x - decoder(q)|² / D + Σ_l (``sid.beta`` · |r_l - sg(e_l)|² + |e_l - sg(r_l)|²) / d, with input x, residual
    r_l, codebook row e_l, q = Σ_l e_l and stop-gradient sg; EMA codebooks have no last term. Inputs are centred and
    scaled to unit variance. The codebooks are initialised by k-means on the latents of the untrained encoder.
    """

    @property
    def _start_iterations(self) -> int:
        return 10

    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Train on vectors (N, D) for ``sid.epochs``; returns the last epoch's losses and the restarted codes."""
        self.check_fit(vectors_ND)
        torch.set_num_threads(self.threads)
        device = _device(self.device)
        self._mean_D = vectors_ND.mean(axis=0)
        self._scale = float(np.sqrt(np.mean((vectors_ND - self._mean_D) ** 2))) or 1.0
        data_ND = self._scaled(vectors_ND).to(device)
        self._net = self._new_net().to(device)
        return self._train(data_ND, self._first_codebooks(data_ND))

    def _fit_parallel(self, stream: Stream, group: ProcessGroup) -> dict[str, float]:
        """Fit by data-parallel training; see ``ParallelTraining``.

        The codebooks are initialised by k-means on the latents of a sample.
        """
        torch.set_num_threads(self.threads)
        statistics = scan_statistics(stream, group, max(self.level_sizes), self.seed)
        self._mean_D, self._scale = statistics.mean_D, statistics.scale
        self._net = self._new_net().to(group.device)
        books = self._first_codebooks(self._scaled(statistics.sample_ND).to(group.device))
        training = ParallelTraining(
            self._net,
            books,
            lambda batch_BD: self._losses(batch_BD, books),
            lambda rows_BD: self._scaled(rows_BD).to(group.device),
            settings=self.settings,
            seed=self.seed,
            stream=stream,
            group=group,
        )
        measures = training.run()
        self._keep(books)
        return measures

    def to_latents(self, vectors_ND: Floats) -> Floats:
        """The encoder's output (N, d) for vectors (N, D)."""
        with torch.inference_mode():
            return torch.cat([self._net.encoder(part) for part in self._scaled(vectors_ND).split(BLOCK)]).numpy()

    def from_latents(self, latents_Nd: Floats) -> Floats:
        """The decoder's output (N, D) for latents (N, d), on the scale of the vectors."""
        with torch.inference_mode():
            decoded = torch.cat([self._net.decoder(part) for part in torch.from_numpy(latents_Nd).split(BLOCK)]).numpy()
        return decoded * np.float32(self._scale) + self._mean_D

    @property
    def width(self) -> int:
        """D, the dimensions of the vectors it was fitted on."""
        return len(self._mean_D)

    def tensors(self) -> Tensors:
        """Codebooks, network weights, and mean (D,) and scale (1,) of the vectors."""
        weights = {f"net.{name}": value.numpy() for name, value in self._net.state_dict().items()}
        scale = np.array([self._scale], np.float32)
        return {**super().tensors(), **weights, "mean": self._mean_D, "scale": scale}

    def restore(self, tensors: Tensors) -> None:
        """Set the learned arrays to what ``tensors`` returned."""
        super().restore(tensors)
        self._mean_D, self._scale = tensors["mean"], float(tensors["scale"][0])
        self._net = self._make_net(len(self._mean_D))
        self._net.load_state_dict(
            {name[4:]: torch.from_numpy(value) for name, value in tensors.items() if name.startswith("net.")}
        )

    def _scaled(self, vectors_ND: Floats) -> Tensor:
        return torch.from_numpy((vectors_ND - self._mean_D) / np.float32(self._scale))

    def _new_net(self) -> Autoencoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("network", self.seed))
            return self._make_net(len(self._mean_D))

    def _keep(self, books: list[Codebook]) -> None:
        self._net = self._net.cpu()
        self.codebooks = [book.rows_Kd.detach().cpu().numpy() for book in books]

    def _make_net(self, width: int) -> Autoencoder:
        return Autoencoder(width, self.settings.hidden, self.settings.latent)

    def _first_codebooks(self, data_ND: Tensor) -> list[Codebook]:
        with torch.inference_mode():
            residual_Nd = torch.cat([self._net.encoder(part) for part in data_ND.split(BLOCK)]).cpu().numpy()
        books: list[Codebook] = []
        decay = self.settings.decay if self.settings.codebook == "ema" else None
        for level, codes in enumerate(self.level_sizes):
            rows_Kd = kmeans(
                residual_Nd,
                codes,
                iterations=self._start_iterations,
                seed=seed_of("codebook", self.seed, level),
                threads=self.threads,
            )
            residual_Nd = residual_Nd - rows_Kd[nearest(residual_Nd, rows_Kd)]
            books.append(Codebook(torch.from_numpy(rows_Kd).to(data_ND.device), decay))
        return books

    def _train(self, data_ND: Tensor, books: list[Codebook]) -> dict[str, float]:
        settings = self.settings
        steps = settings.epochs * -(-len(data_ND) // settings.batch_size)
        optimizer, schedule = make_optimizer(self._net, books, settings.lr, steps)
        generator = torch.Generator().manual_seed(seed_of("batches", self.seed))
        totals_2, restarted = torch.zeros(2), 0
        for epoch in range(settings.epochs):
            totals_2, residuals = torch.zeros(2), []
            for rows in torch.randperm(len(data_ND), generator=generator).split(settings.batch_size):
                batch_BD = data_ND[rows.to(data_ND.device)]
                error, commitment, residuals, codes = self._losses(batch_BD, books)
                for book, residual_Bd, code_B in zip(books, residuals, codes, strict=True):
                    book.update(residual_Bd, code_B)
                optimizer.zero_grad(set_to_none=True)
                (error + commitment).backward()
                optimizer.step()
                schedule.step()
                totals_2 += torch.stack([error, commitment]).detach().cpu() * len(rows) / len(data_ND)
            require_finite_error(epoch + 1, totals_2, settings.lr)
            if epoch < RESTART_UNTIL * settings.epochs:
                restarted += sum(b.restart_dead(r, generator) for b, r in zip(books, residuals, strict=True))
        self._keep(books)
        return {"error": totals_2[0].item(), "commitment": totals_2[1].item(), "restarted_codes": float(restarted)}

    def _losses(self, batch_BD: Tensor, books: list[Codebook]) -> Losses:
        latents_Bd = self._net.encoder(batch_BD)
        residual_Bd, total_Bd = latents_Bd, torch.zeros_like(latents_Bd)
        commitment, residuals, codes = latents_Bd.new_zeros(()), [], []
        for book in books:
            code_B = assign_codes(residual_Bd.detach(), book.rows_Kd.detach(), self.settings.sinkhorn)
            chosen_Bd = functional.embedding(code_B, book.rows_Kd)
            commitment = commitment + self._level_loss(residual_Bd, chosen_Bd, book)
            residuals.append(residual_Bd.detach())
            codes.append(code_B)
            total_Bd = total_Bd + chosen_Bd.detach()
            residual_Bd = residual_Bd - chosen_Bd.detach()
        decoded_BD = self._net.decoder(pass_gradient(latents_Bd, total_Bd, self.settings.estimator))
        return functional.mse_loss(decoded_BD, batch_BD), commitment, residuals, codes

    def _level_loss(self, residual_Bd: Tensor, chosen_Bd: Tensor, book: Codebook) -> Tensor:
        """beta · |r - sg(e)|² + |e - sg(r)|², as means; without the second term if the codebook learns by averages."""
        loss = self.settings.beta * functional.mse_loss(residual_Bd, chosen_Bd.detach())
        return loss + functional.mse_loss(chosen_Bd, residual_Bd.detach()) if book.learns_by_gradient else loss


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
