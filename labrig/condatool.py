"""The program that solves and installs conda environments: micromamba, mamba, conda or pixi, whichever is on PATH.

labrig brings none of them. Their own settings (.condarc: mirrors, proxies, package cache) hold; where packages may come
from is decided here: one channel, and ``nodefaults``, as Anaconda's own channels have terms of use of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig import matrix, network, program
from labrig.conda import FILE, Package, Pin, package
from labrig.errors import BuildError, HostError, LockError
from labrig.indexes import redact
from labrig.lock import quoted
from labrig.matrix import SUBDIRS

TIMEOUT = 3600  # seconds
ASK_TIMEOUT = 60
INSTALL = (
    'install micromamba: "${SHELL}" <(curl -L micro.mamba.pm/install.sh), or any of the others '
    "(conda-forge.org/download, pixi.sh); without conda: --engine=venv"
)
# Before, mamba 2 did not know patterns in a build string, such as cpu_* (mamba-org/mamba#3735).
MAMBA = "2.0.6"
CONDA_SHA256 = "24.9"  # the first conda that reads SHA-256 in explicit files (conda/conda#14048)


@dataclass(frozen=True)
class Tool:
    """One of them, as it answers."""

    name: str
    path: Path
    version: str

    @property
    def is_mamba(self) -> bool:
        """True for micromamba and for mamba since 2.0, which is the same program; mamba 1 is a form of conda."""
        return self.name == "micromamba" or (self.name == "mamba" and matrix.at_least(self.version, "2.0"))

    @property
    def prefix(self) -> str:
        """Where in its folder a made environment is: pixi's is in its workspace."""
        return ".pixi/envs/default" if self.name == "pixi" else "."

    @property
    def digest(self) -> str:
        """The digest that it checks in explicit files."""
        return "sha256" if self.name == "conda" and matrix.at_least(self.version, CONDA_SHA256) else "md5"


def find() -> Tool:
    """The first of the tools on PATH, or that an initialised shell names, that answers and is new enough.

    Raises:
        HostError: there is none; what was tried, and how to install one.
    """
    tried = []
    for name in ("micromamba", "mamba", "conda", "pixi"):
        path = _where(name)
        if path is None:
            continue
        version = _version(Path(path))
        if version is None:
            tried.append(f"{path} does not say its version")
            continue
        tool = Tool(name, Path(path), version)
        if tool.is_mamba and not matrix.at_least(version, MAMBA):
            tried.append(f"{path} is {version}, older than {MAMBA}")
            continue
        return tool
    raise HostError(
        "no program here makes conda environments",
        found="; ".join(tried) or "no micromamba, mamba, conda or pixi on PATH",
        fix=INSTALL,
    )


def _where(name: str) -> str | None:
    """The program on PATH; else the one behind the shell function that `micromamba shell init` and `conda init` set up,
    whose folder need not be on PATH (mamba-org/mamba#2577)."""
    if path := shutil.which(name):
        return path
    named = [os.environ.get(variable, "") for variable in ("MAMBA_EXE", "CONDA_EXE")]
    return next((path for path in named if Path(path).name == name and os.access(path, os.X_OK)), None)


def lacking() -> str:
    """Why there is no tool, or an empty text."""
    try:
        find()
    except HostError as error:
        return error.found
    return ""


def _version(path: Path) -> str | None:
    """The version as the program says it: "2.3.0", "conda 24.9.2", "pixi 0.41.4", "mamba 1.5.8" and conda's below."""
    try:
        done = subprocess.run(
            [str(path), "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=ASK_TIMEOUT, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return found[0] if found else None


# --- making an environment --------------------------------------------------------------------------------------------


def create(
    tool: Tool,
    place: Path,
    asked: str,
    pins: Sequence[Pin],
    *,
    channel: str,
    platform: str,
    variables: Mapping[str, str],
    offline: bool,
    keep: Sequence[int] = (),
) -> None:
    """Make the environment at ``place``: of ``asked``, an environment.yml or an explicit file, or for pixi of the pins.

    ``variables`` are added to the caller's, whose own settings of them win. The tool's words go to stderr.

    Raises:
        HostError: pixi, and something that it cannot do.
        BuildError: no solution, or the installation failed.
    """
    exact = asked.startswith("@EXPLICIT")
    if tool.name == "pixi":
        if exact or offline:
            wanted = "make an environment of an exact lock" if exact else "be kept from the network"
            raise HostError(f"pixi cannot {wanted}", found=f"{tool.path} {tool.version}", fix=INSTALL)
        place.mkdir(parents=True)
        manifest = place / "pixi.toml"
        manifest.touch(mode=0o600)  # the address of a mirror may hold a password
        manifest.write_text(pixi_manifest(pins, channel, platform, variables), encoding="utf-8")
        _run(tool, ["install", "--manifest-path", str(manifest)], variables, keep)
        return
    with tempfile.TemporaryDirectory(prefix="labrig-conda-") as folder:
        file = Path(folder, "explicit.txt" if exact else "environment.yml")
        file.write_text(asked, encoding="utf-8")
        verb = ["create", "--yes"] if tool.is_mamba or exact else ["env", "create"]
        words = [*verb, "--prefix", str(place), "--file", str(file), *(["--offline"] if offline else [])]
        _run(tool, words, variables, keep)


def pixi_manifest(pins: Sequence[Pin], channel: str, platform: str, variables: Mapping[str, str]) -> str:
    """The pins as a pixi workspace (pixi docs, "Pixi manifest")."""
    lines = ["[workspace]", 'name = "labrig"', f"channels = [{quoted(channel)}]"]
    lines += [f"platforms = [{quoted(SUBDIRS[platform])}]", ""]
    system = {"CONDA_OVERRIDE_CUDA": "cuda", "CONDA_OVERRIDE_OSX": "macos"}
    if needs := [f"{system[name]} = {quoted(value)}" for name, value in variables.items() if name in system]:
        lines += ["[system-requirements]", *needs, ""]
    lines.append("[dependencies]")
    for pin in pins:
        version = quoted(f"=={pin.version}")
        lines.append(
            f"{pin.name} = " + (f"{{ version = {version}, build = {quoted(pin.build)} }}" if pin.build else version)
        )
    return "\n".join(lines) + "\n"


def _run(tool: Tool, words: Sequence[str], variables: Mapping[str, str], keep: Sequence[int]) -> None:
    command = [str(tool.path), *words]
    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    environment = {**variables, **_environment()}
    code, said = program.follow(command, _show, environment=environment, seconds=TIMEOUT, keep=keep)
    if code == 0:
        return
    text = "\n".join(said)
    fix = "if the channel cannot be reached from here, name a mirror (LABRIG_CONDA_CHANNEL, .condarc), or --engine=venv"
    fix = network.cure(text, fix)
    if "__cuda" in text:
        fix = "CONDA_OVERRIDE_CUDA must not be lower than what the row needs: unset it"
    elif "No space left" in text:
        fix = "make room, or name another place with LABRIG_CACHE (and another package cache in .condarc)"
    raise BuildError(
        f"{tool.name} could not make the environment",
        found="\n         ".join(line for line in said[-14:] if line.strip()) or f"it ended with exit code {code}",
        fix=fix,
    )


def _show(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        line = redact(line)  # the address of a mirror may hold a password
        print(line, end="", file=sys.stderr, flush=True)
        yield line.rstrip()


def _environment() -> dict[str, str]:
    """The caller's variables and settings; no environment is active, no question is asked, one channel at a time."""
    ours = {"CONDA_ALWAYS_YES": "true", "CONDA_CHANNEL_PRIORITY": "strict", "MAMBA_NO_BANNER": "1"}
    dropped = ("CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_SHLVL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    theirs = {k: v for k, v in os.environ.items() if k not in dropped}
    return {**theirs, **network.variables(), **_trusting(network.ca()), **ours}


def _trusting(bundle: Path | None) -> dict[str, str]:
    """A bundle in the words of conda and mamba, whose .condarc would win over REQUESTS_CA_BUNDLE. pixi has certificates
    of its own, and looks at SSL_CERT_FILE when it is told to use the system's."""
    if bundle is None:
        return {}
    return {"CONDA_SSL_VERIFY": str(bundle), "MAMBA_SSL_VERIFY": str(bundle), "PIXI_TLS_ROOT_CERTS": "native"}


# --- asking ----------------------------------------------------------------------------------------------------------


def read_list(tool: Tool, prefix: Path) -> list[dict[str, str]]:
    """What the tool lists in the environment (`conda list --json`): name, version, build and channel of each package.

    Raises:
        BuildError: it does not answer; pixi knows environments of its own only.
    """
    words = ["list", "--json", "--prefix", str(prefix)]
    if tool.name == "pixi":
        words = ["list", "--json", "--manifest-path", str(prefix.parents[2] / "pixi.toml")]

    def failed(reason: str) -> BuildError:
        return BuildError(f"{tool.name} does not list {prefix}", found=reason)

    found = _ask(tool, words, {}, failed)
    try:
        if not isinstance(found, list):
            raise TypeError("no list")
        return [
            {
                "name": str(entry["name"]),
                "version": str(entry["version"]),
                "build": str(entry.get("build_string") or entry.get("build") or ""),
                "channel": redact(str(entry.get("channel") or entry.get("source") or "")),
            }
            for entry in found
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise failed(f"{tool.name} {tool.version} gave an answer that is not understood: {error}") from None


def solve(tool: Tool, asked: str, platform: str, variables: Mapping[str, str]) -> tuple[Package, ...]:
    """Every package that the solver chooses for an environment.yml on any platform, in order of name; nothing is made.

    It is asked for the machine that ``variables`` describe, whatever this one is.

    Raises:
        HostError: the tool cannot say it; micromamba and mamba can.
        LockError: no solution, or an answer that is not understood.
    """
    if not tool.is_mamba:
        raise HostError(
            "exact conda locks are made by micromamba or mamba 2",
            found=f"{tool.name} {tool.version}, which does not say what it would install with digests",
            fix=INSTALL,
        )
    with tempfile.TemporaryDirectory(prefix="labrig-conda-") as folder:
        file = Path(folder, "environment.yml")
        file.write_text(asked, encoding="utf-8")
        words = ["create", "--yes", "--dry-run", "--json", "--platform", SUBDIRS[platform]]
        words += ["--prefix", str(Path(folder, "prefix")), "--file", str(file)]

        def failed(reason: str) -> LockError:
            return LockError(
                f"no conda lock for {platform}; the old one is untouched",
                found=reason,
                fix="if the channel cannot be reached from here, name a mirror (LABRIG_CONDA_CHANNEL, .condarc); "
                "if there is no solution, change the row in images/targets.toml",
            )

        answer = _ask(tool, words, {"CONDA_OVERRIDE_CUDA": "", **variables}, failed)
        try:
            packages = [_package(entry, platform) for entry in answer["actions"]["LINK"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # Of packages in its cache it may leave digests out (mamba-org/mamba#2346).
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            said = redact(f"{tool.name} {tool.version} answered what cannot be locked: {what}")
            raise failed(f"{said}; {tool.name} clean --packages may help") from None
    return tuple(sorted(packages, key=lambda package: package.name))


def _package(entry: Mapping[str, Any], platform: str) -> Package:
    """A package as the solver tells it, with an address; the name of its file says the rest."""
    subdir, file = str(entry["url"]).rsplit("/", 2)[1:]
    named = FILE.fullmatch(file)
    fields = named.groupdict() if named else {key: entry[key] for key in ("name", "version", "build")}
    digests = {key: entry[key] for key in ("sha256", "md5", "size")}
    return package({**fields, "subdir": subdir, "file": file, **digests}, platform)


def _ask(
    tool: Tool, words: Sequence[str], variables: Mapping[str, str], failed: Callable[[str], BuildError | LockError]
) -> Any:
    try:
        done = subprocess.run(
            [str(tool.path), *words], env={**_environment(), **variables}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise failed(str(error)) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if done.returncode != 0 or answer is None:
        problems = answer.get("solver_problems", []) if isinstance(answer, dict) else []
        said = (
            "\n         ".join(map(str, problems if isinstance(problems, list) else ()))
            or (done.stderr or done.stdout).strip()[-800:]
        )
        raise failed(redact(said) or f"exit code {done.returncode}")
    return answer
