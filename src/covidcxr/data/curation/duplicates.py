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
    RawFeatures,
    Sketch,
    compare,
    find_candidates,
    find_features,
    sketch,
)
from covidcxr.data.records import Record
from covidcxr.errors import CovidCXRError
from covidcxr.io.folders import replace_file
from covidcxr.io.image import read_image
from covidcxr.utils.plain import user_path
from covidcxr.utils.threads import Progress, map_threads, single_threaded

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

    def leader(self, member: T) -> T:
        """Return who leads a group; what was never linked leads itself.

        Args:
            member: Any member of the group.

        Returns:
            The least of its members.
        """
        while (above := self._above.get(member, member)) != member:
            member = above
        return member

    def link(self, first: T, second: T) -> None:
        """Make one group of two groups.

        Args:
            first: A member of the first group.
            second: A member of the second.
        """
        least, joined = sorted((self.leader(first), self.leader(second)))
        self._above[joined] = least


_VERSION = 5  # of the kept fingerprints: those of another method are made anew
_THREADS = 4
_KEPT = 100  # images that stay prepared for comparisons: half a megabyte each
_MOST_FEATURES = 1000  # images whose features are kept for comparisons: 26 kB each

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

        copies = find_duplicates([Record(Path("image.png")), Record(Path("gone.png"))], near=False)
        assert len(copies) == 0 and list(copies.failed) == ["gone.png"]
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
    prints, features, failed = _read_all(records, opened, near, store, progress)
    links: list[tuple[int, int]] = []
    bodies: list[tuple[int, int]] = []
    for kind in ("file", "pixels"):
        alike: dict[str, list[int]] = defaultdict(list)
        for number, image in prints.items():
            if value := getattr(image, kind):
                alike[value].append(number)
        links += [(numbers[0], copy) for numbers in alike.values() for copy in numbers[1:]]
    if near:
        with single_threaded():
            copies, bodies = _near(records, prints, features, opened, links, store)
        links += copies
        store.save()
    groups = tuple(_groups(records, prints, links))
    copied = {frozenset(pair) for group in groups for pair in combinations(group.image_ids, 2)}
    pairs = ((records[first].image_id, records[second].image_id) for first, second in bodies)
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
    groups = find_duplicates(records, **search)
    return [group for group in groups if len({splits[name] for name in group.image_ids} - {None}) > 1]


def _read_all(
    records: Sequence[Record], read: Reader, near: bool, store: _Store, progress: Progress | None
) -> tuple[dict[int, _Print], dict[int, RawFeatures], dict[str, str]]:
    """Return what is kept of each image, the features of the first of them, and what could not be read."""
    prints: dict[int, _Print] = {}
    features: dict[int, RawFeatures] = {}
    failed: dict[str, str] = {}

    def look(record: Record) -> tuple[_Print, RawFeatures | None] | CovidCXRError:
        return (known, None) if (known := store.get(record)) else _fingerprint(record, read, near)

    with single_threaded():  # the images keep all cores busy
        for number, result in enumerate(map_threads(look, records, threads=_THREADS, progress=progress)):
            if isinstance(result, CovidCXRError):
                failed[records[number].image_id] = str(result)
                continue
            prints[number], own = result
            if own is not None and len(features) < _MOST_FEATURES:
                features[number] = own
            if near:  # without a sketch it would not serve the next time
                store.put(records[number], prints[number])
    store.save()
    return prints, features, failed


def _fingerprint(record: Record, read: Reader, near: bool) -> tuple[_Print, RawFeatures | None] | CovidCXRError:
    try:
        image = _grey(read(record))
    except CovidCXRError as error:
        return error
    pixels = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    try:
        file = hashlib.sha256(record.image_path.read_bytes()).hexdigest()
    except OSError:  # an image that is no file of its own
        file = ""
    features = find_features(image) if near else None
    return _Print(file, pixels, NO_SKETCH if features is None else sketch(image, features)), features


def _grey(image: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    return np.asarray((image * 255).round(), np.uint8)


def _near(
    records: Sequence[Record],
    prints: dict[int, _Print],
    features: dict[int, RawFeatures],
    read: Reader,
    links: Iterable[tuple[int, int]],
    store: _Store,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the pairs that are one picture, beside those that are linked already, and those that show one body."""
    surplus = {copy for _, copy in links}  # an equal image need not be compared a second time
    numbers = [number for number in prints if number not in surplus]
    kept: dict[int, Prepared] = {}
    copies: list[tuple[int, int]] = []
    bodies: list[tuple[int, int]] = []
    for here, there in find_candidates([prints[number].sketch for number in numbers]):
        first, second = numbers[here], numbers[there]
        pair = f"{prints[first].pixels} {prints[second].pixels}"
        if pair not in store.compared:
            kept = {number: image for number, image in kept.items() if number >= first}  # candidates come in order
            for number in (first, second):
                if number not in kept:
                    kept[number] = Prepared(_grey(read(records[number])), features.get(number))
            inliers, alike, same_body = compare(kept[first], kept[second])
            is_copy = inliers >= MIN_INLIERS and alike >= MIN_LIKENESS
            store.compared[pair] = "copy" if is_copy else "body" if same_body else ""
        if store.compared[pair]:
            (copies if store.compared[pair] == "copy" else bodies).append((first, second))
        while len(kept) > _KEPT:
            del kept[next(iter(kept))]
    return copies, bodies


def _groups(
    records: Sequence[Record], prints: dict[int, _Print], links: Iterable[tuple[int, int]]
) -> Iterator[DuplicateGroup]:
    linked: Linked[int] = Linked()
    for first, second in links:
        linked.link(first, second)
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

    def put(self, record: Record, image: _Print) -> None:
        if self._path and (key := _key(record)) and key not in self._prints:
            self._prints[key] = image

    def save(self) -> None:
        size = len(self._prints) + len(self.compared)
        if self._path is None or size == self._saved:
            return
        self._saved = size
        if not self._prints:
            return
        sketches = [image.sketch for image in self._prints.values()]
        names = [[key, image.file, image.pixels] for key, image in self._prints.items()]
        try:
            with replace_file(self._path) as draft, draft.open("wb") as file:
                np.savez(
                    file,
                    names=np.frombuffer(json.dumps([names, self.compared]).encode(), np.uint8),
                    counts=np.array([len(drawn.points) for drawn in sketches]),
                    points=np.concatenate([drawn.points for drawn in sketches]),
                    words=np.concatenate([drawn.words for drawn in sketches]),
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
