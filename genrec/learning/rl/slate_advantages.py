"""Learning from lists: a candidate is an ordered list of J items, a step of its generation is one item.

The objectives are those of single items: where these have the log-probability of each of L codes, a list has that of
each of its J items given the items before it (``list_log_probabilities``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.learning.rl.advantages import EPSILON, LIMIT, centred, shares
from genrec.types import Group


def gains_of(groups: Sequence[Group]) -> Tensor:
    """What each position adds to the reward of its list, (B, G, J)."""
    return torch.stack([group.gains_GJ for group in groups if group.gains_GJ is not None])


def slate_advantages(kind: str, gains_BGJ: Tensor, weight_BG: Tensor) -> Tensor:
    """A_j = R_j - mean(R_j) over a group's lists, where R_j = Σ_{m>=j} gain_m, (B, G, J), clamped to ± LIMIT.

    An item has no part in what the items before it earned, so it is paid what its list earns from it on (reward to
    go; Sutton et al. 2000), less a baseline that depends on its position alone. ``group_std`` divides by the largest
    standard deviation of the R_j, mostly that of R_1, the lists' rewards; ``leave_one_out`` multiplies by n / (n - 1).
    Where R_j differ by less than EPSILON, and for empty lists, advantages are 0.
    """
    share_BG1 = shares(weight_BG)[..., None]
    to_go_BGJ = gains_BGJ.flip(-1).cumsum(-1).flip(-1)
    centred_BGJ = centred(to_go_BGJ.mT, share_BG1.expand_as(to_go_BGJ).mT).mT
    count_B11 = (weight_BG > 0).sum(-1)[:, None, None]
    if kind == "group_std":
        spread_BGJ = (share_BG1 * centred_BGJ.square()).sum(1, keepdim=True).sqrt()
        centred_BGJ = centred_BGJ / spread_BGJ.amax(-1, keepdim=True).clamp(min=EPSILON)
    elif kind == "leave_one_out":
        centred_BGJ = centred_BGJ * count_B11 / (count_B11 - 1).clamp(min=1)
    is_noise_BGJ = (share_BG1 == 0) | (centred_BGJ.abs() < EPSILON)
    return centred_BGJ.masked_fill(is_noise_BGJ, 0).clamp(-LIMIT, LIMIT)


def require_room(size: int, items: int) -> None:
    """Refuse lists that are longer than the catalogue.

    Raises:
        InputError: ``size`` is larger than ``items``.
    """
    if size > items:
        raise InputError(
            f"learning.rl.slate: got lists of {size} distinct items, and the catalogue has {items}; wanted at most "
            f"{items}, such as learning.rl.slate={min(10, items)}"
        )
