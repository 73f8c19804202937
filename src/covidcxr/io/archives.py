"""Archives of data sets, unpacked without trust in what they hold."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import posixpath
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_ISDIR, S_ISREG
from typing import IO, Any, NamedTuple, cast
from unicodedata import normalize

from covidcxr.errors import DatasetError
from covidcxr.utils.plain import user_path
from covidcxr.utils.threads import Progress

__all__ = ["unpack", "CHUNK", "Entry", "Limit", "read_entries"]

CHUNK = 1 << 20
"""Bytes that are read at once, at most."""

_PACKINGS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}

_HARMLESS = 100_000_000  # bytes that need no suspicion, however small the archive

_ENTRY = 512  # bytes that an entry costs, even an empty one


class Entry(NamedTuple):
    """A file, folder or link in an archive.

    Attributes:
        name: Its path there.
        size: Bytes that it claims to have.
        content: None = it is a folder or a link.
        target: Of a link: the path of the file that it leads to.
        done: Bytes of the archive that are read when it is.

    Example:
        ```python
        from io import BytesIO

        from covidcxr.io.archives import Entry

        entry = Entry("images/a.png", size=3, content=BytesIO(b"abc"), target=None, done=40)
        assert entry.content.read() == b"abc"
        ```
    """

    name: str
    size: int
    content: IO[bytes] | None
    target: str | None
    done: int


class Limit:
    """How much an archive may claim to hold.

    Args:
        packed: Bytes of the archive.
        most: Bytes that may be unpacked.
        max_ratio: How many times as large as the archive the content may be, beyond the first 100 MB.

    Example:
        ```python
        from covidcxr.errors import DatasetError
        from covidcxr.io.archives import Limit

        limit = Limit(packed=1_000, most=5_000, max_ratio=100)
        limit.claim(4_000)
        try:
            limit.claim(4_000)
        except DatasetError as error:
            message = str(error)
        assert "room for 5,000" in message
        ```
    """

    def __init__(self, packed: int, most: int, max_ratio: float) -> None:
        self._packed = packed
        self._left = most
        self._likely = max(_HARMLESS, packed * max_ratio)
        self._claimed = 0

    def claim(self, size: int) -> None:
        """Add to what is claimed.

        Args:
            size: Bytes of the next entry.

        Raises:
            DatasetError: If that is too much.
        """
        self._claimed += size
        if self._claimed > self._left:
            raise DatasetError(
                f"it claims to hold {self._claimed:,} bytes or more, and there is room for {self._left:,}."
            )
        if self._claimed > self._likely:
            raise DatasetError(
                f"its {self._packed:,} bytes claim to hold {self._claimed:,} or more, as if made to fill the disk. If "
                f"you trust it, unpack it by hand."
            )


def read_entries(path: Path, draft: Path, limit: Limit) -> Iterator[Entry]:
    """Yield the entries one by one; each must be read before the next one is requested.

    Args:
        path: The archive.
        draft: Folder that they are meant for; no link may lead out of it.
        limit: Checks the size that each entry claims, before it is yielded.

    Yields:
        Files, folders and links, in the order of the archive.

    Raises:
        DatasetError: If an entry is a device, or a link that leads out, or the archive is locked or claims too much;
            the readers of Python raise errors of their own.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip_entries(file, limit)
            return
        opened = next((packing(file) for magic, packing in _PACKINGS.items() if start.startswith(magic)), file)
        with opened:
            yield from _tar_entries(opened, file, draft, limit)


def _zip_entries(file: IO[bytes], limit: Limit) -> Iterator[Entry]:
    with zipfile.ZipFile(file) as archive:
        limit.claim(sum(info.file_size + _ENTRY for info in archive.infolist()))
        done = 0
        for info in archive.infolist():
            kind = S_IFMT(info.external_attr >> 16)
            if kind and not (S_ISREG(kind) or S_ISDIR(kind)):
                raise DatasetError(f"{info.filename!r} is a link or a device.")
            if info.flag_bits & 1:
                raise DatasetError("it is locked with a password. Unpack it by hand.")
            done += info.compress_size
            yield Entry(info.filename, info.file_size, None if info.is_dir() else archive.open(info), None, done)


def _tar_entries(opened: IO[bytes], file: IO[bytes], draft: Path, limit: Limit) -> Iterator[Entry]:
    if not hasattr(tarfile, "data_filter"):
        raise DatasetError("a tar is unpacked safely from Python 3.11.4 on. Update Python, or unpack it by hand.")
    forward = _Forward(opened)
    with tarfile.open(fileobj=cast(IO[bytes], forward), mode="r:") as archive:
        for member in archive:
            forward.left = math.inf
            limit.claim(max(0, member.size) + _ENTRY)
            try:
                tarfile.data_filter(member, str(draft))  # refuses devices, and links that lead out
            except tarfile.FilterError as error:
                raise DatasetError(f"{error}.") from error
            folder = posixpath.dirname(member.name) if member.issym() else ""
            is_link = member.issym() or member.islnk()
            target = posixpath.normpath(posixpath.join(folder, member.linkname)) if is_link else None
            content = archive.extractfile(member) if member.isreg() else None
            yield Entry(member.name, member.size, content, target, file.tell())
            forward.left = CHUNK


class _Forward:
    """The bytes of a tar, read forwards and in bites: a damaged header may send the reader back, or ask for it all.

    Attributes:
        left: Bytes that may still be read: the headers of an entry hold few, its content any number.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell
        self.left: float = CHUNK

    def read(self, size: int) -> bytes:
        self.left -= size
        if not 0 <= size <= CHUNK or self.left < 0:
            raise tarfile.ReadError("a header has an impossible size")
        return self._file.read(size)

    def seek(self, place: int) -> int:
        if place < self._file.tell():
            raise tarfile.ReadError("a header leads back")
        return self._file.seek(place)


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
        max_ratio: How many times as large as the archive the content may be, beyond the first 100 MB: images hardly
            shrink in an archive, and what grows a thousandfold was made to fill the disk.
        progress: Called with the numbers of bytes read and of all bytes of the archive.

    Raises:
        DatasetError: If it is no archive, is damaged or locked, claims too much, or holds what would lie outside of the
            folder, in one place with something else, or be a device.
    """
    path, place = user_path(archive), user_path(target)
    if not path.is_file():
        raise DatasetError(f"There is no archive {path}.")
    # Within the folder if there is one, which may be another disk; hidden folders hold no images.
    home = place if place.is_dir() else place.parent
    draft = home / f".{path.name}.unpacking"
    with _explained(path):
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            most = shutil.disk_usage(home).free if max_size is None else max_size
            limit = Limit(path.stat().st_size, most, max_ratio)
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
