"""Requests answered together get what each gets alone, and every score is the model's."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.served import PRIORS, serve

import genrec
from genrec.errors import InputError
from genrec.inference.recommender import Recommender, usable_device
from genrec.inference.request import RecommendRequest
from genrec.inference.tree_ranker import PARTS
from genrec.sid import catalog_updates

ROWS = ("policy.items.input=own", "policy.items.head=true")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recommender]:
    torch.set_num_threads(1)
    return serve(tmp_path_factory.mktemp("served"), "decode.width=10", "evaluation.ks=[10]", "decode.prompt_cache_mb=1")


def requests(count: int = 16, **fields: object) -> list[RecommendRequest]:
    """Histories of 1 to 9 items, k from 1 to 30, and every kind of constraint."""
    rng = np.random.default_rng(4)
    constraints = [
        None,
        genrec.Constraint(unseen=True),
        genrec.Constraint(category="hair"),
        genrec.Constraint(price=(2, 11), deny=["i3"]),
        genrec.Constraint(allow=["i1", "i2"]),
        genrec.Constraint(allow=["i1"], deny=["i1"]),
    ]
    histories = [[f"i{row}" for row in rng.integers(0, 24, rng.integers(1, 10))] for _ in range(count)]
    ks = rng.integers(1, 31, count).tolist()
    return [
        RecommendRequest(history, k, constraints[n % len(constraints)], **fields)  # type: ignore[arg-type]
        for n, (history, k) in enumerate(zip(histories, ks, strict=True))
    ]


@pytest.mark.parametrize("name", PRIORS)
def test_a_batch_of_different_requests_is_answered_as_one_by_one(served: dict[str, Recommender], name: str) -> None:
    asked = requests()
    together = served[name].recommend_batch(asked)
    for request, found in zip(asked, together, strict=True):
        alone = served[name].recommend_batch([request])[0]
        assert [one.id for one in found] == [one.id for one in alone]
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=1e-5)
        assert len(found) <= request.k
    assert together[5] == []
    assert served[name].recommend_batch([]) == []


def test_a_request_that_is_refused_leaves_the_others_of_its_batch_as_they_are(served: dict[str, Recommender]) -> None:
    asked = requests(3)
    bad = [RecommendRequest(["i1"], 0), RecommendRequest([], 3)]
    found = served["alone"].recommend_each([bad[0], asked[0], asked[1], bad[1], asked[2]])
    refusals = [str(one) for one in found if isinstance(one, InputError)]
    assert "k" in refusals[0]
    assert "history" in refusals[1]
    answers = [one for one in found if not isinstance(one, InputError)]
    alone = served["alone"].recommend_batch(asked)
    assert [[item.id for item in one] for one in answers] == [[item.id for item in one] for one in alone]
    assert [isinstance(one, InputError) for one in found] == [True, False, False, True, False]


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("head", [0.0, 1.0])
def test_the_score_of_an_item_is_the_logarithm_of_what_a_recommendation_says(
    tmp_path_factory: pytest.TempPathFactory, name: str, head: float
) -> None:
    recommender = scored(tmp_path_factory, head)[name]
    history = ["i3", "i7", "i4"]
    found = recommender.recommend(history, 24)
    given = recommender.score(history, [one.id for one in found], k=24)
    assert given == pytest.approx([math.log(one.score) for one in found], abs=1e-4)
    few = recommender.recommend(history, 3, genrec.Constraint(category="hair"))
    chosen = recommender.score(history, [few[0].id, "i0"], k=3, constraint=genrec.Constraint(category="hair"))
    assert chosen == pytest.approx([math.log(few[0].score), -math.inf], abs=1e-4)


SCORED: dict[float, dict[str, Recommender]] = {}


def scored(tmp_path_factory: pytest.TempPathFactory, head: float) -> dict[str, Recommender]:
    """Recommenders whose policy has an item head that weighs ``head``."""
    if head not in SCORED:
        weights = {name: prior | {"head_weight": head} for name, prior in PRIORS.items()}
        directory = tmp_path_factory.mktemp("scored")
        SCORED[head] = serve(
            directory, *(ROWS if head else ()), "decode.width=24", "evaluation.ks=[10]", priors=weights
        )
    return SCORED[head]


def test_without_a_prior_the_probabilities_of_all_items_add_up_to_one(served: dict[str, Recommender]) -> None:
    everything = served["alone"].score(["i3", "i4"], [f"i{row}" for row in range(24)])
    assert sum(map(math.exp, everything)) == pytest.approx(1, abs=1e-4)
    assert served["alone"].score(["i3"], []) == []


def test_a_run_that_masks_seen_items_never_scores_them(served: dict[str, Recommender]) -> None:
    seen, other = served["mixed"].score(["i3", "i4"], ["i3", "i9"])
    assert seen == -math.inf and math.isfinite(other)


@pytest.mark.parametrize("name", PRIORS)
def test_a_removed_item_has_no_probability(tmp_path: Path, name: str) -> None:
    recommender = serve(tmp_path)[name]
    catalog_updates.remove(recommender.run.catalog, recommender.run.live, ["i9"])
    recommender.refresh()
    gone, other = recommender.score(["i3", "i4"], ["i9", "i8"])
    assert gone == -math.inf and math.isfinite(other)


@pytest.mark.parametrize("items", [["nobody"], "i3", [3.5], None])
def test_an_item_to_score_that_is_none_is_refused(served: dict[str, Recommender], items: object) -> None:
    with pytest.raises(InputError):
        served["alone"].score(["i3"], items)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": "3"}, "k: got '3'; wanted a whole number"),
        ({"constraint": {}}, "constraint: got dict; wanted genrec.Constraint or None"),
        ({"diversity": 0.5}, "diversity: got float; wanted genrec.Diversity or None"),
    ],
)
def test_a_field_of_another_type_is_refused_when_the_request_is_made(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RecommendRequest(["i3"], **fields)  # type: ignore[arg-type]


def test_a_wrong_request_can_be_found_before_it_spoils_a_batch(served: dict[str, Recommender]) -> None:
    wrong = RecommendRequest(["i3", "nobody"])
    with pytest.raises(InputError, match="1 of them unknown"):
        served["alone"].recommend_batch([RecommendRequest(["i3"]), wrong])
    with pytest.raises(InputError, match="1 of them unknown"):
        served["alone"].check(wrong)
    served["alone"].check(RecommendRequest(["i3"]))


def test_threads_that_send_batches_get_the_answers_of_one_caller(served: dict[str, Recommender]) -> None:
    asked = [requests(n, explain=True) for n in range(1, 7)]
    wanted = [served["steered"].recommend_batch(batch) for batch in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(served["steered"].recommend_batch, asked * 2))
    ids = [[[one.id for one in answer] for answer in batch] for batch in wanted]
    assert [[[one.id for one in answer] for answer in batch] for batch in found] == ids * 2


def test_each_part_of_an_answer_is_timed(served: dict[str, Recommender]) -> None:
    heard: list[tuple[str, float]] = []
    served["mixed"].on_part(lambda name, seconds: heard.append((name, seconds)))
    served["mixed"].recommend(["i3"])
    served["mixed"].on_part(lambda name, seconds: None)
    assert sorted(name for name, _ in heard) == sorted(PARTS)
    assert all(seconds >= 0 for _, seconds in heard)


def test_an_item_is_shown_with_what_the_catalogue_knows_of_it(served: dict[str, Recommender]) -> None:
    shown = served["alone"].item("i4")
    assert (shown.title, shown.categories, shown.price) == ("tooth thing number 4", ("shop", "tooth"), 4.0)
    assert len(shown.sid) == 3 and not shown.removed and served["alone"].item("i2").price is None
    with pytest.raises(InputError, match="no item has the id 'nobody'"):
        served["alone"].item("nobody")


def test_titles_are_found_by_their_words_in_any_case_and_order(served: dict[str, Recommender]) -> None:
    def ids(text: str, limit: int = 30) -> list[str]:
        return [one.id for one in served["alone"].search_titles(text, limit)]

    assert ids("NUMBER hair") == [f"i{row}" for row in (1, 5, 9, 13, 17, 21)]
    assert ids("i7", 1) == ["i7"] and ids("hair", 2) == ["i1", "i5"]
    view = served["alone"].view
    titles = ["Cafe\u0301 noir", "caf\u00e9 cr\u00e8me", "Weisse STRASSE", *view.titles[3:]]
    shop = replace(view, titles=titles)
    for text in ("Caf\u00e9", "CAFE\u0301"):
        assert [one.id for one in shop.search(text, 5)] == ["i0", "i1"]
    assert [one.id for one in shop.search("stra\u00dfe", 5)] == ["i2"]
    assert ids("") == ids("  ") == ids("<script>") == ids("\ud800") == ids("thing.*") == []
    for text, limit in ((None, 3), ("hair", 0), ("hair", "3")):
        with pytest.raises(InputError):
            served["alone"].search_titles(text, limit)  # type: ignore[arg-type]


def test_a_device_that_this_machine_lacks_is_refused(tmp_path: Path) -> None:
    assert usable_device("cpu") == "cpu"
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    for device in (missing, "abacus", 3.5):
        with pytest.raises(InputError, match="wanted cpu or cuda"):
            usable_device(device)  # type: ignore[arg-type]


def test_a_prior_of_weight_1_fills_the_list_with_what_the_policy_finds(tmp_path: Path) -> None:
    """ItemKNN scores some of the items alone; the others follow, in the policy's order."""
    whole = {"whole": PRIORS["mixed"] | {"weight": 1.0}, "alone": PRIORS["alone"]}
    served = serve(tmp_path, priors=whole)
    found = served["whole"].recommend(["i3"], 24)
    assert len(found) == 24
    unscored = [one.id for one in found if one.score < 1e-9]
    assert unscored and unscored == [one.id for one in served["alone"].recommend(["i3"], 24) if one.id in set(unscored)]
    given = served["whole"].score(["i3"], [one.id for one in found], k=24)
    assert given == pytest.approx([math.log(one.score) for one in found], abs=1e-3)


@pytest.mark.parametrize("name", PRIORS)
def test_a_removed_item_that_alone_is_allowed_has_no_probability(tmp_path: Path, name: str) -> None:
    recommender = serve(tmp_path)[name]
    catalog_updates.remove(recommender.run.catalog, recommender.run.live, ["i9"])
    recommender.refresh()
    only = genrec.Constraint(allow=["i9"])
    assert recommender.recommend(["i3"], constraint=only) == []
    assert recommender.score(["i3"], ["i9", "i8"], constraint=only) == [-math.inf, -math.inf]
