"""What `verify` checks: one declared list, each check a plain function from facts and expectations to an outcome.

A check that is not in the list cannot be forgotten silently: `verify` compares what ran with what is declared. Each
check says which engines and platforms it is for; where it is not for an environment it is "not applicable", which is
neither a skip nor a pass. A skip always has a reason and never counts as a pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from packaging.utils import canonicalize_version

from labrig import compat, conda, image, matrix
from labrig.conda import CondaLock, Pin
from labrig.lock import Lock
from labrig.spec import Target

PASSED, FAILED, SKIPPED, NOT_APPLICABLE = "passed", "failed", "skipped", "not applicable"
STATUSES = (PASSED, FAILED, SKIPPED, NOT_APPLICABLE)
ALL_ENGINES = ("docker", "venv", "conda")
ALL_PLATFORMS = ("linux_x86_64", "linux_aarch64", "macos_arm64")
LINUX, MAC = ALL_PLATFORMS[:2], ALL_PLATFORMS[2:]
# What may stand in an environment without being locked: the tools that make one, never what labs import.
BOOTSTRAP = frozenset({"pip", "setuptools", "wheel"})

Facts = Mapping[str, Any]  # the probe's document


@dataclass(frozen=True)
class Expectation:
    """What an environment is measured against."""

    target: Target
    lock: Lock
    engine: str
    require_device: bool
    labs: Mapping[str, str] = field(default_factory=dict)  # a checkout's labs, file -> SHA-256; for images
    exact: CondaLock | None = None  # for conda, where one is committed


@dataclass(frozen=True)
class Outcome:
    """What one check saw. ``reason`` says why for anything but a pass."""

    status: str
    expected: str
    found: str
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One declared check."""

    id: str
    says: str  # what holds when it passes
    run: Callable[[Expectation, Facts], Outcome]
    engines: tuple[str, ...] = ALL_ENGINES
    platforms: tuple[str, ...] = ALL_PLATFORMS

    def applies(self, engine: str, platform: str) -> bool:
        """True if this check is for environments of that engine and platform."""
        return engine in self.engines and platform in self.platforms


def judge(check: Check, expectation: Expectation, facts: Facts) -> Outcome:
    """Run one check. A fact the probe could not read fails it, with the probe's reason."""
    if not check.applies(expectation.engine, expectation.lock.platform):
        return not_applicable(check)
    try:
        return check.run(expectation, facts)
    except _Unread as error:
        return Outcome(FAILED, check.says, "no such fact", str(error))


def not_applicable(check: Check) -> Outcome:
    """The outcome of a check that is for other environments, with those it is for."""
    return Outcome(NOT_APPLICABLE, "", "", f"for {', '.join(check.engines)} on {', '.join(check.platforms)}")


class _Unread(Exception):
    pass


def _fact(facts: Facts, *keys: str) -> Any:
    value: Any = facts
    for key in keys:
        if isinstance(value, Mapping) and "error" in value and key not in value:
            raise _Unread(f"{keys[0]} could not be read: {value['error']}")
        if not isinstance(value, Mapping) or key not in value:
            raise _Unread(f"the probe said nothing of {'.'.join(keys)}")
        value = value[key]
    if isinstance(value, Mapping) and set(value) == {"error"}:
        raise _Unread(f"{keys[0]} could not be read: {value['error']}")
    return value


def _same(expected: object, found: object, reason: str) -> Outcome:
    if expected == found:
        return Outcome(PASSED, str(expected), str(found))
    return Outcome(FAILED, str(expected), str(found), reason)


def check_python(e: Expectation, facts: Facts) -> Outcome:
    """The interpreter's minor version is the row's; conda pins it to the patch release."""
    if e.engine == "conda" and e.target.conda:
        return _same(e.target.conda.python, _fact(facts, "python", "version"), "another Python runs here")
    return _same(e.target.python, _fact(facts, "python", "minor"), "another Python runs here")


def check_torch(e: Expectation, facts: Facts) -> Outcome:
    """``torch.__version__`` is the pin, and its local part, if any, is the row's variant."""
    found = str(_fact(facts, "torch", "version"))
    version, _, local = found.partition("+")
    # conda-forge's torch has no local part; its build, among the packages, says what it is made for.
    plain = e.target.device == "mps" or e.engine == "conda"
    expected = e.target.torch if plain else f"{e.target.torch}+{e.target.variant}"
    good = version == e.target.torch and local in ("", *([] if e.engine == "conda" else [e.target.variant]))
    return Outcome(PASSED if good else FAILED, expected, found, "" if good else "another torch is imported here")


def check_packages(e: Expectation, facts: Facts) -> Outcome:
    """Every locked package stands at its locked version; on conda every pinned one, and its build."""
    if e.engine == "conda":
        return _pins(e, facts)
    found = _fact(facts, "packages")
    wrong = [
        f"{wheel.name} {found.get(wheel.name, 'missing')}, locked {wheel.version}"
        for wheel in e.lock.wheels
        if canonicalize_version(found.get(wheel.name, "missing")) != canonicalize_version(wheel.version)
    ]
    expected = f"{len(e.lock.wheels)} packages at their locked versions"
    if wrong:
        return Outcome(FAILED, expected, "; ".join(wrong), f"{len(wrong)} differ from the lock")
    return Outcome(PASSED, expected, f"{len(e.lock.wheels)} as locked")


def _pins(e: Expectation, facts: Facts) -> Outcome:
    """What the conda program lists against the pins, and against the exact lock where there is one."""
    listed = {one["name"]: Pin(one["name"], one["version"], one["build"]) for one in _fact(facts, "listed")}
    pins = conda.pins(e.target, e.lock)
    wanted = {pin.name: pin for pin in pins}
    wanted |= {one.name: Pin(one.name, one.version, one.build) for one in (e.exact.packages if e.exact else ())}
    wrong = [
        f"{name} {_words(listed.get(name))}, pinned {_words(pin)}"
        for name, pin in wanted.items()
        if name not in listed
        or listed[name].version != pin.version
        or not fnmatchcase(listed[name].build, pin.build or "*")
    ]
    expected = f"{len(wanted)} packages as {'locked' if e.exact else 'pinned'}"
    if wrong:
        return Outcome(
            FAILED, expected, "; ".join(wrong[:5]), f"{len(wrong)} differ from the {expected.split()[-1][:-2]}"
        )
    torch = _words(listed[conda.NAMES["torch"]])
    return Outcome(PASSED, expected, f"{len(wanted)} of {len(listed)}, {conda.NAMES['torch']} {torch}")


def _words(pin: Pin | None) -> str:
    return " ".join(filter(None, (pin.version, pin.build))) if pin else "missing"


def check_extra(e: Expectation, facts: Facts) -> Outcome:
    """Nothing is installed that the lock does not name, but for the declared bootstrap set; on conda, by hand."""
    if e.engine == "conda":
        extra = list(_fact(facts, "files", "unowned"))
        if e.exact:
            extra += sorted({one["name"] for one in _fact(facts, "listed")} - {one.name for one in e.exact.packages})
        expected = "nothing beyond the lock" if e.exact else "nothing that conda did not install"
        if extra:
            return Outcome(FAILED, expected, ", ".join(extra[:5]), "installed by hand (pip), or by another lock")
        return Outcome(PASSED, expected, "nothing")
    extra = sorted(set(_fact(facts, "packages")) - {wheel.name for wheel in e.lock.wheels} - BOOTSTRAP)
    expected = f"nothing beyond the lock and {', '.join(sorted(BOOTSTRAP))}"
    if extra:
        return Outcome(FAILED, expected, ", ".join(extra), "installed by hand, or by another lock")
    return Outcome(PASSED, expected, "nothing")


def check_files(e: Expectation, facts: Facts) -> Outcome:
    """Every installed file is there and is what its package's RECORD, or conda's, states."""
    wrong = list(_fact(facts, "files", "wrong"))
    count = _fact(facts, "files", "count")
    if wrong or not count:
        return Outcome(FAILED, "every recorded file", "; ".join(wrong[:5]) or "no files", f"{len(wrong)} files differ")
    return Outcome(PASSED, "every recorded file", f"{count} files")


def check_channel(e: Expectation, facts: Facts) -> Outcome:
    """Every package is of the row's channel: Anaconda's own have terms of use, and builds of two do not mix."""
    name = e.target.conda.channel if e.target.conda else ""
    allowed = {name, conda.channel(e.target).rsplit("/", 1)[-1]}
    channels = {one["name"]: one["channel"].rstrip("/") for one in _fact(facts, "listed")}
    subdirs = ("noarch", *matrix.SUBDIRS.values())
    strays = []
    for package, channel in channels.items():
        parts = [part for part in channel.split("/") if part not in subdirs]
        if not parts or parts[-1] not in allowed:
            strays.append(f"{package} from {channel or 'nowhere'}")
    if strays or not channels:
        return Outcome(FAILED, name, "; ".join(strays[:5]) or "no packages", f"{len(strays)} are of other channels")
    return Outcome(PASSED, name, f"all {len(channels)} packages")


def check_cuda(e: Expectation, facts: Facts) -> Outcome:
    """torch was compiled for the row's CUDA; for none if the row has none."""
    expected = e.target.cuda or "none"
    return _same(expected, _fact(facts, "torch", "cuda") or "none", "this torch was compiled for another CUDA")


def check_archs(e: Expectation, facts: Facts) -> Outcome:
    """The GPU architectures compiled into torch are the row's; readable without a GPU."""
    archs = e.target.conda.archs if e.engine == "conda" and e.target.conda else e.target.archs
    if not archs.get(e.lock.platform):
        if e.target.device == "cuda":
            return Outcome(
                SKIPPED, "unconfirmed", "", f"labrig/data does not know the architectures for {e.lock.platform}"
            )
        expected: list[str] = []
    else:
        expected = sorted(capability.replace(".", "") for capability in archs[e.lock.platform])
    found = sorted(_fact(facts, "torch", "archs"))
    return _same(" ".join(expected) or "none", " ".join(found) or "none", "this torch has code for other GPUs")


def check_device(e: Expectation, facts: Facts) -> Outcome:
    """torch sees the row's device, and a real kernel and its gradient on it agree with the CPU."""
    device = e.target.device
    seen = _fact(facts, "device")
    expected = f"{device}, one kernel and its gradient as on the CPU"
    if device not in seen:
        reason = f"torch sees no {device} device here (it sees {', '.join(seen)})"
        if device == "mps":
            reason = f"{reason}: {_why_no_mps(e, facts)}"
        if e.require_device:
            return Outcome(FAILED, expected, "absent", reason + "; --require-device was given")
        return Outcome(SKIPPED, expected, "absent", reason)
    kernel = _fact(facts, "device", device, "kernel")
    names = ", ".join(seen[device].get("names", [])) or device
    if kernel != "ok":
        why = f": {VIRTUAL}" if device == "mps" and _fact(facts, "mps", "virtual") else ""
        return Outcome(FAILED, expected, kernel, f"the kernel on {names} failed{why}")
    return Outcome(PASSED, expected, names)


def _why_no_mps(e: Expectation, facts: Facts) -> str:
    """Why torch sees no MPS device, as far as it can be told, and what to do; torch itself only names a macOS."""
    macos, floor = str(_fact(facts, "mps", "macos")), e.target.macos
    if not _fact(facts, "mps", "built"):
        return f"this torch is built without MPS; invoke clean --target={e.target.name}, then build it again"
    if floor and re.match(r"\d+(\.\d+)*$", macos) and not matrix.at_least(macos, floor):
        return f"macOS {macos} is older than {floor}, which MPS needs in torch {e.target.torch}; update macOS"
    if _fact(facts, "mps", "virtual"):
        return VIRTUAL
    if _fact(facts, "mps", "remote"):
        return (
            f"over ssh, while you are not logged in at its screen, macOS may give you no Metal {compat.REMOTE_ISSUE}; "
            "log in at the Mac's screen, or share it, and run it there"
        )
    return (
        f"macOS {macos} gives this process no Metal device, as a sandbox does (pytorch/pytorch#177819); run it from "
        "Terminal"
    )


VIRTUAL = (
    f"this is a virtual machine, where MPS may seem available and allocate nothing {compat.VIRTUAL_ISSUE}; "
    "use macOS on the Mac itself, or labs with --device=cpu"
)


def check_float64(e: Expectation, facts: Facts) -> Outcome:
    """MPS refuses float64 with TypeError: labs then compute elsewhere, and say so."""
    expected = "TypeError for a float64 tensor on mps"
    if not _fact(facts, "mps", "available"):
        return Outcome(SKIPPED, expected, "absent", f"MPS is not available here: {_why_no_mps(e, facts)}")
    found = str(_fact(facts, "mps", "float64"))
    if not found.startswith("TypeError"):
        return Outcome(FAILED, expected, found, "what MPS lacks has changed: look at lab.fallback in labs/")
    return Outcome(PASSED, expected, found)


def check_libraries(e: Expectation, facts: Facts) -> Outcome:
    """Every shared library that torch brings or needs is loaded by the dynamic linker."""
    broken = _fact(facts, "libraries", "broken")
    loaded = _fact(facts, "libraries", "loaded")
    if broken or not loaded:
        found = "; ".join(f"{name}: {why}" for name, why in list(broken.items())[:5]) or "none found"
        return Outcome(FAILED, "all load", found, f"{len(broken)} do not load")
    plugins = len(_fact(facts, "libraries", "plugins"))
    aside = f", {plugins} for a driver or host software that is not here" if plugins else ""
    return Outcome(PASSED, "all load", f"{loaded} loaded{aside}")


def check_dataloader(e: Expectation, facts: Facts) -> Outcome:
    """A DataLoader with two worker processes delivers what it should (it needs shared memory)."""
    return _same("ok", _fact(facts, "dataloader"), "workers or their shared memory do not work here")


def check_network(e: Expectation, facts: Facts) -> Outcome:
    """Nothing in the environment tried to reach the network while it was probed."""
    attempts = list(_fact(facts, "connections"))
    return _same("none", "; ".join(attempts) or "none", "something here looks for the network by itself")


# --- images only: what the engine says of the image, and what the probe sees in a container of it -------------------


def check_labels(e: Expectation, facts: Facts) -> Outcome:
    """Every label is the row's, and so is the tag; other checks compare the row with what is inside."""
    found = _fact(facts, "image", "labels")
    expected = {key: value for key, value in image.labels(e.target, e.lock).items() if key != image.LOCK}
    wrong = [f"{key}={found.get(key, 'missing')}, the row says {value}" for key, value in expected.items()
             if found.get(key) != value]  # fmt: skip
    tag = f"{image.name(e.target)}:{e.target.torch}-"
    tags = list(_fact(facts, "image", "tags"))
    if not any(one.startswith(tag) for one in tags):
        wrong.append(f"tags {' '.join(tags) or 'none'}, the row says {tag}...")
    if wrong:
        return Outcome(FAILED, f"{len(expected)} labels and the tag as the row", "; ".join(wrong), "the image lies")
    return Outcome(PASSED, f"{len(expected)} labels and the tag as the row", tags[0])


def check_lock(e: Expectation, facts: Facts) -> Outcome:
    """The image's label names the lock that is committed."""
    found = str(_fact(facts, "image", "labels").get(image.LOCK, "missing"))
    return _same(e.lock.digest[:12], found[:12], "the image was made from another lock")


def check_user(e: Expectation, facts: Facts) -> Outcome:
    """The image's own user is not root, and it is who runs in a container."""
    named = str(_fact(facts, "image", "user"))
    uid, gid = _fact(facts, "user", "uid"), _fact(facts, "user", "gid")
    expected = "a user other than root, by number"
    if uid == 0 or named != f"{uid}:{gid}":
        return Outcome(FAILED, expected, f"USER {named or 'none'}, runs as {uid}:{gid}", "labs must not run as root")
    return Outcome(PASSED, expected, f"{_fact(facts, 'user', 'name') or 'no name'} {named}")


def check_home(e: Expectation, facts: Facts) -> Outcome:
    """The user's home is theirs and can be written to."""
    user = _fact(facts, "user")
    writable = _fact(facts, "user", "home_writable")
    found = f"{user['home']}, owner {user['home_uid']}, mode {user['home_mode']}"
    good = user["home"] == image.HOME and user["home_uid"] == user["uid"] and writable == "yes"
    reason = "" if good else f"writing there: {writable}"
    return Outcome(PASSED if good else FAILED, f"{image.HOME}, the user's, writable", found, reason)


def check_shm(e: Expectation, facts: Facts) -> Outcome:
    """Shared memory has room: a quarter of memory at least, and 96 MB of batches in flight between two workers."""
    size, memory = _fact(facts, "shm", "bytes"), _fact(facts, "shm", "memory")
    workers = _fact(facts, "shm", "workers")
    expected = f"at least {memory / 4e9:.1f} GB, and large batches pass"
    if size * 4 < memory or workers != "ok":
        reason = "start the container with a larger --shm-size" if workers == "ok" else str(workers)
        return Outcome(FAILED, expected, f"{size / 1e9:.2f} GB", reason)
    return Outcome(PASSED, expected, f"{size / 1e9:.1f} GB")


def check_labs(e: Expectation, facts: Facts) -> Outcome:
    """The labs in the image are the checkout's, byte for byte."""
    found = _fact(facts, "labs")
    wrong = [f"{name} is missing" for name in e.labs if name not in found]
    wrong += [f"{name} is not in the checkout" for name in found if name not in e.labs]
    wrong += [f"{name} differs" for name, sha256 in e.labs.items() if found.get(name, sha256) != sha256]
    if wrong or not e.labs:
        return Outcome(FAILED, f"{len(e.labs)} files", "; ".join(sorted(wrong)[:5]), "build the image again")
    return Outcome(PASSED, f"{len(e.labs)} files", f"{len(found)} files as in the checkout")


def _none_of(facts: Facts, keys: tuple[str, ...], expected: str, reason: str) -> Outcome:
    if unread := _fact(facts, "system", "unread"):
        return Outcome(FAILED, "all folders can be read", "; ".join(unread[:3]), UNREAD)
    found = sorted({one for key in keys for one in _fact(facts, "system", key)})
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return Outcome(FAILED, expected, "; ".join(found[:5]) + more, reason)
    return Outcome(PASSED, expected, "none")


def check_rights(e: Expectation, facts: Facts) -> Outcome:
    """Nothing may be written by everyone but the folders for temporary files; no program gives rights away."""
    expected = "nothing world-writable, setuid, setgid or with capabilities"
    return _none_of(facts, ("open", "privileged"), expected, "a student could change it, or become another user by it")


def check_leftovers(e: Expectation, facts: Facts) -> Outcome:
    """No cache of pip or uv, no wheel, no package list, no temporary file was left in a layer."""
    return _none_of(facts, ("left",), "no caches, wheels, package lists, temporary files", "every student pulls that")


def check_cuda_stack(e: Expectation, facts: Facts) -> Outcome:
    """There is one CUDA in the image, the wheels' own, and none at all in an image for the CPU."""
    if unread := _fact(facts, "system", "unread"):
        return Outcome(FAILED, "all folders can be read", "; ".join(unread[:3]), UNREAD)
    found: list[str] = list(_fact(facts, "system", "cuda"))
    foreign = [path for path in found if e.target.device != "cuda" or not any(one in path for one in SITE_CUDA)]
    versions: dict[str, set[str]] = {}
    for path in found:
        name, _, version = path.rsplit("/", 1)[-1].partition(".so")
        versions.setdefault(name, set()).add(version.lstrip(".").partition(".")[0])
    double = [f"{name} {' and '.join(sorted(majors))}" for name, majors in versions.items() if len(majors - {""}) > 1]
    expected = "one, brought by the wheels" if e.target.device == "cuda" else "none"
    if foreign or double:
        return Outcome(FAILED, expected, "; ".join([*foreign, *double][:5]), "torch may load the wrong one")
    if e.target.device == "cuda" and not found:
        return Outcome(FAILED, expected, "none", "the wheels' CUDA libraries are not there")
    return Outcome(PASSED, expected, " ".join(sorted(versions)) or "none")


def check_confined(e: Expectation, facts: Facts) -> Outcome:
    """torch computes with no network, a read-only root, no capability and no way to gain one."""
    shut = _fact(facts, "confined", "confinement")
    expected = "kernel and workers on the CPU with --network none --read-only --cap-drop ALL"
    open_ = [name for name, is_open in (
        ("a network", shut["interfaces"] != ["lo"]), ("a writable root", not shut["read_only"]),
        ("capabilities", shut["capabilities"] != 0), ("new privileges", not shut["no_new_privileges"]),
    ) if is_open]  # fmt: skip
    if open_:
        return Outcome(
            FAILED, expected, f"it has {', '.join(open_)}", "the container was not shut in, nothing is proven"
        )
    if (home := _fact(facts, "confined", "user", "home_writable")) != "yes":
        return Outcome(FAILED, expected, f"home in memory: {home}", "it works in an open container only")
    kernel, workers = _fact(facts, "confined", "device", "cpu", "kernel"), _fact(facts, "confined", "dataloader")
    if (kernel, workers) != ("ok", "ok"):
        return Outcome(FAILED, expected, f"kernel: {kernel}; workers: {workers}", "it works in an open container only")
    return Outcome(PASSED, expected, "both work")


UNREAD = "so it is not known what is in there"
SITE_CUDA = ("/site-packages/nvidia/", "/site-packages/torch/")  # where wheels put CUDA's libraries
DOCKER = ("docker",)

CHECKS = (
    Check("python", "the interpreter's minor version is the row's", check_python),
    Check("torch", "torch is the pinned version and build", check_torch),
    Check("packages", "every locked package stands at its version", check_packages),
    Check("extra", "nothing is installed beyond the lock", check_extra),
    Check("files", "every installed file is whole", check_files),
    Check("channel", "every package is of the row's channel", check_channel, ("conda",)),
    Check("cuda", "torch was compiled for the row's CUDA", check_cuda),
    Check("archs", "torch has code for the row's GPUs", check_archs, platforms=LINUX),
    Check("device", "the device computes", check_device),
    Check("float64", "MPS lacks float64, as labs expect", check_float64, platforms=MAC),
    Check("libraries", "shared libraries load", check_libraries),
    Check("dataloader", "DataLoader works with 2 workers", check_dataloader),
    Check("network", "no network is needed", check_network),
    Check("labels", "labels and tag tell the truth", check_labels, DOCKER),
    Check("lock", "the image was made from the committed lock", check_lock, DOCKER),
    Check("user", "the user is not root", check_user, DOCKER),
    Check("home", "the user's home is theirs", check_home, DOCKER),
    Check("shm", "shared memory holds the workers' batches", check_shm, DOCKER),
    Check("labs", "the labs are the checkout's", check_labs, DOCKER),
    Check("rights", "no rights to change or gain anything", check_rights, DOCKER),
    Check("leftovers", "nothing was left behind by the build", check_leftovers, DOCKER),
    Check("cuda-stack", "there is no second CUDA", check_cuda_stack, DOCKER),
    Check("confined", "it works shut in", check_confined, DOCKER),
)
