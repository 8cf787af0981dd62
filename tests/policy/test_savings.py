"""The forward passes that tree decoding saves, and that its answers do not change by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.synthetic import small_policy

from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.sampling import sample
from genrec.policy.decoding.score import score
from genrec.policy.decoding.tree import merge_nodes
from genrec.policy.model import Policy
from genrec.sid.catalog import Catalog

LONE = Catalog(torch.tensor([[0, 1, 2], [1, 1, 2], [2, 0, 0], [3, 3, 3], [4, 0, 1], [5, 0, 2], [5, 1, 0]]), (6, 4, 4))
"""Every item but the last two is alone under its first code; those two are after their second."""


def positions_per_forward(policy: Policy) -> list[int]:
    """Filled with the number of positions of every forward of the model."""
    lengths: list[int] = []
    body: Any = policy.model.base_model
    body.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return lengths


@torch.no_grad()
def test_a_search_needs_no_forward_under_a_prefix_with_one_item() -> None:
    policy, prompts = small_policy(LONE)
    lengths = positions_per_forward(policy)
    tokens_BP, mask_BP = prompts.encode([[1, 2], [3]])
    found = beam(policy, tokens_BP, mask_BP, LONE.trie, 7)
    assert lengths == [tokens_BP.shape[1], 1]
    torch.testing.assert_close(found.logp_BW.exp().sum(1), torch.ones(2))
    assert (found.items_BW.sort(1).values == torch.arange(7)).all()


@torch.no_grad()
def test_samples_at_one_node_share_its_token() -> None:
    policy, prompts = small_policy(LONE)
    lengths = positions_per_forward(policy)
    noise = torch.Generator().manual_seed(0)
    found = sample(policy, *prompts.encode([[1, 2], [3]]), LONE.trie, 200, generator=noise).beams
    assert lengths[1:] == [1]
    exact = beam(policy, *prompts.encode([[1, 2], [3]]), LONE.trie, 7)
    for row, items_W in enumerate(found.items_BW):
        logp = dict(zip(exact.items_BW[row].tolist(), exact.logp_BW[row].tolist(), strict=True))
        assert found.logp_BW[row].tolist() == pytest.approx([logp[item] for item in items_W.tolist()], abs=1e-5)


@torch.no_grad()
def test_candidates_that_share_a_prefix_share_its_token_unless_all_states_are_wanted() -> None:
    policy, prompts = small_policy(LONE)
    lengths = positions_per_forward(policy)
    tokens_BP, mask_BP = prompts.encode([[1], [2]])
    codes_BGL = LONE.codes_NL[torch.tensor([[0, 1, 2], [6, 5, 6]])]
    some = score(policy, tokens_BP, mask_BP, codes_BGL, LONE.trie)
    every = score(policy, tokens_BP, mask_BP, codes_BGL, LONE.trie, True)
    assert [length - tokens_BP.shape[1] for length in lengths] == [1, 3 + 3]
    torch.testing.assert_close(some.logp_BGL, every.logp_BGL)
    assert (some.logp_BGL[1, 0] == some.logp_BGL[1, 2]).all()


def test_open_nodes_are_numbered_once_per_row() -> None:
    nodes_BW = torch.tensor([[7, 3, 7, 9], [2, 2, 2, 5]])
    open_BW = torch.tensor([[True, True, True, False], [True, True, True, False]])
    representative_BM, node_index_BW, seen_BWT = merge_nodes(torch.empty(2, 4, 0, dtype=torch.bool), nodes_BW, open_BW)
    assert representative_BM.tolist() == [[1, 0], [0, 3]]
    assert node_index_BW.tolist() == [[1, 0, 1, 2], [0, 0, 0, 1]]
    assert seen_BWT[0].tolist() == [[False, True], [True, False], [False, True], [False, False]]
