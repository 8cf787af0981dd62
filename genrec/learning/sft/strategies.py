"""How a training step is distributed over workers: copies of the policy (DDP), or shards of it (ZeRO 2 and 3).

A checkpoint does not depend on the strategy: it holds unsharded tensors and Adam moments by parameter name, so that
another strategy, or another number of workers, can resume from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from genrec.policy.model import Policy

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state per parameter, besides the number of its steps."""


Loss = Callable[[Policy, Any], Tensor]
"""A scalar of a policy and a batch."""


class Strategy(Protocol):
    """A policy and its optimizer, wrapped. Every worker makes the same calls in the same order."""

    lockstep: bool
    """Whether all workers must run the same number of forward passes (each exchanges weights or gradients)."""

    def add(self, loss: Loss, piece: Any, weight: float, *, last: bool) -> Tensor:
        """Add the gradients of ``weight * loss(policy, piece)``, averaged over workers.

        Args:
            last: whether ``step`` follows.

        Returns:
            the unweighted loss, detached.
        """
        ...

    def step(self, rate: float) -> float:
        """Clip, update at the learning rate ``rate`` unless the gradient is not finite, and clear the gradients.

        Returns:
            the norm of the whole gradient before clipping, equal on every worker.
        """
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, every worker holds all weights, and the policy can be used directly."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """Unsharded Adam moments on the CPU, by ``<parameter>/<moment>``."""
        ...

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Restore the result of ``moments`` as it was after ``step`` steps."""
        ...

    def close(self) -> None:
        """Unwrap the policy, so that another strategy can wrap it."""
        ...


class DdpStrategy:
    """DDP, or one worker alone: every worker holds all weights, and gradients are averaged."""

    lockstep = False

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, accelerator: Accelerator, clip: float) -> None:
        self._policy, self._accelerator, self._clip = policy, accelerator, clip
        wrapped: Any = accelerator.prepare(policy, optimizer)
        self._wrapped, self._optimizer = wrapped

    def add(self, loss: Loss, piece: Any, weight: float, *, last: bool) -> Tensor:
        """See ``Strategy``."""
        self._wrapped.train()
        with nullcontext() if last else self._accelerator.no_sync(self._wrapped):
            amount = self._wrapped("call", loss, piece)
            self._accelerator.backward(amount * weight)
        return amount.detach()

    def step(self, rate: float) -> float:
        """See ``Strategy``."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = gradient_norm(self._accelerator, self._wrapped, self._clip)
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def gathered(self) -> AbstractContextManager[None]:
        """See ``Strategy``."""
        return nullcontext()

    def moments(self) -> dict[str, Tensor]:
        """See ``Strategy``."""
        return read_moments(self._policy, self._optimizer)

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """See ``Strategy``."""
        write_moments(self._policy, self._optimizer, moments, step)

    def close(self) -> None:
        """See ``Strategy``."""
        self._accelerator.free_memory()


class ZeroStrategy:
    """DeepSpeed ZeRO (Rajbhandari et al. 2020): optimizer state and gradients in shards, at stage 3 the weights too.

    Every worker builds the full policy, which is then sharded.

    Args:
        config: DeepSpeed's own config, without gradient clipping.
        clip: maximum norm of the gradient.
    """

    lockstep = True

    def __init__(
        self, policy: Policy, optimizer: torch.optim.Optimizer, config: Mapping[str, Any], clip: float
    ) -> None:
        import deepspeed  # pyright: ignore[reportMissingImports]

        if policy.device.type == "cpu":
            # Its shared-memory collective would be compiled at the first start; gloo does the same.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._policy, self._deepspeed = policy, deepspeed
        self._sharded = config["zero_optimization"]["stage"] == 3
        self._engine: Any = deepspeed.initialize(
            model=policy, optimizer=optimizer, config={**config, "gradient_clipping": clip}
        )[0]
        if self._sharded:
            for rows in policy.own_rows():
                deepspeed.zero.register_external_parameter(policy, rows)
        self._reset_moments(0)

    def _reset_moments(self, step: int) -> None:
        """Zero moments for every shard: DeepSpeed links them at its first step, when only one group has any."""
        zero = self._engine.optimizer
        flats = zero.fp32_partitioned_groups_flat if self._sharded else zero.single_partition_of_fp32_groups
        for flat in flats:
            zero.optimizer.state[flat] = _fresh(flat, step)
        if not self._sharded:
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def add(self, loss: Loss, piece: Any, weight: float, *, last: bool) -> Tensor:
        """See ``Strategy``."""
        self._engine.train()
        amount = self._engine("call", loss, piece)
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(amount * weight)
        return amount.detach()

    def step(self, rate: float) -> float:
        """See ``Strategy``; DeepSpeed knows the norm after its step, so weights may have taken a bad one."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    @contextmanager
    def gathered(self) -> Generator[None]:
        """See ``Strategy``."""
        if not self._sharded:
            yield
            return
        offload = self._engine.optimizer.parameter_offload
        with self._deepspeed.zero.GatheredParameters(list(self._policy.parameters())):
            # DeepSpeed's hooks release a module's weights after its forward; inside this block they must remain.
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            yield
        offload._register_deepspeed_module(offload.module)

    def moments(self) -> dict[str, Tensor]:
        """See ``Strategy``."""
        read = self._deepspeed.utils.safe_get_full_optimizer_state
        found: dict[str, Tensor] = {}
        for name, parameter in self._policy.trainable().items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            for moment in MOMENTS:
                found[f"{name}/{moment}"] = read(parameter, moment).reshape(shape).cpu().clone()
        return found

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """See ``Strategy``."""
        self._reset_moments(step)
        for name, parameter in self._policy.trainable().items():
            for moment in MOMENTS:
                if (value := moments.get(f"{name}/{moment}")) is not None:
                    self._write(parameter, value.to(self._policy.device), moment)

    def _write(self, parameter: Any, value: Tensor, moment: str) -> None:
        """Set a moment of a parameter; ZeRO-3 wants this worker's part of it, the last ones padded."""
        write = self._deepspeed.utils
        if not hasattr(parameter, "ds_id"):
            write.safe_set_full_optimizer_state(parameter, value, moment)
            return
        size, group = parameter.ds_tensor.numel(), parameter.ds_process_group
        rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        padded = F.pad(value.flatten(), (0, size * world - value.numel()))
        write.safe_set_local_optimizer_state(parameter, padded[rank * size : (rank + 1) * size], moment)

    def close(self) -> None:
        """See ``Strategy``; sharded weights remain sharded."""
        self._engine.destroy()


def gradient_norm(accelerator: Accelerator, wrapped: Any, clip: float) -> float:
    """The norm of a wrapped model's gradients, which are then clipped to ``clip``."""
    norm: Any = accelerator.clip_grad_norm_(wrapped.parameters(), clip)
    return float(norm)


def read_moments(policy: Policy, optimizer: Any) -> dict[str, Tensor]:
    """The Adam moments of an optimizer of unsharded parameters, on the CPU, by ``<parameter>/<moment>``."""
    return {
        f"{name}/{moment}": optimizer.state[parameter][moment].cpu()
        for name, parameter in policy.trainable().items()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def write_moments(policy: Policy, optimizer: Any, moments: Mapping[str, Tensor], step: int) -> None:
    """Restore the result of ``read_moments`` as it was after ``step`` steps."""
    for name, parameter in policy.trainable().items():
        if f"{name}/{MOMENTS[0]}" in moments:
            optimizer.state[parameter] = _fresh(parameter, step)
            for moment in MOMENTS:
                optimizer.state[parameter][moment].copy_(moments[f"{name}/{moment}"])


def _fresh(parameter: Tensor, step: int) -> dict[str, Tensor]:
    zeros = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
    return {"step": torch.tensor(float(step), device=parameter.device), **zeros}
