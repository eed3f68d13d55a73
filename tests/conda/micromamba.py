"""A stand-in for micromamba that really solves and installs, by py-rattler, which pixi is built on.

No conda program can be installed from a Python or npm registry. This one takes the few words of micromamba's command
line that labrig uses (mamba docs, "Micromamba User Guide"), refuses every other one, and answers in the same form.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import rattler
import yaml
from rattler.exceptions import GatewayError, SolverError

VERSION = "2.3.0"  # the version whose words these are
OVERRIDES = {"CUDA": "__cuda", "GLIBC": "__glibc", "OSX": "__osx", "ARCHSPEC": "__archspec"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="micromamba", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=VERSION)
    verbs = parser.add_subparsers(required=True)
    create = verbs.add_parser("create", allow_abbrev=False)
    create.set_defaults(do=do_create)
    create.add_argument("--yes", action="store_true", required=True)
    create.add_argument("--prefix", type=Path, required=True)
    create.add_argument("--file", type=Path, required=True)
    for flag in ("--offline", "--dry-run", "--json"):
        create.add_argument(flag, action="store_true")
    create.add_argument("--platform", default=str(rattler.Subdir.current()))
    listing = verbs.add_parser("list", allow_abbrev=False)
    listing.set_defaults(do=do_list)
    listing.add_argument("--json", action="store_true", required=True)
    listing.add_argument("--prefix", type=Path, required=True)
    arguments = parser.parse_args()
    code = 0
    try:
        asyncio.run(arguments.do(arguments))
    except (SolverError, GatewayError, OSError) as error:
        if getattr(arguments, "json", False):
            print(json.dumps({"success": False, "solver_problems": [str(error)]}))
        print(f"error    libmamba {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code)  # py-rattler's threads may still want the interpreter while it shuts down: it then aborts


async def do_create(arguments: argparse.Namespace) -> None:
    text = arguments.file.read_text()
    records = await (explicit(text) if "@EXPLICIT" in text else solve(yaml.safe_load(text), arguments.platform))
    if arguments.dry_run:
        link = [{**json.loads(record.to_json()), "url": record.url} for record in records]
        print(json.dumps({"actions": {"LINK": link, "PREFIX": str(arguments.prefix)}, "success": True}))
        return
    if arguments.prefix.exists():
        raise OSError("Non-conda folder exists at prefix")
    print(f"Linking {len(records)} packages", flush=True)
    await rattler.install(records, arguments.prefix, show_progress=False)


async def solve(wanted: dict[str, list[str]], platform: str) -> list[rattler.RepoDataRecord]:
    channels = [one for one in wanted["channels"] if one != "nodefaults"]
    return await rattler.solve(
        [rattler.Channel(one) for one in channels],
        [rattler.MatchSpec(one, strict=False) for one in wanted["dependencies"]],
        gateway=rattler.Gateway(),
        platforms=[platform, "noarch"],
        virtual_packages=virtual_packages(platform),
    )


def virtual_packages(platform: str) -> list[rattler.GenericVirtualPackage]:
    """What this machine has, and what CONDA_OVERRIDE_* say instead; an empty one takes it away."""
    system = platform.partition("-")[0]
    found = {"__unix": "0", f"__{system}": "0"}
    if platform == str(rattler.Subdir.current()):
        for one in rattler.VirtualPackage.detect():
            generic = one.into_generic()
            found[generic.name.normalized] = str(generic.version)
    for variable, name in OVERRIDES.items():
        value = os.environ.get(f"CONDA_OVERRIDE_{variable}")
        if value is not None:
            found.pop(name, None)
            if value:
                found[name] = value if value[0].isdigit() else "1"
    return [
        rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), rattler.BuildString("0"))
        for name, version in found.items()
    ]


async def explicit(text: str) -> list[rattler.RepoDataRecord]:
    """The packages of an explicit file, each compared with the MD5 behind its address."""
    lines = [line for line in text.splitlines() if line and not line.startswith("@")]
    records = []
    for line in lines:
        url, _, md5 = line.partition("#")
        file = Path(url2pathname(urlsplit(url).path))
        if hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != md5:
            raise OSError(f"{file.name}: MD5 is not {md5}")
        found = await rattler.Gateway().query(
            [rattler.Channel(url.rsplit("/", 2)[0])],
            [url.rsplit("/", 2)[1]],
            [file.name.rsplit("-", 2)[0]],
            recursive=False,
        )
        records += [record for repository in found for record in repository if record.url == url]
    return records


async def do_list(arguments: argparse.Namespace) -> None:
    found = []
    for file in sorted((arguments.prefix / "conda-meta").glob("*.json")):
        record = rattler.PrefixRecord.from_path(file)
        found.append({
            "base_url": record.channel, "build_number": record.build_number, "build_string": str(record.build),
            "channel": str(record.channel).rstrip("/").rsplit("/", 1)[-1], "dist_name": file.stem,
            "name": record.name.normalized, "platform": record.subdir, "version": str(record.version),
        })  # fmt: skip
    print(json.dumps(found, indent=4))


if __name__ == "__main__":
    main()
