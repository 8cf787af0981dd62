"""A run as a plain Hugging Face folder: the same log-probabilities, the same beams, and a run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.served import serve
from support.synthetic import tiny_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.errors import InputError
from genrec.inference.hf_folder.catalog_logits import CatalogLogits, SidSpace
from genrec.inference.hf_folder.export_run import export_run
from genrec.inference.recommender import Recommender
from genrec.policy.decoding.beam import beam

PLAIN = ("policy.items.input=none", "policy.items.head=false")
HISTORIES = [["i1", "i2", "i3"], ["i20"], ["i5", "i9", "i23", "i0", "i4", "i7", "i8"]]
WIDTH = 6


def alone(directory: Path, *overrides: str) -> Recommender:
    return serve(directory, *overrides, priors={"alone": {"weight": 0.0}})["alone"]


def exported(recommender: Recommender, folder: Path) -> Path:
    export_run(recommender, recommender.run.storage / "runs" / "alone", folder)
    return folder


def kinds(directory: Path) -> dict[str, tuple[str, ...]]:
    lm = tiny_pretrained(directory / "lm", tied=True)
    untied = tiny_pretrained(directory / "untied", tied=False)
    pretrained = ("policy.kind=pretrained", "policy.lora.rank=4", *PLAIN)
    return {
        "gpt2": PLAIN,
        "qwen3 with bytes": ("policy.arch=qwen3", "policy.tokenizer=bytes", "policy.sid_tokens=numbered", *PLAIN),
        "adapters": (*pretrained, f"policy.path={lm}"),
        "adapters, untied": (*pretrained, f"policy.path={untied}"),
        "full, question": (*pretrained, f"policy.path={lm}", "policy.finetuning=full", "policy.prompt=question"),
        "rows of items": ("policy.items.mean=false", "policy.items.head=false"),
    }


@pytest.mark.parametrize("kind", list(kinds.__annotations__) and [
    "gpt2", "qwen3 with bytes", "adapters", "adapters, untied", "full, question", "rows of items"
])
def test_the_folder_gives_the_policys_beams_and_log_probabilities(tmp_path: Path, kind: str) -> None:
    recommender = alone(tmp_path, *kinds(tmp_path)[kind])
    _stir(recommender)
    folder = exported(recommender, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder)
    space, view = SidSpace(folder), recommender.view
    for history in HISTORIES:
        tokens = space.encode(history)
        told = model.generate(
            tokens,
            logits_processor=[CatalogLogits(space, tokens.shape[1])],
            max_new_tokens=space.levels,
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            length_penalty=0.0,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = beam(recommender.policy, *view.prompts.encode([[view.rows[item] for item in history]]), view.trie, WIDTH)
        assert [space.item(row) for row in told.sequences] == [view.ids[row] for row in found.items_BW[0].tolist()]
        torch.testing.assert_close(told.sequences_scores, found.logp_BW[0], atol=1e-4, rtol=1e-4)


def _stir(recommender: Recommender) -> None:
    """Weights that differ from their start everywhere, so that a part that is left out shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in recommender.policy.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
