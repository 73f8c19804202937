"""Compact copies of data sets: reading what `prepare_dataset` wrote."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.config import PreprocessConfig
from covidcxr.data.cache import StoredImages
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.tables import read_lines
from covidcxr.types import Fit
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr.data.collection import Collection

__all__ = ["FORMAT_VERSION", "INDEX", "RECORDS", "STAMP", "Prepared", "read_index", "to_json"]

FORMAT_VERSION = 1
INDEX = "covidcxr-prepared.json"
"""The file by which a compact copy is known; it is written last."""
STAMP = "covidcxr-preparing.json"
"""What an unfinished copy is to become; it is written first and goes when the copy is finished."""
RECORDS = "records.jsonl.gz"
"""The images of the copy, a line each."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The index of a compact copy.

    Attributes:
        root: Folder of the copy.
        dataset: Class name of the data module that it is a copy of.
        settings: Settings of the data module when it was copied.
        views: Which views it holds.
        drawn_masks: Whether it holds predicted masks.
        min_lung_area: The least area of predicted lungs that its images have.
        classes: Its classes, before any `label_map`.
        image_size: Height and width of the frame that images were fitted to.
        fit: How.
        images: Number of images.
        listed: Images that the data set lists, as in `Collection`.
        left_out: Images that are not in the copy, as in `Collection`.
        stored_masks: The mask classes of the file that holds all images at their size; None = there is no such file.
        rows: The place in it of each image, by the path of its own file; filled when the records are read.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.data.curation.prepared import Prepared

        assert Prepared.find(Path("phantoms")) is None  # the data set itself, no copy
        ```
    """

    root: Path
    dataset: str
    settings: Mapping[str, Any]
    views: str
    drawn_masks: bool
    min_lung_area: float
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    fit: Fit
    images: int
    listed: Mapping[str, int]
    left_out: Mapping[str, int]
    stored_masks: tuple[str, ...] | None = None
    rows: dict[Path, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def find(cls, root: Path) -> Prepared | None:
        """Read the index of the copy in a folder.

        Args:
            root: The folder.

        Returns:
            The index; None if there is no copy.

        Raises:
            DatasetError: If the copy is unfinished, damaged, or of a newer covidcxr.
        """
        if not (root / INDEX).is_file():
            if (root / STAMP).is_file():
                raise DatasetError(
                    f"The compact copy in {root} is unfinished. Run covidcxr datasets prepare again with the same "
                    f"settings: it goes on where it stopped."
                )
            return None
        data = read_index(root / INDEX)
        try:
            if data["format_version"] > FORMAT_VERSION:
                raise DatasetError(
                    f"The compact copy in {root} was made by a newer covidcxr. Update: pip install -U covidcxr"
                )
            keys = {"images": "films"}  # 0.1.0 named it so, and the format keeps it
            names = [each.name for each in fields(cls) if each.name not in ("root", "stored_masks", "rows")]
            known = {name: data[keys.get(name, name)] for name in names}
            pair = {name: tuple(known[name]) for name in ("classes", "image_size")}
            if data.get("stored_masks") is not None and StoredImages.are_in(root):  # copies of 0.2 have none
                known["stored_masks"] = tuple(data["stored_masks"])
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{root / INDEX} is damaged: {error!r}. Prepare the copy again.") from error
        return cls(root=root, **{**known, **pair})

    def read(self, collection: Collection) -> Iterator[Record]:
        """Read the records of the copy, if it is one of this data set with these settings.

        Args:
            collection: The data set as it was set up on the copy; it collects the faults.

        Returns:
            The records.

        Raises:
            ConfigError: If it is not.
            DatasetError: If its records are damaged.
        """
        self._check(collection)
        collection.listed.update(self.listed)
        collection.left_out.update(self.left_out)
        path, images = self.root / RECORDS, 0
        for number, line in read_lines(path, fault=collection.fault) if path.is_file() else ():
            try:
                record = _from_json(line, self.root)
            except (ValueError, TypeError, KeyError, AttributeError):
                collection.fault(DatasetError(f"Line {number} of {path} is damaged. Copy it again from its origin."))
                continue
            images += 1
            self.rows[record.image_path] = number - 1
            yield record
        if images != self.images:
            message = f"{path} tells {images} images of {self.images}. Copy it again from its origin."
            collection.fault(DatasetError(message))

    def stored_images(self, records: Sequence[Record], geometry: PreprocessConfig) -> StoredImages | None:
        """Open the file that holds all images at the copy's size.

        Args:
            records: Those of the copy that are wanted, in this order.
            geometry: How samples come to their size.

        Returns:
            The images; None if the copy has no such file, or samples of another size are wanted.

        Raises:
            DatasetError: If the file is not whole.
        """
        if self.stored_masks is None or (geometry.image_size, geometry.fit) != (self.image_size, self.fit):
            return None
        rows = np.array([self.rows[record.image_path] for record in records], np.int64)
        return StoredImages(self.root, self.image_size, self.stored_masks, rows)

    def check_geometry(self, image_size: tuple[int, int], fit: Fit) -> None:
        """Compare a data module's geometry with the copy's; warn if images would be enlarged.

        Args:
            image_size: Height and width of its samples.
            fit: How images come to that size.

        Raises:
            ConfigError: If they are fitted in another way.
        """
        if fit != self.fit:
            raise ConfigError(
                f'The compact copy in {self.root} was prepared with fit="{self.fit}", not "{fit}". Set '
                f'fit="{self.fit}", or prepare another copy.'
            )
        if image_size[0] > self.image_size[0] or image_size[1] > self.image_size[1]:
            warnings.warn(
                f"image_size is {tuple(image_size)}, but the compact copy in {self.root} was prepared at "
                f"{self.image_size}: images are enlarged and show no more for it. Prepare a larger copy.",
                stacklevel=2,
            )

    def _check(self, collection: Collection) -> None:
        name = type(collection).__name__
        if self.dataset != name:
            raise ConfigError(
                f"The compact copy in {self.root} was prepared from {self.dataset}: it cannot be read by {name}."
            )
        now = json.loads(to_json(collection.copy_settings()))
        parameters = inspect.signature(type(collection).__init__).parameters
        # A setting that did not exist when the copy was made had its default.
        earlier = {key: parameters[key].default for key in now if key in parameters and key not in self.settings}
        was = {**json.loads(to_json(earlier)), **self.settings}
        if self.views == "frontal":
            was["views"], now["views"] = self.views, collection.views
        if collection.drawn_masks is not None:
            was |= {"drawn_masks": self.drawn_masks, "min_lung_area": self.min_lung_area}
            now |= {"drawn_masks": True, "min_lung_area": collection.min_lung_area}
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                raise ConfigError(
                    f"The compact copy in {self.root} was prepared with {key}={was.get(key)!r}, not {now.get(key)!r}. "
                    f"Set it so, or prepare another copy."
                )


def read_index(path: Path) -> dict[str, Any]:
    """Read the index or stamp of a copy.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        DatasetError: If it is no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Copy it again from its origin, or remove it.") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path} is damaged: it must hold one JSON object. Copy it again from its origin.")
    return data


def to_json(value: Record | Mapping[str, Any]) -> str:
    """Write a record, or settings, as a line of JSON.

    Args:
        value: The record, of which only what is not the default is written; or the settings.

    Returns:
        The line, without its end.
    """
    if isinstance(value, Record):
        known = {each.name: getattr(value, each.name) for each in fields(Record)}
        value = {name: entry for name, entry in known.items() if entry != _DEFAULTS[name]}
    return json_text(value, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return value.as_posix() if isinstance(value, Path) else str(value)


_DEFAULTS = {
    each.name: each.default_factory() if each.default_factory is not MISSING else each.default
    for each in fields(Record)
}


def _from_json(line: str, root: Path) -> Record:
    known = json.loads(line)
    known["image_path"] = root / known["image_path"]
    known["mask_paths"] = {name: root / path for name, path in known.get("mask_paths", {}).items()}
    known["empty_masks"] = tuple(known.get("empty_masks", ()))
    return Record(**known)
