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

from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.parser.parser import ParseMachine
from invoke.program import Program

from labrig.errors import BuildError, Interrupted, LabrigError, UsageError

F = TypeVar("F", bound=Callable[..., Any])

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "it is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOTDIR: "a part of its path is no folder",
    errno.EEXIST: "there is something else of that name",
    errno.EISDIR: "there is a folder of that name",
}


def door(function: F) -> F:
    """Wrap a task: known errors become their exit code and a few lines on stderr, Ctrl-C becomes 130."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> None:
        if sys.stdout is None:  # the caller closed it (>&-); what is printed is then not wanted
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
        try:
            function(*arguments, **options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _end(Interrupted("interrupted; what was finished is kept, and the same command continues"))
        except LabrigError as error:
            _end(error)
        except BrokenPipeError:
            _drop_stdout()
            raise Exit(code=128 + signal.SIGPIPE) from None
        except OSError as error:
            if error.errno not in _DISK:
                raise
            verb = "write" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else "use"
            _end(
                BuildError(
                    f"cannot {verb} {error.filename or 'a file'}: {_DISK[error.errno]}",
                    found=str(error),
                    fix="make room or permission there (LABRIG_CACHE names another place for wheels and environments);"
                    " nothing is half-done",
                )
            )
        finally:
            _forget_interrupt()

    return wrapped  # type: ignore[return-value]


def _forget_interrupt() -> None:
    """Let the exit code count after a Ctrl-C that was caught.

    CPython notes a KeyboardInterrupt that leaves an exec of text (dataclasses and named tuples are made by such, so
    half of all imports), and under ``python -m`` dies of SIGINT at its end, although somebody caught it. The next
    exec of text clears the note (Python/pythonrun.c, run_eval_code_obj; seen with 3.11 to 3.13).
    """
    exec("")  # noqa: S102 - nothing is executed


def _end(error: LabrigError) -> NoReturn:
    print(f"labrig: {error}", file=sys.stderr)
    raise Exit(code=error.code)


def _drop_stdout() -> None:
    """The reader (head, less) has gone; that is its right. Python would complain once more while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def adapt_invoke() -> None:
    """Make Invoke's own endings labrig's: 2 on a wrong flag or task name, no traceback when ``--list`` has no reader.

    Invoke ends with 1 on those and offers no setting for it; its Exit carries a code, so that is raised instead. A
    value of the wrong type (``--jobs=many``) is a bare ValueError there. It takes the
    last word of `invoke export --help` for the value of the first argument of export.
    """
    set_value, list_tasks, parse = Argument.set_value, Program.list_tasks, Program.parse_tasks
    clean_up = Program.parse_cleanup

    def error(self: ParseMachine | Program, msg: str) -> NoReturn:
        raise Exit(f"labrig: {msg}\n  fix:   invoke --list, or invoke --help TASK", UsageError.code)

    def parse_cleanup(self: Program) -> None:
        try:
            clean_up(self)  # shows help and lists; of a name that is none: the first, and of a namespace the second
        except ParseError as wrong:
            error(self, str(wrong))
        except Exit as ending:
            if ending.message:
                error(self, ending.message)
            raise

    def set_typed_value(self: Argument, value: Any, cast: bool = True) -> None:
        try:
            set_value(self, value, cast)
        except ValueError:
            _end(
                UsageError(
                    f"--{self.name} takes {'a number' if self.kind is int else 'another value'}", found=repr(value)
                )
            )

    def list_tasks_to_a_reader(self: Program) -> None:
        try:
            list_tasks(self)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_stdout()
            raise Exit(code=128 + signal.SIGPIPE) from None

    def parse_tasks(self: Program) -> None:
        words = self.core.unparsed
        if len(words) > 1 and words[-1] in ("-h", "--help") and not words[-2].startswith("-"):
            self.args.help.value = words[-2]
            self.core.unparsed = []
        parse(self)

    Program.parse_cleanup = parse_cleanup  # type: ignore[method-assign]
    Program.parse_tasks = parse_tasks  # type: ignore[method-assign]
    Program.list_tasks = list_tasks_to_a_reader  # type: ignore[method-assign]
    ParseMachine.error = error  # type: ignore[method-assign]
    Argument.set_value = set_typed_value  # type: ignore[method-assign]


def terminal() -> dict[str, Any]:
    """How wide the reader of stdout is, and whether colours are for them (no-color.org)."""
    reads = sys.stdout.isatty()
    width = max(60, min(os.get_terminal_size(sys.stdout.fileno()).columns, 160)) if reads else 100
    return {"width": width, "color": reads and not os.environ.get("NO_COLOR")}


def print_json(value: object) -> None:
    """Print a document to stdout."""
    print(json.dumps(value, indent=2))


def print_bytes(pieces: Iterable[bytes]) -> None:
    """Print what a server says to stdout, as it comes. Ctrl-C is the way out of it, and needs no words: 130."""
    try:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        raise Exit(code=Interrupted.code) from None


def require_one(**flags: bool) -> None:
    """Raises UsageError unless one of a task's modes is asked for, and no other."""
    asked = [f"--{name}" for name, is_on in flags.items() if is_on]
    if len(asked) != 1:
        raise UsageError(
            "one thing at a time" if asked else "nothing is asked for", found=" ".join(asked),
            fix=f"one of {', '.join(f'--{name}' for name in flags)}",
        )  # fmt: skip


def require_sense(*flags: tuple[str, object, bool]) -> None:
    """Raises UsageError for a flag that was given, and says nothing in the mode that is asked for."""
    for name, value, has_sense in flags:
        if value and not has_sense:
            raise UsageError(f"--{name} says nothing here", found="it belongs to another mode", fix="leave it out")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, wrapped: Sequence[str] = (), title: str = ""
) -> None:
    """Print a table to stdout. On a narrow terminal the columns in ``wrapped`` give way; elsewhere none has to."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in wrapped)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    print(captured.get(), end="")  # by us, because rich ends the process with 1 when the reader has gone
