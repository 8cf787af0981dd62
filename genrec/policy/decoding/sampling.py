"""Other searches on the same tree: sampling with and without replacement, diverse groups, no catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.policy.decoding.beam import Beams, Chosen, Frontier, Scale, beam, pick, search
from genrec.policy.decoding.noise import Source, uniform
from genrec.policy.model import Policy
from genrec.sid.trie import CompleteTrie, Trie


@dataclass(frozen=True)
class SampledBeams:
    """Distinct samples, in the order of their perturbed log-probabilities.

    ``perturbed_BW``: Gumbel-perturbed log-probability of each, descending, -inf at empty places;
    ``threshold_B``: that of the best item left out (-inf when none was). An item of log-probability φ is included with
    probability q = 1 - exp(-exp(φ - threshold)); importance weights are exp(φ) / q (Kool et al. 2019, Eq. 12).
    """

    beams: Beams
    perturbed_BW: Tensor
    threshold_B: Tensor

    @property
    def inclusion_BW(self) -> Tensor:
        """q (B, W), the probability that each sample is included, given the threshold."""
        return -torch.expm1(-torch.exp(self.beams.logp_BW - self.threshold_B[:, None]))


@dataclass(frozen=True)
class TemperedBeams:
    """Independent samples, best first, and their log-probability (B, W) under the tempered policy that drew them.

    That of ``beams`` is the policy's own, at temperature 1.
    """

    beams: Beams
    behaviour_BW: Tensor


def sample(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    trie: Trie,
    count: int,
    *,
    temperature: float = 1.0,
    generator: Source = None,
) -> TemperedBeams:
    """``count`` independent draws per query from the trie-renormalised policy at ``temperature``.

    The tempered policy takes a step with probability ∝ π^(1 / temperature). An item may be drawn more than once.
    """
    behaviour: list[Tensor] = []

    def draw(frontier: Frontier) -> Chosen:
        weights_BWK = torch.softmax(frontier.step_BWK.double() / temperature, dim=-1)
        below_BWK, device = weights_BWK.cumsum(-1), weights_BWK.device
        drawn_BW1 = uniform((*below_BWK.shape[:2], 1), generator, device) * below_BWK[..., -1:]
        drawn_BW = (below_BWK <= drawn_BW1).sum(-1)
        behaviour.append(weights_BWK.gather(-1, drawn_BW[..., None])[..., 0].log())
        parents_BW = torch.arange(drawn_BW.shape[1], device=device).expand(len(drawn_BW), -1)
        return Chosen(parents_BW, drawn_BW, torch.ones_like(drawn_BW, dtype=torch.bool))

    drawn = search(policy, tokens_BP, mask_BP, trie, draw, roots=count)
    order_BW = drawn.best_first_BW
    return TemperedBeams(drawn.ordered(order_BW), torch.stack(behaviour).sum(0).float().gather(1, order_BW))


def stochastic_beam(
    policy: Policy,
    tokens_BP: Tensor,
    mask_BP: Tensor,
    trie: Trie,
    count: int,
    *,
    generator: Source = None,
) -> SampledBeams:
    """``count`` distinct items per query, drawn without replacement from the trie-renormalised policy.

    Source: Kool, van Hoof & Welling, "Stochastic Beams and Where to Find Them" (2019), Algorithm 1: a beam search over
    log-probabilities perturbed by Gumbel noise, each child's conditioned on its parent's.
    """
    state: list[Tensor] = []

    def gumbel(frontier: Frontier) -> Chosen:
        phi_BWK = frontier.total_BW[..., None] + frontier.step_BWK
        # The root's own is drawn too: with a fixed one the thresholds, and so the inclusion probabilities, are wrong.
        parent_BW = state[-1] if state else gumbel_noise(frontier.total_BW.shape, generator, phi_BWK.device)
        perturbed_BWK = conditioned(phi_BWK + gumbel_noise(phi_BWK.shape, generator, phi_BWK.device), parent_BW)
        chosen = pick(perturbed_BWK, count + 1)
        rows_B1 = torch.arange(len(phi_BWK), device=phi_BWK.device)[:, None]
        state.append(perturbed_BWK[rows_B1, chosen.parents_BW, chosen.codes_BW])
        return chosen

    found, last_BW = search(policy, tokens_BP, mask_BP, trie, gumbel, roots=1), state[-1]
    kept = min(count, last_BW.shape[1])
    first = torch.arange(kept, device=last_BW.device).expand(len(last_BW), -1)
    left_out = last_BW[:, count] if last_BW.shape[1] > count else last_BW.new_full((len(last_BW),), -torch.inf)
    return SampledBeams(found.ordered(first), last_BW[:, :kept], left_out)


def gumbel_noise(shape: Sequence[int], generator: Source, device: torch.device) -> Tensor:
    """Standard Gumbel noise of ``shape`` (B, …), float32."""
    return -torch.log(-torch.log(uniform(shape, generator, device).clamp(1e-20, 1 - 1e-7)))


def conditioned(perturbed_BWK: Tensor, parent_BW: Tensor) -> Tensor:
    """Gumbels shifted so that the largest under each parent is the parent's own (Kool et al. 2019, appendix B.3)."""
    parent_BW1 = parent_BW[..., None]
    gap_BWK = perturbed_BWK - perturbed_BWK.amax(-1, keepdim=True)
    v_BWK = parent_BW1 - perturbed_BWK + torch.log1p(-torch.exp(gap_BWK))
    shifted_BWK = parent_BW1 - v_BWK.clamp(min=0) - torch.log1p(torch.exp(-v_BWK.abs()))
    return shifted_BWK.masked_fill(torch.isneginf(perturbed_BWK) | torch.isneginf(parent_BW1), -torch.inf)


def diverse_beam(
    policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie, width: int, *, groups: int, penalty: float
) -> Beams:
    """``width`` items, searched in ``groups`` groups of equal size, one after the other at each level.

    A code's score at a level is log p - ``penalty`` · n, where n counts the beams of earlier groups that chose the code
    there. Source: Vijayakumar et al., "Diverse Beam Search" (2018), with Hamming diversity. The returned
    log-probabilities are the policy's own. No item is found twice: at the last level a group skips the items that
    earlier groups found.

    Raises:
        InputError: ``width`` is not a multiple of ``groups``.
    """
    found = beam(policy, tokens_BP, mask_BP, trie, width, pick_from=BeamGroups(groups, width, penalty, trie.depth))
    return found.ordered(found.best_first_BW)


class BeamGroups:
    """The choice of ``diverse_beam`` for one search; after the first level each group has ``share`` adjacent beams.

    Raises:
        InputError: ``width`` is not a multiple of ``groups``.
    """

    def __init__(self, groups: int, width: int, penalty: float, depth: int) -> None:
        if groups < 1 or width % groups:
            raise InputError(f"got {width} beams for {groups} equal groups; the beams must be a multiple of the groups")
        self._groups, self._share, self._penalty, self._levels_left = groups, width // groups, penalty, depth

    def __call__(self, scores_BWK: Tensor, children_BWK: Tensor) -> Chosen:
        """See ``beam.Pick``."""
        first, self._levels_left = scores_BWK.shape[1] == 1, self._levels_left - 1
        used_B1K = torch.zeros_like(scores_BWK[:, :1])
        chosen: list[Chosen] = []
        taken_Bx = torch.full((len(scores_BWK), 1), -2, device=scores_BWK.device)
        for group in range(self._groups):
            own = slice(0, 1) if first else slice(group * self._share, (group + 1) * self._share)
            children_BwK = children_BWK[:, own].long()
            wanted_BwK = scores_BWK[:, own] - self._penalty * used_B1K
            if self._levels_left == 0:
                is_taken_BwK = (children_BwK[..., None] == taken_Bx[:, None, None]).any(-1)
                wanted_BwK = wanted_BwK.masked_fill(is_taken_BwK, -torch.inf)
            picked = padded(pick(wanted_BwK, self._share), self._share)
            rows_B1 = torch.arange(len(wanted_BwK), device=wanted_BwK.device)[:, None]
            found_Bw = children_BwK[rows_B1, picked.parents_BW, picked.codes_BW].masked_fill(~picked.real_BW, -2)
            taken_Bx = torch.cat([taken_Bx, found_Bw], dim=1)
            used_B1K.scatter_add_(2, picked.codes_BW[:, None], picked.real_BW[:, None].to(used_B1K.dtype))
            chosen.append(picked._replace(parents_BW=picked.parents_BW + own.start))
        return Chosen(*(torch.cat(parts, dim=1) for parts in zip(*chosen, strict=True)))


def padded(chosen: Chosen, width: int) -> Chosen:
    """``chosen`` with empty beams at its end, ``width`` in all."""
    missing = width - chosen.codes_BW.shape[1]
    return Chosen(*(torch.nn.functional.pad(part, (0, missing)) for part in chosen))


def greedy(policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie) -> Beams:
    """The best code at each level, one item per query."""
    return beam(policy, tokens_BP, mask_BP, trie, 1)


def unconstrained(
    policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, trie: Trie, width: int, *, scale: Scale = "vocabulary"
) -> Beams:
    """Beam search over all K_1 · … · K_L semantic IDs; ``items_BW`` is -1 where the catalogue has no such item.

    Each step's softmax runs over the whole vocabulary (``scale="trie"``: over the K codes of the level).
    """
    found = beam(policy, tokens_BP, mask_BP, CompleteTrie(trie.level_sizes), width, scale=scale)
    return Beams(trie.find(found.codes_BWL), found.codes_BWL, found.logp_BWL)


def validity_by_rank(found: Beams) -> Tensor:
    """Share (W,) of the queries whose SID at each rank is in the catalogue, for beams of ``unconstrained``."""
    return (found.items_BW >= 0).float().mean(0)
