"""What is wrong with a data set: raised at once, or collected so that all of it can be told together."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from covidcxr.errors import DatasetError

__all__ = ["Faults", "no_collector"]


class Faults:
    """Part of a data set that is told what is wrong with it."""

    _faults: list[str] | None = None

    def fault(self, error: DatasetError) -> None:
        """Say what is wrong with one film or line: raise the error, or note it where all faults are collected."""
        if self._faults is None:
            raise error
        self._faults.append(str(error))

    def remark(self, message: str) -> None:
        """Note what is wrong with a copy where all faults are collected; the films can be used all the same."""
        if self._faults is not None:
            self._faults.append(message)

    @contextmanager
    def collected_faults(self) -> Iterator[list[str]]:
        """Collect what `fault` is told in a list in place of raising it."""
        self._faults = []
        try:
            yield self._faults
        finally:
            self._faults = None


@contextmanager
def no_collector() -> Iterator[None]:
    """Let Python not look for cycles while many records are made, which have none.

    It would look again and again through all that are there: at a hundred thousand that is a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
