"""From errors to exit codes: what every task of tasks.py is wrapped in."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from invoke.exceptions import Exit
from invoke.parser.parser import ParseMachine

from labrig.errors import BuildError, Interrupted, LabrigError, UsageError

F = TypeVar("F", bound=Callable[..., Any])

_DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "it is read-only"}


def door(function: F) -> F:
    """Wrap a task: known errors become their exit code and a few lines on stderr, Ctrl-C becomes 130."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _end(Interrupted("interrupted; what was finished is kept, and the same command continues"))
        except LabrigError as error:
            _end(error)
        except BrokenPipeError:
            # The reader (head, less) has gone; that is its right. Python would complain once more while it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Exit(code=128 + signal.SIGPIPE) from None
        except OSError as error:
            if error.errno not in (*_DISK, errno.EACCES, errno.EPERM):
                raise
            what = _DISK.get(error.errno or 0, "no permission")
            _end(
                BuildError(
                    f"cannot write {error.filename or 'a file'}: {what}",
                    found=str(error),
                    fix="make room or permission there, or name another place with LABRIG_CACHE; nothing is half-done",
                )
            )

    return wrapped  # type: ignore[return-value]


def _end(error: LabrigError) -> NoReturn:
    print(f"labrig: {error}", file=sys.stderr)
    raise Exit(code=error.code)


def make_usage_errors_exit_2() -> None:
    """Invoke ends with 1 on a wrong flag or task name; labrig's table says 2, for every door alike.

    Invoke offers no setting for it; its Exit carries a code, so the parser raises that.
    """

    def error(self: ParseMachine, msg: str) -> NoReturn:
        raise Exit(f"labrig: {msg}\n  fix:   invoke --list, or invoke --help TASK", UsageError.code)

    ParseMachine.error = error  # type: ignore[method-assign]


def print_json(value: object) -> None:
    """Print a document to stdout."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table to stdout; without a terminal it is as wide as it wants to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)
