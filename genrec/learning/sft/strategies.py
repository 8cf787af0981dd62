"""How a training step is spread over workers: whole copies of the policy (DDP), or shards of it (ZeRO 2 and 3).

What a strategy saves is free of it: whole tensors and whole Adam moments by parameter name, so that another strategy,
or another number of workers, goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from genrec.policy.model import Policy

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter, besides the number of its steps."""


Loss = Callable[[Policy, Any], Tensor]
"""A scalar of a policy and a batch."""


class Strategy(Protocol):
    """A policy and its optimizer, wrapped. Every worker makes the same calls in the same order."""

    lockstep: bool
    """Whether workers must run the same number of forwards (they exchange weights or gradients in each)."""

    def add(self, loss: Loss, piece: Any, weight: float, *, last: bool) -> Tensor:
        """Add the gradients of ``weight * loss(policy, piece)``, which are averaged over workers.

        Args:
            last: whether a step follows.

        Returns:
            the loss without gradients, not weighted.
        """
        ...

    def step(self, rate: float) -> None:
        """Clip, update at the learning rate ``rate``, and clear the gradients."""
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """While it lasts, the policy can be used directly, as if there were one worker."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """Whole Adam moments on the CPU, by ``<parameter>/<moment>``."""
        ...

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Put back what ``moments`` gave after ``step`` steps."""
        ...

    def close(self) -> None:
        """Leave the policy to another strategy."""
        ...


class DdpStrategy:
    """DDP (or one worker alone): every worker holds all of it and the gradients are averaged."""

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

    def step(self, rate: float) -> None:
        """See ``Strategy``."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

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

    The policy is built whole on every worker, then sharded.

    Args:
        config: DeepSpeed's own, without clipping.
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
        self._begin(0)

    def _begin(self, step: int) -> None:
        """Zero moments for every shard: DeepSpeed links them at its first step, when the first group alone has any."""
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

    def step(self, rate: float) -> None:
        """See ``Strategy``."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()

    @contextmanager
    def gathered(self) -> Generator[None]:
        """See ``Strategy``."""
        if not self._sharded:
            yield
            return
        offload = self._engine.optimizer.parameter_offload
        with self._deepspeed.zero.GatheredParameters(list(self._policy.parameters())):
            # The hooks gather a module's weights before its forward and release them after: here they are to stay.
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
        self._begin(step)
        write = self._deepspeed.utils.safe_set_full_optimizer_state
        for name, parameter in self._policy.trainable().items():
            for moment in MOMENTS:
                if (value := moments.get(f"{name}/{moment}")) is not None:
                    write(parameter, value.to(self._policy.device), moment)

    def close(self) -> None:
        """See ``Strategy``; weights in shards stay so."""
        self._engine.destroy()


def read_moments(policy: Policy, optimizer: Any) -> dict[str, Tensor]:
    """The Adam moments of an optimizer that holds whole parameters, by ``<parameter>/<moment>``."""
    return {
        f"{name}/{moment}": optimizer.state[parameter][moment].cpu()
        for name, parameter in policy.trainable().items()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def write_moments(policy: Policy, optimizer: Any, moments: Mapping[str, Tensor], step: int) -> None:
    """Put back what ``read_moments`` gave after ``step`` steps."""
    for name, parameter in policy.trainable().items():
        if f"{name}/{MOMENTS[0]}" in moments:
            optimizer.state[parameter] = _fresh(parameter, step)
            for moment in MOMENTS:
                optimizer.state[parameter][moment].copy_(moments[f"{name}/{moment}"])


def _fresh(parameter: Tensor, step: int) -> dict[str, Tensor]:
    zeros = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
    return {"step": torch.tensor(float(step), device=parameter.device), **zeros}
