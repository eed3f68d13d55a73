"""Run a lab as on a Mac, as far as that can be had without one: the device "mps" is the CPU with the manners of MPS.

    python as_mps.py LAB FLAGS...        AS_MPS=no-memory: as in a virtual machine, where it allocates nothing

What is sent to "mps" is marked, and so is all that is computed from it. A marked tensor of float64 raises MPS' own
TypeError, one that meets an unmarked tensor or is handed to NumPy raises as well. What this cannot show: kernels that
MPS lacks, and numbers that come out differently there.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MPS, CPU = torch.device("mps"), torch.device("cpu")
REFUSED = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
NO_MEMORY = "MPS backend out of memory (MPS allocated: 0 bytes). Tried to allocate 256 bytes on private pool."
MIXED = "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu!"
MAY_MIX = {"copy_", "index", "index_put_", "index_put"}  # a copy between devices, and positions that are on the CPU


class Marks:
    """The storages that are "on mps". The weak reference keeps an address from being taken by another one."""

    def __init__(self) -> None:
        self.kept: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        found = self.kept.get(tensor.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError(REFUSED)
        if os.environ.get("AS_MPS") == "no-memory":
            raise RuntimeError(NO_MEMORY)
        storage = tensor.untyped_storage()
        self.kept[storage._cdata] = StorageWeakRef(storage)
        return tensor


marks = Marks()


class Compute(TorchDispatchMode):
    """Every operation, backward passes included: what comes of marked tensors is marked."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_mps = [tensor in marks for tensor in given]
        if any(on_mps) and func.overloadpacket.__name__ not in MAY_MIX:
            # A single number may come from anywhere, as on every device.
            strangers = [t for t, marked in zip(given, on_mps, strict=True) if not marked and t.dim() > 0]
            if strangers:
                raise RuntimeError(f"{MIXED} ({func})")
        result = func(*args, **(kwargs or {}))
        writes_to_cpu = func.overloadpacket.__name__ == "copy_" and not on_mps[0]
        if any(on_mps) and not writes_to_cpu:
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    marks.add(leaf)
        return result


class Send(TorchFunctionMode):
    """Calls that name a device: what is sent to "mps" is a marked copy, what comes back an unmarked one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func == torch.Tensor.device.__get__:
            return MPS if first is not None and first in marks else CPU
        if func is torch.device or name == "_parse_to":  # they speak of devices and move nothing
            return func(*args, **kwargs)
        if func is torch.Tensor.cpu:
            kwargs["device"], func = CPU, torch.Tensor.to
        if name in ("numpy", "__array__") and first is not None and first in marks:
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")
        named = [device for leaf in tree_leaves((args, kwargs)) if (device := as_device(leaf)) is not None]
        if not named:
            return func(*args, **kwargs)
        args, kwargs = tree_map(lambda leaf: leaf if as_device(leaf) is None else CPU, (args, kwargs))
        if named[0].type != "mps":
            return unmarked(func(*args, **kwargs)) if first is not None and first in marks else func(*args, **kwargs)
        result = func(*args, **kwargs)
        return marked(result) if isinstance(result, torch.Tensor) else result


def as_device(leaf: Any) -> torch.device | None:
    if isinstance(leaf, torch.device):
        return leaf
    return torch.device(leaf) if isinstance(leaf, str) and leaf in ("cpu", "mps") else None


class Copy(torch.autograd.Function):
    """A copy in a storage of its own, through which gradients pass as through one between devices."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, to_mps: bool) -> torch.Tensor:
        ctx.back_to_mps = tensor in marks
        return copied(tensor, to_mps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return copied(grad, ctx.back_to_mps), None


def copied(tensor: torch.Tensor, to_mps: bool) -> torch.Tensor:
    with torch.utils._python_dispatch._disable_current_modes():
        copy = tensor.detach().clone()
    return marks.add(copy) if to_mps else copy


def marked(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor in marks else Copy.apply(tensor, True)


def unmarked(tensor: torch.Tensor) -> torch.Tensor:
    return Copy.apply(tensor, False) if tensor in marks else tensor


def pretend() -> None:
    """What labs and their harness ask of torch's modules about the device."""
    torch.backends.mps.is_available = lambda: True
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda **_: MPS
    torch.mps.synchronize = lambda: None
    torch.mps.get_rng_state = lambda *_: torch.get_rng_state()
    torch.mps.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch.mps.driver_allocated_memory = lambda: 0
    # Tracing has tensors of its own, which have no storage to mark: an export is made as on the CPU, and what is loaded
    # lies where it was saved.
    export, save, load = torch.export.export, torch.export.save, torch.export.load
    torch.export.export = lambda *args, **kwargs: outside(export, *args, **kwargs)
    torch.export.save = lambda *args: outside(save, *args)
    torch.export.load = lambda path: loaded(outside(load, path))


def outside(function: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
        return function(*args, **kwargs)


def loaded(program: Any) -> Any:
    for tensor in program.state_dict.values():
        marks.add(tensor)
    return program


@contextlib.contextmanager
def on_a_mac() -> Iterator[None]:
    pretend()
    with Compute(), Send():
        yield


if __name__ == "__main__":
    lab = Path(sys.argv.pop(1))
    sys.argv[0] = str(lab)
    sys.path.insert(0, str(lab.parent))
    with on_a_mac():
        runpy.run_path(str(lab), run_name="__main__")
