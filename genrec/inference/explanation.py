"""Why an item was recommended: the prefixes that held its probability, and the items of the history like it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genrec.inference.answers import Basis, Explanation, NearItem, PathStep
from genrec.inference.catalog_view import CatalogView
from genrec.metrics import FloatArray
from genrec.policy.sid_text import SidStyle, sid_names
from genrec.sid.vectors import unit_rows

NEAREST = 3
"""Items of the history that an explanation names."""


def explain(
    view: CatalogView, rows: Sequence[int], logp_GL: Tensor, history: Sequence[int], style: SidStyle
) -> list[Explanation]:
    """An explanation of each item of ``rows``.

    Args:
        logp_GL: log-probability of each code of these items, given the codes before it.
        history: rows of the user's items.
        style: how codes without names are written.
    """
    step_GL, under_GL = logp_GL.exp().tolist(), items_under(view, rows).tolist()
    distinct = list(dict.fromkeys(reversed(history)))
    found = similarity(view, rows, distinct)
    explained: list[Explanation] = []
    for place, row in enumerate(rows):
        steps = zip(code_names(view, row, style), step_GL[place], under_GL[place], strict=True)
        near = () if found is None else _nearest(view, distinct, found[0][place])
        basis = None if found is None or not near else found[1]
        explained.append(Explanation(tuple(PathStep(*step) for step in steps), near, basis))
    return explained


def items_under(view: CatalogView, rows: Sequence[int]) -> Tensor:
    """How many items of the catalogue (G, L) begin with each prefix of the SIDs of ``rows``."""
    trie = view.catalog.trie
    path_GL = trie.path(view.catalog.codes_NL[torch.tensor(list(rows))])[:, 1:]
    counts = [leaves_n[path_GL[:, level].clamp(min=0)] for level, leaves_n in enumerate(trie.leaves_under())]
    return torch.stack(counts, dim=-1).masked_fill(path_GL < 0, 0)


def code_names(view: CatalogView, row: int, style: SidStyle) -> tuple[str, ...]:
    """The names of an item's codes; their tokens where they have none."""
    if named := view.path_of(row):
        return named
    sizes, codes = view.catalog.level_sizes, view.catalog.codes_NL[row].tolist()
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    names = sid_names(sizes, style)
    return tuple(names[start + code] for start, code in zip(starts, codes, strict=True))


def similarity(view: CatalogView, rows: Sequence[int], history: Sequence[int]) -> tuple[FloatArray, Basis] | None:
    """How like each item (G,) each one of the history (H,) is, (G, H), and by what; None where nothing tells."""
    if view.knn is not None:
        like_HG = view.knn.similarity_NN[list(history)][:, list(rows)].toarray()
        return like_HG.T, "co-occurrence"
    vectors_NF = view.catalog.vectors_NF
    if vectors_NF is None:
        return None
    item_GF, own_HF = (unit_rows(vectors_NF[list(part)].float().numpy()) for part in (rows, history))
    return (item_GF @ own_HF.T).astype(np.float64), "vectors"


def _nearest(view: CatalogView, history: Sequence[int], like_H: FloatArray) -> tuple[NearItem, ...]:
    best = [place for place in np.argsort(-like_H, kind="stable")[:NEAREST] if like_H[place] > 0]
    return tuple(NearItem(view.ids[history[i]], view.titles[history[i]], float(like_H[i])) for i in best)
