"""Images of one's own: a folder a class, or what readers said on the radiologist's page."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Unpack

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.files import find_images, list_folders, some_of
from covidcxr.data.records import Record
from covidcxr.data.splits import split_name
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["FORMAT_VERSION", "INDEX", "FeedbackDataModule", "FolderDataModule"]


@DATASETS.register("folder")
class FolderDataModule(CXRDataModule):
    """Images in one folder a class: `root/CLASS/*.png`, or with official splits `root/train/CLASS/*.png`.

    Args:
        root: Folder of the class folders, or of the split folders (train, val or valid, test).
        patient_pattern: Regular expression, searched in an image's file name, or with `subfolders` in its path below
            the class folder, say "p01/1.png". Its group named `patient`, else its first group, is the patient id:
            `([^/]+)/` takes the folder. Without it every image counts as a patient of its own: then images of one
            patient may train and test.
        source_pattern: The same for the source; the group's name is `source`.
        subfolders: Also read the images in folders below the class folders: `root/CLASS/PATIENT/*.png`. False = they
            are not read, and a warning counts them.
        base: Further settings of `CXRDataModule`.

    Raises:
        DatasetError: If there is no class folder, or one without images; if a pattern does not fit an image, or fits
            it without naming patient or source.
        ConfigError: If a pattern is no regular expression with a group.

    Example:
        ```python
        from pathlib import Path

        from PIL import Image

        from covidcxr import FolderDataModule

        for label, patient in (("covid19", "p1"), ("covid19", "p2"), ("normal", "p3"), ("normal", "p4")):
            folder = Path("by-patient", label, patient)
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (64, 64), 100).save(folder / "1.png")
        data = FolderDataModule("by-patient", subfolders=True, patient_pattern="([^/]+)/")
        assert [record.patient_id for record in data.records] == ["p1", "p2", "p3", "p4"]
        ```
    """

    layout: ClassVar[str] = "one folder a class, or train, val and test folders with one folder a class in each"

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        patient_pattern: str | None = None,
        source_pattern: str | None = None,
        subfolders: bool = False,
        **base: Unpack[DataSettings],
    ) -> None:
        super().__init__(root, **base)
        self._patient = _Pattern.read("patient", patient_pattern)
        self._source = _Pattern.read("source", source_pattern)
        self.subfolders = subfolders
        self.settings = {"patient_pattern": patient_pattern, "source_pattern": source_pattern, "subfolders": subfolders}
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
        self._warn_of_ignored()
        for folder, split in self._folders:
            images = find_images(folder, below=self.subfolders)
            if not images:
                inner = len(find_images(folder, below=True))
                cure = f"{inner} lie in folders below it: set subfolders=True" if inner else "Fill it, or remove it"
                self.fault(DatasetError(f"The class folder {folder} holds no image. {cure}."))
            names = [image.relative_to(folder).as_posix() for image in images]
            patients = self._patient.find(names, folder) if self._patient else [None] * len(names)
            sources = self._source.find(names, folder) if self._source else ["unknown"] * len(names)
            for image, patient, source in zip(images, patients, sources, strict=True):
                yield Record(image, folder.name, patient, source, split)

    def _warn_of_ignored(self) -> None:
        """Count the images below the root that no class has."""
        tops = sorted({self.root, *(folder.parent for folder, _ in self._folders)})
        if loose := [str(image.relative_to(self.root)) for top in tops for image in find_images(top)]:
            warnings.warn(
                f"{len(loose)} images in {self.root} lie in no class folder and are ignored: {some_of(loose)}.",
                stacklevel=3,
            )
        nested: dict[str, int] = {}
        for folder, _ in () if self.subfolders else self._folders:
            own, every = len(find_images(folder)), len(find_images(folder, below=True))
            if own and every > own:  # without any of its own it is a fault
                nested[str(folder.relative_to(self.root))] = every - own
        if nested:
            where = some_of([f"{name} ({count})" for name, count in nested.items()])
            warnings.warn(
                f"{sum(nested.values())} images in {self.root} lie in folders below the class folders and are ignored: "
                f"{where}. subfolders=True reads them; if each such folder is a patient, with "
                f"patient_pattern='([^/]+)/'.",
                stacklevel=3,
            )

    def _class_folders(self) -> list[tuple[Path, SplitName | None]]:
        if not self.root.is_dir():
            raise self.not_found(self.root)
        folders = list_folders(self.root)
        with_splits: list[tuple[Path, SplitName | None]] = [(folder, None) for folder in folders]
        if any(_is_split(folder) for folder in folders):
            with_splits = [(inner, split_name(outer.name)) for outer in folders for inner in list_folders(outer)]
        if not with_splits:
            raise DatasetError(f"{self.root} holds no class folder. It must hold {self.layout}.")
        return with_splits


def _is_split(folder: Path) -> bool:
    try:
        split_name(folder.name)
    except DatasetError:
        return False
    return True


class _Pattern(NamedTuple):
    """Finds what names of files tell."""

    what: str
    compiled: re.Pattern[str]

    @classmethod
    def read(cls, what: str, pattern: str | None) -> _Pattern | None:
        """Compile the setting `WHAT_pattern`.

        Raises:
            ConfigError: If it is no regular expression with a group.
        """
        if pattern is None:
            return None
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{what}_pattern is no regular expression: {pattern!r}: {error}.") from error
        if compiled.groups < 1:
            raise ConfigError(
                f"{what}_pattern needs a group in parentheses for what it looks for, say '(p[0-9]+)_', not {pattern!r}."
            )
        return cls(what, compiled)

    def find(self, names: list[str], folder: Path) -> list[str]:
        """Search in each name: no image may go without, else those of one patient could train and test.

        Raises:
            DatasetError: If the pattern does not fit a name, or fits it and its group holds nothing.
        """
        matches = {name: self.compiled.search(name) for name in names}
        if lacking := [name for name, match in matches.items() if match is None]:
            raise DatasetError(
                f"The pattern {self.compiled.pattern!r} does not fit {len(lacking)} file names in {folder}: "
                f"{some_of(lacking)}. Widen it."
            )
        group = self.what if self.what in self.compiled.groupindex else 1
        values = {name: (match[group] or "").strip() for name, match in matches.items() if match is not None}
        if nameless := [name for name, value in values.items() if not value]:
            raise DatasetError(
                f"The pattern {self.compiled.pattern!r} fits {len(nameless)} file names in {folder} without telling "
                f"the {self.what}: {some_of(nameless)}. Let one group hold it in each of them, say "
                f"'((?:case|img)[0-9]+)_' in place of 'case([0-9]+)_|img([0-9]+)_', or name that group "
                f"(?P<{self.what}>...)."
            )
        return list(values.values())


INDEX = "feedback.json"
"""The file by which an export is known."""

FORMAT_VERSION = 1


@DATASETS.register("feedback")
class FeedbackDataModule(CXRDataModule):
    """Images with a reader's verdict and corrected masks, as `covidcxr feedback` exports them from a server's store.

    Classes are those that the readers could choose from. Where DICOM identifiers were not kept nobody knows whose a
    image is: then the same image twice counts as one patient, and two images of one patient may train and test.

    Args:
        root: Folder of the export. Lungs that the model predicted lie in its folder `drawn`: set `drawn_masks` to it
            where the model sees a region.
        base: Further settings of `CXRDataModule`.

    Raises:
        DatasetError: If it is no export, damaged, or of a newer covidcxr.

    Example:
        ```python
        # not run: needs an export of a reading server
        from covidcxr.data import FeedbackDataModule

        data = FeedbackDataModule("feedback")
        print(data.counts())
        ```
    """

    layout: ClassVar[str] = "feedback.json and the images that it names, as `covidcxr feedback STORE --out ROOT` writes"
    license: ClassVar[str] = "that of the images; for those who may see them"

    def __init__(self, root: str | PathLike[str], **base: Unpack[DataSettings]) -> None:
        super().__init__(root, **base)
        if self.prepared is None:
            self._index = self._read_index(self.root / INDEX)
            self.set_classes(self._index["classes"])

    def read_records(self) -> Iterator[Record]:
        """Return a record an image."""
        for image in self._index["films"]:
            yield Record(
                self.root / image["film"],
                label=image["label"],
                patient_id=image["patient"] or image["sha256"],
                source="feedback",
                mask_paths={name: self.root / place for name, place in image["masks"].items()},
            )

    def _read_index(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            if (self.root / "store.sqlite").is_file():
                raise DatasetError(
                    f"{self.root} is a server's store. Export what may train: covidcxr feedback {self.root} --out DIR"
                )
            raise self.not_found(path)
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["format_version"] > FORMAT_VERSION:
                raise DatasetError(f"{path} was written by a newer covidcxr. Update: pip install -U covidcxr")
            known = {"film": str, "sha256": str, "label": str | None, "patient": str | None, "masks": dict}
            sound = all(isinstance(image[key], kind) for image in index["films"] for key, kind in known.items())
            if not sound or not all(isinstance(name, str) for name in index["classes"]):
                raise TypeError("a value is of the wrong kind")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{path} is damaged ({error!r}). Export the feedback again.") from error
        return dict(index)
