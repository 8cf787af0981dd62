"""Groups of candidates: how they are drawn, mixed, and given the target that they missed."""

from dataclasses import replace

import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.config import Rl
from genrec.learning.rl.candidates import mixed, with_target
from genrec.learning.rl.rollout import generate
from genrec.policy.decoding.beam import Beams
from genrec.types import Query

CATALOG = random_catalog(40, (5, 5, 5))
QUERIES = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(8)]


@pytest.mark.parametrize("mode", ["beam", "sample", "stochastic_beam", "mixed"])
def test_a_rollout_is_a_function_of_policy_queries_and_seed(mode: str) -> None:
    policy, prompts = small_policy(CATALOG)
    settings = Rl(group=6, generation=mode)  # type: ignore[arg-type]
    made = [generate(policy, prompts, CATALOG.trie, QUERIES, settings, version=0, seed=seed) for seed in (3, 3, 4)]
    items = [torch.stack([g.items_G for g in groups]) for groups in made]
    assert torch.equal(items[0], items[1])
    assert torch.equal(items[0], items[2]) == (mode == "beam")
    for group in made[0]:
        assert (group.codes_GL == CATALOG.codes_NL[group.items_G]).all()
        assert group.logp_GL.sum(-1).tolist() == sorted(group.logp_GL.sum(-1).tolist(), reverse=True)
        assert mode == "sample" or len(set(group.items_G.tolist())) == 6
        if mode == "stochastic_beam":
            assert group.weights_G is not None
            assert float(group.weights_G.mean()) == pytest.approx(1.0)


def test_a_mixture_holds_the_best_half_and_distinct_others() -> None:
    def beams(items: list[int]) -> Beams:
        tensor = torch.tensor([items])
        return Beams(tensor, tensor[..., None], -tensor[..., None].float())

    assert mixed(beams([0, 1, 2, 3]), beams([1, 7, 0, 5])).items_BW.tolist() == [[0, 1, 7, 5]]
    assert mixed(beams([0, 1, 2, 3]), beams([1, 0, 6, 1])).items_BW.tolist() == [[0, 1, 6, -1]]


def test_the_target_is_added_where_it_was_missed_with_its_own_probability() -> None:
    policy, prompts = small_policy(CATALOG)
    plain, added = (
        generate(policy, prompts, CATALOG.trie, QUERIES, Rl(group=4, add_target=add), version=0, seed=0)
        for add in (False, True)
    )
    whole = generate(policy, prompts, CATALOG.trie, QUERIES, Rl(group=40), version=0, seed=0)
    missed = 0
    for before, after, every in zip(plain, added, whole, strict=True):
        target = after.query.target
        assert after.items_G.tolist().count(target) == 1
        place = after.items_G.tolist().index(target)
        assert torch.equal(after.codes_GL[place], CATALOG.codes_NL[target])
        known = float(every.logp_GL[every.items_G == target].sum())
        assert float(after.logp_GL[place].sum()) == pytest.approx(known, abs=1e-4)
        missed += target not in before.items_G.tolist()
    assert missed > 0


def test_a_target_without_a_leaf_is_not_added() -> None:
    policy, prompts = small_policy(CATALOG)
    trie = CATALOG.trie.without([QUERIES[0].target])
    tokens_BP, mask_BP = prompts.encode([QUERIES[0].history])
    made = generate(policy, prompts, trie, QUERIES[:1], Rl(group=4), version=0, seed=0)[0]
    beams = Beams(made.items_G[None], made.codes_GL[None], made.logp_GL[None])
    again = with_target(policy, tokens_BP, mask_BP, trie, beams, [QUERIES[0].target])
    assert torch.equal(again.items_BW, beams.items_BW)


@pytest.mark.parametrize("mode", ["sample", "stochastic_beam", "mixed"])
def test_what_is_drawn_for_a_query_depends_on_its_place_in_the_run_and_on_no_other_query(mode: str) -> None:
    policy, prompts = small_policy(CATALOG)
    settings = Rl(group=6, generation=mode)  # type: ignore[arg-type]

    def drawn(queries: list[Query], version: int = 0, seed: int = 0) -> list[list[int]]:
        found = generate(policy, prompts, CATALOG.trie, queries, settings, version=version, seed=seed)
        return [group.items_G.tolist() for group in found]

    whole = drawn(QUERIES)
    assert whole == [*drawn(QUERIES[:3]), *drawn(QUERIES[3:])] and whole[::-1] == drawn(QUERIES[::-1])
    later = [replace(query, draw=8 + place) for place, query in enumerate(QUERIES)]
    others = [drawn(later), drawn(QUERIES, version=1), drawn(QUERIES, seed=1), drawn(QUERIES, version=1, seed=1)]
    runs = [whole, *others]
    assert all(first != second for place, first in enumerate(runs) for second in runs[:place])
