"""What a run of the tests has proved of targets and engines, held against the table in labrig/support.py.

A test that proves something says so when it passes: record_property("proves", "cpu venv run"), or "... checked".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from labrig.support import CANNOT, CHECKED, RUN, Line

WORDS = {"run": RUN, "checked": CHECKED}


def differences(lines: Iterable[Line], proofs: Collection[str], *, without: Collection[str] = ()) -> list[str]:
    """Where the table says more or less than was proved; engines ``without`` could not be tried on this machine."""
    found = []
    known = {(line.target, line.engine): line.status for line in lines}
    for (target, engine), status in known.items():
        proved = {WORDS[word] for word in WORDS if f"{target} {engine} {word}" in proofs}
        if engine in without:
            continue
        if status == RUN and RUN not in proved:
            found.append(f"{target} {engine}: the table says {RUN}, and no test ran it")
        if status == CHECKED and RUN in proved:
            found.append(f"{target} {engine}: it was run, and the table says {CHECKED}")
        if status == CHECKED and CHECKED not in proved:
            found.append(f"{target} {engine}: the table says {CHECKED}, and no test checked it")
        if status == CANNOT and proved:
            found.append(f"{target} {engine}: the table says {CANNOT}, and a test did")
    stray = sorted(proof for proof in proofs if tuple(proof.split()[:2]) not in known or proof.split()[2] not in WORDS)
    return found + [f"{proof}: there is no such line" for proof in stray]
