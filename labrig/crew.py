"""A crew: a few threads that work through lists, and end together at the first error or at Ctrl-C."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

BACKOFF = 0.5  # seconds before the second try, doubled for each further one
LONGEST_WAIT = 8.0  # seconds
STOP_WITHIN = 0.5  # seconds that threads get to end; one that hangs in a socket is left behind (they are daemons)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """The run ends; this thread has to end as well."""


class Crew:
    """Up to ``size`` threads. Work that lasts calls :meth:`check` between its steps, so that it can be stopped."""

    def __init__(self, size: int) -> None:
        self._size = max(1, size)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> dict[Item, Result]:
        """``work`` for every item in threads. The first error, or Ctrl-C, stops the others and is raised.

        The threads are daemons: a pool's would be waited for at exit, for as long as one hangs in a socket.
        """
        todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Item, Result] | BaseException] = queue.SimpleQueue()
        for item in items:
            todo.put(item)

        def labour() -> None:
            while not self._stop.is_set():
                try:
                    item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((item, work(item)))
                except BaseException as error:  # noqa: BLE001  # raised again in the main thread
                    done.put(error)
                    return

        threads = [threading.Thread(target=labour, daemon=True) for _ in range(min(self._size, len(items)))]
        self._threads += threads
        results: dict[Item, Result] = {}
        try:
            for thread in threads:
                thread.start()
            for _ in items:
                outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                results[outcome[0]] = outcome[1]
            for thread in threads:
                thread.join()  # all work is done
        except BaseException:
            self._stop.set()
            deadline = time.monotonic() + STOP_WITHIN
            for thread in threads:
                if thread.is_alive():
                    thread.join(max(0.0, deadline - time.monotonic()))
            raise
        return {item: results[item] for item in items}

    def check(self) -> None:
        """Raises Stopped when the run ends."""
        if self._stop.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than the run lasts. Raises Stopped."""
        self._stop.wait(seconds)
        self.check()

    def back_off(self, attempt: int) -> None:
        """Wait after the ``attempt``-th failure in a row. Raises Stopped."""
        self.wait(min(BACKOFF * 2 ** (attempt - 1), LONGEST_WAIT))

    def is_working(self) -> bool:
        """Whether a thread is still at it; after an error one may hang in a socket."""
        return any(thread.is_alive() for thread in self._threads)
