"""Lists of items that differ, and why an item is in one."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.served import serve

import genrec
from genrec.errors import InputError
from genrec.inference.answers import Recommendation
from genrec.inference.diversity import calibration_cost, choose, redundancy
from genrec.inference.recommender import Recommender
from genrec.inference.request import RecommendRequest
from genrec.sid.catalog import Catalog

HISTORY = ["i3", "i7", "i11", "i0"]  # three of paper, one of tooth


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recommender]:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("served")
    served = serve(directory, "decode.width=24", "evaluation.ks=[10]")
    place = directory / "storage" / "assign" / "made"
    catalog = Catalog.load(place)
    angle_N = torch.arange(24) / 24 * 2 * math.pi
    vectors_NF = torch.stack([angle_N.cos(), angle_N.sin()], dim=1)
    Catalog(catalog.codes_NL, catalog.level_sizes, vectors_NF=vectors_NF).save(place)
    return {name: genrec.load(directory / "storage" / "runs" / name) for name in served}


def kinds(found: list[Recommendation]) -> list[int]:
    return [int(one.id[1:]) % 4 for one in found]


def test_maximal_marginal_relevance_weighs_probability_against_likeness_by_hand() -> None:
    relevance_M = np.array([1.0, 0.9, 0.5])
    similarity_MM = np.array([[1.0, 0.95, 0.1], [0.95, 1.0, 0.1], [0.1, 0.1, 1.0]])
    assert choose(relevance_M, redundancy(similarity_MM), 0.0, 3) == [0, 1, 2]
    assert choose(relevance_M, redundancy(similarity_MM), 0.5, 3) == [0, 2, 1]
    assert choose(relevance_M, redundancy(similarity_MM), 1.0, 2) == [0, 2]


def test_the_divergence_of_a_calibrated_list_is_least_where_its_shares_are_the_historys() -> None:
    shares_MC = np.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]
    cost = calibration_cost(shares_MC, np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert sorted(choose(np.ones(8), cost, 0.9, 4)) == [0, 1, 2, 4]
    assert cost([0, 1, 2])[4] == pytest.approx(0, abs=1e-9)
    uneven = 0.25 * math.log(0.25 / (0.01 * 0.25)) + 0.75 * math.log(0.75 / (0.99 + 0.01 * 0.75))
    assert cost([0, 1])[2] == pytest.approx(uneven)


@pytest.mark.parametrize("name", ["alone", "mixed", "steered"])
def test_a_list_without_weight_is_the_plain_one_and_a_diverse_one_has_more_categories(
    served: dict[str, Recommender], name: str
) -> None:
    plain = served[name].recommend(HISTORY, 4)
    for kind in ("categories", "vectors", "calibrated"):
        found = served[name].recommend(HISTORY, 4, diversity=genrec.Diversity(kind, 0.0))  # type: ignore[arg-type]
        assert [one.id for one in found] == [one.id for one in plain]
    diverse = served[name].recommend(HISTORY, 4, diversity=genrec.Diversity("categories", 1.0))
    assert len(set(kinds(diverse))) == 4 and diverse[0] == plain[0]


def test_diverse_vectors_lie_far_apart(served: dict[str, Recommender]) -> None:
    far = served["alone"].recommend(HISTORY, 2, diversity=genrec.Diversity("vectors", 1.0))
    gap = abs(int(far[0].id[1:]) - int(far[1].id[1:]))
    assert min(gap, 24 - gap) >= 6  # a quarter of the circle: a cosine of 0 or less


def test_a_calibrated_list_has_the_shares_of_the_history(served: dict[str, Recommender]) -> None:
    found = kinds(served["alone"].recommend(HISTORY, 4, diversity=genrec.Diversity("calibrated", 1.0)))
    assert sorted(found) == [0, 3, 3, 3]


def test_diverse_beams_begin_with_more_first_codes_than_the_most_probable_items(
    served: dict[str, Recommender],
) -> None:
    def first_codes(found: list[Recommendation]) -> int:
        return len({served["alone"].item(one.id).sid[0] for one in found})

    histories = [[f"i{row}", f"i{(row + 7) % 24}"] for row in range(8)]
    apart = [served["alone"].recommend(h, 8, diversity=genrec.Diversity("beams", 1.0)) for h in histories]
    plain = [served["alone"].recommend(h, 8) for h in histories]
    assert sum(map(first_codes, apart)) > sum(map(first_codes, plain))
    assert all(len({one.id for one in found}) == len(found) == 8 for found in apart)
    batch = [RecommendRequest(h, 8, diversity=genrec.Diversity("beams", 1.0)) for h in histories]
    together = served["alone"].recommend_batch([*batch, RecommendRequest(histories[0], 8)])
    assert [[one.id for one in found] for found in together] == [[one.id for one in f] for f in (*apart, plain[0])]


@pytest.mark.parametrize("weight", [0.01, 0.3])
@pytest.mark.parametrize("name", ["alone", "mixed", "steered"])
def test_diverse_beams_of_a_policy_that_is_sure_are_filled_up(tmp_path: Path, name: str, weight: float) -> None:
    recommender = serve(tmp_path)[name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in recommender.policy.trainable().values():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    for k in (4, 8, 16):
        found = recommender.recommend(HISTORY, k, diversity=genrec.Diversity("beams", weight))
        assert len({one.id for one in found}) == len(found) == k


def test_a_request_can_leave_the_prior_out(served: dict[str, Recommender]) -> None:
    asked = [RecommendRequest(HISTORY, 24, prior=prior) for prior in (False, True)]
    without, with_prior = served["steered"].recommend_batch(asked)
    alone = served["alone"].recommend(HISTORY, 24)
    assert [one.id for one in without] == [one.id for one in alone] != [one.id for one in with_prior]
    assert [one.score for one in without] == pytest.approx([one.score for one in alone], abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "weight"), [("other", 0.5), (None, 0.5), (["vectors"], 0.5), ("vectors", 1.5), ("vectors", math.nan)]
)
def test_a_diversity_that_is_none_is_refused(kind: object, weight: object) -> None:
    with pytest.raises(InputError, match="diversity: got"):
        genrec.Diversity(kind, weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "basis"), [("alone", "vectors"), ("mixed", "co-occurrence")])
def test_an_explanation_multiplies_to_the_policys_probability_and_names_the_likest_items(
    served: dict[str, Recommender], name: str, basis: str
) -> None:
    recommender = served[name]
    found = recommender.recommend(HISTORY, 5, explain=True)
    policy = recommender.score(HISTORY, [one.id for one in found], prior=False)
    for one, logp in zip(found, policy, strict=True):
        assert one.why is not None
        steps = one.why.steps
        if name == "alone":
            assert math.prod(step.probability for step in steps) == pytest.approx(math.exp(logp), abs=1e-5)
        sid = recommender.item(one.id).sid
        assert [step.name for step in steps] == [f"<{letter}_{code}>" for letter, code in zip("abc", sid, strict=True)]
        assert [step.items for step in steps] == sorted((step.items for step in steps), reverse=True)
        assert steps[-1].items == 1
        likeness = [near.similarity for near in one.why.nearest]
        assert all(a >= b > 0 for a, b in pairwise(likeness)) and {n.id for n in one.why.nearest} <= set(HISTORY)
        assert one.why.basis == (basis if one.why.nearest else None)
    assert any(one.why.nearest for one in found if one.why)
    assert recommender.recommend(HISTORY, 1)[0].why is None


def test_the_nearest_item_of_the_history_is_the_one_with_the_nearest_vector(served: dict[str, Recommender]) -> None:
    only = genrec.Constraint(allow=["i12"])
    (found,) = served["alone"].recommend(HISTORY, 1, only, explain=True)
    assert found.why is not None and [near.id for near in found.why.nearest][:2] == ["i11", "i7"]
    assert found.why.nearest[0].similarity == pytest.approx(math.cos(2 * math.pi / 24), abs=1e-3)


@pytest.mark.parametrize("prior", [False, True])
def test_diverse_beams_are_filled_up_where_items_of_the_history_are_left_out(tmp_path: Path, prior: bool) -> None:
    recommender = serve(tmp_path)["mixed"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in recommender.policy.trainable().values():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    for k in (4, 8, 16):
        asked = [
            RecommendRequest(history, k, diversity=genrec.Diversity("beams", 0.3), prior=prior)
            for history in (HISTORY, HISTORY[:2])
        ]
        together = recommender.recommend_batch(asked)
        alone = [recommender.recommend_batch([one])[0] for one in asked]
        for one, *answers in zip(asked, together, alone, strict=True):
            for found in answers:
                assert len({item.id for item in found} - set(one.ids)) == len(found) == k
