#!/usr/bin/env python3
"""The script on a kit, where it is called kit.py: proves the files, and sets up what they hold, with no labrig there.

Standard library only and Python 3.8 or newer, no network, and nothing is written beside it: a kit may be read-only.

    python3 kit.py                        what this kit is, and what of it fits this machine
    python3 kit.py verify                 every file against its checksum
    python3 kit.py native [--to FOLDER]   an environment in FOLDER/venv and the labs in FOLDER/labs, for this machine
    python3 kit.py load                   the image into Docker or podman

Exit codes: 2 usage, 3 this machine cannot, 4 the kit is damaged or a step failed, 6 the result is not what it should
be, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple  # noqa: UP035 - of Python 3.8

sys.dont_write_bytecode = True

Target = Dict[str, Any]  # noqa: UP006 - an entry of kit.json

FORMAT = 1
CHECKSUMS, ABOUT = "checksums", "kit.json"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")  # sha256sum's
# What desktops leave in a folder that is looked at; nothing of it is ever read.
LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.Trash.*|\.fseventsd|\.Spotlight-V100")
CHUNK = 1 << 20  # bytes read at once
PAUSE = 3.0  # seconds between two lines of progress
INSTALL_TIMEOUT, LOAD_TIMEOUT, ANSWER_TIMEOUT = 3600, 3600, 20  # seconds
MARK, UNFINISHED = "labrig-requirements.txt", "labrig-unfinished"  # in a venv, as setup.sh has them
UNPACKED = 4  # an environment takes about so many times the bytes of its wheels
EPOCH = 1735689600
INDEX = "application/vnd.oci.image.index.v1+json"
TAG = "org.opencontainers.image.ref.name"
COPY_AGAIN = "Copy the kit again from where it came, or ask for another stick."


class Stop(Exception):
    """The end, with an exit code and what to say."""

    def __init__(self, code: int, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.code = code


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """Text of a kit that nobody has proven, without what moves a cursor."""
    return "".join(one if one.isprintable() else "?" for one in text)


def megabytes(count: int) -> str:
    """Bytes for people."""
    return "%.2f GB" % (count / 1e9) if count >= 1e9 else "%.1f MB" % (count / 1e6)


# --- checksums --------------------------------------------------------------------------------------------------------


def is_safe(name: str) -> bool:
    """Whether a name is that of a file in the kit and nowhere else, on any system."""
    parts = name.split("/")
    return not re.search(r'[\\:\x00-\x1f*?"<>|]', name) and not any(part in ("", ".", "..") for part in parts)


def parse_checksums(text: str) -> dict[str, str]:
    """The SHA-256 of each file, by its name in the kit. Raises ValueError for what cannot be meant."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if not match or not is_safe(match.group(2)) or match.group(2) == CHECKSUMS or match.group(2) in found:
            raise ValueError(f"a line that is none of a kit: {line[:120]!a}")
        found[match.group(2)] = match.group(1)
    if ABOUT not in found:
        raise ValueError(f"{ABOUT} is not in it")
    return found


def files_of(folder: Path) -> dict[str, int]:
    """The size in bytes of each file of a kit, by its name. Raises ValueError for links, devices and the like."""
    found: dict[str, int] = {}
    for place, folders, names in os.walk(str(folder), onerror=_cannot_list):
        folders[:] = [one for one in folders if not LITTER.fullmatch(one) and one != "System Volume Information"]
        for name in (*names, *folders):
            path = Path(place, name)
            mode = path.lstat()
            inner = path.relative_to(folder).as_posix()
            if not stat.S_ISREG(mode.st_mode) and not stat.S_ISDIR(mode.st_mode):
                raise ValueError(f"{inner!a} is neither a file nor a folder")
            if name in names and not LITTER.fullmatch(name):
                found[inner] = mode.st_size
    return found


def _cannot_list(error: OSError) -> None:
    raise error


class Kit:
    """The kit that this script lies in: what checksums say of its files, and kit.json, proven by them."""

    def __init__(self, here: Path) -> None:
        self.here = here
        try:
            content = (here / CHECKSUMS).read_bytes()
            self.expected = parse_checksums(content.decode())
        except FileNotFoundError:
            raise Stop(
                4, f"This kit is not whole: {CHECKSUMS} is missing, which is written last.", COPY_AGAIN
            ) from None
        except (OSError, ValueError) as error:
            raise Stop(4, f"{CHECKSUMS} cannot be used: {error}", COPY_AGAIN) from None
        self.digest = hashlib.sha256(content).hexdigest()
        about = json.loads(self.read(ABOUT).decode())
        if about["format"] != FORMAT:
            raise Stop(4, "This script is of another labrig than the kit.", COPY_AGAIN)
        self.targets: list[Target] = about["targets"]

    def pick(self, name: str, what: str) -> Target:
        """The target of that name, or the only one, that has an image or wheels."""
        fitting = [one for one in self.targets if name in ("", one["name"])]
        if not fitting:
            raise Stop(2, f"This kit has no target {name}; it has: {self._names(self.targets)}")
        having = [one for one in fitting if one[what]]
        if not having:
            raise Stop(3, f"This kit has no {what} of {self._names(fitting)}.")
        if len(having) > 1:
            raise Stop(2, f"This kit has several targets. Name one with --target: {self._names(having)}")
        return having[0]

    @staticmethod
    def _names(targets: list[Target]) -> str:
        return ", ".join(one["name"] for one in targets)

    def read(self, name: str) -> bytes:
        """A small file, proven."""
        pieces = list(self.pieces(name))
        return b"".join(pieces)

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece; the last one comes only when the whole file is proven."""
        wrong = ""
        digest, last = hashlib.sha256(), b""
        try:
            with (self.here / name).open("rb") as file:
                if name not in self.expected:
                    wrong = "is not in " + CHECKSUMS
                while not wrong:
                    piece = file.read(CHUNK)
                    if not piece:
                        break
                    digest.update(piece)
                    if last:
                        yield last
                    last = piece
        except OSError as error:
            wrong = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        if not wrong and digest.hexdigest() != self.expected[name]:
            wrong = "is damaged"
        if wrong:
            raise Stop(4, f"{name} {wrong}.", "Nothing of it was used. " + COPY_AGAIN)
        yield last

    def prove(self, names: Iterable[str]) -> list[str]:
        """Read these files to their end; gives what is wrong with them."""
        names = list(names)
        wrong, done, said = [], 0, time.monotonic()
        sizes = {}
        for name in names:
            with contextlib.suppress(OSError):
                sizes[name] = (self.here / name).stat().st_size
        total = sum(sizes.values())
        say(f"checking {len(names)} files, {megabytes(total)}")
        for name in names:
            try:
                for piece in self.pieces(name):
                    done += len(piece)
                    if time.monotonic() - said > PAUSE:
                        said = time.monotonic()
                        say(f"  {100 * done // max(total, 1)}%")
            except Stop as stop:
                wrong.append(str(stop).partition("\n")[0])
        return wrong

    def require(self, names: Iterable[str]) -> None:
        """Raises Stop unless these files are what they should be."""
        _refuse(self.prove(names))


def _refuse(wrong: list[str]) -> None:
    if wrong:
        more = [f"(and {len(wrong) - 1} more)"] if wrong[1:] else []
        raise Stop(4, wrong[0], *more, "Nothing of it was used. " + COPY_AGAIN)


def verify(kit: Kit) -> None:
    """Every file against its checksum, and none too many or too few."""
    try:
        there = files_of(kit.here)
    except (OSError, ValueError) as error:
        raise Stop(4, f"The kit cannot be read: {error}", COPY_AGAIN) from None
    wrong = kit.prove(sorted(kit.expected))
    wrong += [f"{shown(name)} is not the kit's." for name in sorted(set(there) - set(kit.expected) - {CHECKSUMS})]
    _refuse(wrong)
    say(f"All {len(kit.expected)} files are as they were written.")
    print("sha256:" + kit.digest)


# --- native -----------------------------------------------------------------------------------------------------------


def here_is() -> str:
    """This machine's platform as labrig names it."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if platform.system() == "Darwin":
        return "macos_" + {"aarch64": "arm64"}.get(machine, machine)
    return f"{platform.system().lower()}_{machine}"


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def unfit(target: Target) -> str:
    """Why the wheels of a target are not for this machine, or an empty text."""
    if here_is() != target["platform"]:
        hint = " On Windows, run this inside WSL2." if platform.system() == "Windows" else ""
        return "its wheels are for {}, and this machine is {}.{}".format(target["platform"], here_is(), hint)
    name, found = platform.libc_ver()
    if target["glibc"] and platform.system() == "Linux":
        if name != "glibc":
            return "its wheels need glibc, which this system has not"
        if numbers(found) < numbers(target["glibc"]):
            return "its wheels need glibc {}, and this system has {}".format(target["glibc"], found)
    mac = platform.mac_ver()[0]
    if target["macos"] and mac and numbers(mac) < numbers(target["macos"]):
        return "its wheels need macOS {}, and this is {}".format(target["macos"], mac)
    return ""


ASK = (
    "import json, sys, sysconfig; v = '%d.%d' % sys.version_info[:2]\n"
    "try:\n import ensurepip, venv; whole = True\n"
    "except ImportError: whole = False\n"
    "print(json.dumps([v, bool(sysconfig.get_config_var('Py_GIL_DISABLED')), whole, sys.version.split()[0]]))"
)


def find_python(minor: str, named: str = "") -> Tuple[str, str]:  # noqa: UP006
    """A Python of that minor version that can make environments, and its version: found by running candidates.

    A program on PATH may be a shim that fails, or lack ensurepip. One that is named is the only one tried.
    """
    home = Path.home()
    installed = [
        home / ".pyenv/versions",
        home / ".local/share/uv/python",
        home / "Library/Application Support/uv/python",
    ]
    candidates = (
        [named] if named else [sys.executable, "python" + minor, "python3", "python", "/usr/bin/python" + minor]
    )
    if not named:
        for folder in installed:
            candidates += [str(one) for one in sorted(folder.glob(f"*{minor}.*/bin/python{minor}"), reverse=True)]
    without = ""
    for candidate in candidates:
        try:
            done = subprocess.run(
                [candidate, "-I", "-c", ASK], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, timeout=ANSWER_TIMEOUT, check=True,
            )  # fmt: skip
            version, free_threaded, whole, full = json.loads(done.stdout.decode())
        except (OSError, subprocess.SubprocessError, ValueError, TypeError):
            continue
        if version == minor and not free_threaded:
            if whole:
                return candidate, full
            without = candidate
    if without:
        raise Stop(3, f"{without} is a Python {minor} without ensurepip or venv.",
                   f"Install them: on Debian and Ubuntu, apt install python{minor}-venv.")  # fmt: skip
    raise Stop(
        3,
        f"There is no working Python {minor} here; tried: {', '.join(candidates)}",
        f"Install it (your system's packages, python.org), or name it: --python /path/to/python{minor}",
    )


def native(kit: Kit, target: Target, place: Path, named: str) -> None:
    """An environment in ``place``/venv, made of the kit's wheels alone, and the labs in ``place``/labs."""
    reason = unfit(target)
    if reason:
        raise Stop(3, "Target {} cannot be installed here: {}".format(target["name"], reason))
    if kit.here == place or kit.here in place.parents:
        raise Stop(2, f"{place} is in the kit itself. Name another folder with --to.")
    python, version = find_python(target["python"], named)
    labs = [name for name in kit.expected if name.startswith("labs/")]
    wheels = ["wheels/" + name for name in target["wheels"]]
    kit.require([target["requirements"], *wheels, *labs])
    try:
        place.mkdir(parents=True, exist_ok=True)
        _make_venv(kit, target, place / "venv", python, version, len(wheels))
        kept = _copy_labs(kit, labs, place)
    except OSError as error:
        raise Stop(
            4,
            f"{error.filename or place} cannot be written: {error.strerror}",
            "Make room or permission there, or name another folder with --to; then run it again.",
        ) from None
    if kept:
        say(f"{len(kept)} files of the labs stay as you have them: {', '.join(kept[:5])}")
    print(f"cd {quoted(str(place))} && . venv/bin/activate")
    print("python -m labs run --quick")


def quoted(text: str) -> str:
    """Text as a word of the shell."""
    import shlex

    return shlex.quote(text)


def _make_venv(kit: Kit, target: Target, venv: Path, python: str, version: str, count: int) -> None:
    requirements = kit.read(target["requirements"])
    program = str(venv / "bin" / "python")
    if (venv / UNFINISHED).exists() or (venv.is_dir() and not any(venv.iterdir())):
        say(f"removing what an interrupted run left in {venv}")
        shutil.rmtree(str(venv))
    if venv.exists():
        mark = venv / MARK
        if not mark.is_file() or mark.read_bytes() != requirements or not _answers(program):
            raise Stop(2, f"{venv} is there already, and is not what this kit makes.",
                       "Name another folder with --to, or remove that one.")  # fmt: skip
        say("{} is already the environment of target {}.".format(venv, target["name"]))
        return
    needed, free = UNPACKED * target["wheels_size"], shutil.disk_usage(str(venv.parent)).free
    say(f"making {venv} with Python {version}: {count} wheels, about {megabytes(needed)}; a minute or two")
    if free < needed:
        say(f"only {megabytes(free)} are free there")
    venv.mkdir()
    (venv / UNFINISHED).touch()
    temporary = venv / "tmp"
    temporary.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV", "CONDA_"))}
    clean.update(
        PIP_CONFIG_FILE=os.devnull, PIP_NO_CACHE_DIR="1", PIP_DISABLE_PIP_VERSION_CHECK="1", TMPDIR=str(temporary)
    )
    listed = temporary / "requirements.txt"
    listed.write_bytes(requirements)
    install = [program, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(kit.here / "wheels")]
    install += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile", "-r", str(listed)]
    for command in ([python, "-I", "-m", "venv", str(venv)], install):
        try:
            code = subprocess.run(command, env=clean, stdout=sys.stderr, timeout=INSTALL_TIMEOUT).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            shutil.rmtree(str(venv), ignore_errors=True)
            raise Stop(4, "The environment could not be made (above); nothing half-made was kept.",
                       "Make room if the disk is full, then run it again.")  # fmt: skip
    shutil.rmtree(str(temporary))
    _prove_torch(target, program, clean)
    part = venv / (MARK + ".part")
    part.write_bytes(requirements)
    os.replace(str(part), str(venv / MARK))  # noqa: PTH105
    (venv / UNFINISHED).unlink()


def _answers(program: str) -> bool:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run([program, "-I", "-c", ""], check=True, timeout=ANSWER_TIMEOUT)
        return True
    return False


def _prove_torch(target: Target, program: str, environment: dict[str, str]) -> None:
    """Import torch, and compare what it says of itself."""
    code = "import torch; print(torch.__version__.partition('+')[0], torch.version.cuda)"
    done = subprocess.run([program, "-I", "-c", code], env=environment, capture_output=True, timeout=600)
    found, expected = done.stdout.decode().strip(), "{} {}".format(target["torch"], target["cuda"])
    if done.returncode or found != expected:
        found = found or done.stderr.decode(errors="replace").strip()[-500:]
        raise Stop(6, f"The environment is not what it should be: torch says {found}, and not {expected}")
    say("torch {} is there".format(target["torch"]))


def _copy_labs(kit: Kit, names: list[str], place: Path) -> list[str]:
    """Copy what is not there yet; gives the files that are there and differ, which stay."""
    kept = []
    for name in names:
        content, to = kit.read(name), place / name
        if to.exists():
            kept += [name] if to.read_bytes() != content else []
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(to.name + ".part")
        part.write_bytes(content)
        os.replace(str(part), str(to))  # noqa: PTH105
    return kept


# --- the image --------------------------------------------------------------------------------------------------------


def ask(*command: str) -> str:
    """What a program says. Raises Stop if it fails."""
    try:
        done = subprocess.run(list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise Stop(3, f"{command[0]} does not answer: {error}") from None
    if done.returncode:
        raise Stop(
            3, "{} does not answer: {}".format(command[0], " ".join(done.stderr.decode(errors="replace").split()))
        )
    return done.stdout.decode().strip()


ARCHITECTURE = {
    "docker": ("version", "{{.Server.Os}}/{{.Server.Arch}}"),
    "podman": ("info", "{{.Host.OS}}/{{.Host.Arch}}"),
}


def engine_is(program: str) -> str:
    """What an engine runs: linux/amd64. Raises Stop if none answers."""
    word, form = ARCHITECTURE["podman" if "podman" in Path(program).name else "docker"]
    return ask(program, word, "--format", form)


def find_engine(named: str) -> Tuple[str, str]:  # noqa: UP006
    """The engine's program, and what it runs: the named one, or the first that answers."""
    reasons: list[str] = []
    for program in [named] if named else ["docker", "podman"]:
        try:
            found = engine_is(program)
            for reason in reasons:
                say(reason)
            return program, found
        except Stop as stop:
            reasons.append(str(stop))
    raise Stop(3, *reasons, "Start Docker (or install it), or make a native environment: python3 kit.py native")


def load(kit: Kit, target: Target, named: str) -> None:
    """The image into an engine, every byte proven before the engine has all of the stream."""
    program, runs = find_engine(named)
    image = target["image"]
    if runs != image["platform"]:
        raise Stop(3, "The image is for {}, and {} runs {}.".format(image["platform"], program, runs))
    reference, latest = image["reference"], image["reference"].rpartition(":")[0] + ":latest"
    proofs = (image["config"], image["digest"])  # an engine with containerd's store says the manifest's
    if _image_id(program, reference) in proofs:
        say(f"{reference} is in the engine already")
    else:
        _send(kit, image, program)
        found = _image_id(program, reference)
        if found not in proofs:
            with contextlib.suppress(Stop):
                ask(program, "rmi", reference)
            raise Stop(
                6, "The engine has another image than the kit: {}, and not {}".format(found, " or ".join(proofs))
            )
    ask(program, "tag", reference, latest)
    say(f"also as {latest}")
    print(reference)


def _image_id(program: str, reference: str) -> str:
    with contextlib.suppress(Stop):
        found = ask(program, "image", "inspect", "--format", "{{.Id}}", reference)
        return found if ":" in found else "sha256:" + found  # podman's way
    return ""


def _send(kit: Kit, image: dict[str, Any], program: str) -> None:
    manifest = json.loads(kit.read(_blob(image["digest"])).decode())
    total = sum(layer["size"] for layer in manifest["layers"])
    say("loading {}: {}".format(image["reference"], megabytes(total)))
    process = subprocess.Popen(
        [program, "load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin and process.stdout  # noqa: S101 - for the type checker
    said: List[bytes] = []  # noqa: UP006
    out = process.stdout
    reader = threading.Thread(target=lambda: said.append(out.read()), daemon=True)
    reader.start()
    try:
        done, told = 0, time.monotonic()
        for piece in archive(kit, image, manifest):
            process.stdin.write(piece)
            done += len(piece)
            if time.monotonic() - told > PAUSE:
                told = time.monotonic()
                say(f"  {min(100, 100 * done // max(total, 1))}%")
        say("all is sent; the engine unpacks it")
        process.stdin.close()
        code = process.wait(LOAD_TIMEOUT)
    except BrokenPipeError:  # it refused before it had all, and says why
        code = 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ANSWER_TIMEOUT)
    except subprocess.TimeoutExpired:
        code = 1
    finally:
        # Killed before its input ends: the engine sees a stream that breaks off, and keeps nothing.
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        reader.join(ANSWER_TIMEOUT)
        out.close()
    if code:
        words = b"".join(said).decode(errors="replace").strip()
        raise Stop(
            4, f"The engine did not take the image: {words}", "Make room if its disk is full, then run it again."
        )


def _blob(digest: str) -> str:
    return "image/blobs/" + digest.replace(":", "/")


def archive(kit: Kit, image: dict[str, Any], manifest: dict[str, Any]) -> Iterator[bytes]:
    """The tar that `docker load` reads: an OCI layout that has Docker's older manifest.json as well."""
    reference = image["reference"]
    document = kit.read(_blob(image["digest"]))
    entry = {
        "mediaType": manifest["mediaType"],
        "digest": image["digest"],
        "size": len(document),
        "platform": {"architecture": image["platform"].partition("/")[2], "os": "linux"},
        # containerd knows an image by its whole name.
        "annotations": {"io.containerd.image.name": "docker.io/" + reference, TAG: reference.rpartition(":")[2]},
    }
    inner = [_blob(layer["digest"])[len("image/") :] for layer in manifest["layers"]]
    config = _blob(manifest["config"]["digest"])
    texts = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"manifests": [entry], "mediaType": INDEX, "schemaVersion": 2}).encode(),
        "manifest.json": json.dumps(
            [{"Config": config[len("image/") :], "RepoTags": [reference], "Layers": inner}]
        ).encode(),
        config[len("image/") :]: kit.read(config),
        _blob(image["digest"])[len("image/") :]: document,
    }
    for name, content in texts.items():
        yield _header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    for name in dict.fromkeys(inner):
        size = next(layer["size"] for layer in manifest["layers"] if _blob(layer["digest"]) == "image/" + name)
        sent = 0
        yield _header(name, size)
        for piece in kit.pieces("image/" + name):
            sent += len(piece)
            yield piece
        if sent != size:
            raise Stop(4, f"image/{name} has another size than the image says.", COPY_AGAIN)
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, EPOCH
    return info.tobuf(tarfile.PAX_FORMAT)


# --- the doors --------------------------------------------------------------------------------------------------------


def describe(kit: Kit) -> None:
    """What the kit is, and what of it fits this machine."""
    script = quoted(str(kit.here / "kit.py"))
    for target in kit.targets:
        needs = "; needs an NVIDIA driver {} or newer".format(target["min_driver"]) if target["min_driver"] else ""
        print("target {}: torch {} ({}), Python {}{}".format(
            target["name"], target["torch"], target["variant"], target["python"], needs))  # fmt: skip
        option = " --target {}".format(target["name"]) if len(kit.targets) > 1 else ""
        if target["image"]:
            print("  image, {}, {}".format(target["image"]["platform"], megabytes(target["image"]["size"])))
            print("    " + _fits(lambda: f"python3 {script} load{option}", lambda: _engine_fits(target)))  # noqa: B023
        if target["wheels"]:
            print("  native, {}, {} of wheels".format(target["platform"], megabytes(target["wheels_size"])))
            print("    " + _fits(lambda: f"python3 {script} native{option}", lambda: _native_fits(target)))  # noqa: B023
    print(f"the labs are in labs/; to prove every file first: python3 {script} verify")


def _fits(command: Callable[[], str], proof: Callable[[], str]) -> str:
    try:
        return f"{command()}    # {proof()}"
    except Stop as stop:
        return "not on this machine: " + " ".join(str(stop).split())


def _engine_fits(target: Target) -> str:
    program, runs = find_engine("")
    if runs != target["image"]["platform"]:
        raise Stop(3, f"{program} runs {runs}")
    return f"{program} answers"


def _native_fits(target: Target) -> str:
    reason = unfit(target)
    if reason:
        raise Stop(3, reason)
    return "with Python {}".format(find_python(target["python"])[1])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; argparse ends with 2 itself."""
    parser = argparse.ArgumentParser(prog="kit.py", description="Proves this kit and sets up what it holds, offline.")
    commands = parser.add_subparsers(dest="command", metavar="verify|native|load")
    commands.add_parser("verify", help="every file against its checksum")
    one = commands.add_parser("native", help="an environment for this machine, and the labs")
    one.add_argument("--to", default="", help="the folder to put them in; without it ./labrig-TARGET")
    one.add_argument(
        "--python", default=os.environ.get("PYTHON", ""), help="the interpreter; without it one is looked for"
    )
    two = commands.add_parser("load", help="the image into Docker or podman")
    two.add_argument("--docker", default="", help="docker, podman or a path; without it the first that answers")
    for each in (one, two):
        each.add_argument("--target", default="", help="which, if the kit has several")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Do what the command line says; gives the exit code."""
    wish = parse(arguments)
    try:
        kit = Kit(Path(__file__).resolve().parent)
        if wish.command == "verify":
            verify(kit)
        elif wish.command == "native":
            target = kit.pick(wish.target, "wheels")
            native(kit, target, Path(wish.to or "labrig-" + target["name"]).resolve(), wish.python)
        elif wish.command == "load":
            load(kit, kit.pick(wish.target, "image"), wish.docker)
        else:
            describe(kit)
        sys.stdout.flush()
    except Stop as stop:
        say(f"kit: {stop}")
        return stop.code
    except OSError as error:
        say(f"kit: {error}")
        return 4
    except KeyboardInterrupt:
        say("kit: interrupted; run it again, it goes on or begins anew")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
