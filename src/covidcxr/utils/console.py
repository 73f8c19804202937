"""Output on the terminal: tables, lines, a progress bar, and warnings as sentences of a report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.table import Table

from covidcxr.utils.threads import QUIET, Progress

__all__ = ["collect_notes", "print_line", "print_table", "screen", "show_progress", "show_status"]


def screen() -> Console:
    """Return the console for tables; text in brackets is not markup."""
    return Console(highlight=False, markup=False)


@contextmanager
def show_progress(words: str, *, of_bytes: bool = False) -> Iterator[Progress]:
    """Show a progress bar on standard error.

    Args:
        words: Text before the bar.
        of_bytes: Show the counts as sizes of files.

    Yields:
        A function to be called with the numbers of finished and of all items.
    """
    if QUIET.get():  # rich before 14.3 ends a disabled bar with an empty line
        yield lambda done, total: None
        return
    columns = (
        progress.TextColumn(words, markup=False),
        progress.BarColumn(),
        progress.DownloadColumn() if of_bytes else progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def show_status(words: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error that something of unknown length goes on, with the time since it began.

    Args:
        words: What goes on.

    Yields:
        A function that takes other words.
    """
    console = Console(stderr=True)
    if QUIET.get() or not console.is_terminal:  # in a log it would leave empty lines
        yield lambda others: None
        return
    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}", markup=False))
    with progress.Progress(*columns, progress.TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda others: bar.update(task, description=others)


@contextmanager
def collect_notes() -> Iterator[list[str]]:
    """Collect the warnings of a data set, for its report."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)


def print_table(table: Table) -> None:
    """Print a table; in a log it may be wide, since a log is read in an editor.

    Args:
        table: The table.
    """
    Console(width=None if Console().is_terminal else 200).print(table)


def print_line(text: str) -> None:
    """Print a line as it is.

    Args:
        text: Text in brackets is not markup.
    """
    Console(highlight=False, soft_wrap=True, markup=False).print(text)
