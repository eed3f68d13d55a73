"""Runs on a host: says what it is and has, as one JSON line. Standard library only, Python 3.8 and newer; never labrig.

It comes over ssh's stdin with its request behind it, so nothing of it stays on the host:

    {"folder": "/opt/labrig", "environments": ["cpu-0123456789ab"], "images": ["labrig/cpu:2.13.0-0123456789ab"],
     "torch": true,   ask torch itself, in each of those that are there: seconds
     "deep": false,   hash every byte; else big files are trusted whose size, times and inode are as when last hashed
     "seconds": 90}   it ends itself after so many, as nobody may listen any more; left out: never

What it prints, `labrig.fleet.facts` reads. Every question has a limit of time of its own, and what cannot be had is an
unknown (null, "", nothing), never the end of the others.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import importlib.util
import io
import json
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any, BinaryIO

SCHEMA = "labrig-host/1"
MEMORY = ".hashed.json"  # of big files, in the folder
BIG = 4 << 20  # bytes
STRAYS = 100  # files of an environment that belong to no package; what is more shows once these are gone
LAYERS = 400  # of images; what is more is taken for absent
LOOSE = 20  # paths that are not the user's own; likewise
MANY = 10000  # files of labs; what is more was not put there by labrig
SECONDS = 10.0  # for a program's answer
TORCH_SECONDS = 150.0  # torch's first import from a slow disk takes a minute
NO_ENGINE: dict[str, Any] = {"version": None, "error": "", "gpus": None, "free": None, "images": {}, "layers": []}
LEFT_OUT = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "RECORD.jws", "RECORD.p7s")
ARCHS = {"amd64": "x86_64", "arm64": "aarch64"}

# torch about itself: the best device that really computes. The alarm ends it in a container that was left behind.
ASK_TORCH = """
import json, signal
signal.alarm(170)
import torch
device, name, error = "cpu", "", ""
for one in ("cuda", "mps", "cpu"):
    try:
        if one == "cuda" and not torch.cuda.is_available() or one == "mps" and not torch.backends.mps.is_available():
            continue
        x = torch.ones(64, 64, device=one)
        if float((x @ x).sum().cpu()) != 64.0**3:
            raise RuntimeError("a product is wrong")
        device, name = one, torch.cuda.get_device_name(0) if one == "cuda" else ""
        break
    except Exception as failed:
        error = (error + one + ": " + str(failed).split("\\n")[0] + " ")[:300]
print("labrig " + json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "device": device, "name": name,
    "error": error.strip()}))
"""


RUNNING: set[int] = set()  # process groups that were started and have not ended

# --- asking -----------------------------------------------------------------------------------------------------------


def run(command: list[str], seconds: float = SECONDS) -> tuple[int | None, str, str]:
    """Exit code (None: it could not be started, or not in time), stdout, stderr. It is ended with its children."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, LC_ALL="C"),
            start_new_session=True,
        )
    except OSError as error:
        return None, "", "%s cannot be started: %s" % (command[0], error.strerror or error)
    RUNNING.add(process.pid)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        # A process that hangs in the kernel, as nvidia-smi over a broken driver, cannot be ended: it is left.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        return None, "", "%s did not answer within %g s" % (os.path.basename(command[0]), seconds)
    finally:
        RUNNING.discard(process.pid)
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace").strip()


def end_in(seconds: float) -> None:
    """End this program and what it started after so many seconds."""
    signal.signal(signal.SIGALRM, _end)
    signal.alarm(int(max(1, min(seconds, 1 << 30))))


def _end(number: int, frame: object) -> None:
    for group in RUNNING:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    os._exit(1)  # at once: whatever it is in may wait for ever


def tell(*command: str) -> str:
    """What a program says, stripped; empty where it fails."""
    code, out, _ = run(list(command))
    return out.strip() if code == 0 else ""


def opened(path: str) -> BinaryIO:
    """A regular file; OSError for all else, as to open a pipe or a device may wait for ever, or do something."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("no regular file")
    return open(path, "rb", opener=at_once)


def at_once(path: str, flags: int) -> int:
    """Where a pipe took the place of a file just now, it is not waited for either."""
    return os.open(path, flags | os.O_NONBLOCK)


def text(path: str, most: int = 1 << 20) -> str:
    try:
        with opened(path) as file:
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""


def names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def is_version(value: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)*", value) is not None


# --- the machine ------------------------------------------------------------------------------------------------------


def read_host(engine: dict[str, Any]) -> dict[str, Any]:
    """The object that labrig.host.from_json reads."""
    mac = sys.platform == "darwin"
    machine = platform.machine().lower()
    host = {
        "os": "macos" if mac else "linux",
        "arch": machine if mac else ARCHS.get(machine, machine),
        "python": platform.python_version(),
        "docker": engine["version"],
        "docker_error": engine["error"],
        "docker_gpus": engine["gpus"],
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    host.update(_mac(machine) if mac else _linux(host["arch"]))
    if not mac:
        host.update(_nvidia())
    return host


def _mac(machine: str) -> dict[str, Any]:
    apple = tell("sysctl", "-n", "hw.optional.arm64") == "1"
    try:
        remote = os.stat("/dev/console").st_uid != os.getuid()
    except OSError:
        remote = False
    return {
        "arch": "arm64" if apple else machine,
        "translated": apple and machine != "arm64",
        "os_version": tell("sw_vers", "-productVersion"),
        "chip": tell("sysctl", "-n", "machdep.cpu.brand_string") or None,
        "virtual": tell("sysctl", "-n", "kern.hv_vmm_present") == "1",
        "remote": remote,
    }


def _linux(arch: str) -> dict[str, Any]:
    marks = re.search(r"docker|containerd|kubepods|libpod|lxc", text("/proc/1/cgroup"))
    features = re.search(r"^Features\s*:(.*)$", text("/proc/cpuinfo"), re.MULTILINE)
    return {
        "os_version": os_release().get("PRETTY_NAME", ""),
        "libc": _libc(),
        "lse": ("atomics" in features.group(1).split()) if arch == "aarch64" and features else None,
        "wsl": re.search("microsoft-standard|WSL2", text("/proc/version")) is not None,
        "container": bool(marks) or any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv")),
        "gpu_nodes": any(os.path.exists("/dev/" + name) for name in ("nvidiactl", "dxg")),
        "pci_nvidia": _pci_nvidia() if arch == "x86_64" else None,
    }


def os_release() -> dict[str, str]:
    """os-release(5)."""
    found = re.findall(r'^([A-Z_]+)=["\']?(.*?)["\']?$', text("/etc/os-release"), re.MULTILINE)
    return dict(found)


def _libc() -> str | None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # unknown to a Python on musl
        answer = os.confstr("CS_GNU_LIBC_VERSION")
        if answer and answer.startswith("glibc "):
            return answer
    for name in names("/lib"):
        if name.startswith("ld-musl-"):
            found = re.search(r"^Version (\S+)", run(["/lib/" + name])[2], re.MULTILINE)
            return "musl " + found.group(1) if found else "musl"
    return None


def _pci_nvidia() -> int | None:
    """NVIDIA's display controllers: vendor 0x10de, class 0x03 (PCI-SIG)."""
    bus = "/sys/bus/pci/devices"
    if not os.path.isdir(bus):
        return None
    found = [(text("%s/%s/vendor" % (bus, n)).strip(), text("%s/%s/class" % (bus, n)).strip()) for n in names(bus)]
    return sum(vendor == "0x10de" and kind.startswith("0x03") for vendor, kind in found)


def _nvidia() -> dict[str, Any]:
    """The driver from the kernel's files, the GPUs from nvidia-smi's query; as labrig.host does on its own machine."""
    loaded = text("/sys/module/nvidia/version").strip()
    driver = loaded if is_version(loaded) else None
    program = shutil.which("nvidia-smi")
    if program is None and os.path.exists("/usr/lib/wsl/lib/nvidia-smi"):
        program = "/usr/lib/wsl/lib/nvidia-smi"
    if program is None:
        error = "the NVIDIA driver is loaded, but nvidia-smi is not on PATH" if driver else ""
        return {"driver": driver, "gpus": [], "gpu_error": error}
    columns = ["name", "compute_cap", "memory.total", "driver_version"]
    while True:
        query = [program, "--query-gpu=" + ",".join(columns), "--format=csv,noheader,nounits"]
        code, out, err = run(query)
        # Drivers up to R470 cannot say compute_cap.
        unknown = re.search(r'[Ff]ield "?([a-z_.]+)"? is not a valid field', out + err)
        if not unknown or unknown.group(1) not in columns or len(columns) == 1:
            break
        columns.remove(unknown.group(1))
    if "No devices were found" in out + err:
        return {"driver": driver, "gpus": [], "gpu_error": ""}
    if code != 0:
        return {"driver": driver, "gpus": [], "gpu_error": ((err or out).split("\n")[0] or "nvidia-smi failed")[:200]}
    gpus = []
    for line in out.splitlines():
        row = dict(zip(columns, (value.strip() for value in line.rsplit(",", len(columns) - 1))))  # noqa: B905
        if not row.get("name"):
            return {"driver": driver, "gpus": [], "gpu_error": "nvidia-smi gives an unreadable answer: %r" % line[:80]}
        capability, memory = row.get("compute_cap", ""), row.get("memory.total", "")
        gpus.append(
            {
                "name": row["name"],
                "capability": capability if re.fullmatch(r"[0-9]+\.[0-9]", capability) else None,
                "memory_mib": int(memory) if memory.isdigit() else None,
            }
        )
        if driver is None and is_version(row.get("driver_version", "")):
            driver = row["driver_version"]
    return {"driver": driver, "gpus": gpus, "gpu_error": ""}


def machine_id() -> str:
    """What the system calls this machine, hashed: the same on two machines only where one is a copy of the other."""
    found = text("/etc/machine-id").strip()
    if not found and sys.platform == "darwin":
        said = re.search(r'"IOPlatformUUID" = "([^"]+)"', tell("ioreg", "-rd1", "-c", "IOPlatformExpertDevice"))
        found = said.group(1) if said else ""
    return hashlib.sha256(("labrig " + found).encode()).hexdigest()[:32] if found else ""


def can_sudo() -> bool:
    return os.getuid() == 0 or (shutil.which("sudo") is not None and run(["sudo", "-n", "true"], 5)[0] == 0)


def pythons() -> dict[str, bool]:
    """Interpreters on PATH by running them, as names prove nothing; free-threaded ones take other wheels."""
    own = "%d.%d %d" % (*sys.version_info[:2], all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")))
    ask = (
        "import importlib.util, sys, sysconfig\n"
        "able = all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip'))\n"
        "free = sysconfig.get_config_var('Py_GIL_DISABLED')\n"
        "print('' if free else '%d.%d %d' % (sys.version_info[0], sys.version_info[1], able))"
    )
    found: dict[str, bool] = {}
    here = os.path.realpath(sys.executable)
    seen = {here: own if not sysconfig.get_config_var("Py_GIL_DISABLED") else ""}
    for minor in [""] + [".%d" % number for number in range(8, 20)]:
        at = shutil.which("python3" + minor)
        if at is None:
            continue
        real = os.path.realpath(at)
        if real not in seen:
            seen[real] = tell(at, "-I", "-S", "-c", ask)
        said = seen[real].split()
        if len(said) == 2:
            found[said[0]] = found.get(said[0], False) or said[1] == "1"
    return found


def space(path: str) -> tuple[int, int]:
    """Free for this user, and total, of the file system that a path is or would be on."""
    while path != "/" and not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    try:
        about = os.statvfs(path)
    except OSError:
        return 0, 0
    return about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize


def folder_state(folder: str) -> str:
    if os.path.isdir(folder):
        return "ours" if os.access(folder, os.W_OK | os.X_OK) else "theirs"
    above = os.path.dirname(folder)
    while not os.path.exists(above):
        above = os.path.dirname(above)
    return "absent" if not os.path.lexists(folder) and os.access(above, os.W_OK | os.X_OK) else ""


# --- the engine -------------------------------------------------------------------------------------------------------


def sockets() -> list[str]:
    """Where engines listen: what DOCKER_HOST says, else the usual one, Docker Desktop's, Colima's, OrbStack's."""
    named = os.environ.get("DOCKER_HOST", "")
    if named.startswith("unix://"):
        return [named[7:]]
    home = os.path.expanduser("~")
    own = os.environ.get("XDG_RUNTIME_DIR", "/run/user/%d" % os.getuid()) + "/docker.sock"
    usual = ["/var/run/docker.sock", own]
    return usual + [home + place for place in ("/.docker/run/docker.sock", "/.colima/default/docker.sock")]


def get(place: str, path: str) -> Any:
    """A JSON document from an engine's API (docs.docker.com/reference/api/engine)."""
    import http.client  # here, as are others: a start of Python without them is half as long

    connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(SECONDS)
        connection.sock.connect(place)
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError("the engine answers %d" % answer.status)
        return json.loads(answer.read(32 << 20))
    finally:
        connection.close()


def read_engine(asked: list[str]) -> dict[str, Any]:
    """Its version or why there is none, whether it hands out GPUs, its room for images, labrig's images and layers."""
    engine: dict[str, Any] = dict(NO_ENGINE, images={})
    there = [place for place in sockets() if os.path.exists(place)]
    if not there:
        engine["error"] = "no Docker engine on this machine" if not shutil.which("docker") else "no engine runs"
        return engine
    try:
        place = there[0]
        engine["version"] = str(get(place, "/version")["Version"])
        about = get(place, "/info")
        if shutil.which("docker") is None:
            engine["version"], engine["error"] = None, "an engine runs, but the program docker is not on PATH"
            return engine
        engine["gpus"] = _hands_out_gpus(about)
        if os.path.isdir(str(about.get("DockerRootDir"))):
            engine["free"] = space(str(about["DockerRootDir"]))[0]
        pulled: dict[str, None] = {}
        for image in get(place, "/images/json"):
            digests = image.get("RepoDigests") or []
            for name in (image.get("RepoTags") or []) + digests:
                if name in asked or re.search(r"(^|/)labrig/", name):
                    engine["images"][str(name)] = str(image["Id"])
                    if digests:  # what was loaded from a file is pulled again: an engine knows no blob of it
                        pulled[str(image["Id"])] = None
        engine["layers"] = read_layers(place, list(pulled))
    except PermissionError:
        engine["error"] = "%s may not talk to the engine (group docker)" % user()
    except Exception as error:
        engine["error"] = "the engine does not answer: %s" % (str(error) or type(error).__name__)
    return engine


def read_layers(place: str, images: list[str]) -> list[str]:
    """The layers of images, each once, by the digest of what is in them (diff id)."""
    found: dict[str, None] = {}
    for image in images:
        about = attempt(functools.partial(get, place, "/images/%s/json" % image), {})  # it may be gone by now
        found.update(dict.fromkeys(str(one) for one in (about.get("RootFS") or {}).get("Layers") or []))
    return list(found)[:LAYERS]


def _hands_out_gpus(about: dict[str, Any]) -> bool:
    """The runtime is registered, CDI found devices, or the hook is on PATH (moby daemon/nvidia_linux.go)."""
    devices = about.get("DiscoveredDevices") or []
    return (
        "nvidia" in (about.get("Runtimes") or {})
        or any("nvidia.com/gpu" in str(device) for device in devices)
        or shutil.which("nvidia-container-runtime-hook") is not None
    )


def user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# --- what labrig put there --------------------------------------------------------------------------------------------


class Hashes:
    """SHA-256 of files; big ones are remembered in the folder by size, times and inode."""

    def __init__(self, folder: str, deep: bool) -> None:
        self.place, self.deep, self.changed = os.path.join(folder, MEMORY), deep, False
        try:
            known = json.loads(text(self.place) or "{}")
        except ValueError:
            known = {}
        self.known: dict[str, Any] = known if isinstance(known, dict) else {}
        self.kept: dict[str, Any] = {}

    def of(self, path: str) -> str:
        """Of a file's content now; empty where it cannot be read, "link" or "odd" where it is none."""
        try:
            kind = os.lstat(path).st_mode
            if not stat.S_ISREG(kind):  # labrig puts nothing else there, so it is not what should be there
                return "link" if stat.S_ISLNK(kind) else "odd"
            with open(path, "rb", opener=at_once) as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    return "odd"
                mark = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
                if about.st_size >= BIG:
                    known = self.known.get(path)
                    if not self.deep and isinstance(known, list) and known[:4] == mark and isinstance(known[-1], str):
                        self.kept[path] = known
                        return known[-1]
                hashed = hashlib.sha256()
                for part in iter(lambda: file.read(1 << 20), b""):
                    hashed.update(part)
                if about.st_size >= BIG:
                    self.kept[path], self.changed = [*mark, hashed.hexdigest()], True
                return hashed.hexdigest()
        except OSError:
            return ""

    def keep(self) -> None:
        """Remember, where that can be written; the next time takes seconds longer where it cannot."""
        if not self.changed:
            return
        import tempfile

        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(prefix=MEMORY, dir=os.path.dirname(self.place))
            try:
                with os.fdopen(handle, "w") as file:
                    kept = dict(self.known, **self.kept)
                    json.dump({path: mark for path, mark in kept.items() if os.path.exists(path)}, file)
                os.replace(name, self.place)
            except BaseException:
                os.unlink(name)
                raise


def scan(top: str, left_out: str = "") -> dict[str, os.stat_result]:
    """Everything below a folder, but for folders of that name; links are not followed."""
    found: dict[str, os.stat_result] = {}
    waiting = [top]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for one in entries:
                try:
                    about = one.stat(follow_symlinks=False)
                except OSError:  # it is gone
                    continue
                if not stat.S_ISDIR(about.st_mode):
                    found[one.path] = about
                elif one.name != left_out:
                    found[one.path] = about
                    waiting.append(one.path)
    return found


def read_labs(folder: str, tree: dict[str, os.stat_result], hashes: Hashes) -> dict[str, str]:
    files = sorted(path for path, about in tree.items() if not stat.S_ISDIR(about.st_mode))  # links to folders are here
    return {os.path.relpath(path, folder): hashes.of(path) for path in files[:MANY]}


def read_environment(folder: str, hashes: Hashes) -> dict[str, dict[str, str]]:
    """The distributions in a venv: version, and digest over the files that their RECORDs name (facts.tree's)."""
    found: dict[str, dict[str, str]] = {}
    for site in sites(folder):
        for name in names(site):
            if name.endswith(".dist-info"):
                stem, _, version = name[: -len(".dist-info")].partition("-")
                said = re.search(r"^Version: *(\S+)", text(os.path.join(site, name, "METADATA")), re.MULTILINE)
                files = _as_in_the_wheel(name, read_record(os.path.join(site, name)))
                lines = ["%s  %s\n" % (hashes.of(os.path.join(site, path)), path) for path in sorted(files)]
                found[re.sub(r"[-_.]+", "-", stem).lower()] = {
                    "version": said.group(1) if said else version,
                    "digest": hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest(),
                }
    return found


def read_scaffold(folder: str, hashes: Hashes) -> str:
    """The digest (facts.tree's) over what a venv has besides packages and what makes them run: programs and links in
    bin, and pyvenv.cfg. A link's is "link:" and the SHA-256 of where it leads."""
    lines = []
    for path in ["bin/" + name for name in names(os.path.join(folder, "bin"))] + ["pyvenv.cfg"]:
        if path.endswith((".pyc", "/__pycache__")):
            continue
        place = os.path.join(folder, path)
        digest = hashes.of(place)
        if digest == "link":
            digest = "link:" + hashlib.sha256(os.fsencode(os.readlink(place))).hexdigest()
        lines.append("%s  %s\n" % (digest, path))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def read_loose(folder: str, tree: dict[str, os.stat_result], asked: list[str]) -> list[str]:
    """Paths that others than this user and root own or may write, and tops that students may not enter or read. Of
    links nothing is asked, as nobody can write into one."""
    needed = dict.fromkeys([os.path.join(folder, name) for name in ("labs", "envs", "start")] + asked, 0o005)
    others = [os.path.join(folder, "envs", name) for name in names(os.path.join(folder, "envs"))]
    tops: dict[str, os.stat_result] = {}
    with contextlib.suppress(OSError):
        tops[folder] = os.stat(folder)  # it may be a link to where there is space
        needed[folder] = 0o005
    for place in [*needed, os.path.join(folder, "applied.json"), *others]:
        with contextlib.suppress(OSError):
            tops.setdefault(place, os.lstat(place))
    own = (os.getuid(), 0)  # whom root is up against has lost already

    def is_loose(about: os.stat_result) -> bool:
        return (about.st_uid not in own or about.st_mode & 0o022 != 0) and not stat.S_ISLNK(about.st_mode)

    found = [path for path, about in tops.items() if is_loose(about) or ~about.st_mode & needed.get(path, 0)]
    found += sorted(path for path, about in tree.items() if is_loose(about))
    return [os.path.relpath(path, folder) for path in found[:LOOSE]]


def read_strays(folder: str, tree: dict[str, os.stat_result]) -> list[str]:
    """Files in a venv's site-packages that no RECORD names, by their paths from the venv; bytecode is not looked at."""
    found: list[str] = []
    for site in sites(folder):
        known = {
            os.path.normpath(os.path.join(site, path))
            for name in names(site)
            if name.endswith(".dist-info")
            for path in read_record(os.path.join(site, name))
        }
        found += [
            os.path.relpath(path, folder)
            for path, about in tree.items()
            if path.startswith(site + os.sep)
            and path not in known
            and not path.endswith(".pyc")
            and not stat.S_ISDIR(about.st_mode)
            and "/__pycache__/" not in path[len(site) :]
        ]
    return sorted(found)[:STRAYS]


def sites(folder: str) -> list[str]:
    """A venv's site-packages."""
    found = [os.path.join(folder, "lib", minor, "site-packages") for minor in names(os.path.join(folder, "lib"))]
    return [site for site in found if os.path.isdir(site)]


def read_record(info: str) -> list[str]:
    """The paths in a RECORD (PyPA: Recording installed projects), from site-packages."""
    try:
        with io.TextIOWrapper(opened(os.path.join(info, "RECORD")), encoding="utf-8", newline="") as file:
            return sorted({row[0].replace(os.sep, "/") for row in csv.reader(file) if row})
    except (OSError, ValueError, csv.Error):
        return []


def _as_in_the_wheel(info: str, paths: list[str]) -> list[str]:
    """Those of a RECORD that an installer takes from the wheel as they are."""
    own = {info + "/" + name for name in LEFT_OUT}
    return [
        path
        for path in paths
        if path not in own and not path.endswith(".pyc") and not path.startswith(("../../../bin/", "../../../include/"))
    ]


def read_applied(folder: str) -> dict[str, Any]:
    try:
        applied = json.loads(text(os.path.join(folder, "applied.json")) or "{}")
    except (ValueError, RecursionError):
        return {}
    return applied if isinstance(applied, dict) else {}


def ask_torch(command: list[str]) -> dict[str, Any]:
    code, out, err = run([*command, "-I", "-c", ASK_TORCH], TORCH_SECONDS)
    for line in out.splitlines():
        if line.startswith("labrig {"):
            with contextlib.suppress(ValueError):
                return dict(json.loads(line[len("labrig ") :]))
    lines = (err or out).strip().splitlines() or ["it ended with %s" % code]
    return {"version": "", "cuda": None, "device": "", "name": "", "error": lines[-1][:300]}


# --- the document -----------------------------------------------------------------------------------------------------


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Everything that was asked."""
    folder = str(request.get("folder") or "/opt/labrig")
    images = [str(one) for one in request.get("images") or []]
    hashes = Hashes(folder, bool(request.get("deep")))
    engine = attempt(lambda: read_engine(images), NO_ENGINE)
    release = os_release()
    free, total = space(folder)
    labs, envs, wheels = (os.path.join(folder, name) for name in ("labs", "envs", "wheels"))
    tree = scan(labs, left_out="__pycache__")
    host = read_host(engine)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "host": host,
        "machine_id": attempt(machine_id, ""),
        "user": user(),
        "sudo": attempt(can_sudo, False),
        "system": "macos" if sys.platform == "darwin" else release.get("ID", ""),
        "release": host["os_version"] if sys.platform == "darwin" else release.get("VERSION_ID", ""),
        "pythons": attempt(pythons, {}),
        "free": free,
        "total": total,
        "folder": folder_state(folder),
        "docker_free": engine["free"],
        "images": engine["images"],
        "layers": engine["layers"],
        "labs": attempt(lambda: read_labs(labs, tree, hashes), {}),
        "environments": {},
        "strays": {},
        "scaffolds": {},
        "loose": [],
        "wheels": {name: size(os.path.join(wheels, name)) for name in names(wheels) if name.endswith(".whl")},
        "start": "",
        "applied": read_applied(folder),
        "unfinished": os.path.exists(os.path.join(folder, "applying.json")),
        "torch": {},
    }
    start = os.path.join(folder, "start")
    if os.access(start, os.X_OK):
        document["start"] = hashes.of(start)
    trees = {name: scan(os.path.join(envs, name)) for name in names(envs)}
    asked = []
    for name in request.get("environments") or []:
        environment = os.path.join(envs, os.path.basename(str(name)))
        if os.path.isdir(environment):
            asked.append(environment)
            own = trees.get(os.path.basename(str(name)), {})
            document["environments"][name] = attempt(functools.partial(read_environment, environment, hashes), {})
            document["strays"][name] = attempt(functools.partial(read_strays, environment, own), [])
            document["scaffolds"][name] = attempt(functools.partial(read_scaffold, environment, hashes), "")
            if request.get("torch"):
                document["torch"][name] = ask_torch([os.path.join(environment, "bin", "python")])
    for inside in trees.values():
        tree.update(inside)
    document["loose"] = attempt(lambda: read_loose(folder, tree, asked), [])
    for name in images:
        if request.get("torch") and name in engine["images"]:
            gpus = ["--gpus", "all"] if engine["gpus"] and host.get("driver") else []
            start_it = ["docker", "run", "--rm", "--network", "none", *gpus, "--entrypoint", "python", name]
            document["torch"][name] = ask_torch(start_it)
    attempt(hashes.keep, None)
    document["time"] = time.time()
    return document


def attempt(question: Callable[[], Any], unknown: Any) -> Any:
    """An answer, or the unknown: whatever is odd about one thing, the others are still asked."""
    try:
        return question()
    except Exception:
        return unknown


def size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def main() -> None:
    """Read the request and print the document; nothing else is ever printed."""
    request = json.loads(sys.stdin.buffer.read() or b"{}")
    signal.alarm(0)  # that which held while the request came
    if request.get("seconds"):
        end_in(request["seconds"])
    document = look(request)
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ in ("__main__", "agent"):
    main()
