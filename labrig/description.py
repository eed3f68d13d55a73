"""A machine in words: what `doctor --for` and an inventory file say of a machine that is not this one.

Either words and KEY=VALUE pairs ("linux x86_64 driver=550.54.14 gpu=6.1 python=3.12"), or the name of a card or chip of
the tables ("GTX 1080", "M2"). What is left out is taken as it is best for torch, and every such assumption is said: a
verdict about a card is then about the card.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from typing import NoReturn

from labrig import matrix
from labrig.compat import last_branch
from labrig.errors import UsageError
from labrig.host import Gpu, Host

# Every Apple silicon Mac runs it (labrig/data/sources.tsv, S90).
NEWEST_MACOS = "26"
_SYSTEMS = {"linux": "linux", "wsl2": "linux", "darwin": "macos", "macos": "macos", "windows": "windows"}
_ARCHS = {
    "x86_64": "x86_64", "amd64": "x86_64", "x64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64",
    "riscv64": "riscv64", "ppc64le": "ppc64le", "i686": "i686", "armv7l": "armv7l",
}  # fmt: skip
_FLAGS = ("container", "vm", "ssh", "rosetta", "no-lse")
_VERSION = r"[0-9]{1,5}(\.[0-9]{1,5}){0,3}"
_CHIP = re.compile(r"(?:apple\s*)?(m[1-9][0-9]?)((?:\s+(?:pro|max|ultra))?)", re.IGNORECASE)
EXAMPLES = '"linux x86_64 driver=550.54.14 gpu=6.1 python=3.12", "darwin arm64 macos=14.5", "GTX 1080", "M2"'
MAX_LENGTH = 500  # characters; a machine is said in fewer


@dataclass(frozen=True)
class Machine:
    """A described machine, and what was taken for granted about it."""

    host: Host
    assumed: tuple[str, ...] = ()


@dataclass
class _Words:
    """What the words of one description have said so far."""

    origin: str
    system: str = ""
    arch: str = ""
    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    gpus: list[Gpu] = field(default_factory=list)

    def fail(self, what: str, found: str, fix: str) -> NoReturn:
        raise UsageError(f"{self.origin}: {what}", found=found[:200], fix=fix)


def parse(text: str, origin: str = "--for") -> Machine:
    """The machine that a text describes.

    Raises:
        UsageError: naming the word that is not understood, and the words that are.
    """
    if not text.strip() or len(text) > MAX_LENGTH or not text.isprintable():
        raise UsageError(f"{origin}: describes no machine", found=repr(text[:60]), fix=f"for example: {EXAMPLES}")
    named = _by_name(text)
    return named or _by_words(text, origin)


# --- cards and chips --------------------------------------------------------------------------------------------------


def _by_name(text: str) -> Machine | None:
    if chip := _CHIP.fullmatch(text.strip()):
        host = Host(os="macos", arch="arm64", os_version=NEWEST_MACOS, chip=f"Apple {chip[1].upper()}{chip[2].title()}",
                    found_by="description")  # fmt: skip
        return Machine(host, (f"macOS {NEWEST_MACOS}, which every Apple silicon Mac can run",))
    found = matrix.find_card(text)
    if found is None:
        return None
    card, gpu = found
    arch = "aarch64" if gpu.platform == "linux_aarch64" or gpu.jetson or re.match(r"G[HB]\d", card) else "x86_64"
    host = Host(os="linux", arch=arch, gpus=(Gpu(card, gpu.capability),))
    return _complete(host, ())


def _best_driver(host: Host) -> tuple[str, str]:
    """The newest driver for the cards that were named, and why that one."""
    branches = [last for gpu in host.gpus if (last := last_branch(gpu))]
    if branches and len(branches) == len(host.gpus):
        return f"{min(branches)}", "the last branch for it" if len(
            host.gpus
        ) == 1 else "the last branch for one of them"
    newest = matrix.newest_driver()
    return newest, "the newest that came with a CUDA toolkit in the tables"


def _complete(host: Host, assumed: tuple[str, ...], *, driver: bool = True) -> Machine:
    """The machine with what was left out taken as it is best for torch; without ``driver`` it was said to have none."""
    jetpack = any(known.driver_last == "JetPack" for gpu in host.gpus if (known := matrix.gpu(gpu.capability or "")))
    if jetpack:  # its driver and its C library are JetPack's; of those nothing is assumed
        return Machine(replace(host, found_by="description"), assumed)
    if host.os == "linux" and host.libc is None:
        host, assumed = replace(host, libc="glibc 2.36"), (*assumed, "glibc 2.36 (Debian 12)")
    if host.os != "macos" and host.gpus and host.driver is None and driver:
        best, why = _best_driver(host)
        host, assumed = replace(host, driver=best), (*assumed, f"driver {best}, {why}")
    if host.os == "macos" and host.arch == "arm64" and not host.os_version:
        host = replace(host, os_version=NEWEST_MACOS)
        assumed = (*assumed, f"macOS {NEWEST_MACOS}, which every Apple silicon Mac can run")
    return Machine(replace(host, found_by="description"), assumed)


# --- words ------------------------------------------------------------------------------------------------------------


def _by_words(text: str, origin: str) -> Machine:
    said = _Words(origin)
    for word in _split(text, said):
        key, equals, value = word.partition("=")
        if equals:
            _pair(said, key.lower(), value.strip("\"'"))
        elif word.lower() in _SYSTEMS:
            _once(said, "system", word.lower(), "one system, such as linux")
        elif word.lower() in _ARCHS:
            _once(said, "arch", _ARCHS[word.lower()], "one architecture, such as x86_64")
        elif word.lower() in _FLAGS:
            said.flags.add(word.lower())
        else:
            _unknown(said, word, text)
    return _machine(said)


def _split(text: str, said: _Words) -> list[str]:
    """Words, where a value may hold spaces if it is in quotes, or if it is the name of a card: gpu=GTX 1080 Ti."""
    words: list[str] = []
    for word in re.findall(r"""[^\s"']*(?:"[^"]*"|'[^']*')[^\s"']*|[^\s"']+""", text):
        plain = "=" not in word and word.lower() not in (*_SYSTEMS, *_ARCHS, *_FLAGS)
        if plain and words and words[-1].lower().startswith("gpu="):
            words[-1] = f"{words[-1]} {word}"
        else:
            words.append(word)
    if not words:
        said.fail("describes no machine", text, f"for example: {EXAMPLES}")
    return words


def _once(said: _Words, name: str, value: str, allowed: str) -> None:
    if getattr(said, name) not in ("", value):
        said.fail(f"names two of a kind: {getattr(said, name)} and {value}", value, allowed)
    setattr(said, name, value)


def _unknown(said: _Words, word: str, text: str) -> NoReturn:
    names = [card for gpu in matrix.gpus() for card in gpu.cards]
    words = [*_SYSTEMS, *_ARCHS, *_FLAGS, *(f"{key}=" for key in _KEYS), *names]
    near = difflib.get_close_matches(text if " " in text and "=" not in text else word, words, n=3, cutoff=0.6)
    said.fail(
        f"does not understand {word[:40]!r}",
        f"close to it: {', '.join(near)}" if near else f"systems {', '.join(_SYSTEMS)}; flags {', '.join(_FLAGS)}",
        f"for example {EXAMPLES}; a card that is not listed: gpu=8.6, by its compute capability; "
        f"keys: {', '.join(f'{key}=' for key in _KEYS)}",
    )


def _pair(said: _Words, key: str, value: str) -> None:
    if key not in _KEYS:
        _unknown(said, f"{key}=", f"{key}=")
    pattern, allowed = _KEYS[key]
    if not re.fullmatch(pattern, value, re.IGNORECASE):
        said.fail(f"{key}= is wrong", repr(value), f"write {key}={allowed}")
    if key == "gpu":
        said.gpus += [_gpu(said, each.strip()) for each in value.split(",")]
    elif said.values.setdefault(key, value) != value:
        said.fail(f"says {key}= twice", f"{said.values[key]} and {value}", "say it once")


def _gpu(said: _Words, text: str) -> Gpu:
    if re.fullmatch(r"[0-9]{1,2}\.[0-9]", text):
        known = matrix.gpu(text)
        return Gpu(known.family if known else "GPU", text)
    if found := matrix.find_card(text):
        return Gpu(found[0], found[1].capability)
    names = [card for gpu in matrix.gpus() for card in gpu.cards]
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    close = f"close to it: {', '.join(near)}" if near else f"{len(names)} cards are known, {names[0]} to {names[-1]}"
    fix = "write its compute capability, gpu=8.6 (NVIDIA's list of CUDA GPUs has it)"
    return said.fail(f"knows no card {text[:40]!r}", close, fix)


_KEYS: dict[str, tuple[str, str]] = {
    "driver": (rf"none|{_VERSION}", "550.54.14, or none"),
    "gpu": (r"[^,]{1,60}(,[^,]{1,60}){0,15}", '8.6, or a name such as gpu="GTX 1080"'),
    "python": (r"3\.[0-9]{1,2}(t|\.[0-9]{1,2})?", "3.12"),
    "macos": (_VERSION, "14.5"),
    "glibc": (_VERSION, "2.36"),
    "libc": (r"(glibc|musl)", "musl or glibc"),
    "chip": (r"m[1-9][0-9]?", "M2"),
    "docker": (rf"none|yes|{_VERSION}", "yes, none or a version"),
}


def _machine(said: _Words) -> Machine:
    values, assumed = said.values, []
    wsl = said.system == "wsl2"
    system = _SYSTEMS.get(said.system, "")
    if not system:
        system = "macos" if {"macos", "chip"} & set(values) else "linux"
        assumed.append({"macos": "macOS", "linux": "Linux"}[system])
    arch = said.arch or ("aarch64" if system == "macos" else "x86_64")
    if not said.arch:
        assumed.append({"aarch64": "Apple silicon", "x86_64": "x86_64"}[arch])
    if arch == "aarch64" and system != "linux":
        arch = "arm64"
    for key, only in (("macos", "macos"), ("chip", "macos"), ("glibc", "linux"), ("libc", "linux")):
        if key in values and system != only:
            said.fail(f"{key}= is for {only}", f"{said.system or system}", f"leave out {key}=, or say {only}")
    for flag, only in (
        ("vm", "macos"),
        ("ssh", "macos"),
        ("rosetta", "macos"),
        ("container", "linux"),
        ("no-lse", "linux"),
    ):
        if flag in said.flags and system != only:
            said.fail(f"{flag} is for {only}", f"{said.system or system}", f"leave out {flag}, or say {only}")
    if system == "macos" and (said.gpus or "driver" in values):
        said.fail("a Mac has no NVIDIA GPU here", "gpu= or driver=", "leave these out")
    docker = None if values.get("docker", "none").lower() == "none" else values["docker"]
    libc = None if values.get("libc") != "musl" else "musl"
    if "glibc" in values:
        if libc:
            said.fail("names two C libraries", "glibc= and libc=musl", "name one")
        libc = f"glibc {values['glibc']}"
    host = Host(
        os=system,
        arch=arch,
        os_version=values.get("macos", ""),
        libc=libc,
        python=values.get("python", ""),
        docker=docker,
        docker_error="" if docker else "none was described",
        driver=None if values.get("driver") == "none" else values.get("driver"),
        gpus=tuple(said.gpus),
        chip=f"Apple {values['chip'].upper()}" if "chip" in values else None,
        translated="rosetta" in said.flags,
        wsl=wsl,
        container="container" in said.flags,
        virtual="vm" in said.flags,
        remote="ssh" in said.flags,
        lse=False if "no-lse" in said.flags else None,
        pci_nvidia=len(said.gpus) if said.gpus else None,
    )
    return _complete(host, tuple(assumed), driver=values.get("driver") != "none")
