"""This machine, as its own programs and files describe it; nothing is guessed from names or from text for people."""

from __future__ import annotations

import json
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from . import daemon
from .errors import UsageError

SYSTEMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
RECORDED = "LABRIG_HOST"  # environment variable: a JSON file that stands for the queries

_QUERY = ("name", "compute_cap", "memory.total", "driver_version")
_ARCHS = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
_MOST = 1 << 20  # bytes that a program's answer may have
_SECONDS = 10.0  # a driver in trouble lets nvidia-smi hang


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, in the order of nvidia-smi (by PCI bus)."""

    name: str
    capability: str | None = None  # compute capability, "8.6"; None = the driver does not say
    memory_mib: int | None = None


@dataclass(frozen=True)
class Torch:
    """A torch that is installed in the environment in use, as its version.py says; it was not imported."""

    version: str  # "2.13.0+cpu"
    cuda: str | None  # "13.0"; None = a build for the CPU (or for MPS)
    where: str  # the environment's folder


@dataclass(frozen=True)
class Host:
    """What a machine is. None and "" mean: not known, or not there."""

    os: str  # linux, macos, windows
    arch: str  # of the hardware: x86_64; aarch64 on Linux and arm64 on macOS and Windows
    os_version: str = ""  # "15.1" on macOS; the distribution's name on Linux
    libc: str | None = None  # "glibc 2.36", "musl 1.2.4"
    python: str = ""  # the one that runs labrig
    docker: str | None = None  # version of the engine that answers; None = none does, see docker_error
    docker_error: str = ""
    driver: str | None = None  # NVIDIA driver; in WSL2 it is the one of Windows
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""  # why GPUs could not be asked although there are signs of an NVIDIA driver
    pci_nvidia: int | None = None  # NVIDIA display controllers on the PCI bus, whatever the driver; None = not asked
    gpu_nodes: bool | None = None  # the driver's device files are in /dev (a container has them only with --gpus)
    docker_gpus: bool | None = None  # the Docker engine can hand NVIDIA GPUs to a container
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES, where it is set
    lse: bool | None = None  # on aarch64: the processor has ARMv8.1's atomics; None = not asked
    torch: Torch | None = None
    chip: str | None = None  # "Apple M2"
    translated: bool = False  # this Python is an Intel one under Rosetta
    wsl: bool = False
    container: bool = False
    virtual: bool = False  # macOS in a virtual machine; not asked elsewhere
    remote: bool = False  # a Mac over ssh, while this user is not logged in at its screen
    found_by: str = "queries"

    @property
    def platform(self) -> str | None:
        """The name that labrig/data uses: linux_x86_64, linux_aarch64, macos_arm64, windows_amd64; None for others."""
        name = f"{self.os}_{'amd64' if (self.os, self.arch) == ('windows', 'x86_64') else self.arch}"
        return name if name in ("linux_x86_64", "linux_aarch64", "macos_arm64", "windows_amd64") else None

    @property
    def container_platform(self) -> str | None:
        """What containers on this machine are: Linux of its own architecture, whatever its system is."""
        arch = {"x86_64": "linux_x86_64", "aarch64": "linux_aarch64", "arm64": "linux_aarch64"}
        return arch.get(self.arch)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` reads it back."""
        return {**asdict(self), "gpus": [asdict(gpu) for gpu in self.gpus], "platform": self.platform}


def from_json(data: object, origin: str) -> Host:
    """A recorded machine: a host object, or the whole document of `doctor --json`. Only `os` and `arch` are required.

    UsageError names what is wrong in `origin`.
    """
    if isinstance(data, Mapping) and "host" in data:
        data = data["host"]
    if not isinstance(data, Mapping):
        raise UsageError(f"{origin}: not a JSON object", found=type(data).__name__, fix="record one with doctor --json")
    values = {key: value for key, value in data.items() if key not in ("platform", "found_by")}  # written, not read
    known = {field.name for field in fields(Host)} - {"found_by"}
    if stray := sorted(set(values) - known):
        raise UsageError(
            f"{origin}: unknown keys", found=", ".join(map(str, stray)), fix=f"use only {', '.join(sorted(known))}"
        )
    _expect(
        origin, "os", values.get("os"), "one of " + ", ".join(SYSTEMS.values()), values.get("os") in SYSTEMS.values()
    )
    for key in ("arch", "os_version", "python", "docker_error", "gpu_error"):
        _expect(origin, key, values.get(key, ""), "text", isinstance(values.get(key, ""), str))
    for key in ("libc", "docker", "driver", "chip", "visible_devices"):
        _expect(origin, key, values.get(key), "text or null", isinstance(values.get(key), str | None))
    for key in ("translated", "wsl", "container", "virtual", "remote"):
        _expect(origin, key, values.get(key, False), "true or false", isinstance(values.get(key, False), bool))
    for key in ("gpu_nodes", "docker_gpus", "lse"):
        _expect(origin, key, values.get(key), "true, false or null", isinstance(values.get(key), bool | None))
    counted = values.get("pci_nvidia")
    whole = counted is None or (isinstance(counted, int) and not isinstance(counted, bool))
    _expect(origin, "pci_nvidia", counted, "a whole number or null", whole)
    values["torch"] = _torch_from_json(values.get("torch"), origin)
    if (driver := values.get("driver")) is not None:
        _expect(origin, "driver", driver, "numbers and dots, such as 580.65.06", _is_version(driver))
    gpus = values.get("gpus", ())
    _expect(origin, "gpus", gpus, "a list of objects", isinstance(gpus, list | tuple))
    values["gpus"] = tuple(_gpu_from_json(gpu, origin) for gpu in gpus)
    values["arch"] = _normal_arch(values["os"], values.get("arch", ""))
    return Host(**values, found_by=origin)


def _torch_from_json(data: object, origin: str) -> Torch | None:
    if data is None:
        return None
    keys = [field.name for field in fields(Torch)]
    good = isinstance(data, Mapping) and set(data) == set(keys)
    _expect(origin, "torch", data, f"null or an object of {', '.join(keys)}", good)
    assert isinstance(data, Mapping)  # noqa: S101 for the type checker
    texts = all(isinstance(data[key], str) for key in ("version", "where")) and isinstance(data["cuda"], str | None)
    _expect(origin, "torch", data, "texts", texts)
    return Torch(data["version"], data["cuda"], data["where"])


def _gpu_from_json(data: object, origin: str) -> Gpu:
    keys = [field.name for field in fields(Gpu)]
    _expect(origin, "gpus", data, f"objects of {', '.join(keys)}", isinstance(data, Mapping) and set(data) <= set(keys))
    assert isinstance(data, Mapping)  # noqa: S101 for the type checker
    gpu = Gpu(data.get("name", ""), data.get("capability"), data.get("memory_mib"))
    _expect(origin, "gpus.name", gpu.name, "text", isinstance(gpu.name, str) and bool(gpu.name))
    capable = gpu.capability is None or (isinstance(gpu.capability, str) and _is_capability(gpu.capability))
    _expect(origin, "gpus.capability", gpu.capability, "a compute capability such as 8.6, in quotes, or null", capable)
    sized = gpu.memory_mib is None or (isinstance(gpu.memory_mib, int) and not isinstance(gpu.memory_mib, bool))
    _expect(origin, "gpus.memory_mib", gpu.memory_mib, "a whole number of MiB or null", sized)
    return gpu


def _expect(origin: str, key: str, found: object, allowed: str, holds: bool) -> None:
    if not holds:
        raise UsageError(f"{origin}: {key} is wrong", found=repr(found), fix=f"write {allowed}")


def _is_version(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)*", text) is not None


def _is_capability(text: str) -> bool:
    return re.fullmatch(r"[0-9]+\.[0-9]", text) is not None


def _normal_arch(system: str, machine: str) -> str:
    arch = _ARCHS.get(machine.lower(), machine.lower())
    return "aarch64" if (system, arch) == ("linux", "arm64") else arch


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a program said. `code` is None when it did not end in time or could not be started."""

    code: int | None
    out: str
    error: str


Run = Callable[[Sequence[str], float], Answer]


def ask(command: Sequence[str], seconds: float) -> Answer:
    """Run a program in the C locale, for at most `seconds`; it is killed with its children when the time is over.

    A process that hangs inside the kernel, as nvidia-smi over a broken driver, cannot be killed: it is left behind.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", f"{Path(command[0]).name} cannot be started: {error.strerror or error}")
    try:
        out, err = _listen(process, seconds)
    except (subprocess.TimeoutExpired, OverflowError) as error:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
        why = "says far too much" if isinstance(error, OverflowError) else f"did not answer within {seconds:g} s"
        return Answer(None, "", f"{Path(command[0]).name} {why}")
    return Answer(process.returncode, out, err.strip())


def _listen(process: subprocess.Popen[bytes], seconds: float) -> tuple[str, str]:
    """What a process writes until it ends. Raises TimeoutExpired, and OverflowError for more than `_MOST` bytes."""
    said: dict[Any, bytes] = {process.stdout: b"", process.stderr: b""}
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for stream in said:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            left = until - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                raise subprocess.TimeoutExpired(process.args, seconds)
            for key, _ in ready:
                part = os.read(key.fd, 65536)
                said[key.fileobj] += part
                if not part:
                    selector.unregister(key.fileobj)
                if len(said[key.fileobj]) > _MOST:
                    raise OverflowError
    process.wait(max(0.1, until - time.monotonic()))
    for stream in said:
        stream.close()
    out, err = (said[stream].decode("utf-8", "replace") for stream in (process.stdout, process.stderr))
    return out, err


def read_host(
    *, root: Path = Path("/"), run: Run = ask, uname: platform.uname_result | None = None, seconds: float = _SECONDS
) -> Host:
    """This machine, or the recorded one in the JSON file that LABRIG_HOST names (`found_by` then says so).

    `root` is where system files are read, `run` how programs are asked, `uname` what the kernel calls itself, `seconds`
    how long one program may take. Raises UsageError for a LABRIG_HOST that cannot be read, or an unknown system.
    """
    if recorded := os.environ.get(RECORDED):
        return _recorded(Path(recorded))
    uname = uname or platform.uname()
    if uname.system not in SYSTEMS:
        raise UsageError(
            "labrig does not know this system", found=uname.system, fix="use Linux, macOS, or WSL2 on Windows"
        )
    system = SYSTEMS[uname.system]
    host = Host(os=system, arch=_normal_arch(system, uname.machine), python=platform.python_version())
    if system == "linux":
        host = _linux(host, root, run, seconds)
    elif system == "macos":
        host = _macos(host, root, run, seconds)
    else:
        host = replace(host, os_version=uname.version)
    if system != "macos":
        host = _nvidia(host, root, run, seconds)
    engine = daemon.ask()
    return replace(
        host, docker=engine.version, docker_error=engine.why_not, docker_gpus=engine.gpus, torch=_installed_torch()
    )


def _recorded(path: Path) -> Host:
    origin = f"{RECORDED}={path}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{RECORDED} names a file that cannot be read as JSON",
            found=f"{path}: {error}",
            fix=f"unset {RECORDED}, or name a file with the host object of doctor --json",
        ) from error
    return from_json(data, origin)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _linux(host: Host, root: Path, run: Run, seconds: float) -> Host:
    named = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release"), re.MULTILINE)
    marks = (root / ".dockerenv", root / "run/.containerenv")
    groups = re.search(r"docker|containerd|kubepods|libpod|lxc", _text(root / "proc/1/cgroup"))
    return replace(
        host,
        os_version=named[1] if named else "",
        libc=_glibc() or _musl(root, run, seconds),
        lse=_has_lse(root) if host.arch == "aarch64" else None,
        wsl=re.search("microsoft-standard|WSL2", _text(root / "proc/version")) is not None,
        container=groups is not None or any(mark.exists() for mark in marks),
    )


def _has_lse(root: Path) -> bool | None:
    """The kernel calls ARMv8.1's large system extensions "atomics" (Documentation/arch/arm64/elf_hwcaps.rst)."""
    found = re.search(r"^Features\s*:(.*)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return "atomics" in found[1].split() if found else None


def _glibc() -> str | None:
    try:
        answer = os.confstr("CS_GNU_LIBC_VERSION")  # unknown to a Python on musl
    except (AttributeError, OSError, ValueError):
        return None
    return answer if answer and answer.startswith("glibc ") else None


def _musl(root: Path, run: Run, seconds: float) -> str | None:
    """musl's loader prints its version on stderr when it is run without arguments."""
    for loader in sorted((root / "lib").glob("ld-musl-*.so.1")):
        found = re.search(r"^Version (\S+)", run([str(loader)], seconds).error, re.MULTILINE)
        return f"musl {found[1]}" if found else "musl"
    return None


def _macos(host: Host, root: Path, run: Run, seconds: float) -> Host:
    def tell(*command: str) -> str:
        answer = run(command, seconds)
        return answer.out.strip() if answer.code == 0 else ""

    apple = tell("sysctl", "-n", "hw.optional.arm64") == "1"
    return replace(
        host,
        # An Intel Python under Rosetta sees an x86_64 kernel; the chip does not lie.
        arch="arm64" if apple else host.arch,
        translated=apple and host.arch != "arm64",
        os_version=tell("sw_vers", "-productVersion"),
        chip=tell("sysctl", "-n", "machdep.cpu.brand_string") or None,
        virtual=tell("sysctl", "-n", "kern.hv_vmm_present") == "1",
        remote=bool(os.environ.get("SSH_CONNECTION")) and not _at_the_screen(root),
    )


def _at_the_screen(root: Path) -> bool:
    """Whether this user is logged in there: macOS gives them the console. Where it cannot be asked: yes."""
    try:
        return (root / "dev/console").stat().st_uid == os.getuid()
    except OSError:
        return True


def _installed_torch() -> Torch | None:
    """The torch of the environment in use, or of the Python on PATH, read from its version.py (torch/version.py.in)."""
    prefixes = [Path(place) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if (place := os.environ.get(name))]
    prefixes += [Path(found).parent.parent for name in ("python3", "python") if (found := shutil.which(name))]
    for prefix in dict.fromkeys(prefixes):
        for pattern in ("lib/python3*/site-packages", "lib/python3/dist-packages", "Lib/site-packages"):
            for file in sorted(prefix.glob(f"{pattern}/torch/version.py")):
                text = _text(file)
                version = re.search(r"^__version__(?:: [^=]*)? = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
                cuda = re.search(r"^cuda(?:: [^=]*)? = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
                if version:
                    return Torch(version[1], cuda[1] if cuda else None, str(prefix))
    return None


def _pci_nvidia(host: Host, root: Path) -> int | None:
    """How many NVIDIA display controllers are on the PCI bus: vendor 0x10de, class 0x03 (PCI-SIG)."""
    devices = root / "sys/bus/pci/devices"
    if host.wsl or host.arch != "x86_64" or not devices.is_dir():  # WSL2 and Jetson have theirs elsewhere
        return None
    found = ((_text(device / "vendor").strip(), _text(device / "class").strip()) for device in devices.iterdir())
    return sum(vendor == "0x10de" and kind.startswith("0x03") for vendor, kind in found)


def _nvidia(host: Host, root: Path, run: Run, seconds: float) -> Host:
    """The driver from the kernel's own files (nvidia-smi may hang or be absent), the GPUs from nvidia-smi's query."""
    if host.os == "linux":
        nodes = any((root / "dev" / name).exists() for name in ("nvidiactl", "dxg"))
        host = replace(host, pci_nvidia=_pci_nvidia(host, root), gpu_nodes=nodes)
    host = replace(host, visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
    loaded = _text(root / "sys/module/nvidia/version").strip()
    if not _is_version(loaded):
        line = re.search(
            r"Kernel Module(?: for \S+)?\s+([0-9]+(?:\.[0-9]+)+)", _text(root / "proc/driver/nvidia/version")
        )
        loaded = line[1] if line else ""
    wsl = root / "usr/lib/wsl/lib/nvidia-smi"
    program = shutil.which("nvidia-smi") or (str(wsl) if wsl.exists() else None)
    if program is None:
        names = (_text(path) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")))
        models = [found[1] for text in names if (found := re.search(r"^Model:\s*(\S.*?)\s*$", text, re.MULTILINE))]
        why_not = "the NVIDIA driver is loaded, but nvidia-smi is not on PATH" if loaded else ""
        return replace(host, driver=loaded or None, gpus=tuple(map(Gpu, models)), gpu_error=why_not)

    columns: tuple[str, ...] = _QUERY
    answer = _query(program, columns, run, seconds)
    while unknown := _unknown_field(answer, columns):
        # Drivers up to R470 cannot say compute_cap; 610 began to rename fields (vast-ai/base-image#244).
        columns = tuple(column for column in columns if column != unknown)
        answer = _query(program, columns, run, seconds)
    said = (answer.error or answer.out).strip().partition("\n")[0]
    if "No devices were found" in answer.out + answer.error:
        return replace(host, driver=loaded or None)
    if answer.code != 0:
        why_not = said if answer.code is None else f"nvidia-smi ends with {answer.code}: {said}"
        return replace(host, driver=loaded or None, gpu_error=why_not)
    gpus, drivers = [], []
    for line_ in answer.out.splitlines():
        # A name may hold a comma, the columns after it cannot.
        values = line_.rsplit(",", len(columns) - 1)
        row = dict(zip(columns, (value.strip() for value in values), strict=False))
        told = row.get("driver_version")
        if len(values) != len(columns) or not row.get("name") or not (told is None or _is_version(told)):
            return replace(
                host, driver=loaded or None, gpu_error=f"nvidia-smi gives an unreadable answer: {line_[:80]!r}"
            )
        capability, memory = row.get("compute_cap", ""), row.get("memory.total", "")
        gpus.append(
            Gpu(
                row["name"],
                capability if _is_capability(capability) else None,  # [N/A] and the like: not known
                int(memory) if memory.isdecimal() else None,
            )
        )
        drivers += [told] if told else []
    return replace(host, driver=loaded or (drivers[0] if drivers else None), gpus=tuple(gpus))


def _unknown_field(answer: Answer, columns: Sequence[str]) -> str | None:
    """The field that this nvidia-smi does not know, of those it was asked for."""
    said = answer.out + answer.error
    named = re.search(r'[Ff]ield "?([a-z_.]+)"? is not a valid field', said)
    return named[1] if named and named[1] in columns and len(columns) > 1 else None


def _query(program: str, columns: Sequence[str], run: Run, seconds: float) -> Answer:
    return run([program, f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"], seconds)
