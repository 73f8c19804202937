"""What an archive holds, entry by entry: nothing of it is believed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IFMT, S_ISDIR, S_ISREG
from typing import IO, Any, NamedTuple, cast

from covidcxr.errors import DatasetError

__all__ = ["CHUNK", "Entry", "Limit", "read_entries"]

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
        room: Bytes that there is room for.
        max_ratio: How many times as large as the archive the content may be, beyond the first 100 MB.
    """

    def __init__(self, packed: int, room: int, max_ratio: float) -> None:
        self._packed = packed
        self._room = room
        self._likely = max(_HARMLESS, packed * max_ratio)
        self._claimed = 0

    def claim(self, size: int) -> None:
        """Add to what is claimed.

        Raises:
            DatasetError: If that is too much.
        """
        self._claimed += size
        if self._claimed > self._room:
            raise DatasetError(
                f"it claims to hold {self._claimed:,} bytes or more, and there is room for {self._room:,}."
            )
        if self._claimed > self._likely:
            raise DatasetError(
                f"its {self._packed:,} bytes claim to hold {self._claimed:,} or more, as if made to fill the disk. If "
                f"you trust it, unpack it by hand."
            )


def read_entries(path: Path, draft: Path, limit: Limit) -> Iterator[Entry]:
    """Return the entries one by one; each is to be read before the next one is asked for.

    Args:
        path: The archive.
        draft: Folder that they are meant for; no link may lead out of it.
        limit: Told what each claims to hold, before it is returned.

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
    with tarfile.open(fileobj=cast(IO[bytes], _Forward(opened)), mode="r:") as archive:
        for member in archive:
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


class _Forward:
    """The bytes of a tar, read forwards and in bites: a damaged header may send the reader back, or ask for it all."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise tarfile.ReadError("a header has an impossible size")
        return self._file.read(size)

    def seek(self, place: int) -> int:
        if place < self._file.tell():
            raise tarfile.ReadError("a header leads back")
        return self._file.seek(place)
