"""The benchmark of decoding at a size of seconds: the references answer the same, and every ratio is there."""

import pytest
import torch

from benchmarks import decode
from benchmarks.harness import Bench
from benchmarks.references import hf_generate
from genrec.config import load_config

pytestmark = pytest.mark.benchmark


def test_tree_decoding_answers_as_the_references_do_and_every_ratio_is_measured() -> None:
    size = decode.DecodeSize(
        layers=1,
        hidden=32,
        heads=2,
        items=100,
        many_items=1000,
        histories=(3, 5),
        batch=2,
        widths=(4,),
        group=3,
        vocabularies=(("small", 0), ("large", 2000)),
        rounds=1,
    )
    found = decode.measure(load_config([], ["compute.threads=1"]), size)
    names = [f"{vocabulary}{suffix}" for vocabulary in ("small", "large") for suffix in ("", "_p16_w4")]
    for name in names:
        assert found.figures[f"same_tokens_as_generate_{name}"] == 1
        assert found.figures[f"same_tokens_as_python_dict_{name}"] == 1
        assert found.ratios[f"vs_generate_{name}"] > 0 and found.ratios[f"over_flop_bound_{name}"] > 0
    for ratio in ("catalogue_1m_over_4k", "kv_over_bound", "score_vs_separate", "prompt_cache"):
        assert found.ratios[ratio] > 0 and found.ratios[f"{ratio}_p16_w4"] > 0


def test_a_reference_without_room_is_left_out_and_the_search_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError

    told: list[Bench] = []
    monkeypatch.setattr(hf_generate, "generate", no_room)
    size = decode.DecodeSize(1, 32, 2, 100, 100, (3,), 2, (4,), vocabularies=(("v", 0),), rounds=1, searches_only=True)
    found = decode.measure(
        load_config([], ["compute.threads=1"]),
        size,
        tell=lambda bench: told.append(Bench(bench.name, dict(bench.figures))),
    )
    assert set(told[0].figures) == {"tree_s_v", "prompt_s_v"}
    assert found.figures["no_room_for_generate_v"] == found.figures["same_tokens_as_python_dict_v"] == 1
    assert "vs_python_dict_v" in found.ratios and "vs_generate_v" not in found.ratios
