"""Whatever a request holds, the answer is a result or one clear InputError; and threads get what one caller gets."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.served import PRIORS, serve

import genrec
from genrec.errors import InputError
from genrec.inference.recommender import Recommendation, Reply

ASKED = int(os.environ.get("GENREC_FUZZ_EXAMPLES", "0"))
EXAMPLES = ASKED or 150
QUICK = settings(
    max_examples=EXAMPLES, derandomize=not ASKED, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    torch.set_num_threads(1)
    keys = ("policy.arch=qwen3", "policy.tokenizer=bytes", "learning.sft.example_format=rows", "decode.width=50")
    return serve(tmp_path_factory.mktemp("served"), *keys)


KNOWN = st.integers(0, 23).map("i{}".format)
UNUSUAL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.binary(max_size=5),
    st.lists(KNOWN, max_size=2),
    st.sampled_from(
        [np.int64(3), np.float32("nan"), np.array(3), np.array([["i1"]]), Decimal(3), object(), {"i1"}, {}]
    ),
)


def often(usual, unusual=UNUSUAL):
    """Mostly ``usual``, so that an example as a whole is often a valid one."""
    return st.integers(0, 7).flatmap(lambda die: unusual if die == 0 else usual)


IDS = st.lists(often(KNOWN), max_size=12)
SHAPES = [list, tuple, iter, lambda ids: (one for one in ids), lambda ids: np.array(ids, object), pd.Series]
ID_LISTS = st.builds(lambda ids, shape: shape(ids), IDS, st.sampled_from(SHAPES))
HISTORIES = often(ID_LISTS, st.one_of(UNUSUAL, st.sampled_from([["i1"] * 5000, "i1", b"i1", {"i1": 1}])))
NUMBERS = often(st.integers(1, 30), st.one_of(UNUSUAL, st.integers()))
PRICES = often(st.tuples(st.floats(0, 30), st.floats(0, 30)), st.one_of(UNUSUAL, st.lists(UNUSUAL, max_size=3)))
STOCK = often(st.lists(st.booleans(), min_size=24, max_size=24), st.one_of(UNUSUAL, st.lists(UNUSUAL, max_size=24)))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "allow": often(ID_LISTS),
        "deny": often(ID_LISTS),
        "category": often(st.sampled_from(["shop", "tooth", "hair"])),
        "price": PRICES,
        "in_stock": STOCK,
        "unseen": often(st.booleans()),
    },
)


@QUICK
@given(name=st.sampled_from(list(PRIORS)), history=HISTORIES, k=NUMBERS, fields=often(FIELDS, st.none()))
def test_a_request_is_answered_or_refused(served, name, history, k, fields):
    try:
        constraint = None if fields is None else genrec.Constraint(**fields)
        found = served[name].recommend(history, k, constraint)
    except InputError as error:
        assert 0 < len(str(error)) < 1000
        return
    assert all(isinstance(one, Recommendation) and math.isfinite(one.score) for one in found)
    assert len({one.id for one in found}) == len(found) <= min(k, 24)
    if constraint is not None and constraint.allow is not None:
        assert {one.id for one in found} <= set(constraint.allow) - set(constraint.deny)


TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(), max_size=8),
        KNOWN.map("[[{}]]".format),
        st.sampled_from(["[[", "]]", "<a_1><b_2><c_3>", "[[<a_1><b_2><c_3>]]", "<bos>", "<turn>", "<end>", "\x00"]),
        st.integers(0, 10**12).map("[[<a_{}><b_0><c_0>]]".format),
    ),
    max_size=5,
).map("".join)
TURNS = st.fixed_dictionaries(
    {"role": often(st.sampled_from(["user", "assistant", "system"])), "content": often(TEXTS)}
)
OPTIONS = st.fixed_dictionaries(
    {"max_tokens": often(st.integers(1, 4))},
    optional={
        "temperature": often(st.one_of(st.floats(0, 2), st.floats(0))),
        "top_p": often(st.floats(0.1, 1)),
        "seed": often(st.integers(0, 9)),
    },
)


@settings(QUICK, max_examples=max(20, EXAMPLES // 4))
@given(messages=often(st.one_of(TEXTS, st.lists(often(TURNS), max_size=4))), options=OPTIONS)
def test_a_conversation_is_answered_or_refused(served, messages, options):
    try:
        reply = served["alone"].chat(messages, **options)
    except InputError as error:
        assert 0 < len(str(error)) < 1000
        return
    assert isinstance(reply, Reply) and set(reply.items) <= {f"i{row}" for row in range(24)}


@pytest.mark.parametrize("shape", [*SHAPES, pd.Index])
def test_a_history_and_a_constraint_may_be_any_iterable(served, shape):
    history, allow = ["i3", "i4", "i5"], ["i6", "i7", "i8"]
    wanted = served["mixed"].recommend(history, 5, genrec.Constraint(allow=allow, unseen=True))
    constraint = genrec.Constraint(allow=shape(allow), unseen=np.bool_(True))
    for _ in range(2):
        assert served["mixed"].recommend(shape(history), np.int64(5), constraint) == wanted
    assert {found.id for found in wanted} == set(allow)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("i3", r"got str 'i3'; wanted a list of item ids"),
        (b"i3", "got bytes"),
        ({"i3", "i4"}, "got set"),
        ({"i3": 1}, "got dict"),
        (None, "got NoneType None"),
        (np.array("i3"), "wanted a list of item ids"),
        ([3.0], r"item id 3\.0 of type float"),
        ([True], "item id True of type bool"),
        ([["i3"]], r"item id \['i3'\] of type list"),
        ([3], r"1 of them unknown \(\['3'\]\)"),
        ([], "a history of 0 items"),
        (["x" * 10**6], r"unknown \(\['xxx"),
    ],
)
def test_a_history_that_is_none_is_refused_by_its_type(served, history, message):
    with pytest.raises(InputError, match=message) as refused:
        served["alone"].recommend(history)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "3", None, math.nan])
def test_k_is_a_whole_number_of_at_least_one(served, k):
    with pytest.raises(InputError, match="k"):
        served["alone"].recommend(["i3"], k)


def test_an_endless_history_is_refused(served):
    with pytest.raises(InputError, match="more than 1,000,000 item ids"):
        served["alone"].recommend(iter(lambda: "i1", None))


@pytest.mark.parametrize("name", PRIORS)
def test_many_threads_get_the_answers_of_one(served, name):
    recommender, rng = served[name], np.random.default_rng(0)
    asked = [
        (
            [f"i{row}" for row in rng.integers(0, 24, rng.integers(1, 6))],
            genrec.Constraint(deny=[f"i{n % 24}"], unseen=n % 2 > 0),
        )
        for n in range(24)
    ]

    def answer(request):
        history, constraint = request
        return {found.id: found.score for found in recommender.recommend(history, 24, constraint)}

    wanted = [answer(request) for request in asked]
    recommender._view.masks._known.clear()
    recommender._view.masks._remember = 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, asked * 2))
    for one, other in zip(found, wanted * 2, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_threads_that_talk_get_the_replies_of_one(served):
    asked = [f"<end> {n} [[i{n}]] <turn>" for n in range(8)]
    wanted = [served["alone"].chat(text, max_tokens=3) for text in asked]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: served["alone"].chat(text, max_tokens=3), asked)) == wanted
