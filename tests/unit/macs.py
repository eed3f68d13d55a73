"""What the probe says on Macs, WRITTEN BY HAND: nobody recorded it, for there was no Mac.

Where each word comes from: `is_built`, `is_available` and the two messages from PyTorch's sources
(torch/backends/mps/__init__.py, aten/src/ATen/mps/EmptyTensor.cpp), what a virtual machine answers from
actions/runner-images#9918, that torch names a macOS version whatever the reason is from pytorch/pytorch#177819.
"""

from __future__ import annotations

from typing import Any

REFUSED = (
    "TypeError: Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
NO_MEMORY = (
    "RuntimeError: MPS backend out of memory (MPS allocated: 0 bytes, other allocations: 0 bytes, "
    "max allowed: 7.93 GB). "
    "Tried to allocate 256 bytes on private pool."
)
CPU = {"cpu": {"kernel": "ok"}}


def present(name: str, *, kernel: str = "ok", **facts: Any) -> dict[str, Any]:
    """A Mac where torch says that MPS is available."""
    mps = {"built": True, "available": True, "macos": "15.5", "virtual": False, "remote": False, "float64": REFUSED}
    return {"device": {**CPU, "mps": {"names": [name], "kernel": kernel}}, "mps": {**mps, **facts}}


def absent(**facts: Any) -> dict[str, Any]:
    """A Mac where it says that it is not."""
    mps = {"built": True, "available": False, "macos": "15.5", "virtual": False, "remote": False}
    return {"device": CPU, "mps": {**mps, **facts}}


MAC = present("Apple M2")
OVER_SSH_AND_IT_COMPUTES = present("Apple M2", remote=True)
VIRTUAL_THAT_ALLOCATES_NOTHING = present("Apple M1 (Virtual)", kernel=NO_MEMORY, virtual=True)
VIRTUAL_WITHOUT_METAL = absent(virtual=True)
OVER_SSH_WITHOUT_METAL = absent(remote=True)
TOO_OLD = absent(macos="13.6.7")
SANDBOXED = absent(macos="26.3.1")
OF_NO_VERSION = absent(macos="")
BUILT_WITHOUT_MPS = absent(built=False)
FLOAT64_ACCEPTED = present("Apple M9", float64="a tensor of torch.float64")
FLOAT64_FAILED_OTHERWISE = present("Apple M9", float64="RuntimeError: MPS backend out of memory")
