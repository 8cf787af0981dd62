"""Item text to vectors: one Parquet file per item shard, which depends on the items of that shard only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from genrec.config import Embed
from genrec.data.readers import read_items
from genrec.data.shards import shard_path
from genrec.errors import InputError
from genrec.sid.encoders import CausalEncoder, Encoder, SentenceEncoder
from genrec.sid.vectors import check_vectors, write_vectors

FALLBACK_FIELDS = ("title", "brand", "categories", "description")


def item_text(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The text of one item: its non-empty ``fields`` in order, one per line, with lists joined by `` > ``.

    If all of these fields are empty, title, brand, categories and description are used; if these are empty too, ''.

    >>> item_text({"title": "Oat milk", "categories": ["Grocery", "Drinks"], "brand": ""}, ("title", "categories"))
    'Oat milk\\ncategories: Grocery > Drinks'
    """
    return _lines(row, fields) or _lines(row, FALLBACK_FIELDS)


def item_texts(items: pa.Table, fields: Sequence[str]) -> list[str]:
    """``item_text`` of each row of an item table, in row order.

    Raises:
        InputError: a field is not a column, or items have no text (the message says how many).
    """
    unknown = [name for name in fields if name not in items.column_names]
    if unknown or not fields:
        raise InputError(
            f"got embed.fields={unknown or '[]'}, wanted some of the item table's columns {items.column_names}"
        )
    known = [name for name in dict.fromkeys((*fields, *FALLBACK_FIELDS)) if name in items.column_names]
    texts = [item_text(row, fields) for row in items.select(known).to_pylist()]
    empty = [row for row, text in enumerate(texts) if not text]
    if empty:
        named = items["id"].take(empty[:5]).to_pylist() if "id" in items.column_names else empty[:5]
        raise InputError(
            f"{len(empty)} of {len(texts)} items have no text in any of {known}, e.g. {named}; give them a title, or "
            "leave them out (of the log of `genrec prepare` too: data.filters.require_title=true)"
        )
    return texts


def _lines(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    values = [(name, _plain(row.get(name))) for name in fields]
    return "\n".join(value if name == "title" else f"{name}: {value}" for name, value in values if value)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " > ".join(text for part in cast("Sequence[Any]", value) if (text := _plain(part)))
    return " ".join(str(value).split())


def make_encoder(settings: Embed, device: str) -> Encoder:
    """The encoder that the ``embed`` section describes, on ``device`` ('cpu' or 'cuda').

    Raises:
        InputError: its model cannot be loaded.
    """
    if settings.kind == "sentence":
        return SentenceEncoder(
            settings.model, max_tokens=settings.max_tokens, batch_size=settings.batch_size, device=device
        )
    return CausalEncoder(
        settings.model,
        pooling=settings.pooling,
        max_tokens=settings.max_tokens,
        batch_size=settings.batch_size,
        device=device,
    )


def make_embedder(
    data: Path, out: Path, settings: Embed, device: str, threads: int
) -> Callable[[int], Mapping[str, Any]]:
    """Load the item table and the model; returns a function that embeds one shard and writes its file.

    Args:
        data: the data directory; out: the directory for ``part-*.parquet``.
        device: 'auto', 'cpu' or 'cuda'; threads: torch threads of this process.
    """
    encoder = make_text_encoder(settings, device, threads)
    return partial(_embed_shard, items=read_items(data), encoder=encoder, settings=settings, out=out)


def make_text_encoder(settings: Embed, device: str, threads: int) -> Encoder:
    """``make_encoder`` with ``threads`` torch threads; ``device`` 'auto' is 'cuda' if there is a GPU, else 'cpu'."""
    import torch

    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return make_encoder(settings, device)


def _embed_shard(shard: int, *, items: pa.Table, encoder: Encoder, settings: Embed, out: Path) -> Mapping[str, Any]:
    start = shard * settings.shard_items
    texts = item_texts(items.slice(start, settings.shard_items), settings.fields)
    vectors_ND = encoder.encode(texts)
    check_vectors(vectors_ND, start)
    write_vectors(vectors_ND, start, shard_path(out, shard))
    return {"items": len(texts), "width": vectors_ND.shape[1]}
