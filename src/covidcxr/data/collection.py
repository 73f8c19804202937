"""A data set on the disk: its records, what is left out of them, and what is wrong with them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, get_args

import numpy as np
from jaxtyping import Float

from covidcxr.data.curation.prepared import Prepared
from covidcxr.data.dataset import open_image
from covidcxr.data.files import DrawnMasks, Faults, find_missing, find_twice
from covidcxr.data.records import LabelMap, Record, count_by, find_leaks, labels_of, no_collector, projection
from covidcxr.data.sampler import Balance
from covidcxr.data.splits import assign_splits, take_fold
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.image import read_image
from covidcxr.io.pixels import check_bits
from covidcxr.transforms.augment import Augment
from covidcxr.types import Fit, Region, SplitName
from covidcxr.utils.plain import user_path

__all__ = ["CollectionSettings", "DataSettings", "DrawnFor", "Views", "Collection", "Faults", "has_own_reader"]

Views = Literal["frontal", "all"]
"""Which images are kept: frontal radiographs (and those whose view the data set does not tell), or all."""

DrawnFor = Literal["all", "train"]
"""Which images get predicted masks."""


class CollectionSettings(TypedDict, total=False):
    """The keyword arguments of `Collection`: a part of `DataSettings`.

    Example:
        ```python
        from covidcxr.data.collection import CollectionSettings

        settings: CollectionSettings = {"folds": 5, "fold": 0}
        ```
    """

    views: Views
    official_split: bool
    label_map: Mapping[str, str | None] | None
    drop_unlabelled: bool
    drop_unknown_patients: bool
    drawn_masks: str | PathLike[str] | None
    drawn_masks_for: DrawnFor
    min_lung_area: float
    fractions: tuple[float, float]
    fold: int | None
    folds: int | None
    hold_out_source: str | Sequence[str] | None
    split_seed: int
    bits: int | None


class DataSettings(CollectionSettings, total=False):
    """The keyword arguments of `CXRDataModule`, so that a type checker finds a misspelt one in a subclass's `**base`.

    Example:
        ```python
        from typing import Unpack

        from covidcxr.data import CXRDataModule
        from covidcxr.data.collection import DataSettings

        class OurHospital(CXRDataModule):
            def __init__(self, root: str, *, ward: str = "all", **base: Unpack[DataSettings]) -> None:
                super().__init__(root, **base)
                self.settings = {"ward": ward}
        ```
    """

    image_size: tuple[int, int] | None
    fit: Fit | None
    region: Region | None
    lung_dilation: float | None
    mask_classes: Sequence[str]
    drop_unmasked: bool
    batch_size: int
    num_workers: int | None
    augment: str | Sequence[Any] | Augment | None
    augmented_copies: Mapping[str, int] | None
    cache: Literal["memory"] | None
    balance: Balance
    predict_split: SplitName | Literal["all"]
    seed: int


class Collection(Faults, ABC):
    """What a data set is before any image is opened: records with their splits. Base of `CXRDataModule`.

    A data set sets the class attributes and writes `read_records`.

    Args:
        root: Folder of the data set, or of a compact copy that `covidcxr datasets prepare` wrote of it.
        views: "frontal" leaves out images that are known to be no frontal radiographs; "all" keeps them.
        official_split: Use the split of the data set's authors where there is one; else split anew by patient.
        label_map: New names for labels; the images of a label mapped to null are left out.
        drop_unlabelled: Leave out images without a label.
        drop_unknown_patients: Leave out images whose patient is not known: no split can keep them apart from others.
        drawn_masks: Folder of lung masks that a segmenter predicted, for images that have none.
        drawn_masks_for: "all" images, or "train" = training images only, so that a segmenter that learns from
            predicted masks is still validated and tested on hand-drawn ones.
        min_lung_area: Leave out images whose predicted lungs cover less of the image than this, in [0, 1);
            `covidcxr datasets masks` measures them.
        fractions: Training and validation share of the patients; the rest tests.
        fold: With `folds`: which fold tests, from 0.
        folds: Number of folds of a cross-validation; in place of `fractions`.
        hold_out_source: Source, or sources, whose patients are the test split.
        split_seed: Seeds the split.
        bits: How many bits 16-bit pictures really hold, where those are fewer: 12 of collections that were converted
            from DICOM without stretching; see `read_image`.

    Attributes:
        classes: Names of the classes; a sample's label is the place of its class in here.
        homepage: Where to get the data set.
        layout: What stands in `root`, in words.
        citation: How to cite it.
        license: Its terms of use.
        caveats: What to know before trusting a number measured on it, a sentence each.
        modality: What its pictures are; slices of a CT are never "frontal".
        releases: Number of images of each published release, as "split/label" -> count ("all/label" where the release
            has no split), over all images and with the data set's own labels; newest last. A complete copy has the
            counts of one.
        release: The one of `releases` that is read unless a setting names another; "" = the newest.
        settings: The constructor's arguments that decide which records are read, for `covidcxr datasets prepare`.
        own_classes: The classes before any `label_map`.
        listed: Images that the data set lists, before any is left out, to be compared with `releases`, as "split/label"
            -> count; "all" where it gives no split. Filled when they are read.
        left_out: Images left out of `records` and why, as reason -> count; filled when they are read.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.

    Example:
        ```python
        from covidcxr.data import CSVDataModule

        data = CSVDataModule("phantoms", hold_out_source="phantom-b")
        assert {record.source for record in data.records if record.split == "test"} == {"phantom-b"}
        ```
    """

    classes: tuple[str, ...] = ()
    homepage: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    license: ClassVar[str] = ""
    caveats: ClassVar[tuple[str, ...]] = ()
    modality: ClassVar[Literal["X-ray", "CT"]] = "X-ray"
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    release: ClassVar[str] = ""

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        views: Views = "frontal",
        official_split: bool = True,
        label_map: Mapping[str, str | None] | None = None,
        drop_unlabelled: bool = False,
        drop_unknown_patients: bool = False,
        drawn_masks: str | PathLike[str] | None = None,
        drawn_masks_for: DrawnFor = "all",
        min_lung_area: float = 0.0,
        fractions: tuple[float, float] = (0.7, 0.15),
        fold: int | None = None,
        folds: int | None = None,
        hold_out_source: str | Sequence[str] | None = None,
        split_seed: int = 0,
        bits: int | None = None,
    ) -> None:
        check_bits(bits)
        if (fold is None) != (folds is None) or (folds is not None and hold_out_source is not None):
            raise ConfigError("fold and folds go together, and exclude hold_out_source: a fold is its own test split.")
        if views not in get_args(Views):
            raise ConfigError(f"views must be one of {', '.join(get_args(Views))}, not {views!r}.")
        self.root = user_path(root)
        self.views = views
        self.official_split = official_split
        self.label_map = LabelMap(label_map)
        self.drop_unlabelled = drop_unlabelled
        self.drop_unknown_patients = drop_unknown_patients
        if not 0 <= min_lung_area < 1 or (min_lung_area and drawn_masks is None):
            raise ConfigError(f"min_lung_area must be in [0, 1), and needs drawn_masks; it is {min_lung_area}.")
        if drawn_masks_for not in get_args(DrawnFor):
            raise ConfigError(
                f"drawn_masks_for must be one of {', '.join(get_args(DrawnFor))}, not {drawn_masks_for!r}."
            )
        self.drawn_masks = None if drawn_masks is None else user_path(drawn_masks)
        self.drawn_masks_for = drawn_masks_for
        self.min_lung_area = min_lung_area
        self.fractions = fractions
        self.fold = fold
        self.folds = folds
        self.hold_out_source = hold_out_source
        self.split_seed = split_seed
        self.bits = bits
        self.settings: dict[str, Any] = {}
        self.listed: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.prepared = Prepared.find(self.root)
        if self.prepared is not None:
            self.load_image = self.read_film = open_image  # type: ignore[method-assign]
            self.classes = self.classes or self.prepared.classes
        if bits is not None and has_own_reader(self):
            raise ConfigError(f"{type(self).__name__} reads images in its own way: set bits for its members, if any.")
        self.own_classes: tuple[str, ...] = ()
        if self.classes:
            self.set_classes(self.classes)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "read_film" in vars(cls):  # its name in 0.1.0, which data sets of others may override
            cls.load_image = cls.read_film  # type: ignore[method-assign]
        elif "load_image" in vars(cls):
            cls.read_film = cls.load_image

    @abstractmethod
    def read_records(self) -> Iterable[Record]:
        """Return every image of the data set with all that is known about it, without opening it.

        `split` is the official one, or None; `view` is "unknown" where the data set tells views but not this one's.
        Leaving out, splitting, renaming of labels and all checks are done by the base. What is wrong with a single
        image or line goes to `fault`, and the next one follows.
        """

    def load_image(self, record: Record) -> Float[np.ndarray, "height width"]:
        """Open an image: grey, in [0, 1]. A data set may do so in its own way; the images of a copy are plain pictures.

        Args:
            record: The image.

        Returns:
            Its grey values.

        Raises:
            ImageReadError: If it cannot be read.
        """
        return read_image(record.image_path, bits=self.bits)

    read_film = load_image
    """Its name in 0.1.0."""

    @cached_property
    def records(self) -> list[Record]:
        """All images that are kept, each with its split; read from the disk when first asked for.

        Raises:
            DatasetError: If the data set is not there, lacks files, or contradicts itself.
        """
        records = self.unsplit_records()
        if not records:
            raise self.no_image()
        records = self.split_records(records)
        if self.drawn_masks_for == "train" and self.prepared is not None:
            raise ConfigError("A compact copy does not tell which masks were predicted: train from its origin.")
        return records if self.drawn_masks_for == "all" else list(self._without_predicted(records))

    def _without_predicted(self, records: Iterable[Record]) -> Iterator[Record]:
        """Take the predicted masks away from images that do not train."""
        for record in records:
            drawn = {path for path in record.mask_paths.values() if self.drawn_masks in path.parents}
            if drawn and record.split != "train":
                record = replace(record, mask_paths={n: p for n, p in record.mask_paths.items() if p not in drawn})
            yield record

    def split_records(self, records: list[Record]) -> list[Record]:
        """Give each image its split, as the settings say, and look for what is in two of them.

        Args:
            records: The images, with their official split or none.

        Returns:
            The images in their order, each with its split.

        Raises:
            ConfigError: If the settings do not fit each other.
            DatasetError: If the images do not fit the settings.
        """
        with no_collector():
            if self.fold is not None and self.folds is not None:
                records = take_fold(records, self.folds, self.fold, seed=self.split_seed)
            else:
                held_out = self.hold_out_source
                records = assign_splits(records, self.fractions, seed=self.split_seed, hold_out_source=held_out)
        self.check_splits(records)
        return records

    def check_splits(self, records: list[Record]) -> None:
        """Look for what is in two splits, and warn of it.

        Args:
            records: The images, each with its split.
        """
        if leaks := find_leaks(records):
            warnings.warn(
                f"The official split of {type(self).__name__} leaks: {len(leaks)} patients are in more than one part. "
                f"It is used as published; covidcxr.data.find_leaks(records) names them, official_split=False splits "
                f"anew by patient.",
                stacklevel=2,
            )

    @cached_property
    def multilabel(self) -> bool:
        """Whether classes are not exclusive: images tell their findings, each by itself, and no label."""
        return any(record.findings for record in self.records)

    def unsplit_records(self) -> list[Record]:
        """Read the images that are kept, with their new labels and their official split or none.

        Raises:
            DatasetError: If the data set is not there, lacks files, or contradicts itself.
        """
        with no_collector():
            records = list(self._wanted_records())
            missing = self.find_missing(records) if self.prepared is None else find_missing(records)
        for message in (*find_twice(records), *missing):
            self.fault(DatasetError(message))
        if not self.official_split:
            records = [replace(record, split=None) for record in records]
        return records

    def _wanted_records(self) -> Iterator[Record]:
        for record in self.kept_records():
            if record.label in self.label_map.dropped:
                self.left_out[f"label {record.label}"] += 1
            elif self.drop_unlabelled and record.label is None and not record.findings:
                self.left_out["no label"] += 1
            elif self.drop_unknown_patients and record.patient_id is None:
                self.left_out["patient not known"] += 1
            else:
                yield self.label_map.rename(record)

    def kept_records(self) -> Iterator[Record]:
        """Read the images that `views` keeps, with predicted masks and their own labels, and count the others."""
        self.listed.clear()
        self.left_out.clear()
        drawn = None
        try:
            if self.drawn_masks is not None and self.prepared is None:  # a copy holds its predicted masks
                drawn = DrawnMasks(self.drawn_masks, measured=self.min_lung_area > 0)
            for record in self._every_record():
                shown = projection(record.view) if self.modality == "X-ray" else "frontal"
                if self.views == "frontal" and shown != "frontal":
                    self.left_out[shown] += 1
                    continue
                record = self._named(record)
                if drawn:
                    own = record
                    record = drawn.add(record)
                    if record is not own and drawn.area(record) < self.min_lung_area:
                        self.left_out[f"lungs below {self.min_lung_area:.0%} of the image"] += 1
                        continue
                yield record
            if drawn:
                drawn.check()
        except DatasetError as error:  # nothing after it can be read
            self.fault(error)

    def _every_record(self) -> Iterator[Record]:
        if not self.root.is_dir():
            raise self.not_found(self.root)
        if self.prepared is not None:
            yield from self.prepared.read(self)
            return
        for record in self.read_records():
            for label in labels_of(record):
                self.listed[f"{record.split or 'all'}/{label}"] += 1
            yield record

    def known_releases(self) -> Mapping[str, Mapping[str, int]]:
        """Return those of `releases` that tell of what this data module was asked to read."""
        return self.releases

    def find_missing(self, records: Iterable[Record]) -> list[str]:
        """Look for the files of the records on the disk.

        Args:
            records: The images.

        Returns:
            A message about those that are not there; empty if all are.
        """
        return find_missing(records)

    def counts(self, name: str = "label") -> dict[SplitName, dict[str, int]]:
        """Count the images of each split by a field of their records.

        Args:
            name: "label", "source", "view", "mask", ..., as for `count_by`.

        Returns:
            From split to value to number of images.
        """
        return {
            split: count_by((record for record in self.records if record.split == split), name)
            for split in get_args(SplitName)
        }

    def copy_settings(self) -> dict[str, Any]:
        """Return the settings by which a compact copy is known: `settings`, and how images are read."""
        return self.settings if self.bits is None else {**self.settings, "bits": self.bits}

    def set_classes(self, labels: Iterable[str]) -> None:
        """Set the classes: the data set's own labels, in their order, with their new names.

        Args:
            labels: The labels.
        """
        self.own_classes = tuple(labels)
        self.classes = self.label_map.classes(self.own_classes)

    def not_found(self, path: Path) -> DatasetError:
        """Return the error for a part of the data set that is missing; says where to get it and where to put it.

        Args:
            path: What is missing.

        Returns:
            The error, to be raised.
        """
        return DatasetError(f"{type(self).__name__} does not find {path}. {self._remedy()}")

    def no_image(self) -> DatasetError:
        """Return the error for a data set without images."""
        return DatasetError(f"{type(self).__name__} finds no image in {self.root}. {self._remedy()}")

    def _remedy(self) -> str:
        where = f" Get it from {self.homepage}" if self.homepage else ""
        what = f" It must hold {self.layout}." if self.layout else ""
        return f"root is {self.root}.{what}{where}{' and unpack it there.' if where else ''}"

    def _named(self, record: Record) -> Record:
        """Name the image by its path below the root: that is the same on every machine."""
        path, folder = record.image_path.as_posix(), f"{self.root.as_posix().rstrip('/')}/"
        if record.image_id != path or not path.startswith(folder):
            return record
        return replace(record, image_id=path.removeprefix(folder))


def has_own_reader(data: Collection) -> bool:
    """Return whether a data set reads its images itself: they need be no files then, and their headers mean nothing.

    Args:
        data: The data set.

    Returns:
        False for a compact copy too: its images are files.
    """
    return data.prepared is None and type(data).load_image is not Collection.load_image
