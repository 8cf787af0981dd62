"""The whole gradient of a loss, as one vector."""

import torch
from torch import Tensor

from genrec.policy.model import Policy


def gradient(policy: Policy, loss: Tensor) -> Tensor:
    """Of all that trains, (P,); zero where the loss does not depend on it."""
    parameters = list(policy.trainable().values())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    return torch.cat([part.flatten() for part in parts])
