"""Archives of data sets, unpacked without trust in what they hold."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path, PurePosixPath
from typing import IO
from unicodedata import normalize

from covidcxr.data.archive_entries import CHUNK, Limit, read_entries
from covidcxr.data.threads import Progress
from covidcxr.errors import DatasetError

__all__ = ["unpack"]

_WAY_OUT = re.compile(r"^/|^[a-z]:|\\|(^|/)\.\.(/|$)|\0", re.IGNORECASE)


def unpack(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_size: int | None = None,
    max_ratio: float = 100,
    progress: Progress | None = None,
) -> None:
    """Unpack an archive into a folder: zip, tar, or tar packed with gzip, bzip2 or xz; its content tells which.

    Everything is unpacked into a hidden folder beside its place, and moved there when all of it is good. After an
    interruption, start it again. Files that are there already must be the same as those of the archive; links become
    the files of the archive that they lead to.

    Args:
        archive: The file.
        target: The folder; made if need be.
        max_size: Bytes that the content may claim; by default what is free on the disk.
        max_ratio: How many times as large as the archive the content may be, beyond the first 100 MB: films hardly
            shrink in an archive, and what grows a thousandfold was made to fill the disk.
        progress: Told how many bytes of how many of the archive are done.

    Raises:
        DatasetError: If it is no archive, is damaged or locked, claims too much, or holds what would lie outside of the
            folder, in one place with something else, or be a device.
    """
    path, place = Path(archive).expanduser(), Path(target).expanduser()
    if not path.is_file():
        raise DatasetError(f"There is no archive {path}.")
    # Within the folder if there is one, which may be another disk; hidden folders hold no films.
    home = place if place.is_dir() else place.parent
    draft = home / f".{path.name}.unpacking"
    with _explained(path):
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            room = shutil.disk_usage(home).free if max_size is None else max_size
            limit = Limit(path.stat().st_size, room, max_ratio)
            _write(path, draft, limit, progress)
            _move(draft, place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, draft: Path, limit: Limit, progress: Progress | None) -> None:
    """Write the files of an archive, and the links after them, so that nothing is written through a link."""
    taken: dict[str, tuple[str, bool]] = {}
    links: dict[str, str] = {}
    files: set[str] = set()
    size = path.stat().st_size
    for entry in read_entries(path, draft, limit):
        _check_name(entry.name)
        name = str(PurePosixPath(entry.name))
        _take(taken, name, is_folder=entry.content is None and entry.target is None)
        if entry.target is not None:
            links[name] = entry.target
        elif entry.content is None:
            (draft / name).mkdir(parents=True, exist_ok=True)
        else:
            files.add(name)
            _copy(entry.content, draft / name, entry.size)
        if progress is not None:
            progress(min(entry.done, size), size)
    for name, target in links.items():
        if target not in files:
            raise DatasetError(f"{name!r} is a link to {target!r}, which is no file of the archive.")
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        limit.claim((draft / target).stat().st_size)
        shutil.copyfile(draft / target, draft / name)
    if progress is not None:
        progress(size, size)


def _check_name(name: str) -> None:
    if _WAY_OUT.search(name):
        raise DatasetError(f"{name!r} would lie outside of the folder.")


def _take(taken: dict[str, tuple[str, bool]], name: str, *, is_folder: bool) -> None:
    """Note what lies where; two files, or two spellings, may not meet on any disk."""
    parts = PurePosixPath(name).parts
    for depth in range(1, len(parts) + 1):
        path, holds_more = "/".join(parts[:depth]), depth < len(parts) or is_folder
        key = normalize("NFC", path).casefold()
        if taken.get(key, (path, True)) != (path, True) or (key in taken and not holds_more):
            raise DatasetError(f"{name!r} and {taken[key][0]!r} would lie in one place.")
        taken[key] = (path, holds_more)


def _copy(source: IO[bytes], path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("xb") as file:
        while chunk := source.read(CHUNK):
            size -= len(chunk)
            if size < 0:
                break
            file.write(chunk)
    if size != 0:
        raise DatasetError(f"{path.name} has another size than the archive claims.")


def _move(draft: Path, place: Path) -> None:
    if not place.exists():
        draft.rename(place)
        return
    _merge(draft, place, move=False)
    _merge(draft, place, move=True)


def _merge(source: Path, place: Path, *, move: bool) -> None:
    """Move what a folder holds into another one; without `move`, only check that nothing is in the way."""
    for path in source.iterdir():
        there = place / path.name
        if there.is_symlink():
            raise DatasetError(f"{there} is a link, which is in the way. Move it away, or unpack by hand.")
        if not there.exists():
            if move:
                path.rename(there)
        elif path.is_dir() and there.is_dir():
            _merge(path, there, move=move)
        elif not (path.is_file() and there.is_file() and (move or cmp(path, there, shallow=False))):
            raise DatasetError(f"{there} is there already, and is another one than that of the archive. Move it away.")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the readers of archives raise on damage into one error."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path} is not unpacked: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DatasetError(f"{path} cannot be unpacked: {error}.") from error
        raise DatasetError(
            f"{path} is no zip or tar archive, or is damaged: {error}. Download it again, or unpack it by hand."
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # a packing that Python does not know
        raise DatasetError(f"{path} cannot be unpacked: {error}. Unpack it by hand.") from error
