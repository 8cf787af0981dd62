"""Controls: semantic IDs from random codes or from title words alone, as a comparison for the others."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from genrec.config import Sid
from genrec.sid.quantizers.base import Quantizer, Tensors
from genrec.sid.vectors import Floats, Ints

WORD = re.compile(r"\w+")


class HashQuantizer(Quantizer):
    """Codes from a hash, without geometry: the cost of a SID is the number of its codes that differ from the item's."""

    _mean_D: Floats

    @abstractmethod
    def _hash_codes(self, vectors_ND: Floats) -> Ints:
        """Each item's codes, (N, L)."""

    def fit(self, vectors_ND: Floats) -> dict[str, float]:
        """Keep the mean of the vectors (N, D), which ``decode`` returns."""
        self.check_fit(vectors_ND)
        self._mean_D = vectors_ND.mean(axis=0)
        return {}

    def encode(self, vectors_ND: Floats) -> Ints:
        """The items' codes (N, L) int32."""
        self.check(vectors_ND)
        return self._hash_codes(vectors_ND)

    def decode(self, codes_Nl: Ints) -> Floats:
        """The mean vector in each row, (N, D), for any codes."""
        return np.tile(self._mean_D, (len(codes_Nl), 1))

    def level_costs(self, vectors_ND: Floats, prefix_Nl: Ints) -> Floats:
        """The number of codes (N, K) that would differ from the item's."""
        level = prefix_Nl.shape[1]
        own_NL = self._hash_codes(vectors_ND)
        wrong_N1 = (own_NL[:, :level] != prefix_Nl).sum(axis=1, keepdims=True)
        other_NK = own_NL[:, level, None] != np.arange(self.level_sizes[level])
        return (wrong_N1 + other_NK).astype(np.float32)

    def tensors(self) -> Tensors:
        """The mean vector (D,), and the seed."""
        return {"mean": self._mean_D, "seed": np.array([self.seed], np.int64)}

    def restore(self, tensors: Tensors) -> None:
        """Set the learned arrays to what ``tensors`` returned."""
        self._mean_D, self.seed = tensors["mean"], int(tensors["seed"][0])

    @property
    def width(self) -> int:
        """D, the dimensions of the vectors it was fitted on."""
        return len(self._mean_D)


class Random(HashQuantizer):
    """Random codes: a hash of the item's vector and the seed, so they are the same in every run."""

    def _hash_codes(self, vectors_ND: Floats) -> Ints:
        key = self.seed.to_bytes(8, "little")
        rows = np.ascontiguousarray(vectors_ND, np.float32)
        levels = len(self.level_sizes)
        drawn = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8 * levels, key=key).digest() for row in rows)
        numbers_NL = np.frombuffer(drawn, np.uint64).reshape(-1, levels)
        return (numbers_NL % np.array(self.level_sizes, np.uint64)).astype(np.int32)


class Title(HashQuantizer):
    """Codes that are hashed title words; its "vectors" (N, L) are the result of ``title_words``."""

    def _hash_codes(self, vectors_ND: Floats) -> Ints:
        return (vectors_ND - 1).astype(np.int32)


def title_words(titles: Sequence[str], settings: Sid) -> Floats:
    """Each title as L hashes, (N, L), of 1 … K_l: of word l, and at the last level of all remaining words together.

    A level beyond the title's last word has the hash of the empty string. Case is ignored. The quantizer ``title``
    takes these in place of vectors.
    """
    sizes = settings.level_sizes
    words_NL = np.empty((len(titles), len(sizes)), np.float32)
    for row, title in enumerate(titles):
        words = WORD.findall(title.lower())
        last = len(sizes) - 1
        parts = [*(words[:last] + [""] * last)[:last], " ".join(words[last:])]
        words_NL[row] = [1 + _hash(part) % size for part, size in zip(parts, sizes, strict=True)]
    return words_NL


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
