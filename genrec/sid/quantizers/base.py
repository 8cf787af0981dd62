"""The interface of all quantizers, and the base class of residual quantizers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from genrec.config.sid import FIT_PARALLEL, Sid, cannot_share
from genrec.data.files import write_atomically, write_json
from genrec.errors import InputError
from genrec.sid.codes import codes_option
from genrec.sid.distributed.collectives import ProcessGroup
from genrec.sid.distributed.vector_stream import Stream
from genrec.sid.vectors import Floats, Ints, check_vectors

Tensors = Mapping[str, npt.NDArray[Any]]
BLOCK = 1024
"""Rows per matrix product: limits memory, and the distances to 256 codes fit into a core's cache."""


class Quantizer(ABC):
    """Vectors (N, D) to semantic IDs (N, L) and back.

    Args:
        settings: the ``sid`` section.
        seed: of all random draws; threads: of the numeric libraries.
        device: 'auto', 'cpu' or 'cuda'; only some quantizers use a GPU.
    """

    def __init__(self, settings: Sid, *, seed: int = 0, threads: int = 1, device: str = "auto") -> None:
        self.settings, self.seed, self.threads, self.device = settings, seed, threads, device
        self.level_sizes: tuple[int, ...] = settings.level_sizes

    @abstractmethod
    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Learn from the item vectors (N, D); returns measures of the fit by name.

        Raises:
            InputError: fewer vectors than codes, or vectors that are not finite.
        """

    def fit_parallel(self, stream: Stream, group: ProcessGroup) -> dict[str, float]:
        """Learn as one rank of ``group``, reading its part of the vectors; all ranks end with the same quantizer.

        Raises:
            InputError: this quantizer is not in ``FIT_PARALLEL``; on every rank, whatever ``fit`` raises it for.
        """
        if self.settings.quantizer not in FIT_PARALLEL:
            raise InputError(cannot_share(self.settings.quantizer, self.settings.fit_workers))
        refuse_few(len(stream), self.level_sizes)
        return self._fit_parallel(stream, group)

    def _fit_parallel(self, stream: Stream, group: ProcessGroup) -> dict[str, float]:
        """The implementation of ``fit_parallel``, for quantizers in ``FIT_PARALLEL``."""
        raise NotImplementedError

    @abstractmethod
    def encode(self, vectors_ND: Floats) -> Ints:
        """Codes (N, L) int32 of vectors (N, D), coarse to fine; items may share a SID."""

    @abstractmethod
    def decode(self, codes_Nl: Ints) -> Floats:
        """The vectors (N, D) that the first l ≤ L codes (N, l) stand for."""

    @abstractmethod
    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """Squared error (N, K) if each of the next level's K codes followed each row's prefix of l codes.

        Collision resolution uses it to compare last codes, and to search for the next-nearest prefix.
        """

    @abstractmethod
    def tensors(self) -> Tensors:
        """All learned arrays, by name."""

    @abstractmethod
    def restore(self, tensors: Tensors) -> None:
        """Set the learned arrays to what ``tensors`` returned."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D, the dimensions of the vectors it was fitted on."""

    def save(self, directory: Path) -> None:
        """Write ``quantizer.safetensors`` and, last, ``quantizer.json``."""
        contiguous = {name: np.ascontiguousarray(value) for name, value in self.tensors().items()}
        write_atomically(directory / "quantizer.safetensors", lambda path: save_file(contiguous, path))
        about = {"quantizer": self.settings.quantizer, "sid": self.settings.model_dump(mode="json")}
        write_json(about, directory / "quantizer.json")

    def load(self, directory: Path) -> None:
        """Read what ``save`` wrote.

        Raises:
            InputError: no readable checkpoint, or one of another quantizer, with other levels or of another shape.
        """
        settings, tensors = read_model(directory)
        got, wanted = (settings.quantizer, settings.level_sizes), (self.settings.quantizer, self.level_sizes)
        if got != wanted:
            raise InputError(
                f"{directory}: got a quantizer {got[0]} with levels {got[1]}, wanted {wanted[0]} with levels "
                f"{wanted[1]}; fit it again, or name the right directory"
            )
        try:
            self.restore(tensors)
        except (KeyError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            raise InputError(
                f"the tensors in {directory} are not those of a quantizer {wanted[0]} with these settings ({reason}); "
                "load it with the settings of its quantizer.json, or fit it again"
            ) from error

    def check(self, vectors_ND: Floats) -> None:
        """Raise InputError for vectors that are not (N, D) with the D that was fitted, or not finite, or zero."""
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != self.width:
            raise InputError(
                f"got vectors of shape {vectors_ND.shape}, wanted (items, {self.width}); "
                "embed with the model that this quantizer was fitted for"
            )
        check_vectors(vectors_ND)

    def check_fit(self, vectors_ND: Floats) -> None:
        """Raise InputError for fewer vectors than codes per level, or vectors that are not finite or zero."""
        refuse_few(len(vectors_ND), self.level_sizes)
        check_vectors(vectors_ND)


class ResidualQuantizer(Quantizer):
    """A vector as a sum of codebook rows: each level quantizes the residual of the levels before.

    Residual r_1 = z, code c_l = argmin_k |r_l - e_lk|² + p_lk, residual r_{l+1} = r_l - e_{l, c_l}, for the latent z of
    a vector and codebook rows e_lk. Subclasses may override how vectors become latents and back (by default both are
    the same), and may set ``penalties`` p_l, (K,) float32 per level; without them p = 0.

    Source: Juang & Gray, "Multiple stage vector quantization for speech coding" (1982).
    """

    codebooks: list[Floats]
    penalties: list[Floats] | None = None

    def to_latents(self, vectors_ND: Floats) -> Floats:
        """The latents (N, d) of vectors (N, D)."""
        return np.ascontiguousarray(vectors_ND, np.float32)

    def from_latents(self, latents_Nd: Floats) -> Floats:
        """The vectors (N, D) of latents (N, d)."""
        return latents_Nd

    def encode(self, vectors_ND: Floats) -> Ints:
        """Codes (N, L) int32 of vectors (N, D): at each level the nearest to the residual, the lowest of equals."""
        self.check(vectors_ND)
        codes_NL = np.empty((len(vectors_ND), len(self.codebooks)), np.int32)
        for start in range(0, len(vectors_ND), BLOCK):
            residual_Bd = self.to_latents(vectors_ND[start : start + BLOCK]).copy()
            for level, codebook_Kd in enumerate(self.codebooks):
                code_B = nearest(residual_Bd, codebook_Kd, self._penalty(level))
                codes_NL[start : start + BLOCK, level] = code_B
                residual_Bd -= codebook_Kd[code_B]
        return codes_NL

    def decode(self, codes_Nl: Ints) -> Floats:
        """The vectors (N, D) of codes (N, l): the sums of their codebook rows, as vectors."""
        return self.from_latents(self._sum(codes_Nl))

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """Squared distance (N, K) from the residual of each prefix to each code of the next level, plus penalties."""
        residual_Nd = self.to_latents(vectors_ND) - self._sum(prefix_Nl)
        level = prefix_Nl.shape[1]
        square_N1 = np.einsum("nd,nd->n", residual_Nd, residual_Nd)[:, None]
        costs_NK = np.maximum(2 * half_distances(residual_Nd, self.codebooks[level]) + square_N1, 0)
        penalty_K = self._penalty(level)
        return costs_NK if penalty_K is None else costs_NK + penalty_K

    def tensors(self) -> Tensors:
        """The codebooks, ``codebook_0`` … ``codebook_{L-1}``, (K, d) each."""
        return {f"codebook_{level}": codebook for level, codebook in enumerate(self.codebooks)}

    def restore(self, tensors: Tensors) -> None:
        """Set the codebooks to what ``tensors`` returned."""
        self.codebooks = [tensors[f"codebook_{level}"] for level in range(len(self.level_sizes))]

    @property
    def width(self) -> int:
        """D, the dimensions of the vectors it was fitted on."""
        return self.codebooks[0].shape[1]

    def _penalty(self, level: int) -> Floats | None:
        return None if self.penalties is None else self.penalties[level]

    def _sum(self, codes_Nl: Ints) -> Floats:
        total_Nd = np.zeros((len(codes_Nl), self.codebooks[0].shape[1]), np.float32)
        for level in range(codes_Nl.shape[1]):
            total_Nd += self.codebooks[level][codes_Nl[:, level]]
        return total_Nd


def nearest(residual_Nd: Floats, codebook_Kd: Floats, penalty_K: Floats | None = None) -> Ints:
    """The row (N,) int32 of the codebook (K, d) that is nearest to each vector (N, d); the lowest of equals.

    ``penalty_K`` (K,) is added to the squared distances.
    """
    code_N = np.empty(len(residual_Nd), np.int32)
    for start in range(0, len(residual_Nd), BLOCK):
        half_BK = half_distances(residual_Nd[start : start + BLOCK], codebook_Kd)
        if penalty_K is not None:
            half_BK += 0.5 * penalty_K
        code_N[start : start + BLOCK] = half_BK.argmin(axis=1)
    return code_N


def refuse_few(items: int, level_sizes: Sequence[int]) -> None:
    """Raise InputError if a level has more codes than there are items to learn them from."""
    if items >= max(level_sizes):
        return
    if items < 2:
        raise InputError(f"got {items} items, wanted at least 2 to learn semantic IDs from; add items to the catalogue")
    fewer = [min(size, 1 << (items.bit_length() - 1)) for size in level_sizes]
    raise InputError(
        f"{items} items cannot fill {max(level_sizes)} codes per level; "
        f"set sid.codebook_size={codes_option(fewer)} (or fewer)"
    )


def read_model(directory: Path) -> tuple[Sid, Tensors]:
    """The settings and tensors that ``Quantizer.save`` wrote.

    Raises:
        InputError: they are missing or unreadable.
    """
    try:
        about = json.loads((directory / "quantizer.json").read_text(encoding="utf-8"))
        return Sid.model_validate(about["sid"]), load_file(directory / "quantizer.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"no readable quantizer in {directory}: {error}; run `python -m workflows.assign`") from error


def half_distances(residual_Nd: Floats, codebook_Kd: Floats) -> Floats:
    """|c|²/2 - r·c, (N, K): half the squared distance minus |r|²/2, which is the same for every code."""
    scores_NK = residual_Nd @ codebook_Kd.T
    np.subtract(0.5 * np.einsum("kd,kd->k", codebook_Kd, codebook_Kd), scores_NK, out=scores_NK)
    return scores_NK
