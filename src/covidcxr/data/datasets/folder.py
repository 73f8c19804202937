"""A folder a class as a data set."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import ClassVar, Unpack

from covidcxr.data.datamodule import CXRDataModule, DataSettings
from covidcxr.data.files import find_images, list_folders, some_of
from covidcxr.data.records import Record
from covidcxr.data.splits import split_name
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["FolderDataModule"]


@DATASETS.register("folder")
class FolderDataModule(CXRDataModule):
    """Images in one folder a class: `root/CLASS/*.png`, or with official splits `root/train/CLASS/*.png`.

    Args:
        root: Folder of the class folders, or of the split folders (train, val or valid, test).
        patient_pattern: Regular expression, searched in an image's file name; its first group is the patient id.
            Without it every image counts as a patient of its own: then images of one patient may train and test.
        source_pattern: The same for the source.
        base: Further settings of `CXRDataModule`.

    Raises:
        DatasetError: If there is no class folder, or one without images.
        ConfigError: If a pattern is no regular expression with a group.
    """

    layout: ClassVar[str] = "one folder a class, or train, val and test folders with one folder a class in each"

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        patient_pattern: str | None = None,
        source_pattern: str | None = None,
        **base: Unpack[DataSettings],
    ) -> None:
        super().__init__(root, **base)
        self._patient = _compile("patient_pattern", patient_pattern)
        self._source = _compile("source_pattern", source_pattern)
        self.settings = {"patient_pattern": patient_pattern, "source_pattern": source_pattern}
        if self.prepared is None:
            self._folders = self._class_folders()
            self.set_classes(sorted({folder.name for folder, _ in self._folders}))

    def read_records(self) -> Iterator[Record]:
        """Return a record an image, class by class."""
        if self._patient is None:
            warnings.warn(
                f"The patients of the images in {self.root} are not known, so images of one patient may train and "
                f"test. If the file names tell the patient, give patient_pattern.",
                stacklevel=2,
            )
        for folder, split in self._folders:
            images = find_images(folder)
            if not images:
                self.fault(DatasetError(f"The class folder {folder} holds no image. Fill it, or remove it."))
            patients = _search(self._patient, images)
            sources = _search(self._source, images)
            for image, patient, source in zip(images, patients, sources, strict=True):
                yield Record(image, folder.name, patient, source or "unknown", split)

    def _class_folders(self) -> list[tuple[Path, SplitName | None]]:
        if not self.root.is_dir():
            raise self.not_found(self.root)
        folders = list_folders(self.root)
        found: list[tuple[Path, SplitName | None]] = [(folder, None) for folder in folders]
        if any(_is_split(folder) for folder in folders):
            found = [(inner, split_name(outer.name)) for outer in folders for inner in list_folders(outer)]
        if not found:
            raise DatasetError(f"{self.root} holds no class folder. It must hold {self.layout}.")
        return found


def _is_split(folder: Path) -> bool:
    try:
        split_name(folder.name)
    except DatasetError:
        return False
    return True


def _compile(name: str, pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name} is no regular expression: {pattern!r}: {error}.") from error
    if compiled.groups < 1:
        raise ConfigError(
            f"{name} needs a group in parentheses for what it looks for, say '(p[0-9]+)_', not {pattern!r}."
        )
    return compiled


def _search(pattern: re.Pattern[str] | None, images: list[Path]) -> list[str | None]:
    """Search in each file name.

    Raises:
        DatasetError: If the pattern is not found in a name.
    """
    if pattern is None:
        return [None] * len(images)
    found = [pattern.search(image.name) for image in images]
    lacking = [image.name for image, match in zip(images, found, strict=True) if match is None]
    if lacking:
        raise DatasetError(
            f"The pattern {pattern.pattern!r} does not fit {len(lacking)} file names in {images[0].parent}: "
            f"{some_of(lacking)}. Widen it."
        )
    return [match[1] for match in found if match is not None]
