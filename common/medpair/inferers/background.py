"""Work beside the computation: volumes are compressed and written while others are made.

Threads, not processes: they start at once, share the arrays, and nothing of the GPU is forked. The
interpreter lets only one of them run Python at a time, so what they are given must spend its time
in compression, in the kernel and in NumPy, which let go of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

# Who writes beside a network that takes seconds a volume: compression is a fraction of it
ONE_WRITER = 1
# Calls that wait for each thread: enough that none is idle, few enough that memory stays flat
WAITING = 2


class Background:
    """Do calls in threads, a bounded number at a time; a call that fails stops the next one.

    A process that ends in order does what it was given first; one that is killed does not.

    Args:
        threads: how many; 0 does each call at once, in the caller's thread.

    Raises:
        ValueError: if ``threads`` is not a whole number of at least 0.
    """

    def __init__(self, threads: int = 0) -> None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise ValueError(
                f"num_workers: expected a whole number of at least 0, found {threads!r}"
            )
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._calls: deque[Future[Any]] = deque()

    def __call__(self, work: Callable[..., Any], *args: Any) -> None:
        """Do ``work(*args)``, now or soon; waits while too many calls are waiting.

        Raises:
            Exception: what an earlier call has raised.
        """
        if not self.threads:
            work(*args)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="writer")
        while self._calls and (self._calls[0].done() or len(self._calls) >= self._most()):
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(work, *args))

    def finish(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: the first that a call has raised; the others are done all the same.
        """
        calls, self._calls = list(self._calls), deque()
        # before the threads are joined: Python 3.11 takes a thread for ended when a signal raises
        # in its join, and would leave it behind in the middle of a file
        wait(calls)
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
        for call in calls:
            call.result()

    def _most(self) -> int:
        return self.threads * (1 + WAITING)
