"""A value network with last layers of its own, over the lower layers of the policy."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from genrec.errors import InputError
from genrec.policy.decoding.last_layer import find_layers
from genrec.policy.decoding.score import states
from genrec.policy.model import Policy


class ValueNetwork(nn.Module):
    """V(prefix) = w · norm(layers(h)) + b, where h enters the last ``count`` layers of the policy; w, b are 0 at first.

    ``layers`` begin as copies of these layers and learn from the value loss, which reaches no weight of the policy.
    What is frozen in the policy's layers, as under adapters, is frozen here and shared with them.

    Raises:
        InputError: the policy has fewer layers.
    """

    def __init__(self, policy: Policy, count: int) -> None:
        super().__init__()
        own = _last_layers(policy, count)
        frozen = {id(weight): weight for weight in own.parameters() if not weight.requires_grad}
        self.layers: nn.ModuleList = deepcopy(own, cast("dict[int, Any]", frozen)).eval()
        width = int(policy.model.config.hidden_size)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, policy: Policy, tokens_BP: Tensor, mask_BP: Tensor, codes_BGL: Tensor) -> Tensor:
        """Values (B, G, L) before each level of the candidates ``codes_BGL`` after left-padded prompts."""
        network: Any = _Body(policy, self)
        hidden = states(network, tokens_BP, mask_BP, codes_BGL)
        group = codes_BGL.shape[1]
        return torch.cat([self.head(self.norm(h_BGD.float())).expand(-1, group, -1) for h_BGD in hidden], dim=-1)


class _Body:
    """What ``states`` needs of a policy: its SID tokens, and hidden states, here those of the value network."""

    def __init__(self, policy: Policy, network: ValueNetwork) -> None:
        self.sids, self._policy, self._network = policy.sids, policy, network

    def hidden(self, tokens_BS: Tensor, positions_BS: Tensor, mask_B1SK: Tensor, *, start: int) -> Tensor:
        """States (B, S, D); those before ``start`` are computed, too."""
        policy, layers = self._policy, self._network.layers
        with torch.no_grad(), _recorded(_last_layers(policy, len(layers))) as calls:
            policy.hidden(tokens_BS, positions_BS, mask_B1SK)
        hidden_BSD: Tensor = calls[0][0][0]
        autocast = torch.autocast(policy.device.type, policy.precision, enabled=policy.precision != torch.float32)
        with autocast:
            for layer, ((_, *others), named) in zip(layers, calls, strict=True):
                output = layer(hidden_BSD, *others, **named)
                hidden_BSD = output[0] if isinstance(output, tuple) else output
        return hidden_BSD


def _last_layers(policy: Policy, count: int) -> nn.ModuleList:
    """The last ``count`` layers of the policy's model, its own modules."""
    total = int(policy.model.config.num_hidden_layers)
    found = find_layers(policy.model.base_model, total)
    if found is None or count > total:
        raise InputError(
            f"learning.rl.critic_layers={count}: the policy has {total if found is not None else 0} layers to copy; "
            "lower it, or set learning.rl.critic=linear"
        )
    return found[total - count :]


@contextmanager
def _recorded(layers: Sequence[nn.Module] | nn.ModuleList) -> Generator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The arguments that ``layers`` are called with inside the block, call by call."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((positional, named))

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
