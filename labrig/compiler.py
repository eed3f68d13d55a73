"""Compile the modules of wheels, without installing them: run by an interpreter of the environment's Python.

Standard library only. Reads a file and removes it; each of its lines is a JSON object: ``wheel`` (an archive), ``out``
(the archive to write), ``modules`` (entry -> the module's path in the environment). The result holds no times, and is
not compared with its source at each import (unchecked hashes, PEP 552).

    python -I -S compiler.py JOBS
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import signal
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path


def compile_wheel(wheel: Path, out: Path, modules: Mapping[str, str]) -> None:
    """Write an archive of bytecode; a module that is no Python of this version is left out."""
    handle, name = tempfile.mkstemp(prefix=".making-", dir=out.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive, zipfile.ZipFile(wheel) as sources:
            for entry, path in sorted(modules.items()):
                source = sources.read(entry)
                try:
                    code = compile(source, path, "exec", dont_inherit=True)
                except (SyntaxError, ValueError):
                    continue
                header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
                content = header + importlib.util.source_hash(source) + marshal.dumps(code)
                info = zipfile.ZipInfo(importlib.util.cache_from_source(path).lstrip("/"))
                archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        temporary.chmod(0o644)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is unfinished is removed
    jobs = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    Path(sys.argv[1]).unlink()
    try:
        for line in jobs:
            job = json.loads(line)
            compile_wheel(Path(job["wheel"]), Path(job["out"]), job["modules"])
    except OSError as error:
        sys.exit(f"{error.filename or 'bytecode'}: {error.strerror}")
