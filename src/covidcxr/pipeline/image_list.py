"""The images of a run, from folders, files, URLs and manifests, in a list on the disk: a million take no memory."""

from __future__ import annotations

import os
import sqlite3
import unicodedata
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from covidcxr.data.files import IMAGE_SUFFIXES
from covidcxr.errors import ConfigError
from covidcxr.io.folders import RUN_FILE
from covidcxr.io.hub import full_url, is_url, list_remote
from covidcxr.io.tables import Table, read_lines
from covidcxr.utils.plain import user_path

__all__ = ["ImageList", "ListedImage", "digest_images", "find_images", "readable"]

ListedImage: TypeAlias = tuple[Path | str, str]
"""The path of an image, or its URL, and the name of its results."""

SEARCHED_SUFFIXES = IMAGE_SUFFIXES | {""}  # DICOM files often have none
_FOLDERS = {"films", "pages", "predictions", "shards"}
_FILES = {RUN_FILE, "predictions.jsonl", "summary.json", "index.html", "explanations.json"}
"""What runs write; a folder with one of `_MARKS` is of a run."""
_MARKS = (RUN_FILE, "predictions.jsonl", "explanations.json")
_PAGE = 512
"""Images that are taken from the disk at a time."""
NEW, FAILED, ANSWERED = range(3)
_TABLES = """
PRAGMA journal_mode = OFF;
CREATE TABLE image (number INTEGER PRIMARY KEY, path BLOB, name TEXT UNIQUE, state INTEGER DEFAULT 0, start INTEGER,
                    length INTEGER);
CREATE TABLE taken (name TEXT PRIMARY KEY, count INTEGER);
CREATE TABLE folder (path BLOB PRIMARY KEY);
CREATE TABLE found (parts BLOB, path BLOB);
"""


class ImageList:
    """Images in their order, each with a name for its results that no other has, and what is known of its results.

    The list is a temporary file of SQLite, which goes with the object; `SQLITE_TMPDIR` says where it lies.

    Attributes:
        left_out: How many files of which suffix were left out because they are no images.

    Example:
        ```python
        from covidcxr.pipeline.image_list import ImageList

        images = ImageList()
        images.add_paths(["image.png"])
        assert [name for _, name in images] == ["image.png"]
        ```
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self._database = sqlite3.connect("", check_same_thread=False)  # the collector may run in any thread
        weakref.finalize(self, self._database.close)
        self._database.executescript(_TABLES)

    def __len__(self) -> int:
        return self._count("SELECT COUNT(*) FROM image")

    def __iter__(self) -> Iterator[ListedImage]:
        for path, name in self._database.execute("SELECT path, name FROM image ORDER BY number"):
            yield _path(path), name

    def add_paths(self, paths: Sequence[str | os.PathLike[str]], root: str | os.PathLike[str] | None = None) -> None:
        """Add files as they are, and all images below folders, sorted; see `find_images`.

        Args:
            paths: Files, folders and URLs.
            root: Name the results by the images' paths below this folder.

        Raises:
            ConfigError: If an image does not lie below `root`, or a store cannot be listed.
        """
        for given in paths:
            if is_url(given):
                self._add_remote(str(given), root)
                continue
            place = Path(given)
            if not os.path.isdir(place):  # noqa: PTH112 - Path.is_dir raises where a folder above is locked
                self._add(os.fsencode(place), _below(place, root if root is not None else place.parent))
                continue
            self._find(place, map(os.fsencode, _files_below(place, self._is_new_folder)))
            for path in self._found():
                self._add(path, _below(_path(path), root if root is not None else place))

    def add_manifest(self, manifest: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> None:
        """Add the images that a list names: a table with the column `path` and perhaps `id`, or lines of text.

        Args:
            manifest: CSV, Parquet or Excel; or text (.txt, .list) with a path a line, or an id, a tab and a path.
            root: Where relative paths begin; by default in the manifest's folder. Without an id, results are named by
                the path below it.

        Raises:
            ConfigError: If an id comes twice or cannot be told from another, or a line names no image.
            DatasetError: If the manifest cannot be read, or lacks the column.
        """
        file = user_path(manifest)
        base = user_path(root) if root is not None else file.parent
        for where, path, name in _manifest_rows(file):
            if not path:
                raise ConfigError(f"{where} names no image.")
            place = path if is_url(path) else base / user_path(path)
            if not name:
                self._add(os.fsencode(place), _below_or_whole(place, base))
            elif self._take(name):
                self._insert(os.fsencode(place), readable(name))
            else:
                raise ConfigError(f"{where}: the id {name!r} is there twice, or differs in its case alone. Change one.")

    def keep_shard(self, number: int, count: int) -> None:
        """Keep every `count`-th image only; names are those of the whole list.

        Args:
            number: Which of them, from 1 to `count`.
            count: Number of shards.
        """
        self._database.execute("DELETE FROM image WHERE number % ? != ?", (count, number - 1))

    def forget(self) -> None:
        """Forget what is known of results."""
        self._database.execute("UPDATE image SET state = ?, start = NULL WHERE state != ?", (NEW, NEW))

    def note(self, name: object, state: int, start: int | None = None, length: int = 0) -> tuple[int, int] | None:
        """Note what is known of an image's result.

        Args:
            name: The image's name.
            state: `FAILED` or `ANSWERED`.
            start: Where its line begins; None = there is none.
            length: Bytes of its line.

        Returns:
            The image's number and its state before; None if there is no image of this name.
        """
        if not isinstance(name, str):
            return None
        row: tuple[int, int] | None = self._database.execute(
            "SELECT number, state FROM image WHERE name = ?", (readable(name),)
        ).fetchone()
        if row is not None:
            change = "UPDATE image SET state = ?, start = ?, length = ? WHERE number = ?"
            self._database.execute(change, (state, start, length, row[0]))
        return row

    def state(self, name: str) -> int | None:
        """Return what is known of an image's result.

        Args:
            name: The image's name.

        Returns:
            `NEW`, `FAILED` or `ANSWERED`; None if there is no image of this name.
        """
        row = self._database.execute("SELECT state FROM image WHERE name = ?", (readable(name),)).fetchone()
        return None if row is None else int(row[0])

    def count(self, state: int) -> int:
        """Return the number of images in a state.

        Args:
            state: `NEW`, `FAILED` or `ANSWERED`.

        Returns:
            How many.
        """
        return self._count("SELECT COUNT(*) FROM image WHERE state = ?", state)

    def in_state(self, state: int) -> Iterator[ListedImage]:
        """List the images in a state, in order; their states may change meanwhile.

        Args:
            state: `NEW`, `FAILED` or `ANSWERED`.

        Yields:
            Path and name.
        """
        number = -1
        query = "SELECT number, path, name FROM image WHERE number > ? AND state = ? ORDER BY number LIMIT ?"
        while rows := self._database.execute(query, (number, state, _PAGE)).fetchall():
            yield from ((_path(path), name) for _, path, name in rows)
            number = rows[-1][0]

    def lines(self) -> Iterator[tuple[int, int]]:
        """List where the lines of answered images are, in the order of the images.

        Yields:
            Start and length in bytes.
        """
        query = "SELECT start, length FROM image WHERE start IS NOT NULL AND state = ? ORDER BY number"
        yield from self._database.execute(query, (ANSWERED,))

    def _add_remote(self, url: str, root: str | os.PathLike[str] | None) -> None:
        if root is not None and not is_url(root):
            raise ConfigError(f"{url} does not lie below the root {os.fspath(root)}.")
        top = full_url(str(root) if root is not None else url)
        self._find(PurePosixPath(url), map(os.fsencode, list_remote(url)))
        for path in self._found():
            text = os.fsdecode(path)
            below = text.removeprefix(f"{top}/")
            self._add(path, Path(readable(below if below != text else text.rpartition("/")[2])))

    def _find(self, top: Path | PurePosixPath, paths: Iterator[bytes]) -> None:
        """Keep the files that may be images apart, to be sorted."""
        rows = ((path.replace(os.sep.encode(), b"\0"), path) for path in paths if self._is_searched(top, path))
        self._database.executemany("INSERT INTO found VALUES (?, ?)", rows)

    def _is_searched(self, top: Path | PurePosixPath, path: bytes) -> bool:
        place = PurePosixPath(os.fsdecode(path))
        if place == PurePosixPath(top):  # given by name
            return True
        if place.suffix.lower() in SEARCHED_SUFFIXES and not place.name.startswith("."):
            return True
        self.left_out[place.suffix.lower() or place.name] += 1
        return False

    def _found(self) -> Iterator[bytes]:
        for (path,) in self._database.execute("SELECT path FROM found ORDER BY parts"):
            yield path
        self._database.execute("DELETE FROM found")

    def _is_new_folder(self, path: str) -> bool:
        row = self._database.execute("INSERT OR IGNORE INTO folder VALUES (?)", (os.fsencode(path),))
        return row.rowcount == 1

    def _add(self, path: bytes, below: Path) -> None:
        """Add an image under a name that no image before has: the path itself, or with a number before its ending."""
        name = below.as_posix()
        first = _as_on_disk(name)
        while not self._take(name):
            self._database.execute("UPDATE taken SET count = count + 1 WHERE name = ?", (first,))
            number = self._count("SELECT count FROM taken WHERE name = ?", first)
            name = f"{below.with_suffix('').as_posix()}-{number}{below.suffix}"
        self._insert(path, name)

    def _take(self, name: str) -> bool:
        row = self._database.execute("INSERT OR IGNORE INTO taken VALUES (?, 1)", (_as_on_disk(readable(name)),))
        return row.rowcount == 1

    def _insert(self, path: bytes, name: str) -> None:
        insert = "INSERT INTO image (number, path, name) SELECT COALESCE(MAX(number) + 1, 0), ?, ? FROM image"
        self._database.execute(insert, (path, name))

    def _count(self, query: str, *values: object) -> int:
        return int(self._database.execute(query, values).fetchone()[0])


def find_images(
    paths: Sequence[str | os.PathLike[str]], root: str | os.PathLike[str] | None = None
) -> tuple[list[tuple[Path, str]], Counter[str]]:
    """List the images that paths mean: files as they are, folders with all images below them, sorted.

    Args:
        paths: Files and folders. A file that is missing or no image is kept: reading it will say what is wrong.
        root: Name the outputs by the images' paths below this folder; by default below the folder given in `paths`.

    Returns:
        Each image's path with a name for its outputs, made unique, and how many files of which suffix were left out
        because they are no images.

    Raises:
        ConfigError: If an image does not lie below `root`.
    """
    images = ImageList()
    images.add_paths([Path(path) for path in paths], root)
    return [(Path(path), name) for path, name in images], images.left_out


def digest_images(images: Iterable[ListedImage]) -> str:
    """Return what tells one list of images from another: paths, names, sizes and times of the files.

    Args:
        images: What `find_images` returned, or an `ImageList`.

    Returns:
        32 hexadecimal digits. Of a URL the size and the time do not count.
    """
    digest = blake2b(digest_size=16)
    for path, name in images:
        facts = ""
        try:
            if isinstance(path, Path):
                state = path.stat()
                facts = f"{state.st_size} {state.st_mtime_ns}"
        except (OSError, ValueError):
            pass
        digest.update(b"\0".join((os.fsencode(path), name.encode(), facts.encode(), b"")))
    return digest.hexdigest()


def readable(text: str) -> str:
    """Return a file's name as text that can be written: bytes that are no UTF-8 are spelt out.

    Args:
        text: The name.

    Returns:
        The text.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _manifest_rows(file: Path) -> Iterator[tuple[str, str, str]]:
    """Read where a row stands, its path and its id."""
    if file.suffix.lower() in (".txt", ".list"):
        for line, text in read_lines(file):
            name, tab, path = text.partition("\t")
            yield (f"Line {line} of {file}", path, name) if tab else (f"Line {line} of {file}", text, "")
        return
    table = Table(file, missing=())
    table.require("path")
    for line, row in table:
        yield table.at(line), row["path"], row.get("id", "")


def _path(stored: bytes) -> Path | str:
    text = os.fsdecode(stored)
    return text if is_url(text) else Path(text)


def _as_on_disk(name: str) -> str:
    """Return a name as a disk sees it that knows neither upper case nor how an accent is made."""
    return unicodedata.normalize("NFC", name).casefold()


def _files_below(folder: Path, is_new: Callable[[str], bool]) -> Iterator[str]:
    """List all files, through links too; a folder that cannot be opened is listed itself, so that it is reported."""
    stack: list[tuple[str, Iterator[os.DirEntry[str]], bool]] = []

    def enter(place: str) -> Iterator[str]:
        try:
            if is_new(os.path.realpath(place)):  # else a link led back
                of_a_run = any(os.path.lexists(os.path.join(place, name)) for name in _MARKS)  # noqa: PTH118
                stack.append((place, os.scandir(place), of_a_run))
        except OSError:
            yield place

    yield from enter(os.fspath(folder))
    while stack:
        place, entries, of_a_run = stack[-1]
        try:
            entry = next(entries, None)
        except OSError:
            entry = None
            yield place
        if entry is None:
            stack.pop()
        elif _is_folder(entry):
            if not (of_a_run and entry.name in _FOLDERS):  # what an earlier run of ours wrote is no image
                yield from enter(entry.path)
        elif not (of_a_run and (entry.name in _FILES or entry.name.startswith("."))):
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _below(path: Path | str, root: str | os.PathLike[str]) -> Path:
    try:
        below = Path(os.path.abspath(path)).relative_to(os.path.abspath(user_path(root)))  # noqa: PTH100 - Path keeps the ..
    except ValueError as error:
        raise ConfigError(f"{path} does not lie below the root {os.fspath(root)}.") from error
    return Path(readable(str(below)))


def _below_or_whole(path: Path | str, base: Path) -> Path:
    """Return a name for an image of a manifest: its path below the manifest's folder, or the whole path."""
    if isinstance(path, str):
        return Path(readable(path.partition("://")[2].lstrip("/")))
    try:
        return _below(path, base)
    except ConfigError:
        whole = Path(os.path.abspath(path))  # noqa: PTH100 - Path keeps the ..
        return Path(readable(str(whole.relative_to(whole.anchor))))
