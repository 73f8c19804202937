"""What lies on the disk: films in a folder, and films that are named but not there. No film is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.transforms import LUNGS_OF_REGION

__all__ = [
    "IMAGE_SUFFIXES",
    "DrawnMasks",
    "find_images",
    "find_missing",
    "find_twice",
    "list_folders",
    "some_of",
]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})
"""Endings, in lower case, of the files that count as films."""

_LUNGS = frozenset(LUNGS_OF_REGION["lungs"])


def find_images(folder: Path) -> list[Path]:
    """Return the films directly in a folder, sorted by name; hidden and other files are left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    return [path for name in names if (path := folder / name).suffix.lower() in IMAGE_SUFFIXES]


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))]


class DrawnMasks:
    """Lung masks that a segmenter drew, for films that have none.

    Args:
        folder: Holds `IMAGE_ID.lung_field.png`, `IMAGE_ID.lung.png`, or both, for each film.

    Raises:
        DatasetError: If there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DatasetError(f"There is no folder of drawn masks {folder}. Draw them: covidcxr predict --root ROOT.")
        self._folder = folder

    def add(self, record: Record) -> Record:
        """Give the record its drawn masks, unless it has a lung mask."""
        if _LUNGS & record.mask_paths.keys():
            return record
        drawn = {name: self._folder / f"{record.image_id}.{name}.png" for name in sorted(_LUNGS)}
        found = {name: path for name, path in drawn.items() if path.is_file()}
        return replace(record, mask_paths={**record.mask_paths, **found}) if found else record


def find_missing(records: Iterable[Record]) -> list[str]:
    """Look for every image and mask of the records; each folder is listed once.

    Returns:
        One message that says how many files are missing and names the first; empty if all are there.
    """
    listings: dict[str, frozenset[str]] = {}
    missing: list[str] = []
    for record in records:
        for path in (record.image_path, *record.mask_paths.values()):
            folder, name = os.path.split(path)
            if folder not in listings:
                listings[folder] = _names_in(folder)
            if name not in listings[folder]:
                missing.append(os.fspath(path))
    if not missing:
        return []
    return [
        f"{len(missing)} files of the data set are missing: {some_of(missing)}. "
        f"Unpack the download again, or correct the table that names them."
    ]


def find_twice(records: Iterable[Record]) -> list[str]:
    """Look for films that are listed twice.

    Returns:
        One message that says how many and names the first; empty if each is listed once.
    """
    seen: set[str] = set()
    twice: list[str] = []
    for record in records:
        if record.image_id in seen:
            twice.append(record.image_id)
        seen.add(record.image_id)
    return [f"{len(twice)} films are listed more than once: {some_of(twice)}. List each film once."] if twice else []


def some_of(names: list[str], most: int = 5) -> str:
    """Join the first names for a message: "a, b, c and 7 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _names_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
