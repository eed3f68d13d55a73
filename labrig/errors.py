"""Every error labrig raises on purpose, each with its exit code.

    LabrigError            1   never raised itself; 1 is also Python's code for a bug
    ├── UsageError         2   flags, names, files a person wrote
    │   └── SpecError      2   images/targets.toml
    ├── HostError          3   this machine cannot: no engine, no interpreter, an absent device that was named
    ├── BuildError         4   an environment could not be made
    │   ├── LockError      4   a lock is missing, stale or cannot be solved
    │   └── FetchError     4   a wheel cannot be had, or is not what the lock says
    ├── LabError           5   a lab's gate was missed
    ├── VerifyError        6   a declared check failed
    ├── DistributeError    7   publish, pull, fleet
    ├── PendingError       8   changes pending (``render --check``, plan)
    └── Interrupted        130 Ctrl-C

The same table is the exit-code table of tasks, labs and fleet.
"""

from __future__ import annotations


class LabrigError(Exception):
    """A failure we can name: what failed, what was found, what to run.

    ``str()`` gives the one to three lines a person reads; no traceback is shown.
    """

    code = 1

    def __init__(self, what: str, *, found: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.found:
            lines.append(f"  found: {self.found}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class UsageError(LabrigError):
    """A flag, a name or a file that a person wrote is wrong."""

    code = 2


class SpecError(UsageError):
    """images/targets.toml holds something that cannot be a target."""


class HostError(LabrigError):
    """This machine cannot do what was asked of it."""

    code = 3


class BuildError(LabrigError):
    """An environment could not be made."""

    code = 4


class LockError(BuildError):
    """A lock is missing, stale, or cannot be solved."""


class FetchError(BuildError):
    """A wheel cannot be had, or is not the one the lock names."""


class LabError(LabrigError):
    """A lab's gate was missed."""

    code = 5


class VerifyError(LabrigError):
    """A declared check failed."""

    code = 6


class DistributeError(LabrigError):
    """Publishing, pulling or provisioning failed."""

    code = 7


class PendingError(LabrigError):
    """Nothing is wrong, but something has to be done: changes are pending."""

    code = 8


class Interrupted(LabrigError):
    """Ctrl-C, said in one line."""

    code = 130
