"""Copies of one image among many: the same bytes, the same pixels, or the same picture after changes."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, Literal, TypeVar
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, UInt8

from covidcxr.data.curation.near_duplicates import (
    MIN_INLIERS,
    MIN_LIKENESS,
    NO_SKETCH,
    Prepared,
    Sketch,
    compare,
    find_candidates,
    sketch,
)
from covidcxr.data.records import Record
from covidcxr.errors import CovidCXRError
from covidcxr.io.folders import replace_file
from covidcxr.io.image import read_image
from covidcxr.utils.plain import user_path
from covidcxr.utils.threads import Progress, map_threads

__all__ = ["DuplicateGroup", "Duplicates", "find_duplicates", "find_shared_images", "Linked"]

T = TypeVar("T", int, str)


class Linked(Generic[T]):
    """Groups that grow by links: of those linked, the least leads all.

    Example:
        ```python
        from covidcxr.data.curation.duplicates import Linked

        linked = Linked()
        linked.link("b", "c")
        linked.link("c", "a")
        assert linked.leader("b") == "a" and linked.leader("d") == "d"
        ```
    """

    def __init__(self) -> None:
        self._above: dict[T, T] = {}

    def leader(self, one: T) -> T:
        """Return who leads a group; what was never linked leads itself.

        Args:
            one: A member of the group.

        Returns:
            The least of its members.
        """
        while (above := self._above.get(one, one)) != one:
            one = above
        return one

    def link(self, one: T, other: T) -> None:
        """Make one group of two groups.

        Args:
            one: A member of the one group.
            other: A member of the other.
        """
        first, second = sorted((self.leader(one), self.leader(other)))
        self._above[second] = first


_VERSION = 4  # of the kept fingerprints: those of another method are made anew


_THREADS = 4
_KEPT = 200  # images that stay prepared for comparisons: half a megabyte each

Reader = Callable[[Record], Float[np.ndarray, "height width"]]


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images that are one picture.

    Attributes:
        image_ids: Their ids, in the order of the records; two or more.
        kind: What all of them share: "bytes", "pixels", or only the picture ("near").

    Example:
        ```python
        from pathlib import Path
        from shutil import copy

        from covidcxr.data import DuplicateGroup, Record, find_duplicates

        copy("image.png", "again.png")
        groups = find_duplicates([Record(Path("image.png")), Record(Path("again.png"))], near=False).groups
        assert groups == (DuplicateGroup(("image.png", "again.png"), "bytes"),)
        ```
    """

    image_ids: tuple[str, ...]
    kind: Literal["bytes", "pixels", "near"]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What `find_duplicates` found; iterating gives the groups.

    Attributes:
        groups: Copies, in the order of their first images.
        failed: From image id to why an image could not be read; it was compared with none.
        bodies: Pairs of images that are no copies, but show one body: most likely one patient at two times. Few such
            pairs are found, so they are a lower bound.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.data import Record, find_duplicates

        found = find_duplicates([Record(Path("image.png")), Record(Path("gone.png"))], near=False)
        assert len(found) == 0 and list(found.failed) == ["gone.png"]
        ```
    """

    groups: tuple[DuplicateGroup, ...]
    failed: dict[str, str]
    bodies: tuple[tuple[str, str], ...] = ()

    def __iter__(self) -> Iterator[DuplicateGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True)
class _Print:
    """What is kept of one image: hashes of its file and of its pixels, and its sketch."""

    file: str
    pixels: str
    sketch: Sketch


def find_duplicates(
    records: Sequence[Record],
    *,
    near: bool = True,
    read: Reader | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Duplicates:
    """Find copies of one image among images: equal files, equal pixels, and pictures that were changed.

    Near copies are found after cropping (15 % of each side), resizing, squeezing, turning (5 degrees), mirroring,
    inversion, changes of brightness and contrast, re-encoding, frames and burnt-in text. Images of one patient taken at
    different times are no copies. A copy by pixels or picture has its own file; what was read of an image is kept in
    `cache`, so that the next search opens only what is new.

    Args:
        records: The images.
        near: Also find copies that were changed; else only equal pictures.
        read: Opens a record's image, grey in [0, 1]; by default from its `image_path`.
        cache: Folder for what was read; None = not kept.
        progress: Called with how many images of how many were read.

    Returns:
        The groups, and what could not be read.
    """
    store = _Store(cache)
    opened: Reader = read or (lambda record: read_image(record.image_path))
    prints: dict[int, _Print] = {}
    failed: dict[str, str] = {}

    def look(record: Record) -> _Print | CovidCXRError:
        return store.get(record) or _fingerprint(record, opened, near)

    for number, found in enumerate(map_threads(look, records, threads=_THREADS, progress=progress)):
        if isinstance(found, _Print):
            prints[number] = found
            if near:  # without a sketch it would not serve the next time
                store.put(records[number], found)
        else:
            failed[records[number].image_id] = str(found)
    store.save()
    links: list[tuple[int, int]] = []
    bodies: list[tuple[int, int]] = []
    for kind in ("file", "pixels"):
        alike: dict[str, list[int]] = defaultdict(list)
        for number, one in prints.items():
            if value := getattr(one, kind):
                alike[value].append(number)
        links += [(numbers[0], other) for numbers in alike.values() for other in numbers[1:]]
    if near:
        copies, bodies = _near(records, prints, opened, links, store)
        links += copies
        store.save()
    groups = tuple(_groups(records, prints, links))
    copied = {frozenset(pair) for group in groups for pair in combinations(group.image_ids, 2)}
    pairs = ((records[one].image_id, records[other].image_id) for one, other in bodies)
    return Duplicates(groups, failed, tuple(pair for pair in pairs if frozenset(pair) not in copied))


def find_shared_images(records: Sequence[Record], **search: Any) -> list[DuplicateGroup]:
    """Find the images that lie in more than one split.

    Args:
        records: The images, each with its split.
        search: Arguments of `find_duplicates`.

    Returns:
        Groups of copies that more than one split holds.
    """
    splits = {record.image_id: record.split for record in records}
    found = find_duplicates(records, **search)
    return [group for group in found if len({splits[name] for name in group.image_ids} - {None}) > 1]


def _fingerprint(record: Record, read: Reader, near: bool) -> _Print | CovidCXRError:
    try:
        image = _grey(read(record))
    except CovidCXRError as error:
        return error
    pixels = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    try:
        file = hashlib.sha256(record.image_path.read_bytes()).hexdigest()
    except OSError:  # an image that is no file of its own
        file = ""
    return _Print(file, pixels, sketch(image) if near else NO_SKETCH)


def _grey(image: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    return np.asarray((image * 255).round(), np.uint8)


def _near(
    records: Sequence[Record],
    prints: dict[int, _Print],
    read: Reader,
    links: Iterable[tuple[int, int]],
    store: _Store,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the pairs that are one picture, beside those that are linked already, and those that show one body."""
    surplus = {other for _, other in links}  # an equal image need not be compared a second time
    numbers = [number for number in prints if number not in surplus]
    kept: dict[int, Prepared] = {}
    copies: list[tuple[int, int]] = []
    bodies: list[tuple[int, int]] = []
    for here, there in find_candidates([prints[number].sketch for number in numbers]):
        one, other = numbers[here], numbers[there]
        pair = f"{prints[one].pixels} {prints[other].pixels}"
        if pair not in store.compared:
            kept = {number: image for number, image in kept.items() if number >= one}  # candidates come in order
            for number in (one, other):
                if number not in kept:
                    kept[number] = Prepared(_grey(read(records[number])))
            inliers, alike, same_body = compare(kept[one], kept[other])
            is_copy = inliers >= MIN_INLIERS and alike >= MIN_LIKENESS
            store.compared[pair] = "copy" if is_copy else "body" if same_body else ""
        if store.compared[pair]:
            (copies if store.compared[pair] == "copy" else bodies).append((one, other))
        while len(kept) > _KEPT:
            del kept[next(iter(kept))]
    return copies, bodies


def _groups(
    records: Sequence[Record], prints: dict[int, _Print], links: Iterable[tuple[int, int]]
) -> Iterator[DuplicateGroup]:
    linked: Linked[int] = Linked()
    for one, other in links:
        linked.link(one, other)
    members: dict[int, list[int]] = defaultdict(list)
    for number in sorted(prints):
        members[linked.leader(number)].append(number)
    for numbers in members.values():
        if len(numbers) > 1:
            files, pixels = ({getattr(prints[n], kind) for n in numbers} for kind in ("file", "pixels"))
            kind: Literal["bytes", "pixels", "near"] = "near"
            if len(files) == 1 and files != {""}:
                kind = "bytes"
            elif len(pixels) == 1:
                kind = "pixels"
            yield DuplicateGroup(tuple(records[number].image_id for number in numbers), kind)


class _Store:
    """Fingerprints on disk, by path, size and time of change: what was altered is read again."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._path = None if folder is None else user_path(folder) / f"fingerprints-{_VERSION}.npz"
        self.compared: dict[str, str] = {}
        """From the pixel hashes of two images to what they are: "copy", "body" (one patient at two times) or ""."""
        self._prints: dict[str, _Print] = self._load()
        self._saved = len(self._prints) + len(self.compared)

    def get(self, record: Record) -> _Print | None:
        return self._prints.get(_key(record)) if self._path else None

    def put(self, record: Record, found: _Print) -> None:
        if self._path and (key := _key(record)) and key not in self._prints:
            self._prints[key] = found

    def save(self) -> None:
        size = len(self._prints) + len(self.compared)
        if self._path is None or size == self._saved:
            return
        self._saved = size
        if not self._prints:
            return
        sketches = [one.sketch for one in self._prints.values()]
        names = [[key, one.file, one.pixels] for key, one in self._prints.items()]
        try:
            with replace_file(self._path) as draft, draft.open("wb") as file:
                np.savez(
                    file,
                    names=np.frombuffer(json.dumps([names, self.compared]).encode(), np.uint8),
                    counts=np.array([len(one.points) for one in sketches]),
                    points=np.concatenate([one.points for one in sketches]),
                    words=np.concatenate([one.words for one in sketches]),
                )
        except OSError as error:
            warnings.warn(f"What was read of the images cannot be kept: {error}. Name another folder.", stacklevel=4)

    def _load(self) -> dict[str, _Print]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                names, self.compared = json.loads(data["names"].tobytes())
                ends = np.cumsum(data["counts"])[:-1]
                parts = zip(np.split(data["points"], ends), np.split(data["words"], ends), strict=True)
                return {
                    key: _Print(bytes_, pixels, Sketch(*part))
                    for (key, bytes_, pixels), part in zip(names, parts, strict=True)
                }
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # what is damaged is made anew
            return {}


def _key(record: Record) -> str:
    """Return path, size and time of change of the image's file; "" for an image that is no file of its own."""
    try:
        state = record.image_path.stat()
    except OSError:
        return ""
    return json.dumps([str(record.image_path.resolve()), state.st_size, state.st_mtime_ns, list(record.box or ())])
