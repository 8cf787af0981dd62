"""Whole sequences behind one instruction: dense training of a pretrained policy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.synthetic import random_catalog
from support.tiny_lm import tiny_lm
from torch import Tensor

from genrec.config import PolicyConfig
from genrec.errors import InputError
from genrec.learning.sft.batches import DenseExamples, RowExamples
from genrec.learning.sft.losses import SftLoss
from genrec.policy.backbone import build
from genrec.sid.catalog import Catalog


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return random_catalog(40, (8, 8, 8))


@pytest.mark.parametrize("items", [{}, {"input": "none", "head": False}], ids=["rows", "codes"])
@pytest.mark.parametrize("recompute", [False, True], ids=["shared", "recomputed"])
def test_whole_sequences_behind_one_instruction_give_the_loss_and_gradients_of_rows(
    tmp_path: Path, catalog: Catalog, items: dict[str, object], recompute: bool
) -> None:
    shape = {"kind": "pretrained", "path": str(tiny_lm(tmp_path / "lm")), "finetuning": "full", "prompt": "sequence"}
    settings = PolicyConfig.model_validate({**shape, "items": items})
    lengths = (6, 4)
    sequences = pa.table({"items": [list(range(n)) for n in lengths], "split": [[0] + [1] * (n - 1) for n in lengths]})
    places = [t for n in lengths for t in range(1, n)]
    rows = pa.table({"history": [list(range(t)) for t in places], "target": places})
    found: list[tuple[float, dict[str, Tensor]]] = []
    for batch in (DenseExamples(sequences, 6).take(np.arange(2)), RowExamples(rows).take(np.arange(len(places)))):
        policy, prompts = build(settings, catalog, max_history=6, seed=0)
        if recompute:
            policy.recompute_activations()
        policy.train()
        value = SftLoss(prompts, catalog)(policy, batch)
        value.backward()
        found.append((value.item(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}))
    (whole, whole_by_name), (row, row_by_name) = found
    assert whole == pytest.approx(row, rel=1e-4)
    assert whole_by_name.keys() == row_by_name.keys()
    for name, gradient in whole_by_name.items():
        torch.testing.assert_close(gradient, row_by_name[name], rtol=1e-3, atol=1e-4)
    length = len(prompts.prefix_P)
    encoded = prompts.encode([[1, 2]])[0][0]
    assert length > 1 and torch.equal(encoded[:length], prompts.prefix_P), "the history ends the prompt"
    assert len(encoded) == length + 2 * catalog.levels


def test_a_dense_window_that_the_model_has_no_positions_for_is_refused(tmp_path: Path, catalog: Catalog) -> None:
    path = str(tiny_lm(tmp_path / "lm", positions=320))
    shape = {"kind": "pretrained", "path": path, "finetuning": "full"}
    for prompt in ("question", "sequence"):
        settings = PolicyConfig.model_validate({**shape, "prompt": prompt})
        fits = _largest_history(settings, catalog)
        assert 1 < fits < 200
        build(settings, catalog, max_history=fits, seed=0)
        with pytest.raises(InputError, match="positions"):
            build(settings, catalog, max_history=fits + 1, seed=0)


def _largest_history(settings: PolicyConfig, catalog: Catalog) -> int:
    """What the error of a history that is far too long says would fit."""
    with pytest.raises(InputError) as caught:
        build(settings, catalog, max_history=5000, seed=0)
    return int(str(caught.value).rpartition("data.max_history=")[2].split()[0])
