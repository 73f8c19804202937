"""Folders of results: nothing is written outside of one, one process at a time works in it, and it is of one run."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.utils.plain import json_text, user_path

__all__ = [
    "LOCK_FILES",
    "RUN_FILE",
    "fails_everywhere",
    "is_draft",
    "lock_folder",
    "next_folder",
    "path_inside",
    "remove_drafts",
    "run_folder",
    "replace_file",
]

RUN_FILE = "covidcxr-run.json"
"""Says which run a folder belongs to."""

_LOCK = ".covidcxr.lock"
_HOLDER = ".covidcxr.holder.json"
LOCK_FILES = {_LOCK, _HOLDER}
"""What `lock_folder` leaves in a folder."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_DRAFT = re.compile(r"\.[0-9a-f]{32}\.tmp")


def next_folder(name: str) -> Path:
    """Return a folder for results where none is named: `runs/NAME-1`, or the first number that is free.

    Args:
        name: What writes there, say a verb of the command line.

    Returns:
        The folder, below the present one; it does not exist yet.
    """
    numbers = [
        int(path.name.rpartition("-")[2]) for path in Path("runs").glob(f"{name}-*") if path.name[-1].isdecimal()
    ]
    return Path("runs") / f"{name}-{max(numbers, default=0) + 1}"


def path_inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Join a name that comes from elsewhere (an image, a class, a table) to a folder.

    Args:
        folder: The folder.
        name: A file's name or relative path.

    Returns:
        The path, which lies below the folder.

    Raises:
        ConfigError: If it would not.
    """
    relative = Path(name)
    outside = relative.is_absolute() or relative.drive or ".." in relative.parts or "\0" in name
    if outside or not relative.parts:
        raise ConfigError(
            f"{name!r} cannot name a file: it would be written outside of {os.fspath(folder)}. Rename it."
        )
    return user_path(folder) / relative


@contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for this process; a process that dies, however it dies, holds nothing.

    Args:
        folder: The folder; made if need be.

    Yields:
        Nothing.

    Raises:
        ConfigError: If another process holds it; says which.
        OSError: If the folder cannot be made or written to.
    """
    from filelock import FileLock, Timeout  # the operating system's own locks, on Windows too

    place = user_path(folder)
    place.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(place / _LOCK), place / _HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"{place} is in use by {_read_holder(holder)}. Wait until it has ended, or choose another folder."
        ) from error
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        with replace_file(holder) as draft:
            draft.write_text(json_text(facts) + "\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, LookupError, TypeError):  # it has just begun, or has just ended
        return "another process"


@contextmanager
def run_folder(
    folder: str | os.PathLike[str], settings: Mapping[str, Any], writes: Sequence[str], *, overwrite: bool = False
) -> Iterator[Path]:
    """Hold a folder for a run, which no other run may use; half-written files of a killed run are removed.

    Args:
        folder: The folder; made if need be.
        settings: What decides the results, as plain data. The same settings go on where a run stopped.
        writes: What the run writes: names of files, and "FOLDER/*ENDING" for all files below a folder that end so.
        overwrite: Remove what an earlier run wrote, and nothing else, and start over.

    Yields:
        The folder.

    Raises:
        ConfigError: If another process works in the folder, it holds the results of another run, or files of unknown
            origin that this run would replace, or the disk fails.
    """
    place = user_path(folder)
    record = place / RUN_FILE
    if not record.is_file():
        _refuse_foreign_files(place, writes)  # before anything is written there
    with _explain_disk_errors(place), lock_folder(place):
        known = _read_record(record) if record.is_file() else None
        if known is None:
            _refuse_foreign_files(place, writes)
        elif overwrite:
            _remove_results(place, known["writes"])
        else:
            _compare(place, known["settings"], json.loads(json_text(settings)))
        remove_drafts(place)
        with replace_file(record) as draft:
            draft.write_text(json_text({"settings": settings, "writes": writes}, indent=2) + "\n", encoding="utf-8")
        yield place


@contextmanager
def _explain_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except PretrainedError:  # an OSError, too, but not of writing
        raise
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to: {error.strerror or error}. Mend that and run the same command again: it "
            f"goes on where it stopped."
        ) from error


def fails_everywhere(error: Exception) -> bool:
    """Tell an error of the disk, which every file meets, from one of a file's name.

    Args:
        error: What writing a file raised.

    Returns:
        Whether the disk is full, broken or read-only.
    """
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def is_draft(path: Path) -> bool:
    """Return whether a file is one that `replace_file` has not put in place yet.

    Args:
        path: The file.

    Returns:
        Whether its name says so.
    """
    return _DRAFT.fullmatch(path.name) is not None


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left half-written.

    Args:
        folder: Searched with all folders below, except those of other runs, which may be at work.
    """
    with suppress(PermissionError, FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not Path(entry.path, RUN_FILE).is_file():
                    remove_drafts(Path(entry.path))
            elif is_draft(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["settings"], dict) and all(isinstance(name, str) for name in record["writes"]):
            return dict(record)
    except (ValueError, LookupError, TypeError):
        pass
    raise ConfigError(f"{path} is damaged, so it cannot be told what the folder holds. Choose another folder.")


def _refuse_foreign_files(folder: Path, writes: Sequence[str]) -> None:
    for name in dict.fromkeys(name.partition("/")[0] for name in writes):
        if os.path.lexists(folder / name):
            raise ConfigError(
                f"{folder} holds {name}, and no record of the run that wrote it. Choose another folder, or remove it."
            )


def _compare(folder: Path, was: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [key for key in {**was, **wanted} if was.get(key) != wanted.get(key)]
    if different:
        raise ConfigError(
            f"{folder} holds the results of another run: what differs is {' and '.join(different)}. Choose another "
            f"folder, or remove its results and start over with --overwrite."
        )


def _remove_results(folder: Path, writes: Sequence[str]) -> None:
    """Remove the files of a run, and the folders that are empty without them."""
    for name in writes:
        below, _, ending = name.rpartition("/*")
        if not below:
            path_inside(folder, name).unlink(missing_ok=True)
            continue
        top = path_inside(folder, below)
        for place, _, names in os.walk(top, topdown=False):
            for file in names:
                if file.endswith(ending):
                    Path(place, file).unlink()
            if not os.listdir(place):  # noqa: PTH208 - os.walk has listed it before its files went
                Path(place).rmdir()


@contextmanager
def replace_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a path to write to; what was written takes the place of `path` only when all went well.

    Args:
        path: The file to write; its folder is made if need be.
        sync: Wait until the content is on the disk, or a power failure may leave an empty file under the new name. It
            takes some 7 ms; without it, whoever writes many files must tell such a file by its size.

    Yields:
        A path in the same folder, because replacing is atomic on one disk only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield draft
        if sync:
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
