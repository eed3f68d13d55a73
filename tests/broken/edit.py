"""Run while a broken image is built: change one file of a package as another build of it would have it.

    python edit.py append FILE CODE       behind a module, its package's RECORD kept true
    python edit.py replace FILE OLD NEW   once in a file, RECORD kept true
    python edit.py truncate FILE          to half of its size
FILE is under site-packages.
"""

import base64
import csv
import hashlib
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))


def record(file: Path) -> None:
    data = file.read_bytes()
    name = str(file.relative_to(SITE))
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    for listing in SITE.glob("*.dist-info/RECORD"):
        lines = listing.read_text().splitlines()
        for i, line in enumerate(lines):
            if next(csv.reader([line]))[0] == name:
                lines[i] = f"{name},sha256={digest},{len(data)}"
                listing.write_text("\n".join(lines) + "\n")
                return
    raise SystemExit(f"no package owns {name}")


def main(how: str, name: str, *words: str) -> None:
    file = SITE / name
    if how == "truncate":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return
    text = file.read_text()
    if how == "replace":
        assert words[0] in text, f"{words[0]!r} is not in {name}"
    file.write_text(text + words[0] if how == "append" else text.replace(words[0], words[1], 1))
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()  # unchecked: it would be taken instead of the changed module
    record(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
