"""A beam search steered by a value network: brute force over the whole catalogue, members, files, and its training."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support.synthetic import random_catalog, small_policy
from torch import Tensor

from genrec.errors import InputError
from genrec.learning.value_training import train_node_values
from genrec.policy.decoding.beam import Beams, beam
from genrec.policy.decoding.node_values import FILE, FOLDS, NodeValues, ValueGuide, members
from genrec.policy.decoding.prompt_cache import prefill
from genrec.policy.decoding.tree import prompt_mask, prompt_positions
from genrec.policy.model import Policy
from genrec.sid.catalog import Catalog

HISTORIES = [[1, 2, 3], [5], [9, 8, 7, 6]]
ITEMS, SIZES = 30, (3, 4, 5)
MEMBERS = torch.tensor([0, FOLDS, 2])


def drawn_values(policy: Policy, seed: int) -> NodeValues:
    """A network whose values differ from node to node and from member to member."""
    network, generator = NodeValues(policy, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (network.bias_LMR, network.up_LMRD, network.shift_LM):
            tensor.normal_(std=0.3, generator=generator)
        network.slope_LM.uniform_(0.3, 1.5, generator=generator)
    return network


def searched(seed: int, weight: float, width: int, arch: str = "gpt2") -> tuple[Beams, Beams, Policy, Catalog, Tensor]:
    """Beams under a drawn network, those of the policy alone, and log π + weight · log σ(V) of every item."""
    catalog = random_catalog(ITEMS, SIZES, seed)
    policy, prompts = small_policy(catalog, arch, seed)
    network, inputs = drawn_values(policy, seed), prompts.encode(HISTORIES)
    guide = ValueGuide(network, policy, catalog.trie, MEMBERS, weight)
    found, plain = (beam(policy, *inputs, catalog.trie, width, guide=one) for one in (guide, None))
    score_BN = torch.tensor(
        [
            [by_hand(network, policy, catalog, [*prompt], item, weight, int(MEMBERS[row])) for item in range(ITEMS)]
            for row, prompt in enumerate(tokens[mask].tolist() for tokens, mask in zip(*inputs, strict=True))
        ]
    )
    return found, plain, policy, catalog, score_BN


@torch.no_grad()
def by_hand(
    network: NodeValues, policy: Policy, catalog: Catalog, prompt: list[int], item: int, weight: float, member: int
) -> float:
    """The score of one item by whole sequences and the formula of the module."""
    all_codes, codes = catalog.codes_NL.tolist(), catalog.codes_NL[item].tolist()
    logp = log_value = 0.0
    for level, code in enumerate(codes):
        tokens = [*prompt, *(int(policy.sids.token(depth, torch.tensor(codes[depth]))) for depth in range(level))]
        tokens_1P = torch.tensor([tokens])
        mask_1P = torch.ones_like(tokens_1P, dtype=torch.bool)
        hidden_D = policy.hidden(tokens_1P, prompt_positions(mask_1P), prompt_mask(mask_1P))[0, -1]
        under = [other for other in all_codes if other[:level] == codes[:level]]
        if len(under) == 1:
            break
        allowed = sorted({other[level] for other in under})
        logits_K = policy.level_logits(hidden_D, level)
        logp += float(logits_K[allowed].log_softmax(0)[allowed.index(code)])
        units_R = F.layer_norm(hidden_D, hidden_D.shape) @ network.down_LMDR[level, member]
        shifted_D = F.gelu(units_R + network.bias_LMR[level, member]) @ network.up_LMRD[level, member]
        more = float(policy.level_logits(shifted_D, level)[code])
        value = float(network.slope_LM[level, member]) * logp + float(network.shift_LM[level, member]) + more
        log_value = float(F.logsigmoid(torch.tensor(value)))
    return logp + weight * log_value


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_wide_beams_rank_the_whole_catalogue_as_brute_force_does(seed: int, weight: float, arch: str) -> None:
    found, plain, _, _, score_BN = searched(seed, weight, ITEMS, arch)
    assert found.value_BW is not None and plain.value_BW is None
    steered_BW = found.logp_BW + weight * found.value_BW
    torch.testing.assert_close(steered_BW, score_BN.gather(1, found.items_BW), atol=1e-4, rtol=0)
    torch.testing.assert_close(steered_BW, score_BN.sort(dim=1, descending=True).values, atol=1e-4, rtol=0)
    assert (found.items_BW.sort().values == torch.arange(ITEMS)).all()
    assert not torch.equal(found.items_BW, plain.items_BW)


def test_without_weight_the_search_is_todays_and_values_are_still_kept() -> None:
    found, plain, *_ = searched(1, 0.0, 7)
    assert torch.equal(found.items_BW, plain.items_BW) and torch.equal(found.logp_BWL, plain.logp_BWL)
    assert found.value_BW is not None and (found.value_BW < 0).all()
    order_BW = found.best_first_BW.flip(1)
    turned_BW = found.ordered(order_BW).value_BW
    assert turned_BW is not None and torch.equal(turned_BW, found.value_BW.gather(1, order_BW))


def test_a_new_network_is_the_policys_own_estimate() -> None:
    catalog = random_catalog(ITEMS, SIZES, 2)
    policy, prompts = small_policy(catalog, seed=2)
    inputs = prompts.encode(HISTORIES)
    guide = ValueGuide(NodeValues(policy), policy, catalog.trie, MEMBERS, 3.0)
    found, plain = (beam(policy, *inputs, catalog.trie, 6, guide=one) for one in (guide, None))
    assert found.value_BW is not None
    assert torch.equal(found.items_BW, plain.items_BW)
    torch.testing.assert_close(found.value_BW, F.logsigmoid(found.logp_BW))


def test_narrow_beams_of_unequal_width_leave_the_values_of_empty_ones_at_zero() -> None:
    catalog = random_catalog(ITEMS, SIZES, 3)
    policy, prompts = small_policy(catalog, seed=3)
    guide = ValueGuide(drawn_values(policy, 3), policy, catalog.trie, MEMBERS, 1.0)
    found = beam(policy, *prompts.encode(HISTORIES), catalog.trie, [1, 4, 2], guide=guide)
    assert found.value_BW is not None
    assert ((found.items_BW >= 0) == (found.value_BW < 0)).all()
    assert (found.items_BW >= 0).sum(1).tolist() == [1, 4, 2]


def test_a_user_that_was_learned_from_is_answered_by_a_member_that_was_not() -> None:
    users_B = torch.arange(2 * FOLDS)
    assert members(users_B, learned_from=True).tolist() == [*range(FOLDS), *range(FOLDS)]
    assert set(members(users_B, learned_from=False).tolist()) == {FOLDS}


def test_it_is_read_as_it_was_written_and_for_no_other_policy(tmp_path: Path) -> None:
    catalog = random_catalog(ITEMS, SIZES, 4)
    policy, _ = small_policy(catalog, seed=4)
    network = drawn_values(policy, 4)
    network.save(tmp_path, policy)
    read = NodeValues.load(tmp_path, policy)
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in network.state_dict().items())
    other, _ = small_policy(catalog, seed=5)
    with pytest.raises(InputError, match="states of another policy"):
        NodeValues.load(tmp_path, other)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:50])
    with pytest.raises(InputError, match=r"no readable value network .* decode\.value=false"):
        NodeValues.load(tmp_path, policy)
    with pytest.raises(InputError, match="no readable value network"):
        NodeValues.load(tmp_path / "nowhere", policy)


def shop_queries(users: int) -> pa.Table:
    """Users whose next item is that after their last one: nothing that an untrained policy knows."""
    histories = [[user % ITEMS, (user * 7) % ITEMS] for user in range(users)]
    targets = [(history[-1] + 1) % ITEMS for history in histories]
    return pa.table({"user": list(range(users)), "history": histories, "target": targets})


def test_training_helps_users_that_it_has_not_seen_and_leaves_the_policy_alone() -> None:
    catalog = random_catalog(ITEMS, SIZES, 6)
    policy, prompts = small_policy(catalog, seed=6)
    before = policy.snapshot(0).digest
    queries = shop_queries(360)
    network, about = train_node_values(policy, prompts, catalog, queries, head_weight=0.0, seed=0)
    assert about["best_epoch"] > 0 and about["loss"] < about["loss_of_policy"]
    assert policy.snapshot(0).digest == before and all(one.grad is None for one in policy.parameters())
    hits = []
    for weight in (0.0, 2.0):
        inputs = prompts.encode(queries["history"].to_pylist())
        member_B = members(torch.tensor(queries["user"].to_pylist()), learned_from=True)
        guide = ValueGuide(network, policy, catalog.trie, member_B, weight)
        found = beam(policy, *inputs, catalog.trie, 5, guide=guide, prefilled=prefill(policy, *inputs))
        hits.append(int((found.items_BW == torch.tensor(queries["target"].to_pylist())[:, None]).sum()))
    assert hits[1] > 1.5 * hits[0], hits


def test_users_of_one_fold_are_enough_and_equal_seeds_train_equal_networks() -> None:
    catalog = random_catalog(ITEMS, SIZES, 7)
    policy, prompts = small_policy(catalog, seed=7)
    queries = shop_queries(64)
    only = queries.filter(pa.array([user % FOLDS == 1 for user in queries["user"].to_pylist()]))
    (network, about), (again, _) = (
        train_node_values(policy, prompts, catalog, only, head_weight=0.0, seed=0) for _ in range(2)
    )
    assert about["queries"] == 16
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in network.parameters())
