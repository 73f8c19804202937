"""What lies on the disk: images in a folder, and images that are named but not there. No image is opened."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from covidcxr import aliases
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.types import LUNGS_OF_REGION

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_INDEX",
    "DrawnMasks",
    "Faults",
    "find_images",
    "find_missing",
    "find_orphans",
    "find_twice",
    "list_folders",
    "some_of",
    "table_path",
]

__getattr__ = partial(aliases.find, __name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})
"""Endings, in lower case, of the files that count as images."""

MASK_INDEX = "covidcxr-masks.json"
"""The file in a folder of predicted masks that tells how much of each image its lungs cover."""

_OF_SYSTEMS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a drive, or a share of the network
_LUNGS = frozenset(LUNGS_OF_REGION["lungs"])
_HOW_TO_PREDICT = (
    "Predict them: covidcxr datasets masks NAME --data.root ROOT --out FOLDER, "
    "so that they bear the names of the data set's images."
)


def find_images(folder: Path, *, below: bool = False) -> list[Path]:
    """Return the images in a folder, sorted by name; hidden files, and files that are no images, are left out.

    A link that leads nowhere counts as an image: `find_missing` tells of it.

    Args:
        folder: The folder.
        below: Also look into the folders below it, at any depth, after its own images.

    Returns:
        The images.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith("."))
    images = [path for name in names if (path := folder / name).suffix.lower() in IMAGE_SUFFIXES]
    for inner in list_folders(folder) if below else ():
        leads_back = inner.is_symlink() and folder.resolve().is_relative_to(inner.resolve())
        images += [] if leads_back else find_images(inner, below=True)
    return images


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name; hidden ones and those of systems are left out.

    Args:
        folder: The folder.

    Returns:
        The folders in it.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [folder / name for name in names if not name.startswith(".") and name not in _OF_SYSTEMS]


def table_path(root: Path, text: str) -> Path:
    r"""Return the file that a table names, whether the table was written here or on Windows.

    Args:
        root: Folder to which paths in the table are relative.
        text: The path in the table; backslashes part folders unless a file has them in its name.

    Returns:
        The file, whether it is there or not.

    Raises:
        DatasetError: If it is an absolute path of a Windows computer, say `C:\\images\\a.png`, and this is none.
    """
    windows = os.name != "nt" and ("\\" in text or _WINDOWS_ROOT.match(text)) and not (root / text).is_file()
    if windows and _WINDOWS_ROOT.match(text):
        raise DatasetError(f"{text} is a path of a Windows computer. Write paths relative to {root}.")
    return root / (text.replace("\\", "/") if windows else text)


class DrawnMasks:
    """Lung masks that a segmenter predicted, for images that have none.

    Args:
        folder: Holds `IMAGE_ID.lung_field.png`, `IMAGE_ID.lung.png`, or both, for each image; or the output of
            `covidcxr predict`, whose folder images holds them.
        measured: Also read how much of each image its lungs cover: `covidcxr datasets masks` writes it beside the
            masks.

    Raises:
        DatasetError: If that was not written, or is damaged.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.data import Record
        from covidcxr.data.files import DrawnMasks

        Path("predicted").mkdir(exist_ok=True)
        Path("predicted/a.png.lung_field.png").touch()
        record = DrawnMasks(Path("predicted")).add(Record(Path("a.png")))
        assert list(record.mask_paths) == ["lung_field"]
        ```
    """

    def __init__(self, folder: Path, *, measured: bool = False) -> None:
        self._areas = _read_areas(folder / MASK_INDEX) if measured else {}
        self._tops = (folder, folder / "films")
        self._files = _Listings()
        self._asked = self._found = 0

    def add(self, record: Record) -> Record:
        """Give an image its predicted masks, unless it has a lung mask.

        Args:
            record: The image.

        Returns:
            The image with the masks that are there.
        """
        if _LUNGS & record.mask_paths.keys():
            return record
        self._asked += 1
        for top in self._tops:
            drawn = {name: f"{top}/{record.image_id}.{name}.png" for name in sorted(_LUNGS)}
            if present := {name: Path(path) for name, path in drawn.items() if self._files.hold(path)}:
                self._found += 1
                return replace(record, mask_paths={**record.mask_paths, **present})
        return record

    def area(self, record: Record) -> float:
        """Return how much of an image its lungs cover.

        Args:
            record: The image.

        Returns:
            The share, in [0, 1]; 1 where it was not measured.
        """
        return self._areas.get(record.image_id, 1.0)

    def check(self) -> None:
        """Check, after the last image, that masks were found at all.

        Raises:
            DatasetError: If there is no such folder, or not one image has got a mask from it.
        """
        folder = self._tops[0]
        if not folder.is_dir():
            raise DatasetError(f"There is no folder of predicted masks {folder}. {_HOW_TO_PREDICT}")
        if self._asked and not self._found:
            raise DatasetError(
                f"{folder} has a predicted mask for none of {self._asked} images that have no lung mask: looked for "
                f"IMAGE_ID.lung_field.png and IMAGE_ID.lung.png there and in {self._tops[1]}. {_HOW_TO_PREDICT}"
            )


def _read_areas(path: Path) -> dict[str, float]:
    try:
        areas = json.loads(path.read_text(encoding="utf-8"))["areas"]
        return {str(name): float(area) for name, area in areas.items()}
    except FileNotFoundError:
        raise DatasetError(
            f"There is no {path}, which tells the lungs' areas. Predict the masks: covidcxr datasets masks."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}). Predict the masks again: covidcxr datasets masks."
        ) from error


def find_missing(records: Iterable[Record]) -> list[str]:
    """Look for every image and mask of the records; each folder is listed once.

    Args:
        records: The images.

    Returns:
        One message that says how many files are missing and names the first; empty if all are there.
    """
    files = _Listings()
    images: list[str] = []
    masks: list[str] = []
    for record in records:
        if not files.hold(record.image_path):
            images.append(str(record.image_path))
        masks.extend(str(path) for path in record.mask_paths.values() if not files.hold(path))
    if not images and not masks:
        return []
    return [
        f"{len(images) + len(masks)} files of the data set are missing ({len(images)} images, {len(masks)} masks): "
        f"{some_of(images + masks)}. Unpack the download again, or correct the table that names them."
    ]


def find_orphans(images: Iterable[Path], folder: Path) -> list[str]:
    """Look for masks whose images are not there, where both have the same names.

    Args:
        images: The images.
        folder: Folder of their masks.

    Returns:
        One message that says how many masks have no image and names the first; empty if all have one.
    """
    names = {image.name for image in images}
    alone = [mask.name for mask in (find_images(folder) if folder.is_dir() else []) if mask.name not in names]
    if not alone:
        return []
    return [f"{len(alone)} masks in {folder} have no image: {some_of(alone)}. Unpack the download again."]


def find_twice(records: Iterable[Record]) -> list[str]:
    """Look for images that are listed twice.

    Args:
        records: The images.

    Returns:
        One message that says how many and names the first; empty if each is listed once.
    """
    seen: set[str] = set()
    twice: list[str] = []
    for record in records:
        if record.image_id in seen:
            twice.append(record.image_id)
        seen.add(record.image_id)
    return [f"{len(twice)} images are listed more than once: {some_of(twice)}. List each image once."] if twice else []


def some_of(names: list[str], most: int = 5) -> str:
    """Join the first names for a message.

    Args:
        names: The names.
        most: How many are named.

    Returns:
        Words such as "a, b, c and 7 more".
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class _Listings:
    """Which files there are; a folder is listed once, when it is first asked for."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def hold(self, path: str | Path) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        return name in self._names[folder]

    @staticmethod
    def _list(folder: str) -> frozenset[str]:
        try:
            with os.scandir(folder or ".") as entries:
                return frozenset(entry.name for entry in entries if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()


class Faults:
    """Part of a data set that collects what is wrong with it.

    Example:
        ```python
        from covidcxr.data.files import Faults
        from covidcxr.errors import DatasetError

        data = Faults()
        with data.collected_faults() as faults:
            data.fault(DatasetError("Line 3 is damaged."))
        assert faults == ["Line 3 is damaged."]
        ```
    """

    _faults: list[str] | None = None

    def fault(self, error: DatasetError) -> None:
        """Say what is wrong with one image or line: raise the error, or note it where all faults are collected.

        Args:
            error: What is wrong.

        Raises:
            DatasetError: The same, where faults are not collected.
        """
        if self._faults is None:
            raise error
        self._faults.append(str(error))

    def remark(self, message: str) -> None:
        """Note what is wrong with a copy where all faults are collected; the images can be used all the same.

        Args:
            message: What is wrong, a sentence.
        """
        if self._faults is not None:
            self._faults.append(message)

    @contextmanager
    def collected_faults(self) -> Iterator[list[str]]:
        """Collect what `fault` gets in a list in place of raising it."""
        self._faults = []
        try:
            yield self._faults
        finally:
            self._faults = None
