"""How far a transfer of bytes is, on stderr: a bar on a terminal, a few lines in a log. Nothing on stdout."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

STEP = 0.10  # of the total, and
PAUSE = 5.0  # seconds: a log gets a line when both have passed,
SILENCE = 60.0  # or when nothing was said for this many seconds


class Progress:
    """A total in bytes and how many are done. Safe to call from several threads.

    On a terminal a rich bar shows bytes, speed and the time left; elsewhere lines are written (see STEP, PAUSE,
    SILENCE). Use as a context manager: ``with Progress() as progress: progress.start(total)``.
    """

    def __init__(self, title: str = "fetch", stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.title = title
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.total = 0
        self.done = 0
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._began = self._said_at = time.monotonic()
        self._start_done = self._said_done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, total: int, done: int = 0) -> None:
        """Begin to show progress towards ``total`` bytes, of which ``done`` are there already."""
        self.total, self.done = total, done
        self._began = self._said_at = time.monotonic()
        self._start_done = self._said_done = done
        if self.quiet or not self.stream.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            Speed(),
            TimeRemainingColumn(),
            console=Console(file=self.stream),
        )
        self._task = self._bar.add_task(self.title, total=total, completed=done)
        self._bar.start()

    def advance(self, amount: int) -> None:
        """``amount`` more bytes are done; negative when bytes have to be fetched again."""
        with self._lock:
            self.done += amount
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self.done)
                return
            now = time.monotonic()
            quiet_for = now - self._said_at
            far = self.done - self._said_done >= STEP * self.total
            if self.quiet or not self.total or not ((far and quiet_for >= PAUSE) or quiet_for >= SILENCE):
                return
            self._said_at, self._said_done = now, self.done
            line = self._line(now)
        print(line, file=self.stream, flush=True)

    def say(self, line: str) -> None:
        """One line of prose, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(line, file=self.stream, flush=True)

    def stop(self) -> None:
        """Take the bar away; what was said stays."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def _line(self, now: float) -> str:
        speed = max(self.done - self._start_done, 0) / max(now - self._began, 1e-6)
        left = f", {megabytes(int(speed))}/s, {(self.total - self.done) / speed:.0f} s left" if speed else ""
        return f"{self.title}: {self.done / self.total:.0%} of {megabytes(self.total)}{left}"


def megabytes(count: int) -> str:
    """Bytes for people, in units of 1000: ``191.8 MB``."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
