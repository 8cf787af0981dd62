"""PPO's critic: the expected reward of a prefix, and the advantages that follow from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genrec.config import Rl
from genrec.learning.rl.advantages import EPSILON, Total, of_one_worker
from genrec.learning.rl.scorer import GroupScorer, GroupScores
from genrec.learning.rl.value_network import ValueNetwork
from genrec.policy.model import Policy
from genrec.types import Group

LOG = logging.getLogger(__name__)

DISCOUNT = 1.0
"""γ: a semantic ID is L tokens with its reward at the end, so nothing is discounted."""

FILE = "critic.pt"


class Critic(nn.Module):
    """V(prefix) = w · h + b before each level, where h is the policy's hidden state there; w = 0, b = 0 at first.

    The hidden states are detached: the value loss trains the head alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Sequence[Tensor], group: int) -> Tensor:
        """Values (B, G, L) of hidden states per level, (B, 1 or G, D)."""
        levels = [self.head(h_BGD.detach().float()).expand(-1, group, -1) for h_BGD in hidden]
        return torch.cat(levels, dim=-1)


class CriticTrainer:
    """A critic with its own AdamW, next to the policy's.

    Args:
        scorer: of the policy that learns; it must compute all states for a linear critic.
    """

    def __init__(self, policy: Policy, scorer: GroupScorer, settings: Rl, accelerator: Accelerator) -> None:
        self._policy, self._scorer, self._linear = policy, scorer, settings.critic == "linear"
        critic = (
            Critic(int(policy.model.config.hidden_size))
            if self._linear
            else ValueNetwork(policy, settings.critic_layers)
        )
        own = [weight for weight in critic.parameters() if weight.requires_grad]
        if accelerator.is_main_process:
            LOG.info("critic: %s parameters of its own", f"{sum(weight.numel() for weight in own):,}")
        optimizer = torch.optim.AdamW(own, lr=settings.value_lr, weight_decay=0.0)
        self._bare = critic  # As the checkpoint names its weights, whether or not DDP wraps it.
        prepared: Any = accelerator.prepare(critic, optimizer)
        self._critic, self._optimizer = prepared
        self._device = accelerator.device

    def values(self, groups: Sequence[Group], scores: GroupScores) -> Tensor:
        """V before each level of each candidate, (B, G, L); ``scores`` are those of ``groups``."""
        if self._linear:
            return self._critic(scores.hidden, scores.scores.logp_BGL.shape[1])[:, :-1]
        tokens_BP, mask_BP, codes_BGL = self._scorer.inputs(groups)
        return self._critic(self._policy, tokens_BP, mask_BP, codes_BGL[:, :-1])

    def step(self) -> None:
        """Update by the gradients that were added since the last step."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def write(self, directory: Path) -> None:
        """Save the critic and its optimizer next to a checkpoint."""
        learned = {name: weight.detach() for name, weight in self._bare.named_parameters() if weight.requires_grad}
        state = {"critic": learned, "optimizer": self._optimizer.state_dict()}
        torch.save(state, directory / FILE)

    def read(self, directory: Path) -> None:
        """Restore what ``write`` saved."""
        state = torch.load(directory / FILE, weights_only=True, map_location=self._device)
        self._bare.load_state_dict(
            {name.removeprefix("module."): one for name, one in state["critic"].items()}, strict=False
        )
        self._optimizer.load_state_dict(state["optimizer"])


def gae(values_BGL: Tensor, rewards_BG: Tensor, lam: float) -> Tensor:
    """A_l = Σ_k (γ λ)^k δ_{l+k} with δ_l = r_l + γ V_{l+1} - V_l, (B, G, L) (GAE, Schulman et al. 2016, eq. 16).

    r_l is 0 except at the last level, after which V is 0.
    """
    next_BGL = torch.nn.functional.pad(values_BGL[..., 1:], (0, 1))
    delta_BGL = DISCOUNT * next_BGL - values_BGL
    delta_BGL[..., -1] += rewards_BG
    running_BG = torch.zeros_like(rewards_BG)
    found: list[Tensor] = []
    for delta_BG in reversed(delta_BGL.unbind(-1)):
        running_BG = delta_BG + DISCOUNT * lam * running_BG
        found.append(running_BG)
    return torch.stack(found[::-1], dim=-1)


def normalised(advantage_BGL: Tensor, valid_BG: Tensor, total: Total = of_one_worker) -> Tensor:
    """(A - mean(A)) / std(A) over all tokens of real candidates, of all workers, (B, G, L).

    0 for empty candidates, and everywhere if A is constant.
    """
    empty_BG1 = ~valid_BG[..., None]
    real_BGL = advantage_BGL.masked_fill(empty_BG1, 0)
    tokens = valid_BG.sum() * advantage_BGL.shape[-1]
    count, added = total(torch.stack([tokens.to(real_BGL.dtype), real_BGL.sum()]))
    centred_BGL = (advantage_BGL - added / count.clamp(min=1)).masked_fill(empty_BG1, 0)
    std = (total(centred_BGL.square().sum()) / count.clamp(min=1)).sqrt()
    return torch.zeros_like(advantage_BGL) if std < EPSILON else centred_BGL / std


def value_loss(values_BGL: Tensor, returns_BGL: Tensor, valid_BG: Tensor) -> Tensor:
    """Σ_queries mean_{G, L} ½ (V - R)², a scalar (Schulman et al. 2017, eq. 9); 0 for empty candidates.

    R, the return, is A + V with V as it was before the update.
    """
    return (0.5 * (values_BGL - returns_BGL).square() * valid_BG[..., None]).mean((1, 2)).sum()
