"""What a policy says of its training queries, and its beams by rank: against the definitions, and on a small shop."""

import math
from pathlib import Path

import pytest
import torch
from support.synthetic import chain_shop, random_catalog, small_policy, tiny_config

from benchmarks import cold_start, exact_match
from benchmarks.cold_start import ABSENT, RARE, RARE_FREE, shares_by_rank
from cluster import pipeline
from genrec.evaluation.recall_of_training import Recalled, RecallSampling, drawn_codes, kept, recall
from genrec.policy.decoding.score import score

EVERYTHING = RecallSampling(temperature=1.0, top_k=1000, top_p=1.0)


def test_sampling_keeps_the_best_codes_that_hold_top_p_together() -> None:
    logp_K = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    assert kept(logp_K, EVERYTHING).tolist() == pytest.approx([0.1, 0.4, 0.3, 0.2])
    assert kept(logp_K, RecallSampling(1.0, 2, 1.0)).tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert kept(logp_K, RecallSampling(1.0, 9, 0.6)).tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert kept(logp_K, RecallSampling(1.0, 9, 0.4)).tolist() == [0, 1, 0, 0]
    cold = kept(logp_K, RecallSampling(0.5, 9, 1.0))
    assert cold.tolist() == pytest.approx([0.01 / 0.3, 0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3])


def test_draws_match_as_often_as_their_probability_says_and_levels_agree_with_the_scores() -> None:
    catalog = random_catalog(10, (4, 3, 3))
    policy, prompts = small_policy(catalog)
    tokens_BP, mask_BP = prompts.encode([[1, 2, 3], [4]])
    codes_BL = catalog.codes_NL[[5, 6]].long()
    generator = torch.Generator().manual_seed(0)
    found = recall(
        policy, tokens_BP, mask_BP, codes_BL, catalog.trie, sampling=EVERYTHING, draws=4000, generator=generator
    )
    for trie, match_B in ((None, found.match_B), (catalog.trie, found.match_trie_B)):
        p_B = score(policy, tokens_BP, mask_BP, codes_BL[:, None], trie).logp_BGL.sum(-1).exp()[:, 0]
        assert match_B.tolist() == pytest.approx(p_B.tolist(), abs=0.03)
    assert found.own_BL[:, 0].tolist() == found.true_BL[:, 0].tolist(), "the first level has no codes before it"
    drawn = drawn_codes(policy, tokens_BP, mask_BP, catalog.trie, RecallSampling(), 50, generator)
    assert (catalog.trie.find(drawn) >= 0).all(), "in the trie every draw is an item"


def test_the_powers_stand_beside_the_measured_match() -> None:
    loss_BL = torch.full((2, 4), 0.8)
    right_BL = torch.tensor([[True] * 4, [True, False, False, False]])
    share_B = torch.tensor([0.25, 0.0])
    found = exact_match.figures(Recalled(loss_BL, right_BL, right_BL, share_B, share_B))
    assert found["e^-loss"] == pytest.approx(0.449, abs=1e-3) and found["e^-(loss x 4)"] == pytest.approx(
        0.0408, abs=1e-4
    )
    assert found["mean of p(item)"] == pytest.approx(math.exp(-3.2)) and found["draws that match"] == 0.125
    assert found["greedy answers that match"] == 0.5 and found["after own codes, level 1"] == 1


def test_ranks_count_absent_and_rare_items_apart() -> None:
    counts_N = torch.tensor([0, 2, 3])
    found = shares_by_rank(torch.tensor([[0, 2, -1]]), torch.tensor([[-1, 1, 2]]), counts_N)
    assert {name: one.tolist() for name, one in found.items()} == {
        ABSENT: [[True, False, False]],
        RARE: [[True, False, False]],
        RARE_FREE: [[False, True, False]],
    }


@pytest.mark.benchmark
def test_both_benchmarks_run_on_a_small_shop_and_do_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, storage = chain_shop(tmp_path / "shop"), tmp_path / "storage"
    settings = ("bench.seeds=1", "learning.sft.epochs=3", "decode.width=12", "bench.variants=[trie,vocabulary]")
    config = tiny_config(storage, shop, "sid.quantizer=title", "evaluation.ks=[1,10]", *settings)
    inputs = pipeline.run(config, *cold_start.NEEDS)
    beams, said = cold_start.run(config, inputs), exact_match.run(config, inputs)
    assert 0 <= beams.figures[f"vocabulary.{ABSENT}@10"] <= 1 and beams.figures["trie.ms_trie"] > 0
    assert said.figures["trie.loss per code"] > 0 and "after own codes, level 3" in said.text
    monkeypatch.setattr(cold_start, "measure_beams", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(exact_match, "measure_recall", lambda *_: pytest.fail("measured again"))
    assert cold_start.run(config, inputs).table() == beams.table()
    assert exact_match.run(config, inputs).table() == said.table()
