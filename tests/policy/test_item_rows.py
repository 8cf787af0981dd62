"""Rows of items, at the input and as a head: exact in every search and form of training, also in a grown catalogue."""

import math
from pathlib import Path

import pytest
import torch
from support.synthetic import random_catalog, small_policy
from torch import Tensor

from benchmarks.harness import WITHOUT_ROWS
from genrec.config import Items, PolicyConfig
from genrec.errors import InputError
from genrec.learning.sft.batches import Dense, Rows
from genrec.learning.sft.losses import SftLoss
from genrec.policy import item_rows
from genrec.policy.backbone import build, load, save
from genrec.policy.decoding.beam import beam, head_log_probabilities
from genrec.policy.decoding.prompt_cache import PromptCache, prefill
from genrec.policy.decoding.score import score
from genrec.policy.item_rows import ItemRows, SoftTargets
from genrec.policy.model import Policy
from genrec.policy.prompts import ITEM_TOKEN, Prompts, SidTokens
from genrec.policy.repeats import FADE_SCALE, REPEAT_SCALE
from genrec.sid.catalog import Catalog

SIZES = (4, 5, 6)
HISTORIES = [[1, 2, 3], [7], [4, 4, 9, 11, 30]]
FORMS = ["codes", "item"]


def catalog_of(items: int, removed: tuple[int, ...] = (), grown_from: tuple[int, ...] = ()) -> Catalog:
    """The first ``items`` of 60 items with SIDs and vectors."""
    vectors_NF = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).half()
    codes_NL = random_catalog(60, SIZES).codes_NL[:items]
    return Catalog(codes_NL, SIZES, removed, grown_from, vectors_NF=vectors_NF[:items])


CATALOG = catalog_of(40)


def made(items: Items | None = None, arch: str = "gpt2") -> tuple[Policy, Prompts]:
    policy, prompts = small_policy(CATALOG, arch, items=items or Items(dropout=0.0))
    if policy.items is not None and policy.items.repeat is not None:
        with torch.no_grad():
            for parameter in policy.items.repeat.parameters():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return policy, prompts


def state_of(policy: Policy, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """The states (B, D) after ``HISTORIES``, and the prompts (B, P)."""
    tokens_BP, mask_BP = prompts.encode(HISTORIES)
    return prefill(policy, tokens_BP, mask_BP).hidden_B1D[:, 0].detach(), tokens_BP


def rows_of(policy: Policy) -> ItemRows:
    assert policy.items is not None
    return policy.items


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_a_wide_search_guided_by_the_head_is_the_product_of_both_over_all_items(
    form: str, arch: str, weight: float
) -> None:
    policy, prompts = made(Items(dropout=0.0, tokens=form), arch)  # type: ignore[arg-type]
    tokens_BP, mask_BP = prompts.encode(HISTORIES)
    found = beam(policy, tokens_BP, mask_BP, CATALOG.trie, 40, head_weight=weight)
    with torch.no_grad():
        all_BNL = CATALOG.codes_NL.expand(len(HISTORIES), -1, -1)
        sid_BN = score(policy, tokens_BP, mask_BP, all_BNL, CATALOG.trie).logp_BGL.sum(-1)
        head_BN = head_log_probabilities(policy, prefill(policy, tokens_BP, mask_BP).hidden_B1D[:, 0], tokens_BP)
    torch.testing.assert_close(head_BN.exp().sum(-1), torch.ones(3))
    order_BN = (sid_BN + weight * head_BN).sort(descending=True).indices
    assert torch.equal(found.items_BW, order_BN)
    torch.testing.assert_close(found.logp_BW, sid_BN.gather(1, order_BN), atol=1e-4, rtol=1e-4)
    assert found.head_BW is not None
    torch.testing.assert_close(found.head_BW, head_BN.gather(1, order_BN), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "items", [{}, {"input": "both"}, {"input": "vectors"}, {"head": False}, {"score": "dot"}, {"mean": False}]
)
def test_whole_sequences_and_rows_have_one_loss_and_one_gradient(form: str, items: dict[str, object]) -> None:
    policy, prompts = made(Items(dropout=0.0, tokens=form, **items))  # type: ignore[arg-type]
    loss = SftLoss(prompts, CATALOG)
    sequences = [[1, 2, 3, 9, 5], [7, 8, 6, -1, -1]]
    targets = [[False, True, True, False, True], [False, True, True, False, False]]
    dense = Dense(torch.tensor(sequences), torch.tensor(targets))
    cut = [(row[:i], row[i]) for row, wanted in zip(sequences, targets, strict=True) for i in range(5) if wanted[i]]
    rows = Rows([history for history, _ in cut], torch.tensor([target for _, target in cut]))
    amounts, gradients = [], []
    for batch in (dense, rows):
        policy.zero_grad()
        amount = loss(policy, batch)
        amount.backward()
        amounts.append(amount.detach())
        gradients.append({name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None})
    torch.testing.assert_close(*amounts)
    assert set(gradients[0]) == set(gradients[1]) == set(policy.trainable())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_a_cached_prompt_gives_the_answer_of_a_prompt_read_whole(form: str) -> None:
    policy, prompts = made(Items(dropout=0.0, tokens=form))  # type: ignore[arg-type]
    cache = PromptCache(policy, 2**24)
    for history in ([1, 2], [1, 2, 3], [1, 2, 3, 4], [7]):
        inputs = prompts.encode([history])
        cached = beam(policy, *inputs, CATALOG.trie, 10, prefilled=cache.prefill(*inputs), head_weight=1.0)
        whole = beam(policy, *inputs, CATALOG.trie, 10, head_weight=1.0)
        assert torch.equal(cached.items_BW, whole.items_BW)
        torch.testing.assert_close(cached.logp_BWL, whole.logp_BWL, atol=1e-5, rtol=0)
    assert cache.reused_tokens > 0


def test_two_searches_share_one_forward_of_the_prompt() -> None:
    policy, prompts = made()
    inputs = prompts.encode(HISTORIES)
    prefilled = prefill(policy, *inputs)
    for weight in (0.0, 1.0, 0.0):
        shared = beam(policy, *inputs, CATALOG.trie, 12, head_weight=weight, prefilled=prefilled.copy())
        assert torch.equal(shared.items_BW, beam(policy, *inputs, CATALOG.trie, 12, head_weight=weight).items_BW)


def test_an_item_of_one_position_makes_prompts_a_third_as_long() -> None:
    _, short = made(Items(tokens="item"))
    _, long = made(Items(tokens="codes"))
    assert short.encode([[3, 1]])[0].tolist()[0][1:] == [ITEM_TOKEN + 3, ITEM_TOKEN + 1]
    assert (short.max_tokens - 1) * 3 == long.max_tokens - 1
    assert long.encode([[3]])[0][0, -1] == ITEM_TOKEN + 3


def test_an_inserted_item_is_known_by_its_vector_and_changes_no_other() -> None:
    policy, prompts = made()
    grown = catalog_of(60, grown_from=(40,))
    rows, (state_BD, tokens_BP) = rows_of(policy), state_of(policy, prompts.for_catalog(grown))
    with torch.no_grad():
        before_BN = rows.log_probabilities(state_BD, tokens_BP)
        rows.set_catalog(grown, prompts.sids)
        after_BN = rows.log_probabilities(state_BD, tokens_BP)
        both = prefill(policy, *prompts.for_catalog(grown).encode([[50, 51], [51, 50]])).hidden_B1D
    assert after_BN.shape == (3, 60) and after_BN.isfinite().all() and after_BN[:, 40:].std() > 0
    torch.testing.assert_close(after_BN[:, :40].log_softmax(-1), before_BN, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[0], both[1])
    assert rows.own is not None and rows.own.num_embeddings == 40 and rows.head is not None
    near = torch.nn.functional.cosine_similarity(grown.vectors_NF[:40].float(), grown.vectors_NF[50].float(), dim=-1)
    mean_d = rows._compared(rows.head(near.topk(10).indices)).mean(0)
    expected_d = mean_d / mean_d.norm() ** item_rows.NEW_ITEMS
    found_BN = rows._logits(state_BD, None)
    torch.testing.assert_close(found_BN[:, 50], rows._asked(state_BD) @ expected_d)
    torch.testing.assert_close(rows.log_probabilities(state_BD, tokens_BP), after_BN)
    rows.set_catalog(CATALOG, prompts.sids)
    torch.testing.assert_close(rows.log_probabilities(state_BD, tokens_BP), before_BN)


def test_a_removed_item_has_no_probability_and_may_stand_in_a_history() -> None:
    policy, prompts = made()
    shrunk = catalog_of(40, removed=(3, 5))
    rows_of(policy).set_catalog(shrunk, prompts.sids)
    found = beam(policy, *prompts.encode([[3, 5]]), shrunk.trie, 40, head_weight=1.0)
    assert not {3, 5} & set(found.items_BW[0].tolist())
    tokens_BP, mask_BP = prompts.encode([[3, 5]])
    logp_BN = head_log_probabilities(policy, prefill(policy, tokens_BP, mask_BP).hidden_B1D[:, 0], tokens_BP)
    assert logp_BN[0, [3, 5]].tolist() == [-math.inf] * 2 and logp_BN.exp().sum() == pytest.approx(1)


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_drawn_negatives_estimate_the_full_softmax(monkeypatch: pytest.MonkeyPatch, score: str) -> None:
    policy, prompts = made(Items(dropout=0.0, negatives=20_000, weight=1.0, score=score))  # type: ignore[arg-type]
    (state_BD, tokens_BP), target_B = state_of(policy, prompts), torch.tensor([1, 8, 39])
    full_B = rows_of(policy).loss(state_BD, target_B, tokens_BP)
    logp_BN = head_log_probabilities(policy, state_BD, tokens_BP)
    torch.testing.assert_close(full_B, -logp_BN.gather(1, target_B[:, None])[:, 0])
    monkeypatch.setattr(item_rows, "FULL_SOFTMAX", 10)
    torch.manual_seed(0)
    torch.testing.assert_close(rows_of(policy).loss(state_BD, target_B, tokens_BP), full_B, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_of_a_history_is_that_of_its_formula(form: str) -> None:
    policy, prompts = made(Items(dropout=0.0, tokens=form))  # type: ignore[arg-type]
    rows = rows_of(policy)
    assert rows.own is not None and rows.up is not None and rows.mean_up is not None and rows.decay_G is not None
    with torch.no_grad():
        for parameter in (rows.up.weight, rows.mean_up.weight, rows.decay_G):
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        tokens_BP, _ = prompts.encode(HISTORIES)
        zeros = lambda tokens: torch.zeros(*tokens.shape, rows.up.out_features)  # noqa: E731
        found_BPD = rows.embed(tokens_BP, zeros)
        for tokens_P, found_PD, history in zip(tokens_BP, found_BPD, HISTORIES, strict=True):
            item_ID = rows.own(torch.tensor(history))
            gamma_d = rows.decay_G.sigmoid().repeat_interleave(item_ID.shape[1] // len(rows.decay_G))
            for t, place in enumerate((tokens_P >= ITEM_TOKEN).nonzero()[:, 0]):
                weights_td = torch.stack([gamma_d ** (t - s) for s in range(t + 1)])
                mean_d = (weights_td * item_ID[: t + 1]).sum(0) / weights_td.sum(0).sqrt()
                expected_D = rows.up(item_ID[t]) + rows.mean_up(mean_d)
                torch.testing.assert_close(found_PD[place], expected_D, atol=1e-5, rtol=1e-4)
            assert not found_PD[tokens_P < ITEM_TOKEN].any()
        cut = tokens_BP.shape[1] // 2
        rest_BSD = rows.embed(tokens_BP[:, cut:], zeros, tokens_BP[:, :cut])
    torch.testing.assert_close(rest_BSD, found_BPD[:, cut:], atol=1e-5, rtol=1e-4)


def test_soft_targets_are_mixed_with_the_targets_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = made(Items(dropout=0.0, negatives=20_000, weight=2.0))
    rows, (state_BD, tokens_BP) = rows_of(policy), state_of(policy, prompts)
    logp_BN, target_B = head_log_probabilities(policy, state_BD, tokens_BP), torch.tensor([1, 8, 39])
    soft = SoftTargets(torch.tensor([0, 0, 2]), torch.tensor([4, 5, 6]), torch.tensor([0.25, 0.75, 1.0]), 0.3)
    expected_B = -2 * logp_BN.gather(1, target_B[:, None])[:, 0]
    expected_B[0] = 0.7 * expected_B[0] - 2 * 0.3 * (0.25 * logp_BN[0, 4] + 0.75 * logp_BN[0, 5])
    expected_B[2] = 0.7 * expected_B[2] - 2 * 0.3 * logp_BN[2, 6]
    torch.testing.assert_close(rows.loss(state_BD, target_B, tokens_BP, soft), expected_B)
    monkeypatch.setattr(item_rows, "FULL_SOFTMAX", 10)
    torch.manual_seed(0)
    torch.testing.assert_close(rows.loss(state_BD, target_B, tokens_BP, soft), expected_B, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_an_item_of_the_history_gains_the_weights_of_its_ages(form: str) -> None:
    policy, prompts = made(Items(dropout=0.0, tokens=form))  # type: ignore[arg-type]
    rows, (state_BD, tokens_BP) = rows_of(policy), state_of(policy, prompts)
    assert rows.repeat is not None
    expected_BN = rows._logits(state_BD, None)
    weight_BA = rows.repeat(state_BD) * REPEAT_SCALE
    fade_B = (rows.repeat(state_BD)[:, -1] * FADE_SCALE).tanh()
    assert fade_B.abs().min() > 0.01
    for row, history in enumerate(HISTORIES):
        expected_BN[row, sorted(set(history))] *= 1 - fade_B[row]
        for age, item in enumerate(reversed(history)):
            expected_BN[row, item] += weight_BA[row, age]
    torch.testing.assert_close(rows.log_probabilities(state_BD, tokens_BP), expected_BN.log_softmax(-1))


@pytest.mark.parametrize("form", FORMS)
def test_whole_sequences_teach_the_head_what_their_prefixes_do(form: str) -> None:
    """Also the weights of repeats, which must see what is before each target and nothing else."""
    policy, prompts = made(Items(dropout=0.0, tokens=form))  # type: ignore[arg-type]
    sequence = [4, 9, 4, 4, 11]
    dense = Dense(torch.tensor([sequence]), torch.tensor([[False, True, True, True, True]]))
    rows = Rows([sequence[:n] for n in range(1, 5)], torch.tensor(sequence[1:]))
    repeat = rows_of(policy).repeat
    assert repeat is not None
    found: list[Tensor] = []
    for batch in (dense, rows):
        policy.zero_grad()
        loss = SftLoss(prompts, CATALOG)(policy, batch)
        loss.backward()
        assert repeat.bias.grad is not None and repeat.weight.grad is not None
        found.append(torch.cat([loss.detach()[None], repeat.bias.grad, repeat.weight.grad.flatten()]))
    assert found[0][1:].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_repeat_head_without_items_in_the_prompt_has_no_weights() -> None:
    policy, _ = made(Items(input="none", tokens="codes"))
    assert rows_of(policy).repeat is None
    assert rows_of(made(Items(repeats=False))[0]).repeat is None


def test_a_cosine_does_not_see_how_long_a_row_is() -> None:
    policy, prompts = made(Items(dropout=0.0, score="cosine"))
    state_BD, rows = prefill(policy, *prompts.encode(HISTORIES)).hidden_B1D[:, 0], rows_of(policy)
    before_BN = rows._logits(state_BD, None).detach()
    assert rows.head is not None and before_BN.abs().max() <= item_rows.SCALE
    with torch.no_grad():
        rows.head.weight.mul_(torch.arange(1, 41)[:, None])
    torch.testing.assert_close(rows._logits(state_BD, None), before_BN)


def test_own_parts_are_left_out_in_training_only() -> None:
    policy, _ = made(Items(dropout=0.5))
    rows = rows_of(policy)
    items_M = torch.arange(40)
    policy.train()
    torch.manual_seed(0)
    dropped_Nd = rows._input(items_M)
    policy.eval()
    whole_Nd = rows._input(items_M)
    left_out_N = (dropped_Nd == 0).all(-1)
    assert 10 < int(left_out_N.sum()) < 30
    torch.testing.assert_close(dropped_Nd[~left_out_N], whole_Nd[~left_out_N])


def test_rows_travel_in_snapshots_and_files_and_a_policy_without_them_is_told_apart(tmp_path: Path) -> None:
    settings = PolicyConfig(hidden=32, layers=1, heads=2)
    policy, _ = build(settings, CATALOG, max_history=5, seed=3)
    tensors = dict(policy.snapshot(0).tensors)
    assert {"items.own.weight", "items.head.weight", "items.up.weight", "items.query.weight"} <= set(tensors)
    save(policy, tensors, CATALOG, {}, tmp_path)
    again, _ = load(settings, CATALOG, tmp_path, max_history=5, seed=4)
    assert again.snapshot(0).digest == policy.snapshot(0).digest
    with pytest.raises(InputError, match=r"rows of items.*policy\.items"):
        load(settings.replace(items=WITHOUT_ROWS), CATALOG, tmp_path, max_history=5, seed=3)


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Catalog(CATALOG.codes_NL, SIZES)
    sids = SidTokens(2, SIZES)
    with pytest.raises(InputError, match=r"policy\.items\.input=own"):
        ItemRows(Items(input="both"), bare, 32, sids)
    assert ItemRows(Items(), bare, 32, sids).content is None
    policy, prompts = made(WITHOUT_ROWS)
    with pytest.raises(InputError, match=r"no item head.*policy\.items\.head=true"):
        beam(policy, *prompts.encode(HISTORIES), CATALOG.trie, 5, head_weight=1.0)
    monkeypatch.setattr(item_rows.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 20_000}))
    with pytest.raises(InputError, match=r"rows of 40 items.*policy\.items\.dims=8 fits"):
        ItemRows(Items(), CATALOG, 32, sids)
