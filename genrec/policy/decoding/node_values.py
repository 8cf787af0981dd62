"""A value network at test time: it steers a beam search, and the policy's own probabilities stay as they are.

A search with it ranks items, and partial beams, by

    log π(node) + weight · log σ(V(node)),

where σ(V(node)) estimates the probability that the user's next item lies under the node. Beams that look improbable to
the policy but lead somewhere are kept, as in the value-guided decoding of V-STAR (Jiang et al. 2602.10699), which
trains its policy by such values as well; here the policy is frozen.

V of a node is read where its code is predicted, from the state h of the prefix before it: appending a code is
deterministic, so the value of the action is that of the node that it leads to. All children of a beam thus have values
without a forward pass more. With e_c the policy's own output row of code c,

    V(node) = α · log π(node) + β + e_c · U gelu(D norm(h) + b),

α, β, U, D and b of the node's level. It begins as the policy's own estimate, α = 1, β = 0 and U = 0. A node whose
parent has one item under it stands for the same item, and has its parent's value.

Several members of one shape learn beside each other, each without a part of the users
(``genrec.learning.value_training``).

Shapes: B queries, W beams, K codes of a level, L levels, M members, R units, D hidden units.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from genrec.data.files import write_atomically
from genrec.errors import InputError
from genrec.policy.decoding.beam import Chosen, Frontier, is_deterministic
from genrec.policy.model import Policy
from genrec.seeds import seed_of
from genrec.sid.trie import CompleteTrie, Trie

FILE = "value.safetensors"

FOLDS = 4
"""Parts of the users; member m < FOLDS learns without the users whose number is m modulo it, the last one from all."""

UNITS = 32
"""R: few, since there are only as many targets as queries."""


def members(user_B: Tensor, *, learned_from: bool) -> Tensor:
    """The member (B,) that answers the queries of users: where these were learned from, one that has not seen them."""
    return user_B % FOLDS if learned_from else torch.full_like(user_B, FOLDS)


class NodeValues(nn.Module):
    """V of the module's formula, FOLDS + 1 times.

    Args:
        policy: whose states it reads; it keeps nothing of it.
    """

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        super().__init__()
        levels, members, hidden = len(policy.sids.level_sizes), FOLDS + 1, int(policy.model.config.hidden_size)
        start = torch.Generator().manual_seed(seed_of("node values", seed))
        down_DR = torch.randn(hidden, UNITS, generator=start) / math.sqrt(hidden)
        self.down_LMDR = nn.Parameter(down_DR.expand(levels, members, -1, -1).clone())
        self.bias_LMR = nn.Parameter(torch.zeros(levels, members, UNITS))
        self.up_LMRD = nn.Parameter(torch.zeros(levels, members, UNITS, hidden))
        self.slope_LM = nn.Parameter(torch.ones(levels, members))
        self.shift_LM = nn.Parameter(torch.zeros(levels, members))

    def forward(self, policy: Policy, level: int, hidden_BWD: Tensor, logp_BWK: Tensor, member_B: Tensor) -> Tensor:
        """V (B, W, K) of the children of beams.

        Args:
            hidden_BWD: the states that the codes of ``level`` are predicted from.
            logp_BWK: log π of the children, -inf where there is none: there V is -inf, too.
            member_B: the member that answers each query.
        """
        normed_BWD = F.layer_norm(hidden_BWD.float(), hidden_BWD.shape[-1:])
        units_BWR = F.gelu(normed_BWD @ self.down_LMDR[level, member_B] + self.bias_LMR[level, member_B][:, None])
        more_BWK = policy.level_logits(units_BWR @ self.up_LMRD[level, member_B], level).float()
        slope_B11, shift_B11 = (one_LM[level, member_B][:, None, None] for one_LM in (self.slope_LM, self.shift_LM))
        real_BWK = logp_BWK > -torch.inf
        value_BWK = slope_B11 * logp_BWK.masked_fill(~real_BWK, 0.0) + shift_B11 + more_BWK
        return value_BWK.masked_fill(~real_BWK, -torch.inf)

    def save(self, directory: Path, policy: Policy) -> None:
        """Write it to ``FILE`` in ``directory``, with the digest of the policy whose states it reads."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.named_parameters()}
        about = {"about": json.dumps({"policy": policy.snapshot(0).digest})}
        write_atomically(directory / FILE, lambda path: save_file(tensors, path, metadata=about))

    @classmethod
    def load(cls, directory: Path, policy: Policy) -> NodeValues:
        """What ``save`` wrote, on the device of ``policy``.

        Raises:
            InputError: no readable value network is there, or it reads the states of another policy.
        """
        network = cls(policy)
        try:
            with safe_open(directory / FILE, framework="pt") as stored:
                about = json.loads((stored.metadata() or {})["about"])
                network.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"no readable value network in {directory}: {error}; make it with `genrec evaluate` and "
                "decode.value=true, or search without it, decode.value=false"
            ) from error
        if about.get("policy") != policy.snapshot(0).digest:
            raise InputError(
                f"the value network in {directory} reads the states of another policy; wanted that of the policy that "
                "is searched: make the stage value again, or set decode.value=false"
            )
        return network.requires_grad_(False).to(policy.device)


class ValueGuide:
    """One search steered by a value network: called at each level, and told which beams were chosen.

    Args:
        member_B: the member that answers each query.
        weight: of log σ(V); 0 leaves the search as it is, and still keeps the values of what it finds.
    """

    def __init__(
        self, network: NodeValues, policy: Policy, trie: Trie | CompleteTrie, member_B: Tensor, weight: float
    ) -> None:
        self._network, self._policy, self._trie, self._member_B = network, policy, trie, member_B
        self._weight = weight
        self.log_value_BW = torch.zeros(len(member_B), 1, device=member_B.device)
        self._log_value_BWK = self.log_value_BW[..., None]

    @torch.no_grad()
    def added(self, frontier: Frontier) -> Tensor:
        """weight · log σ(V) (B, W, K) of the children of the frontier; 0 where there is no child."""
        logp_BWK = frontier.total_BW[..., None] + frontier.step_BWK
        value_BWK = self._network(self._policy, frontier.level, frontier.hidden_BWD, logp_BWK, self._member_B)
        log_value_BWK = F.logsigmoid(value_BWK)
        if frontier.level:
            single_BW = is_deterministic(self._trie, frontier.level, frontier.nodes_BW.clamp(min=0))
            log_value_BWK = torch.where(single_BW[..., None], self.log_value_BW[..., None], log_value_BWK)
        self._log_value_BWK = log_value_BWK.masked_fill(logp_BWK == -torch.inf, 0.0)
        return self._weight * self._log_value_BWK

    def follow(self, chosen: Chosen) -> None:
        """Keep the values of the chosen beams as ``log_value_BW``, 0 at empty ones."""
        rows_B1 = torch.arange(len(self._member_B), device=self._member_B.device)[:, None]
        log_value_BW = self._log_value_BWK[rows_B1, chosen.parents_BW, chosen.codes_BW]
        self.log_value_BW = log_value_BW.masked_fill(~chosen.real_BW, 0.0)
