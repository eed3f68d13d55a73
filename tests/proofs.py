"""What a run of the tests has proved of targets and engines, held against the table in labrig/support.py.

A test that proves something says so when it passes: record_property("proves", "cpu venv run"), or "mps venv locked".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from labrig.support import CANNOT, CHECKED, Line


def differences(lines: Iterable[Line], proofs: Collection[str], *, without: Collection[str] = ()) -> list[str]:
    """Where the table says more or less than was proved; engines ``without`` could not be tried on this machine."""
    found = []
    lines = tuple(lines)
    for line in lines:
        name = f"{line.target} {line.engine}"
        proved = {proof.split()[2] for proof in proofs if proof.startswith(f"{name} ")}
        if line.status == CANNOT and proved:
            found.append(f"{name}: the table says {CANNOT}, and a test did")
        if line.engine in without:
            continue
        if line.status == CHECKED and "run" in proved:
            found.append(f"{name}: it was run, and the table says {CHECKED}")
        for proof in line.proofs:
            if proof not in proved:
                found.append(f"{name}: the table says {line.status}, and no test proved it ({proof})")
    known = {(line.target, line.engine) for line in lines}
    return found + [f"{one}: there is no such line" for one in sorted(proofs) if tuple(one.split()[:2]) not in known]
