"""The probe: run inside an environment by its own Python, it prints the facts as one JSON document.

It needs the standard library only, never labrig, because the environment has no labrig; torch is asked where it is
there. It judges nothing. Everything it says is read from the running environment, none of it from a name.

    python probe.py            the facts on stdout, exit 0; a fact that cannot be had is {"error": "..."}; on a Mac
                               with those of MPS
    python probe.py image      these and those of a container, as its user sees them
    python probe.py files ...  these facts alone, one JSON line [name, fact, connections] each, as they are read

The first two run the third in a process of its own: a library cut short on disk kills whoever loads it (SIGBUS),
and that, too, has to become a fact beside the others.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

CONNECTIONS: list[str] = []  # what anything in this process tried to reach; see watch_network
_LOCAL = ("127.", "localhost", "::1")


def watch_network() -> None:
    """Note (and refuse) every attempt of Python code to look up or reach another host."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            where = str(arguments[0])
        elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
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
            name = re.sub(r"[-_.]+", "-", name).lower()
            # Two versions side by side (a hand-made install that was cut off) are said as they are.
            versions = {*found.get(name, "").split(" and "), distribution.version} - {""}
            found[name] = " and ".join(sorted(versions))
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
        seen["mps"] = {"names": [tell("sysctl", "-n", "machdep.cpu.brand_string")], "kernel": run_kernel("mps")}
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


def tell(*command: str) -> str:
    """What a program of the system says in one line; "" where it cannot be asked."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


CONSOLE = "/dev/console"


def read_mps() -> object:
    """On a Mac: whether torch may use Metal, what can be told of the reasons if not, and whether it refuses float64."""
    import torch

    mps = torch.backends.mps
    facts: dict[str, object] = {
        "built": mps.is_built(),
        "available": mps.is_available(),
        "macos": tell("sw_vers", "-productVersion"),
        "virtual": tell("sysctl", "-n", "kern.hv_vmm_present") == "1",
        # At the screen a user owns the console; over ssh alone nobody need be logged in there.
        "remote": bool(os.environ.get("SSH_CONNECTION")) and os.stat(CONSOLE).st_uid != os.getuid(),
    }
    if facts["available"]:
        facts["float64"] = ask_float64()
    return facts


def ask_float64() -> str:
    """ "TypeError: ..." where MPS refuses float64, or what it does instead."""
    import torch

    try:
        tensor = torch.zeros(1, dtype=torch.float64, device="mps")
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return f"a tensor of {tensor.dtype}"


def read_libraries() -> object:
    """The shared libraries that torch brings or needs, and which of them the dynamic linker cannot load.

    The CUDA build has libraries for what is on the host only (the driver, RDMA, MPI); one that lacks a library which
    no installed package ships is told apart, as torch is imported and computes without it.
    """
    import ctypes
    from pathlib import Path

    import torch

    site = Path(torch.__file__).parents[1]
    patterns = ("torch/lib/*.so*", "torch/lib/*.dylib", "nvidia/**/lib/*.so*", "*.libs/*.so*")
    waiting = sorted({path for pattern in patterns for path in site.glob(pattern) if path.is_file()})
    if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):  # there torch's libraries are a package of their own
        waiting += sorted(
            path for name in ("libtorch*", "libc10*") for path in Path(sys.prefix, "lib").glob(f"{name}.*")
        )
    total = len(waiting)
    while True:
        # A library that is found only by a name another one registers loads on a later round.
        failed = {}
        for library in waiting:
            try:
                ctypes.CDLL(str(library))
            except OSError as error:
                failed[library] = str(error).replace(f"{site}/", "")
        if len(failed) == len(waiting):
            break
        waiting = list(failed)
    shipped = {os.path.basename(file) for file, _, _, _ in records()} | set(os.listdir(os.path.join(sys.prefix, "lib")))
    broken: dict[str, str] = {}
    plugins: dict[str, str] = {}
    for library, why in failed.items():
        lacks, _, rest = why.partition(":")
        foreign = "cannot open shared object file" in rest and lacks not in shipped
        (plugins if foreign else broken)[os.path.relpath(library, site)] = why
    return {"loaded": total - len(failed), "broken": broken, "plugins": plugins}


WHOLE = 4 << 20  # bytes: a larger file (a compiled library, loaded by read_libraries) is compared by size only


def read_files() -> object:
    """Installed files that are absent, or are not what their package's RECORD states (PEP 376): SHA-256 and size."""
    wrong = []
    count = 0
    for file, path, hashed, size in records():
        if not hashed or not size:
            continue
        count += 1
        kind, _, value = hashed.partition("=")
        if not os.path.exists(path):
            wrong.append(f"{file} is absent")
        elif (found := os.path.getsize(path)) != int(size):
            wrong.append(f"{file} has {found} bytes, recorded {size}")
        elif found <= WHOLE and digest(path, kind) != value:
            wrong.append(f"{file} has other content than recorded")
    return {"count": count, "wrong": wrong}


def read_conda_files() -> object:
    """Installed files that are absent or not what conda recorded, and Python packages that no conda package owns.

    conda-meta/*.json holds, per file, its path, SHA-256 (of the file as installed, too, where the prefix was written
    into it) and size (conda docs, "Package metadata"; conda/schemas: prefix_record).
    """
    import glob

    wrong, owned = [], set()
    count = packages = 0
    for record in sorted(glob.glob(os.path.join(sys.prefix, "conda-meta", "*.json"))):
        packages += 1
        with open(record, encoding="utf-8") as opened:
            content = json.load(opened)
        entries = content.get("paths_data", {}).get("paths") or [{"_path": path} for path in content.get("files", [])]
        for entry in entries:
            name = entry["_path"]
            path = os.path.join(sys.prefix, name)
            owned.add(name)
            count += 1
            value = entry.get("sha256_in_prefix") or entry.get("sha256")
            if not os.path.lexists(path):
                wrong.append(f"{name} is absent")
            elif entry.get("path_type") in ("softlink", "directory") or not value or os.path.islink(path):
                continue
            elif (found := os.path.getsize(path)) > WHOLE:
                if found != entry.get("size_in_bytes", found) and not entry.get("prefix_placeholder"):
                    wrong.append(f"{name} has {found} bytes, recorded {entry['size_in_bytes']}")
            elif hexdigest(path) != value:
                wrong.append(f"{name} has other content than recorded")
    return {"packages": packages, "count": count, "wrong": wrong, "unowned": unowned(owned)}


def unowned(owned: set[str]) -> list[str]:
    """Python packages whose metadata are not among the files that conda installed: pip did, or a hand."""
    from importlib import metadata

    found = []
    for distribution in metadata.distributions():
        place = os.path.relpath(str(distribution.locate_file("")), sys.prefix)
        folder = os.path.basename(str(getattr(distribution, "_path", "")))
        if not any(name.startswith(f"{place}/{folder}") for name in owned):
            found.append(f"{distribution.metadata['Name']} {distribution.version}")
    return sorted(found)


def hexdigest(path: str) -> str:
    """A file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def records() -> Iterator[tuple[str, str, str, str]]:
    """Every line of every RECORD: file, path, hash, size (importlib.metadata's own list leaves absent files out)."""
    from importlib import metadata

    for distribution in metadata.distributions():
        for line in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
            if len(line) == 3:
                yield line[0], str(distribution.locate_file(line[0])), line[1], line[2]


def digest(path: str, kind: str) -> str:
    """A file's digest in the form of a RECORD: URL-safe base64 with no padding."""
    with open(path, "rb") as file:
        return base64.urlsafe_b64encode(hashlib.file_digest(file, kind).digest()).rstrip(b"=").decode()


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


# --- what is asked in a container only --------------------------------------------------------------------------------

LABS = "/opt/labrig/labs"
IN_FLIGHT = 96 << 20  # bytes that wait in shared memory at once: more than the 64 MB that a container has by default


def read_user() -> object:
    """Who runs here, and whether the home is theirs: a file is written there and read back."""
    import pwd
    import stat
    import tempfile

    home = os.path.expanduser("~")
    found = os.stat(home)
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = ""
    try:
        with tempfile.NamedTemporaryFile(dir=home) as file:
            file.write(b"labrig")
            file.flush()
            with open(file.name, "rb") as again:
                writable = "yes" if again.read() == b"labrig" else "what was written cannot be read"
    except OSError as error:
        writable = f"{type(error).__name__}: {error}"
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "name": name,
        "home": home,
        "home_uid": found.st_uid,
        "home_mode": "%o" % stat.S_IMODE(found.st_mode),
        "home_writable": writable,
    }


class Large:
    """Samples of 12 MB: two workers that run ahead by two each keep IN_FLIGHT bytes in shared memory."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> object:
        import torch

        return torch.full((IN_FLIGHT // 8 // 4,), float(i))


def read_shm() -> object:
    """The size of /dev/shm in bytes, the memory's, and "ok" if DataLoader workers can keep large batches there."""
    from torch.utils.data import DataLoader

    found = os.statvfs("/dev/shm")
    facts: dict[str, object] = {
        "bytes": found.f_blocks * found.f_frsize,
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
    try:
        total = 0.0
        for batch in DataLoader(Large(), batch_size=2, num_workers=2, prefetch_factor=2, timeout=60):
            time.sleep(0.05)  # a training step: workers run ahead meanwhile
            total += float(batch[:, -1].sum())
        facts["workers"] = "ok" if total == sum(range(16)) else f"batches sum to {total}"
    except RuntimeError as error:
        facts["workers"] = " ".join(str(error).split())[-300:]
    return facts


def read_labs() -> object:
    """The files of the labs, as path -> SHA-256; what Python compiled is left out."""
    found = {}
    for folder, folders, files in os.walk(LABS):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, LABS)] = hashlib.file_digest(file, "sha256").hexdigest()
    if not found:
        raise FileNotFoundError(f"no files in {LABS}")
    return found


STICKY = ("/tmp", "/var/tmp", "/run/lock", "/var/lock")  # everyone may write there, and remove only what is theirs
CUDA_PARTS = ("libcudart.so", "libcublas.so", "libcudnn.so", "libnccl.so", "libcufft.so")
ENDED = (  # what a build leaves behind that nobody will read again
    ("/var/lib/apt/lists/", "package lists"),
    ("/var/cache/apt/archives/", "packages"),
    ("/tmp/", "a temporary file"),
    ("/var/tmp/", "a temporary file"),
)


def read_system() -> object:
    """The image's own file system, read by root: who may write or gain rights where, and what a build left behind."""
    import stat

    facts: dict[str, list[str]] = {"open": [], "privileged": [], "left": [], "cuda": [], "unread": []}
    own = os.lstat("/").st_dev
    kept = ("/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock")

    def unread(error: OSError) -> None:
        facts["unread"].append(f"{error.filename}: {error.strerror}")

    for folder, folders, files in os.walk("/", onerror=unread):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            found = os.lstat(path)
            if found.st_dev != own or stat.S_ISLNK(found.st_mode):
                continue
            plain = stat.S_ISREG(found.st_mode)
            shared = path in STICKY and found.st_mode & stat.S_ISVTX
            if found.st_mode & stat.S_IWOTH and not stat.S_ISCHR(found.st_mode) and not shared:
                facts["open"].append(path)
            if plain and (found.st_mode & (stat.S_ISUID | stat.S_ISGID) or _has_capability(path, found.st_mode)):
                facts["privileged"].append(path)
            if plain and path not in kept:
                facts["left"] += [f"{path} ({what})" for where, what in ENDED if path.startswith(where)]
                if "/.cache/" in path:
                    facts["left"].append(f"{path} (a cache)")
                if name.endswith(".whl") and not path.startswith("/usr/share/python-wheels/"):
                    facts["left"].append(f"{path} (a wheel)")
            if name.startswith(CUDA_PARTS):
                facts["cuda"].append(path)
        folders[:] = [name for name in folders if os.lstat(os.path.join(folder, name)).st_dev == own]
    return facts


def _has_capability(path: str, mode: int) -> bool:
    """Whether a program gains rights when it is started, by its extended attribute (capabilities(7))."""
    if not mode & 0o111:
        return False
    try:
        os.getxattr(path, "security.capability")
    except OSError:
        return False
    return True


def read_confinement() -> object:
    """How far this process is shut in: what it may do, what it sees of a network, whether it may write to the root."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip().split(":\t", 1) for line in file if ":\t" in line)
    return {
        "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16),
        "no_new_privileges": status.get("NoNewPrivs", "").strip() == "1",
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
    }


CONFINED = ("confinement", "user", "device", "dataloader")  # what is asked in a container that is shut in

READERS = {
    "python": read_python,
    "packages": read_packages,
    "files": read_files,
    "torch": read_torch,
    "device": read_device,
    "libraries": read_libraries,
    "dataloader": read_dataloader,
}
# Seconds, after which the process ends, and with it whatever it waits for. Where a worker dies at once, torch's handler
# of SIGCHLD may raise in the middle of a queue's put(), whose lock then stays held, and the iterator's end waits for it
# (torch/utils/data/dataloader.py, _shutdown_workers): seen once in some hundred runs.
LIMITS = {"dataloader": 150, "shm": 150}
MAC_READERS = {"mps": read_mps}
IMAGE_READERS = {"user": read_user, "shm": read_shm, "labs": read_labs}
ALL_READERS = {**READERS, **MAC_READERS, **IMAGE_READERS, "system": read_system, "confinement": read_confinement}
if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
    ALL_READERS["files"] = read_conda_files


def answer(names: list[str]) -> None:
    """Print one line a fact. A library that prints while it loads must not spoil them, so they get stdout alone."""
    import site

    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    watch_network()
    before = 0
    site.main()  # only now (the process was started with -S): what installs itself by .pth is watched as well
    for name in names:
        signal.alarm(LIMITS.get(name, 0))
        try:
            fact = ALL_READERS[name]()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            fact = {"error": f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"}
        print(json.dumps([name, fact, CONNECTIONS[before:]]), file=lines, flush=True)
        before = len(CONNECTIONS)


def read_all(names: list[str]) -> dict[str, object]:
    """The document. A reader whose process dies is answered for by the way it died; the next ones go on without it."""
    facts: dict[str, object] = {}
    connections: list[str] = []
    waiting = list(names)
    while waiting:
        # -I: neither this file's folder nor the caller's PYTHON* variables nor the user's site say what is importable.
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__), *waiting]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for line in done.stdout.decode().splitlines():
            name, facts[name], attempts = json.loads(line)
            waiting.remove(name)
            connections += [attempt for attempt in attempts if attempt not in connections]
        if waiting:
            code = done.returncode
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            if code == -signal.SIGALRM:
                how = "heard nothing from its workers in time; they may lack shared memory (/dev/shm)"
            facts[waiting.pop(0)] = {"error": f"the process that read it {how}"}
    return {**facts, "connections": connections}


def main() -> None:
    if sys.argv[1:] in ([], ["image"]):
        more = {**(MAC_READERS if sys.platform == "darwin" else {}), **(IMAGE_READERS if sys.argv[1:] else {})}
        json.dump(read_all([*READERS, *more]), sys.stdout)
    else:
        answer(sys.argv[1:])


if __name__ == "__main__":
    main()
