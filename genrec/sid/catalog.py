"""Items and their semantic IDs, with the trie of all SIDs; saved as safetensors and JSON, identified by a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.data.files import link_file, write_atomically, write_json
from genrec.errors import InputError
from genrec.sid.trie import Trie
from genrec.sid.vectors import nearest_rows
from genrec.types import Codes

VECTORS = "vectors.safetensors"


class Catalog:
    """Every item's SID: ``codes_NL`` (N, L) int64, row i is item i; ``level_sizes`` holds K per level.

    ``removed`` are rows without a leaf in the trie, which keep their SID. ``grown_from`` holds the number of items
    before each insert: SIDs never change, so a model that was trained with the first n items fits the longer catalogue
    too. ``vectors_NF`` (N, F) float16 are the vectors that the SIDs were made from; None where these were given.
    """

    def __init__(
        self,
        codes_NL: Tensor,
        level_sizes: Sequence[int],
        removed: Sequence[int] = (),
        grown_from: Sequence[int] = (),
        trie: Trie | None = None,
        vectors_NF: Tensor | None = None,
    ) -> None:
        self.vectors_NF = vectors_NF
        self.codes_NL = codes_NL.long().contiguous()
        self.level_sizes = tuple(int(size) for size in level_sizes)
        self.removed, self.grown_from = tuple(removed), tuple(grown_from)
        self.trie = trie or Trie.from_codes(self.codes_NL, self.level_sizes).without(self.removed)

    def __len__(self) -> int:
        return len(self.codes_NL)

    @property
    def assigned(self) -> int:
        """Number of items before any insert, which are those that policies are trained on."""
        return self.grown_from[0] if self.grown_from else len(self)

    @cached_property
    def nearest_assigned(self) -> Tensor | None:
        """The assigned items (M, ≤ 10) with the vectors nearest to each inserted one's; None without any."""
        if len(self) == self.assigned or self.vectors_NF is None:
            return None
        vectors_NF = self.vectors_NF.float().numpy()
        return torch.from_numpy(nearest_rows(vectors_NF[: self.assigned], vectors_NF[self.assigned :]))

    @property
    def levels(self) -> int:
        """L, the number of codes in a SID."""
        return len(self.level_sizes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the level sizes and all codes: equal digests mean equal SIDs of all items."""
        return _digest(self.codes_NL, self.level_sizes)

    def item_of(self, codes: Codes) -> int | None:
        """The item with this SID; None if there is none, or it was removed."""
        if not all(0 <= code < size for code, size in zip(codes, self.level_sizes, strict=True)):
            return None
        item = int(self.trie.find(torch.tensor(codes)))
        return None if item < 0 else item

    def row_of(self, codes: Codes) -> int | None:
        """The row of the item that has, or had until it was removed, this SID; None if there is none."""
        if (item := self.item_of(codes)) is not None or not self.removed:
            return item
        removed_R = torch.tensor(self.removed)
        is_it_R = (self.codes_NL[removed_R] == torch.tensor(codes)).all(-1)
        return int(removed_R[is_it_R][0]) if bool(is_it_R.any()) else None

    def save(self, directory: Path, same_vectors: Path | None = None) -> None:
        """Write ``trie.safetensors``, ``vectors.safetensors``, ``catalog.safetensors`` and, last, ``catalog.json``.

        Args:
            same_vectors: the directory of a catalogue with these vectors; its file is linked, not written again.
        """
        if self.vectors_NF is not None and same_vectors is not None:
            link_file(same_vectors / VECTORS, directory / VECTORS)
        elif self.vectors_NF is not None:
            tensors = {"vectors_NF": self.vectors_NF.half().contiguous()}
            write_atomically(directory / VECTORS, lambda path: save_file(tensors, path))
        self.trie.save(directory / "trie.safetensors", _trie_metadata(self.digest, self.removed))
        save_codes(self.codes_NL, self.level_sizes, directory, self.removed, self.grown_from)

    @classmethod
    def load(cls, directory: Path) -> Catalog:
        """Read what ``save`` wrote; the trie is memory-mapped, or built again if its file belongs to other SIDs.

        Raises:
            InputError: files missing, unreadable, or not the content that was saved.
        """
        try:
            about = json.loads((directory / "catalog.json").read_text(encoding="utf-8"))
            codes_NL = load_file(directory / "catalog.safetensors")["codes_NL"]
            removed, grown_from = about.get("removed", ()), about.get("grown_from", ())
            trie = Trie.load(directory / "trie.safetensors", _trie_metadata(about["digest"], removed))
            has_vectors = (directory / VECTORS).is_file()
            vectors_NF = load_file(directory / VECTORS)["vectors_NF"] if has_vectors else None
            catalog = cls(codes_NL, about["level_sizes"], removed, grown_from, trie, vectors_NF)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"no readable catalogue in {directory}: {error}; run `python -m workflows.assign`"
            ) from error
        if catalog.digest != about["digest"]:
            raise InputError(
                f"{directory}: got SIDs of digest {catalog.digest[:12]}, wanted {about['digest'][:12]} (catalog.json): "
                "its files were changed; run `python -m workflows.assign` again"
            )
        return catalog

    def require_digest(self, digest: str, owner: str) -> None:
        """Check that ``owner`` (a checkpoint) was made for these SIDs, or for a shorter catalogue that they extend.

        Raises:
            InputError: ``digest`` is that of other SIDs.
        """
        if digest != self.digest and digest not in _digests(self.codes_NL, self.level_sizes, self.grown_from):
            raise InputError(
                f"{owner} was trained on the catalogue {digest[:12]}, got {self.digest[:12]}: its SIDs would mean "
                "other items. Use its own catalogue, or train again"
            )

    def level_offsets(self) -> Tensor:
        """(L,) int64: the number of codes in the levels before each level."""
        return torch.tensor((0, *self.level_sizes[:-1])).cumsum(0)


def save_codes(
    codes_NL: Tensor,
    level_sizes: Sequence[int],
    directory: Path,
    removed: Sequence[int] = (),
    grown_from: Sequence[int] = (),
) -> None:
    """Write SIDs (N, L) as a catalogue, distinct or not; ``Catalog.load`` raises InputError for shared ones."""
    tensors = {"codes_NL": codes_NL.int().contiguous()}
    write_atomically(directory / "catalog.safetensors", lambda path: save_file(tensors, path))
    sizes = tuple(int(size) for size in level_sizes)
    about = {"items": len(codes_NL), "level_sizes": sizes, "digest": _digest(codes_NL.long().contiguous(), sizes)}
    changes = {name: rows for name, rows in (("removed", removed), ("grown_from", grown_from)) if rows}
    write_json({**about, **changes}, directory / "catalog.json")


def _trie_metadata(digest: str, removed: Sequence[int]) -> dict[str, str]:
    return {"catalog": digest, "removed": hashlib.sha256(json.dumps(list(removed)).encode()).hexdigest()}


def _digest(codes_NL: Tensor, level_sizes: tuple[int, ...]) -> str:
    return next(_digests(codes_NL, level_sizes, (len(codes_NL),)))


def _digests(codes_NL: Tensor, level_sizes: tuple[int, ...], lengths: Sequence[int]) -> Iterator[str]:
    """The digests of the catalogues of the first ``lengths`` items, ascending; the codes are read once for all."""
    hashed, start = hashlib.sha256(json.dumps(level_sizes).encode()), 0
    for items in lengths:
        hashed.update(codes_NL[start:items].numpy().tobytes())
        yield hashed.hexdigest()
        start = items
