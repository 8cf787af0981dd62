"""Event types and gaps in prompts: what they look like, exact in training and search, and learned where they decide."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.synthetic import random_catalog, tiny_pretrained

from benchmarks.harness import WITHOUT_ROWS
from genrec.config import EventContext, Items, PolicyConfig, Rl, load_config
from genrec.errors import InputError
from genrec.learning.rl.query_sampler import Draws, QueryStream
from genrec.learning.rl.rollout import generate
from genrec.learning.sft.batches import DenseExamples, RowExamples, Rows
from genrec.learning.sft.losses import SftLoss
from genrec.policy.backbone import build, load, save
from genrec.policy.context import GAP_BOUNDS, ContextTokens, gap_numbers
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.prompt_cache import PromptCache, prefill
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy
from genrec.policy.prompts import ITEM_TOKEN, Prompts
from genrec.policy.repeats import AGES, FADE_SCALE, REPEAT_SCALE
from genrec.types import HistoryContext, Query

CATALOG = random_catalog(40, (4, 5, 6))
TYPES = ("view", "buy")
CONTEXTS = [
    EventContext(events="history", types=TYPES),
    EventContext(events="wanted", types=TYPES),
    EventContext(gaps=True),
    EventContext(events="history", gaps=True, types=TYPES),
    EventContext(events="wanted", gaps=True, types=TYPES),
]
FORMS = [WITHOUT_ROWS, Items(dropout=0.0, tokens="codes"), Items(dropout=0.0, tokens="item")]
SEQUENCES = pa.table(
    {
        "items": [[1, 2, 3, 9, 5], [7, 8, 6]],
        "split": [[0, 1, 1, 1, 1], [0, 1, 1]],
        "times": [[0, 5, 70, 70, 90_000], [3, 4, 5]],
        "events": [["view", "buy", None, "view", "rent"], None],
    },
    schema=pa.schema(
        {
            "items": pa.list_(pa.int32()),
            "split": pa.list_(pa.int8()),
            "times": pa.list_(pa.int64()),
            "events": pa.list_(pa.string()),
        }
    ),
)


def queries_of(sequences: pa.Table) -> pa.Table:
    """A query for each train target, with all that came before it."""
    rows = [
        {
            "id": 10 * user + at,
            "user": user,
            "history": row["items"][:at],
            "target": row["items"][at],
            "times": row["times"][:at],
            "events": None if row["events"] is None else row["events"][:at],
            "event": None if row["events"] is None else row["events"][at],
        }
        for user, row in enumerate(sequences.to_pylist())
        for at in range(1, len(row["items"]))
    ]
    return pa.Table.from_pylist(rows)


def made(context: EventContext | None, items: Items = WITHOUT_ROWS, arch: str = "gpt2") -> tuple[Policy, Prompts]:
    """An untrained policy with weights large enough that its answers differ."""
    settings = PolicyConfig(
        arch=arch,  # type: ignore[arg-type]
        hidden=32,
        layers=2,
        heads=4,
        dropout=0.0,
        items=items,
        context=context or EventContext(),
    )
    policy, prompts = build(settings, CATALOG, max_history=6, seed=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        if policy.items is not None and policy.items.repeat is not None:
            for parameter in policy.items.repeat.parameters():  # What begins at zero would take no part.
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return policy.eval(), prompts


def test_a_policy_without_context_has_the_vocabulary_and_prompts_of_semantic_ids_alone() -> None:
    policy, prompts = made(None)
    assert policy.model.config.vocab_size == 2 + 4 + 5 + 6
    codes = prompts.sids.tokens(CATALOG.codes_NL[[3, 1]]).flatten().tolist()
    known = [HistoryContext(("view", "buy"), (0, 1), "buy")]
    for contexts in ([], known):
        assert prompts.encode([[3, 1]], contexts)[0].tolist() == [[1, *codes]]
    assert prompts.max_tokens == 1 + 6 * 3


def test_a_prompt_has_events_gaps_and_the_event_asked_for_at_their_places() -> None:
    known = HistoryContext(("view", "rent", "buy"), (100, 105, 705), "buy")
    first = 2 + 4 + 5 + 6  # the token of all other event types; then view, buy, and the gaps
    other, view, buy, gap = first, first + 1, first + 2, first + 3
    one, two, three = (ITEM_TOKEN + item for item in (7, 8, 9))
    expected = {
        ("history", False): [1, one, view, two, other, three, buy],
        ("history", True): [1, one, view, gap, two, other, gap + 1, three, buy, gap + 4],
        ("wanted", False): [1, view, one, other, two, buy, three, buy],
        ("wanted", True): [1, view, one, gap, other, two, gap + 1, buy, three, gap + 4, buy],
    }
    for (events, gaps), tokens in expected.items():
        _, prompts = made(EventContext(events=events, gaps=gaps, types=TYPES), FORMS[2])  # type: ignore[arg-type]
        assert prompts.encode([[7, 8, 9]], [known])[0].tolist() == [tokens]
        assert prompts.max_tokens == 1 + 6 * prompts.tokens_per_item + (events == "wanted")
        assert prompts.encode([[7]], [known.last(1)])[1].sum() == 1 + prompts.tokens_per_item + (events == "wanted")
    _, prompts = made(EventContext(events="wanted", gaps=True, types=TYPES), FORMS[2])
    assert prompts.encode([[7]])[0].tolist() == [[1, other, one, gap, other]]


def test_a_history_that_is_too_long_loses_its_first_items_with_their_context() -> None:
    _, prompts = made(CONTEXTS[-1])
    events, times = tuple("view" if i % 3 else "buy" for i in range(9)), tuple(range(0, 900, 100))
    whole = prompts.encode([list(range(9))], [HistoryContext(events, times, "buy")])
    cut = prompts.encode([list(range(3, 9))], [HistoryContext(events[3:], times[3:], "buy")])
    assert torch.equal(whole[0], cut[0])


def test_a_gap_begins_at_its_bound_and_is_unknown_without_an_earlier_time() -> None:
    for number, bound in enumerate(GAP_BOUNDS, start=1):
        assert gap_numbers(torch.tensor([50, 50 + bound - 1, 50 + 2 * bound - 1])).tolist() == [0, number, number + 1]
    assert gap_numbers(torch.tensor([[5, -1, 9], [7, 7, 7]])).tolist() == [[0, 0, 0], [0, 1, 1]]
    assert ContextTokens(gaps=True).count == len(GAP_BOUNDS) + 2


@pytest.mark.parametrize("items", FORMS, ids=["codes", "last", "whole"])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_whole_sequences_and_rows_have_one_loss_and_one_gradient(context: EventContext, items: Items) -> None:
    dense = DenseExamples(SEQUENCES, 6, with_context=True).take(np.arange(2))
    rows = RowExamples(queries_of(SEQUENCES), with_context=True).take(np.arange(6))
    amounts, gradients = [], []
    for batch in (dense, rows):
        policy, prompts = made(context, items)
        amount = SftLoss(prompts, CATALOG)(policy, batch)
        amount.backward()
        amounts.append(amount.detach())
        gradients.append({name: p.grad for name, p in policy.trainable().items() if p.grad is not None})
    torch.testing.assert_close(*amounts)
    assert set(gradients[0]) == set(gradients[1]) == set(policy.trainable())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=5e-4, rtol=2e-3, msg=name)
    without = SftLoss(prompts, CATALOG)(policy, Rows(rows.histories, rows.target_B)).detach()
    assert not torch.allclose(without, amounts[0])


@pytest.mark.parametrize("items", FORMS[1:], ids=["last", "whole"])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_an_item_of_the_history_gains_what_its_age_its_event_type_and_its_place_in_the_queue_weigh(
    context: EventContext, items: Items
) -> None:
    policy, prompts = made(context, items)
    rows, history, events = policy.items, [4, 9, 7, 4, 11, 7], ("buy", "view", "buy", None, "rent", "view")
    queue = {9: 0, 4: 0, 11: 1, 7: 1}  # Of other types 4 waits before 11, of views 9 before 7.
    assert rows is not None and rows.repeat is not None
    tokens_1P, mask_1P = prompts.encode([history], [HistoryContext(events, (0, 5, 7, 70, 90, 91), "buy")])
    state_1D = prefill(policy, tokens_1P, mask_1P).hidden_B1D[:, 0].detach()
    types = 0 if context.events == "none" else 3
    learned_X = rows.repeat(state_1D)[0]
    weight_TA = (learned_X[:-1] * REPEAT_SCALE).view(1 + 2 * types, AGES)
    expected_1N = rows._logits(state_1D, None)
    expected_1N[0, sorted(set(history))] *= 1 - (learned_X[-1] * FADE_SCALE).tanh()
    for age, (item, event) in enumerate(zip(reversed(history), reversed(events), strict=True)):
        expected_1N[0, item] += weight_TA[0, age]
        if types:
            kind = {"view": 1, "buy": 2}.get(event or "", 0)
            expected_1N[0, item] += weight_TA[1 + kind, age]
            if item not in history[len(history) - age :]:
                expected_1N[0, item] += weight_TA[1 + types + kind, queue[item]]
    torch.testing.assert_close(rows.log_probabilities(state_1D, tokens_1P), expected_1N.log_softmax(-1))


@pytest.mark.parametrize("items", FORMS, ids=["codes", "last", "whole"])
@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_a_cached_prompt_gives_the_answer_of_a_prompt_read_whole(arch: str, items: Items) -> None:
    policy, prompts = made(CONTEXTS[-1], items, arch)
    cache, history, times = PromptCache(policy, 2**24), [1, 2, 3, 4], (0, 30, 31, 9000)
    asked = []
    for length, wanted in ((2, "view"), (3, "view"), (3, "buy"), (4, None)):
        known = HistoryContext(("view",) * length, times[:length], wanted)
        inputs = prompts.encode([history[:length]], [known])
        cached = beam(policy, *inputs, CATALOG.trie, 10, prefilled=cache.prefill(*inputs))
        whole = beam(policy, *inputs, CATALOG.trie, 10)
        assert torch.equal(cached.items_BW, whole.items_BW)
        torch.testing.assert_close(cached.logp_BWL, whole.logp_BWL, atol=1e-5, rtol=0)
        asked.append(whole.logp_BWL)
    assert not torch.allclose(asked[1], asked[2])
    assert cache.reused_tokens >= 2 * prompts.tokens_per_item + 3 * prompts.tokens_per_item


def test_rollouts_ask_for_the_event_of_their_target_and_are_scored_under_the_same_prompt() -> None:
    policy, prompts = made(CONTEXTS[-1])
    table = queries_of(SEQUENCES)
    stream = QueryStream(table, Draws(table.num_rows, 6, seed=0))
    found = sorted(stream(0), key=lambda query: query.id)
    assert found[0].context == HistoryContext(("view",), (0,), "buy") and found[1].context.wanted is None
    groups = generate(policy, prompts, CATALOG.trie, found, Rl(group=8, generation="beam"), version=0, seed=0)
    for group in groups:
        inputs = prompts.encode([group.query.history], [group.query.context])
        again = score(policy, *inputs, group.codes_GL[None], CATALOG.trie).logp_BGL[0]
        torch.testing.assert_close(again, group.logp_GL, atol=1e-4, rtol=1e-4)
    bare = [Query(query.id, query.user, query.history, query.target, query.draw) for query in found]
    others = generate(policy, prompts, CATALOG.trie, bare, Rl(group=8, generation="beam"), version=0, seed=0)
    assert not torch.allclose(groups[0].logp_GL, others[0].logp_GL)


def test_a_token_of_the_context_carries_the_item_before_it_as_the_items_own_position_does() -> None:
    policy, prompts = made(CONTEXTS[-1], FORMS[2])
    known = HistoryContext(("view", "buy"), (0, 30), "buy")
    tokens_BP, _ = prompts.encode([[3, 4]], [known])  # <bos> view 3 gap buy 4 gap buy
    rows = policy.items
    assert rows is not None
    with torch.no_grad():
        embedded_PD = rows.embed(tokens_BP, policy._embed_tokens)[0]
        plain_PD = policy._embed_tokens(torch.where(tokens_BP < ITEM_TOKEN, tokens_BP, 0))[0]
    torch.testing.assert_close(embedded_PD[:2], plain_PD[:2])
    for context, item in ((3, 2), (4, 2), (6, 5), (7, 5)):
        torch.testing.assert_close(embedded_PD[context], plain_PD[context] + embedded_PD[item])


WORLD = random_catalog(16, (4, 4))


def views_and_purchases(users: int, seed: int) -> pa.Table:
    """A view of item i of 8 is followed by a view of i + 1 or by a purchase of i + 8; a coin decides."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(users):
        at, items, events = int(rng.integers(8)), [], []
        while len(items) < 6:
            items, events = [*items, at], [*events, "view"]
            if rng.random() < 0.5:
                items, events = [*items, at + 8], [*events, "buy"]
            at = (at + 1) % 8
        rows.append({"items": items, "events": events, "split": [0] + [1] * (len(items) - 1)})
    return pa.Table.from_pylist([{**row, "times": list(range(len(row["items"])))} for row in rows])


def trained(context: EventContext, sequences: pa.Table) -> tuple[Policy, Prompts]:
    settings = PolicyConfig(hidden=32, layers=1, heads=2, dropout=0.0, items=WITHOUT_ROWS, context=context)
    policy, prompts = build(settings, WORLD, max_history=8, seed=0)
    loss, optimizer = SftLoss(prompts, WORLD), torch.optim.AdamW(policy.parameters(), lr=2e-2)
    examples, rng = DenseExamples(sequences, 8, with_context=True), np.random.default_rng(0)
    for _ in range(120):
        batch = examples.take(rng.integers(sequences.num_rows, size=32))
        optimizer.zero_grad()
        (loss(policy, batch) / batch.targets).backward()
        optimizer.step()
    return policy.eval(), prompts


def test_the_event_asked_for_decides_where_the_world_does() -> None:
    world, right = views_and_purchases(200, 0), {}
    asked = [([at], wanted, at + 8 if wanted == "buy" else (at + 1) % 8) for at in range(8) for wanted in TYPES]
    for events in ("wanted", "history"):
        policy, prompts = trained(EventContext(events=events, types=TYPES), world)  # type: ignore[arg-type]
        known = [HistoryContext(("view",), (0,), wanted) for _, wanted, _ in asked]
        found = beam(policy, *prompts.encode([history for history, _, _ in asked], known), WORLD.trie, 5)
        right[events] = float((found.items_BW[:, 0] == torch.tensor([target for *_, target in asked])).float().mean())
    assert right["wanted"] == 1
    assert right["history"] <= 0.5


def test_a_policy_is_refused_by_a_config_with_another_context(tmp_path: Path) -> None:
    settings = PolicyConfig(hidden=32, layers=1, heads=2, context=CONTEXTS[3])
    policy, _ = build(settings, CATALOG, max_history=5, seed=3)
    save(policy, dict(policy.snapshot(0).tensors), CATALOG, {}, tmp_path)
    again, prompts = load(settings, CATALOG, tmp_path, max_history=5, seed=4)
    assert again.snapshot(0).digest == policy.snapshot(0).digest
    assert prompts.sids.context == ContextTokens("history", gaps=True, types=TYPES)
    with pytest.raises(InputError, match=r"trained with the context.*policy\.context"):
        load(settings.replace(context=CONTEXTS[4]), CATALOG, tmp_path, max_history=5, seed=3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_a_pretrained_policy_learns_tokens_of_its_own_for_the_context(
    tmp_path: Path, finetuning: Any, tied: bool
) -> None:
    path = tiny_pretrained(tmp_path / "lm", tied=tied)
    settings = PolicyConfig(kind="pretrained", path=str(path), finetuning=finetuning, context=CONTEXTS[-1])
    policy, prompts = build(settings, CATALOG, max_history=6, seed=0)
    rows = RowExamples(queries_of(SEQUENCES), with_context=True).take(np.arange(6))
    SftLoss(prompts, CATALOG)(policy, rows).backward()
    table, where = policy.sid_tables()[0]
    assert table.grad is not None
    own_CD = table.grad[where][-prompts.sids.context.count :]
    assert own_CD[:3].abs().sum(-1).all(), "every event type is in a prompt"
    one, other = (prompts.encode([[1, 2]], [HistoryContext(("view",) * 2, (0, 1), wanted)]) for wanted in TYPES)
    found = [beam(policy.eval(), *inputs, CATALOG.trie, 5).logp_BWL for inputs in (one, other)]
    assert not torch.allclose(*found)


def test_whole_sequences_of_a_pretrained_policy_have_the_loss_of_rows(tmp_path: Path) -> None:
    path = tiny_pretrained(tmp_path / "lm", tied=True)
    settings = PolicyConfig(
        kind="pretrained", path=str(path), finetuning="full", prompt="sequence", context=CONTEXTS[-1]
    )
    policy, prompts = build(settings, CATALOG, max_history=6, seed=0)
    batches = (
        DenseExamples(SEQUENCES, 6, with_context=True).take(np.arange(2)),
        RowExamples(queries_of(SEQUENCES), with_context=True).take(np.arange(6)),
    )
    with torch.no_grad():
        dense, rows = (SftLoss(prompts, CATALOG)(policy.eval(), batch) for batch in batches)
    torch.testing.assert_close(dense, rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.context.events=wanted"], r"policy\.context\.types"),
        (["policy.context.events=wanted", "policy.context.types=[view,view]"], "a type twice"),
        (["decode.event=buy"], r"decode\.event=buy is none of policy\.context\.types"),
    ],
)
def test_a_context_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config([], overrides)
