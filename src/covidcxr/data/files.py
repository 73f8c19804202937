"""What lies on the disk: films in a folder, and films that are named but not there. No film is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.transforms import LUNGS_OF_REGION

__all__ = ["IMAGE_SUFFIXES", "add_drawn_masks", "check_files", "check_unique", "find_images", "list_folders", "some_of"]

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


def add_drawn_masks(records: Iterable[Record], folder: Path) -> list[Record]:
    """Give films that have no lung mask those that a segmenter drew.

    Args:
        records: The films.
        folder: Holds `IMAGE_ID.lung_field.png`, `IMAGE_ID.lung.png`, or both, for each film.

    Raises:
        DatasetError: If there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"There is no folder of drawn masks {folder}. Draw them: covidcxr predict --root ROOT.")
    return [record if _LUNGS & record.mask_paths.keys() else _with_masks(record, folder) for record in records]


def _with_masks(record: Record, folder: Path) -> Record:
    paths = {name: folder / f"{record.image_id}.{name}.png" for name in sorted(_LUNGS)}
    return replace(record, mask_paths={**record.mask_paths, **{n: path for n, path in paths.items() if path.is_file()}})


def check_files(records: Iterable[Record]) -> None:
    """Check that every image and mask of the records is there; each folder is listed once.

    Raises:
        DatasetError: If files are missing; says how many, and names the first.
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
    if missing:
        raise DatasetError(
            f"{len(missing)} files of the data set are missing: {some_of(missing)}. "
            f"Unpack the download again, or correct the table that names them."
        )


def check_unique(records: Iterable[Record]) -> None:
    """Check that no film is listed twice.

    Raises:
        DatasetError: If two records have one image id; says how many, and names the first.
    """
    seen: set[str] = set()
    twice: list[str] = []
    for record in records:
        if record.image_id in seen:
            twice.append(record.image_id)
        seen.add(record.image_id)
    if twice:
        raise DatasetError(f"{len(twice)} films are listed more than once: {some_of(twice)}. List each film once.")


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
