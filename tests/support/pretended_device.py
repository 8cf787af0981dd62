"""A pretended accelerator: tensors "on" it lie on the CPU, but an operation that mixes both devices is refused.

So code that forgets to move a tensor fails on a machine without a GPU too. It registers itself with PyTorch for good:
use it in a process of its own, such as that of ``output_of``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register

NAME = "pretended"
TESTS = Path(__file__).parents[1]

BOTH = ("aten::copy_", "aten::_copy_from", "aten::_to_copy")
"""Operations that move values between devices."""

INDEXED = ("aten::index", "aten::_unsafe_index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
"""Operations whose indices may lie on the CPU, as with CUDA."""


class PretendedTensor(Tensor):
    """A tensor that says it is on the pretended device and holds its values in ``held``, a tensor on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, requires_grad: bool = False) -> PretendedTensor:
        """Shape, strides and type are those of ``real``."""
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation on such tensors."""
        return run(operation, args, kwargs or {})

    @property
    def data(self) -> Any:
        """The values, without a gradient; what is assigned takes their place, as in any tensor."""
        return PretendedTensor(self.held)

    @data.setter
    def data(self, new: PretendedTensor) -> None:
        self.held = new.held

    def tolist(self) -> Any:
        """The values, as from a CUDA tensor."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as for a CUDA tensor."""
        raise TypeError("can't convert a tensor on the pretended device to numpy; use .cpu() first")


def run(operation: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU's values; what comes out is on the pretended device if what went in was, or is to be.

    Raises:
        RuntimeError: tensors of both devices, apart from single numbers and indices.
    """
    name = operation._schema.name
    flat = _pytree.tree_leaves((args, kwargs))
    pretended = [one for one in flat if isinstance(one, PretendedTensor)]
    on_cpu = [one for one in flat if isinstance(one, Tensor) and not isinstance(one, PretendedTensor) and one.dim() > 0]
    if pretended and on_cpu and name not in BOTH + INDEXED:
        raise RuntimeError(f"{name}: tensors on {NAME} and on cpu, of shapes {[tuple(one.shape) for one in on_cpu]}")
    wanted = kwargs.get("device")
    real_args, real_kwargs = _pytree.tree_map(_real, (args, kwargs))
    out = operation(*real_args, **real_kwargs)
    if name == "aten::copy_":
        return args[0]
    stays = bool(pretended) if wanted is None else torch.device(wanted).type == NAME
    if name == "aten::_to_copy" and not stays:
        return out.clone()
    changed = {id(one.held): one for one in pretended}
    written = any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in operation._schema.arguments
    )

    def wrap(one: Any) -> Any:
        if not isinstance(one, Tensor) or not stays:
            return one
        return changed[id(one)] if written and id(one) in changed else PretendedTensor(one)

    return _pytree.tree_map(wrap, out)


def _real(one: Any) -> Any:
    if isinstance(one, PretendedTensor):
        return one.held
    return torch.device("cpu") if isinstance(one, torch.device) else one


class _Backend:
    """What PyTorch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def install() -> None:
    """Register the device, and make factories that a Python backend cannot serve build on the CPU and move."""
    register(NAME, backend_module=_Backend())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda operation, *args, **kwargs: run(operation, args, kwargs), "PrivateUse1")
    _Backend.library = library  # type: ignore[attr-defined]
    torch.__future__.set_swap_module_params_on_conversion(True)
    for name in ("tensor", "arange", "eye", "as_tensor", "randperm"):
        setattr(torch, name, _moved(getattr(torch, name)))


def _moved(make: Any) -> Any:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None:
            return make(*args, **kwargs)
        if torch.device(device).type != NAME:
            return make(*args, device=device, **kwargs)
        return make(*args, **kwargs).to(device)

    return made


def output_of(script: str) -> str:
    """What a Python script, which may use this module, writes in a process of its own; the process must not fail."""
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout
