"""Wheels of a kilobyte that are valid in every respect, and targets made of them."""

from __future__ import annotations

import base64
import hashlib
import io
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labrig import spec
from labrig.spec import Target

SHIPPED = spec.read(Path(__file__).parents[2] / "images" / spec.TABLE)
TORCH = SHIPPED.targets["cuda"].torch
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
INDEX = "tiny"


def wheel(
    name: str,
    version: str,
    tag: str = "py3-none-any",
    *,
    requires: Iterable[str] = (),
    code: str = "",
) -> dict[str, bytes]:
    """File name -> content of one wheel: a package of that name with ``code`` in its __init__."""
    stem = f"{name.replace('-', '_')}-{version}"
    contents = {
        f"{name.replace('-', '_')}/__init__.py": f"__version__ = {version!r}\n{code}",
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {one}\n" for one in requires),
        f"{stem}.dist-info/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = f"{stem}.dist-info/RECORD"
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        f"{len(text.encode())}\n"
        for path, text in contents.items()
    ]
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for path, text in {**contents, record: "".join(lines) + f"{record},,\n"}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return {f"{stem}-{tag}.whl": body.getvalue()}


def sdist(name: str, version: str) -> dict[str, bytes]:
    """File name -> content of one source distribution."""
    body = io.BytesIO()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        entry = tarfile.TarInfo(f"{name}-{version}/PKG-INFO")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return {f"{name}-{version}.tar.gz": body.getvalue()}


def torch_wheel(
    version: str = TORCH, python: str = PYTHON, platform: str = "manylinux_2_28_x86_64", *, cuda: str | None = None
) -> dict[str, bytes]:
    """A torch that says its version and that of its CUDA, and needs the package ``beta``."""
    interpreter = f"cp{python.replace('.', '')}"
    code = f"class version:\n    cuda = {cuda!r}\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    return wheel("torch", version, f"{interpreter}-{interpreter}-{platform}", requires=["beta>=1"], code=code)


def row(**keys: Any) -> dict[str, Any]:
    """A row of the pin table: torch for the CPU from the index ``tiny``; keys set, or left out where None."""
    usual = {"torch": TORCH, "variant": "cpu", "python": PYTHON, "index": INDEX, "packages": ["alpha"], "why": "a test"}
    return {key: value for key, value in {**usual, **keys}.items() if value is not None}


def target(name: str = "here", **keys: Any) -> Target:
    """The target of :func:`row`, validated as from a file."""
    data = {
        "defaults": {"engines": ["venv"]},
        "indexes": {INDEX: "https://index.example/"},
        "targets": {name: row(**keys)},
    }
    return spec.parse(data, Path(spec.TABLE)).targets[name]


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Put files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
