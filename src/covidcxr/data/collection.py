"""A data set on the disk: its records, what is left out of them, and what is wrong with them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float

from covidcxr.data.files import DrawnMasks, find_missing, find_twice
from covidcxr.data.labels import LabelMap
from covidcxr.data.prepared import Prepared
from covidcxr.data.records import Record, count_by, find_leaks
from covidcxr.data.splits import assign_splits, take_fold
from covidcxr.data.views import projection
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io import read_image
from covidcxr.types import SplitName

__all__ = ["Collection", "Views"]

Views = Literal["frontal", "all"]
"""Which films are kept: frontal radiographs (and those whose view the data set does not tell), or all."""


class Collection(ABC):
    """What a data set is before any film is opened: records with their splits. Base of `CXRDataModule`.

    A data set sets the class attributes and writes `read_records`.

    Args:
        root: Folder of the data set, or of a compact copy that `covidcxr datasets prepare` wrote of it.
        views: "frontal" leaves out films that are known to be no frontal radiographs; "all" keeps them.
        official_split: Use the split of the data set's authors where there is one; else split anew by patient.
        label_map: New names for labels; the films of a label mapped to null are left out.
        drop_unlabelled: Leave out films without a label.
        drawn_masks: Folder of lung masks for films that have none.
        fractions: Training and validation share of the patients; the rest tests.
        fold: With `folds`: which fold tests, from 0.
        folds: Number of folds of a cross-validation; in place of `fractions`.
        hold_out_source: Source, or sources, whose patients are the test split.
        split_seed: Seeds the split.

    Attributes:
        classes: Names of the classes; a sample's label is the place of its class in here.
        homepage: Where to get the data set.
        layout: What stands in `root`, in words.
        citation: How to cite it.
        license: Its terms of use.
        caveats: What to know before trusting a number measured on it, a sentence each.
        modality: What its pictures are; slices of a CT are never "frontal".
        releases: Number of films of each published release, as "split/label" -> count ("all/label" where the release
            has no split), over all films and with the data set's own labels. A complete copy has the counts of one.
        settings: The constructor's arguments that decide which records are read, for `covidcxr datasets prepare`.
        left_out: Films left out of `records` and why, as reason -> count; filled when they are read.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.
    """

    classes: tuple[str, ...] = ()
    homepage: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    license: ClassVar[str] = ""
    caveats: ClassVar[tuple[str, ...]] = ()
    modality: ClassVar[Literal["X-ray", "CT"]] = "X-ray"
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {}

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        views: Views = "frontal",
        official_split: bool = True,
        label_map: Mapping[str, str | None] | None = None,
        drop_unlabelled: bool = False,
        drawn_masks: str | PathLike[str] | None = None,
        fractions: tuple[float, float] = (0.7, 0.15),
        fold: int | None = None,
        folds: int | None = None,
        hold_out_source: str | Sequence[str] | None = None,
        split_seed: int = 0,
    ) -> None:
        if (fold is None) != (folds is None) or (folds is not None and hold_out_source is not None):
            raise ConfigError("fold and folds go together, and exclude hold_out_source: a fold is its own test split.")
        if views not in get_args(Views):
            raise ConfigError(f"views must be one of {', '.join(get_args(Views))}, not {views!r}.")
        self.root = Path(root).expanduser()
        self.views = views
        self.official_split = official_split
        self.label_map = LabelMap(label_map)
        self.drop_unlabelled = drop_unlabelled
        self.drawn_masks = None if drawn_masks is None else Path(drawn_masks).expanduser()
        self.fractions = fractions
        self.fold = fold
        self.folds = folds
        self.hold_out_source = hold_out_source
        self.split_seed = split_seed
        self.settings: dict[str, Any] = {}
        self.left_out: Counter[str] = Counter()
        self._faults: list[str] | None = None
        self.prepared = Prepared.find(self.root)
        if self.prepared is not None and not self.classes:
            self.classes = self.prepared.classes
        if self.classes:
            self.classes = self.label_map.classes(self.classes)

    @abstractmethod
    def read_records(self) -> Iterable[Record]:
        """Return every film of the data set with all that is known about it, without opening it.

        `split` is the official one, or None; `view` is "unknown" where the data set tells views but not this one's.
        Leaving out, splitting, renaming of labels and all checks are done by the base. What is wrong with a single
        film or line goes to `fault`, and the next one follows.
        """

    def read_film(self, record: Record) -> Float[np.ndarray, "height width"]:
        """Open a film: grey, in [0, 1].

        Raises:
            ImageReadError: If it cannot be read.
        """
        return read_image(record.image_path)

    @cached_property
    def records(self) -> list[Record]:
        """All films that are kept, each with its split; read from the disk when first asked for.

        Raises:
            DatasetError: If the data set is not there, lacks files, or contradicts itself.
        """
        records = self.unsplit_records()
        if not records:
            raise DatasetError(f"{type(self).__name__} finds no film in {self.root}. {self._remedy()}")
        if self.fold is not None and self.folds is not None:
            return take_fold(records, self.folds, self.fold, seed=self.split_seed)
        records = assign_splits(records, self.fractions, seed=self.split_seed, hold_out_source=self.hold_out_source)
        if leaks := find_leaks(records):
            warnings.warn(
                f"The official split of {type(self).__name__} leaks: {len(leaks)} patients are in more than one part. "
                f"It is used as published; covidcxr.data.find_leaks(records) names them, official_split=False splits "
                f"anew by patient.",
                stacklevel=2,
            )
        return records

    def unsplit_records(self) -> list[Record]:
        """Read the films that are kept, with their new labels and their official split or none.

        Raises:
            DatasetError: If the data set is not there, lacks files, or contradicts itself.
        """
        records = []
        for record in self.kept_records():
            if record.label in self.label_map.dropped:
                self.left_out[f"label {record.label}"] += 1
            elif record.label is None and self.drop_unlabelled:
                self.left_out["no label"] += 1
            else:
                records.append(self.label_map.rename(record))
        for message in (*find_twice(records), *self.find_missing(records)):
            self.fault(DatasetError(message))
        if not self.official_split:
            records = [replace(record, split=None) for record in records]
        return records

    def kept_records(self) -> Iterator[Record]:
        """Read the films that `views` keeps, with drawn masks, and count the others; labels are the data set's own."""
        if not self.root.is_dir():
            raise self.not_found(self.root)
        self.left_out.clear()
        source = self.read_records() if self.prepared is None else self.prepared.read(self)
        drawn = None if self.drawn_masks is None else DrawnMasks(self.drawn_masks)
        for record in source:
            shown = projection(record.view) if self.modality == "X-ray" else "frontal"
            if self.views == "frontal" and shown != "frontal":
                self.left_out[shown] += 1
            else:
                record = self._named(record)
                yield drawn.add(record) if drawn else record

    def find_missing(self, records: Iterable[Record]) -> list[str]:
        """Return a message about the files of the records that are not on the disk, if there are such."""
        return find_missing(records)

    def fault(self, error: DatasetError) -> None:
        """Say what is wrong with one film or line: raise the error, or note it where all faults are collected."""
        if self._faults is None:
            raise error
        self._faults.append(str(error))

    @contextmanager
    def collected_faults(self) -> Iterator[list[str]]:
        """Collect what `fault` is told in a list in place of raising it."""
        self._faults = []
        try:
            yield self._faults
        finally:
            self._faults = None

    def counts(self, name: str = "label") -> dict[SplitName, dict[str, int]]:
        """Count the films of each split by a field of their records ("label", "source", "view", "mask", ...)."""
        return {
            split: count_by((record for record in self.records if record.split == split), name)
            for split in get_args(SplitName)
        }

    def not_found(self, path: Path) -> DatasetError:
        """Return the error for a part of the data set that is missing; says where to get it and where to put it."""
        return DatasetError(f"{type(self).__name__} does not find {path}. {self._remedy()}")

    def _remedy(self) -> str:
        where = f" Get it from {self.homepage}" if self.homepage else ""
        what = f" It must hold {self.layout}." if self.layout else ""
        return f"root is {self.root}.{what}{where}{' and unpack it there.' if where else ''}"

    def _named(self, record: Record) -> Record:
        """Name the film by its path below the root: that is the same on every machine."""
        path = record.image_path
        if record.image_id != path.as_posix() or not path.is_relative_to(self.root):
            return record
        return replace(record, image_id=path.relative_to(self.root).as_posix())
