"""The probe: run inside an environment by its own Python, it prints the facts as one JSON document.

It needs the standard library only, never labrig, because the environment has no labrig; torch is asked where it is
there. It judges nothing. Everything it says is read from the running environment, none of it from a name.

    python probe.py        the facts on stdout, exit 0; a fact that cannot be had is {"error": "..."}
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback

CONNECTIONS: list[str] = []  # what anything in this process tried to reach; see watch_network
_LOCAL = ("127.", "localhost", "::1")


def watch_network() -> None:
    """Note (and refuse) every attempt of Python code to look up or reach another host."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo":
            where = str(arguments[0])
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            where = str(arguments[1][0])
        else:
            return
        if where not in ("None", "") and not where.startswith(_LOCAL):
            CONNECTIONS.append(f"{event} {where}")
            raise PermissionError(f"the probe lets nothing reach the network: {event} {where}")

    sys.addaudithook(hook)


def read_python() -> object:
    return {
        "version": platform.python_version(),
        "minor": "%d.%d" % sys.version_info[:2],
        "executable": sys.executable,
        "prefix": sys.prefix,
        "platform": sys.platform,
        "machine": platform.machine(),
    }


def read_packages() -> object:
    """Every installed distribution by normalised name (PyPA name normalisation)."""
    import re
    from importlib import metadata

    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return found


def read_torch() -> object:
    started = time.monotonic()
    import torch

    import_seconds = time.monotonic() - started
    # torch.cuda.get_arch_list() answers [] without a GPU; the flags it was compiled with are here all the same.
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "archs": sorted(flag.removeprefix("sm_") for flag in (flags or "").split() if flag.startswith("sm_")),
        "import_seconds": round(import_seconds, 2),
        "file": torch.__file__,
    }


def read_device() -> object:
    """What torch sees on this host, each seen device proven by a kernel that is compared with the CPU."""
    import torch

    seen: dict[str, object] = {"cpu": {"kernel": run_kernel("cpu")}}
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        capabilities = ["%d.%d" % torch.cuda.get_device_capability(i) for i in range(len(names))]
        seen["cuda"] = {"names": names, "capabilities": capabilities, "kernel": run_kernel("cuda")}
    if torch.backends.mps.is_available():
        seen["mps"] = {"names": [platform.processor()], "kernel": run_kernel("mps")}
    return seen


def run_kernel(device: str) -> str:
    """ "ok", or what went wrong: a matrix product and its gradient on ``device`` against the same in float64 on CPU."""
    import torch

    try:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 32, generator=generator)
        w = torch.randn(32, 16, generator=generator)
        w_device = w.to(device).detach().clone().requires_grad_()
        loss = (x.to(device) @ w_device).relu().sum()
        loss.backward()
        w_exact = w.double().requires_grad_()
        exact = (x.double() @ w_exact).relu().sum()
        exact.backward()
        torch.testing.assert_close(loss.detach().cpu().double(), exact.detach(), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(w_device.grad.cpu().double(), w_exact.grad, rtol=1e-3, atol=1e-3)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return "ok"


def read_libraries() -> object:
    """The shared libraries that torch brings or needs, and which of them the dynamic linker cannot load."""
    import ctypes
    from pathlib import Path

    import torch

    site = Path(torch.__file__).parents[1]
    patterns = ("torch/lib/*.so*", "torch/lib/*.dylib", "nvidia/**/lib/*.so*", "*.libs/*.so*")
    waiting = sorted({path for pattern in patterns for path in site.glob(pattern) if path.is_file()})
    total = len(waiting)
    while True:
        # A library that is found only by a name another one registers loads on a later round.
        broken = {}
        for library in waiting:
            try:
                ctypes.CDLL(str(library))
            except OSError as error:
                broken[library] = str(error).replace(f"{site}/", "")
        if len(broken) == len(waiting):
            return {"loaded": total - len(broken), "broken": {str(k.relative_to(site)): v for k, v in broken.items()}}
        waiting = list(broken)


def read_files() -> object:
    """Installed files that are absent, or not of the size that their package's RECORD states."""
    from importlib import metadata

    wrong = []
    count = 0
    for distribution in metadata.distributions():
        for file in distribution.files or ():
            if file.size is None:
                continue
            count += 1
            path = str(distribution.locate_file(file))
            size = os.path.getsize(path) if os.path.exists(path) else None
            if size != file.size:
                wrong.append(f"{file}: {'absent' if size is None else f'{size} bytes'}, recorded {file.size}")
    return {"count": count, "wrong": wrong}


class Squares:
    """A data set big enough that its batches cross between processes by shared memory."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> object:
        import torch

        return torch.full((64, 64), float(i * i))


def read_dataloader() -> object:
    """ "ok" if two worker processes deliver what one would."""
    from torch.utils.data import DataLoader

    got = [float(batch.sum()) for batch in DataLoader(Squares(), batch_size=16, num_workers=2, timeout=60)]
    expected = [float(sum(i * i for i in range(start, start + 16)) * 64 * 64) for start in range(0, 64, 16)]
    return "ok" if got == expected else f"got {got}, expected {expected}"


def main() -> None:
    watch_network()
    facts: dict[str, object] = {}
    readers = {
        "python": read_python,
        "packages": read_packages,
        "torch": read_torch,
        "device": read_device,
        "libraries": read_libraries,
        "files": read_files,
        "dataloader": read_dataloader,
    }
    # A library that prints while it loads must not spoil the document.
    document, sys.stdout = os.dup(1), sys.stderr
    os.dup2(2, 1)
    for name, reader in readers.items():
        try:
            facts[name] = reader()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            facts[name] = {"error": f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"}
    facts["connections"] = CONNECTIONS
    with os.fdopen(document, "w", encoding="utf-8") as out:
        json.dump(facts, out)


if __name__ == "__main__":
    main()
