"""Threads: one core for small work, many threads for files, progress bars."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from itertools import islice
from typing import TypeAlias, TypeVar

__all__ = ["QUIET", "count_cores", "single_threaded", "Progress", "Steps", "map_threads", "no_steps", "tracked"]

QUIET: ContextVar[bool] = ContextVar("QUIET", default=False)
"""Whether progress is kept back, as `--quiet` asks."""

_lock = threading.Lock()

_inside: set[int] = set()
"""The threads that are in `single_threaded`."""

_before: tuple[int, int] = (1, 1)
"""Numbers of threads of torch and OpenCV before the first thread entered."""


def count_cores() -> int:
    """Return how many threads this process may keep busy: `OMP_NUM_THREADS`, else the cores that it may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch and OpenCV compute in the calling thread alone, without threads of their own.

    For a single image and a small network, or where threads share the images already, more threads mostly wait for each
    other and use CPU time as they wait. Several threads may enter at a time, also repeatedly: the former numbers of
    threads come back when the last one leaves.
    """
    import cv2

    torch = sys.modules.get("torch")  # a pipeline of exported files does without
    global _before
    me = threading.get_ident()
    if me in _inside:
        yield
        return
    with _lock:
        if not _inside:
            _before = torch.get_num_threads() if torch else 0, cv2.getNumThreads()
            cv2.setNumThreads(1)
        _inside.add(me)
        if torch:
            torch.set_num_threads(1)  # torch counts thread by thread
    try:
        yield
    finally:
        with _lock:
            _inside.discard(me)
            if torch and _before[0]:
                torch.set_num_threads(_before[0])
            if not _inside:
                cv2.setNumThreads(_before[1])


_SAY_SECONDS = 60

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the numbers of finished and of all items."""

Steps: TypeAlias = Callable[[str], AbstractContextManager[Progress]]
"""From the name of a step to a progress bar for it, as `covidcxr.utils.console.show_progress`."""


def no_steps(name: str) -> AbstractContextManager[Progress]:
    """Show no progress.

    Args:
        name: The step, ignored.

    Returns:
        A progress bar that shows nothing.
    """
    return nullcontext(lambda done, total: None)


T = TypeVar("T")

R = TypeVar("R")


def map_threads(
    function: Callable[[T], R], items: Sequence[T], *, threads: int, progress: Progress | None = None
) -> Iterator[R]:
    """Apply a function to many items, several at a time; results come in the order of the items.

    Args:
        function: Reads or writes files. Python code itself runs in one thread at a time.
        items: The arguments. Only a few wait at a time, so that a hundred thousand do not fill the memory.
        threads: How many calls run at a time.
        progress: Called after each item with the numbers of finished and of all items.

    Yields:
        The result of each item, in the order of the items.

    Raises:
        Exception: What the function raises first; items that have not begun are dropped.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque(pool.submit(function, item) for item in islice(source, 4 * threads))
        try:
            for done in range(1, len(items) + 1):
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(source, 1))
                yield result
                if progress is not None:
                    progress(done, len(items))
        finally:
            for future in waiting:
                future.cancel()


def tracked(items: Iterable[T], total: int, unit: str, progress: bool) -> Iterator[T]:
    """Yield items with a progress bar on standard error, which shows the rate and the time left.

    Where standard error is no terminal, as in the log of a cluster's job, a line a minute says the same.

    Args:
        items: The items.
        total: Number of items.
        unit: Text before the bar.
        progress: False = no bar.

    Yields:
        The items.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not progress or QUIET.get():
        yield from items
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    start = said = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(unit, total=total, rate="")
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            rate_now = done / max(now - start, 1e-9)
            bar.update(task, completed=done, rate=f"{rate_now:.3g}/s")
            if not console.is_terminal and now - said >= _SAY_SECONDS:
                said = now
                left = timedelta(seconds=round((total - done) / rate_now))
                console.print(f"{done:,} of {total:,} {unit}, {rate_now:.3g} a second, {left} left")
