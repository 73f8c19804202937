"""Kills a command at random moments: what it had promised before each of them must hold after the last."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """How a command ended after it had been killed again and again.

    Attributes:
        returncode: Exit code of the last, whole run.
        output: Its standard output and standard error.
        kills: How many of the runs before were killed; the others were done before their moment came.
    """

    returncode: int
    output: str
    kills: int


def kill_at_moments(
    command: Sequence[str | os.PathLike[str]],
    cwd: Path,
    moments: int = 10,
    seed: int = 0,
    *,
    seconds: float = 5.0,
    begun: Callable[[], bool] | None = None,
    check: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 240.0,
) -> Finished:
    """Start a command and kill it with all its children, so many times; then run it to its end.

    Args:
        command: The command; the same each time.
        cwd: Where it runs; its output goes into a temporary file, not into a pipe that may fill.
        moments: Number of runs that are killed by SIGKILL.
        seed: Of the moments.
        seconds: Each moment lies in [0, seconds] after the run has begun its work.
        begun: Whether the run has begun its work; asked until it says so. By default the work begins at the start of
            the process, and `seconds` must be longer than its imports take.
        check: Called after each kill: raises for what must not be on the disk then.
        env: Changes of the environment.
        timeout: Seconds that one run may take.

    Returns:
        The exit code and output of the last run, and how many runs were killed.

    Raises:
        AssertionError: If a run that was to be killed ended with an error before.
        TimeoutError: If a run neither begins its work nor ends.
    """
    draw = random.Random(seed)
    kills = 0
    for _ in range(moments):
        process, log = _start(command, cwd, env)
        try:
            _wait_until(begun or (lambda: True), process, timeout)
            try:
                process.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                kills += 1
        finally:
            _kill_group(process)
        ended_by_itself = process.returncode >= 0
        assert not ended_by_itself or process.returncode == 0, _read(log)
        if check is not None:
            check()
    process, log = _start(command, cwd, env)
    try:
        process.wait(timeout)
    finally:
        _kill_group(process)
    return Finished(process.returncode, _read(log), kills)


def _start(
    command: Sequence[str | os.PathLike[str]], cwd: Path, env: Mapping[str, str] | None
) -> tuple[subprocess.Popen[bytes], Path]:
    descriptor, log = tempfile.mkstemp(suffix=".log")
    with os.fdopen(descriptor, "wb") as file:
        process = subprocess.Popen(
            [os.fspath(word) for word in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own: children die with it
        )
    return process, Path(log)


def _wait_until(begun: Callable[[], bool], process: subprocess.Popen[bytes], timeout: float) -> None:
    until = time.monotonic() + timeout
    while process.poll() is None and not begun():
        if time.monotonic() > until:
            raise TimeoutError(f"{process.args!r} has not begun its work after {timeout} seconds.")
        time.sleep(0.005)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and its children."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    return text
