import itertools

import pytest
import torch
from support.synthetic import random_catalog, small_policy

from genrec.errors import InputError
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.sampling import sample
from genrec.policy.decoding.score import score
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog

HISTORIES = [[1, 2, 3], [5], [9, 8, 7, 6, 5, 4, 3, 2], [0, 0]]


def brute_force(policy: Policy, prompts: Prompts, catalog: Catalog, histories: list[list[int]]) -> torch.Tensor:
    """log p of every item after every history, (B, N): each candidate alone behind its own unpadded prompt."""
    rows = []
    for history in histories:
        tokens_1P, _ = prompts.encode([history])
        each = []
        for codes_L in catalog.codes_NL:
            sequence = torch.cat([tokens_1P[0], policy.sids.tokens(codes_L)])[None]
            logits = policy.model(input_ids=sequence).logits[0, tokens_1P.shape[1] - 1 :]
            total = 0.0
            for level, code in enumerate(codes_L.tolist()):
                same = (catalog.codes_NL[:, :level] == codes_L[:level]).all(-1)
                allowed = catalog.codes_NL[same, level].unique()
                start = policy.sids.base + policy.sids.offsets[level]
                total += float(logits[level, start + code] - logits[level, start + allowed].logsumexp(0))
            each.append(total)
        rows.append(each)
    return torch.tensor(rows)


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
@pytest.mark.parametrize("sizes", [(5, 4, 6), (3, 3), (2, 3, 2, 4)])
@torch.no_grad()
def test_a_beam_as_wide_as_the_catalogue_is_brute_force(arch: str, sizes: tuple[int, ...]) -> None:
    catalog = random_catalog(9 if len(sizes) == 2 else 20, sizes, seed=len(sizes))
    policy, prompts = small_policy(catalog, arch)
    histories = [[item % len(catalog) for item in history] for history in HISTORIES]
    expected_BN = brute_force(policy, prompts, catalog, histories)
    found = beam(policy, *prompts.encode(histories), catalog.trie, 64)
    best_BN = expected_BN.sort(-1, descending=True)
    count = len(catalog)
    torch.testing.assert_close(found.logp_BW[:, :count], best_BN.values, atol=1e-4, rtol=0)
    assert (found.items_BW[:, :count].sort(-1).values == torch.arange(count)).all()
    assert (found.items_BW[:, count:] == -1).all()


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_beams_are_those_of_generate(arch: str) -> None:
    catalog = random_catalog(90, (6, 7, 8))
    policy, prompts = small_policy(catalog, arch)
    tokens_BP, mask_BP = prompts.encode(HISTORIES)
    children: dict[tuple[int, ...], set[int]] = {}
    for tokens in policy.sids.tokens(catalog.codes_NL).tolist():
        for level in range(3):
            children.setdefault(tuple(tokens[:level]), set()).add(tokens[level])

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        return sorted(children.get(tuple(ids[tokens_BP.shape[1] :].tolist()), {0}))

    out = policy.model.generate(
        input_ids=tokens_BP,
        attention_mask=mask_BP.long(),
        num_beams=10,
        num_return_sequences=10,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        renormalize_logits=True,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = beam(policy, tokens_BP, mask_BP, catalog.trie, 10)
    expected = out.sequences[:, tokens_BP.shape[1] :].view(len(HISTORIES), 10, 3)
    assert (policy.sids.tokens(found.codes_BWL) == expected).all()
    torch.testing.assert_close(found.logp_BW, out.sequences_scores.view(len(HISTORIES), 10), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_no_answer() -> None:
    catalog = random_catalog(60, (6, 6, 6))
    policy, prompts = small_policy(catalog)
    together = beam(policy, *prompts.encode(HISTORIES), catalog.trie, 8)
    for row, history in enumerate(HISTORIES):
        alone = beam(policy, *prompts.encode([history]), catalog.trie, 8)
        assert (alone.items_BW[0] == together.items_BW[row]).all()
        torch.testing.assert_close(alone.logp_BW[0], together.logp_BW[row], atol=1e-5, rtol=1e-5)


def test_no_beam_is_invalid_and_none_is_there_twice() -> None:
    for seed, width in itertools.product(range(4), (1, 3, 50)):
        catalog = random_catalog(30, (4, 4, 4), seed)
        policy, prompts = small_policy(catalog, seed=seed)
        found = beam(policy, *prompts.encode(HISTORIES), catalog.trie, width)
        for items_W, codes_WL in zip(found.items_BW, found.codes_BWL, strict=True):
            real = items_W[items_W >= 0]
            assert len(real.unique()) == len(real) == min(width, len(catalog))
            assert (catalog.codes_NL[real] == codes_WL[items_W >= 0]).all()


@torch.no_grad()
def test_samples_follow_the_policy() -> None:
    catalog = random_catalog(6, (3, 3))
    policy, prompts = small_policy(catalog)
    tokens_BP, mask_BP = prompts.encode([[1, 2]])
    noise = torch.Generator().manual_seed(0)
    drawn = sample(policy, tokens_BP, mask_BP, catalog.trie, 4000, generator=noise).beams
    exact = beam(policy, tokens_BP, mask_BP, catalog.trie, 6)
    for item, logp in zip(exact.items_BW[0].tolist(), exact.logp_BW[0], strict=True):
        share = float((drawn.items_BW[0] == item).float().mean())
        assert share == pytest.approx(float(logp.exp()), abs=0.035)


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_shared_scoring_equals_separate_sequences_in_value_and_gradient(arch: str) -> None:
    catalog = random_catalog(60, (6, 6, 6))
    policy, prompts = small_policy(catalog, arch)
    tokens_BP, mask_BP = prompts.encode(HISTORIES)
    codes_BGL = catalog.codes_NL[torch.randint(60, (len(HISTORIES), 7), generator=torch.Generator().manual_seed(3))]
    weights = torch.randn(codes_BGL.shape, generator=torch.Generator().manual_seed(4))

    def gradients(logp_BGL: torch.Tensor) -> torch.Tensor:
        policy.zero_grad()
        (logp_BGL * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None])

    shared = score(policy, tokens_BP, mask_BP, codes_BGL, catalog.trie).logp_BGL
    single = [score(policy, tokens_BP, mask_BP, codes_BGL[:, g : g + 1], catalog.trie).logp_BGL for g in range(7)]
    separate = torch.cat(single, dim=1)
    torch.testing.assert_close(shared, separate, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(shared), gradients(separate), atol=2e-4, rtol=1e-3)


def test_two_items_with_one_sid_are_refused() -> None:
    with pytest.raises(InputError, match="share a semantic ID"):
        Catalog(torch.tensor([[0, 1], [0, 1]]), (2, 2))


def test_a_policy_of_another_catalogue_is_refused() -> None:
    catalog = random_catalog(20, (4, 4, 4))
    _, prompts = small_policy(catalog)
    other = random_catalog(20, (5, 4, 4))
    with pytest.raises(InputError, match="levels"):
        Prompts(other, prompts.sids, [1], [], 0, 6)
