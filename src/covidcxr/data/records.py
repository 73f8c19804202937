"""A data set is a list of records: what is known about each image, without a pixel of it."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from covidcxr.errors import ConfigError, DatasetError, did_you_mean
from covidcxr.types import SplitName

__all__ = [
    "Faults",
    "LabelMap",
    "Record",
    "bimcv_view",
    "count_by",
    "find_leaks",
    "labels_of",
    "no_collector",
    "projection",
]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set.

    Attributes:
        image_path: The image's file.
        label: Name of its class; None = not labelled, or what is known stands in `findings`.
        patient_id: The patient, unique over the whole data set; None = not known.
        source: Hospital or collection that it came from.
        split: "train", "val" or "test" where the data set's authors fixed it; None = not fixed.
        mask_paths: Mask files by mask class, say "lung_field", "lung", "infection". An absent class is unknown, not
            empty.
        empty_masks: Mask classes that are known to be empty, without a file.
        view: Projection as the source states it ("PA", "AP", ...).
        sex: As the source states it.
        age: In years.
        box: The part of the image that counts, in pixels: top, left, bottom, right; the last two exclusive.
        findings: Where classes are not exclusive: by class, whether the image shows it. An absent class is unknown.
        image_id: Names the image, uniquely in its data set and alike on every machine. Data modules fill in the path
            below their root; else it is `image_path`.

    Example:
        ```python
        from covidcxr.data import Record

        record = Record("images/a.png", label="normal", patient_id=" 12", view="PA")
        assert record.patient == "12" and record.image_id == "images/a.png"
        ```
    """

    image_path: Path
    label: str | None = None
    patient_id: str | None = None
    source: str = "unknown"
    split: SplitName | None = None
    mask_paths: Mapping[str, Path] = field(default_factory=dict, hash=False)
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    box: tuple[int, int, int, int] | None = None
    findings: Mapping[str, bool] = field(default_factory=dict, hash=False)
    image_id: str = ""
    empty_masks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.image_path, Path):
            object.__setattr__(self, "image_path", Path(self.image_path))
        # Published tables hold patient ids with stray blanks: " 12" and "12" are one patient.
        for name in ("label", "patient_id"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, str(value).strip() or None)
        if not self.image_id:
            object.__setattr__(self, "image_id", self.image_path.as_posix())
        if self.split not in (None, "train", "val", "test"):
            raise DatasetError(f'The split of {self.image_path} must be "train", "val" or "test", not {self.split!r}.')
        if self.box is not None and not (0 <= self.box[0] < self.box[2] and 0 <= self.box[1] < self.box[3]):
            raise DatasetError(f"The box of {self.image_path} must be top, left, bottom, right, not {self.box}.")

    @property
    def patient(self) -> str:
        """The patient; an image whose patient is not known counts as a patient of its own."""
        return self.patient_id or self.image_id


class Faults:
    """Part of a data set that reports what is wrong with it: it raises an error, or collects messages.

    Example:
        ```python
        from covidcxr.data.records import Faults
        from covidcxr.errors import DatasetError

        data = Faults()
        with data.collected_faults() as messages:
            data.fault(DatasetError("Line 3 names no image."))
        assert messages == ["Line 3 names no image."]
        ```
    """

    _faults: list[str] | None = None

    def fault(self, error: DatasetError) -> None:
        """Report what is wrong with one image or line.

        Args:
            error: What is wrong.

        Raises:
            DatasetError: That error, unless faults are being collected.
        """
        if self._faults is None:
            raise error
        self._faults.append(str(error))

    def remark(self, message: str) -> None:
        """Report a flaw of a copy whose images can be used all the same; kept only while faults are collected.

        Args:
            message: What is wrong.
        """
        if self._faults is not None:
            self._faults.append(message)

    @contextmanager
    def collected_faults(self) -> Iterator[list[str]]:
        """Collect messages in a list instead of raising errors."""
        self._faults = []
        try:
            yield self._faults
        finally:
            self._faults = None


@contextmanager
def no_collector() -> Iterator[None]:
    """Pause Python's garbage collector while many records are made, which hold no reference cycles.

    With a hundred thousand records it takes a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def count_by(records: Iterable[Record], name: str) -> dict[str, int]:
    """Count the records by one of their fields.

    Args:
        records: The images.
        name: "label", "source", "split", "view", "sex", "patient_id", ... or "mask" = by mask class. Where classes are
            not exclusive, an image counts for each label that it shows.

    Returns:
        From value to number of images, most frequent first; what is not stated counts as "unknown".

    Raises:
        ConfigError: If records have no such field.
    """
    known = {*Record.__dataclass_fields__, "patient", "mask"} - {"mask_paths", "findings"}
    if name not in known:
        raise ConfigError(f"Records cannot be counted by {name!r}. {did_you_mean(name, known)}")
    counts: Counter[str] = Counter()
    for record in records:
        if name == "mask":
            counts.update(record.mask_paths.keys())
        elif name == "label":
            counts.update(labels_of(record))
        else:
            value = getattr(record, name)
            counts["unknown" if value is None else str(value)] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def labels_of(record: Record) -> tuple[str, ...]:
    """Return the labels of an image.

    Args:
        record: The image.

    Returns:
        Its label, or "unknown"; where classes are not exclusive, the findings that it shows, which may be none.
    """
    if record.findings:
        return tuple(name for name, shown in record.findings.items() if shown)
    return (record.label or "unknown",)


def find_leaks(records: Iterable[Record]) -> dict[str, set[SplitName]]:
    """Find the patients whose images lie in more than one split.

    Args:
        records: The images with their splits.

    Returns:
        From patient id to the splits that share the patient; empty if the splits are clean.
    """
    splits: dict[str, set[SplitName]] = {}
    for record in records:
        if record.split is not None:
            splits.setdefault(record.patient, set()).add(record.split)
    return {patient: names for patient, names in splits.items() if len(names) > 1}


class LabelMap:
    """Renames labels.

    Args:
        names: From label to its new name; None leaves the images of that label out. Other labels stay as they are.

    Example:
        ```python
        from covidcxr.data.records import LabelMap, Record

        names = LabelMap({"virus": "pneumonia", "bacteria": "pneumonia", "other": None})
        assert names.classes(("normal", "virus", "bacteria", "other")) == ("normal", "pneumonia")
        assert names.rename(Record("a.png", "virus")).label == "pneumonia"
        ```
    """

    def __init__(self, names: Mapping[str, str | None] | None = None) -> None:
        self.names = dict(names or {})

    def classes(self, labels: Collection[str]) -> tuple[str, ...]:
        """Rename the labels of a data set.

        Args:
            labels: All its labels.

        Returns:
            The new names, each once, in the order of `labels`; a map that names every label also sets the order.

        Raises:
            ConfigError: If the map names a label that the data set does not have.
        """
        for label in self.names:
            if label not in labels:
                raise ConfigError(f"label_map names the label {label!r}. {did_you_mean(label, labels)}")
        order = self.names if self.names.keys() >= set(labels) else labels
        renamed = (self.names.get(label, label) for label in order)
        return tuple(dict.fromkeys(label for label in renamed if label is not None))

    @property
    def dropped(self) -> frozenset[str]:
        """The labels whose images are left out."""
        return frozenset(label for label, name in self.names.items() if name is None)

    def rename(self, record: Record) -> Record:
        """Give an image its new label.

        Args:
            record: The image.

        Returns:
            The image with its new label; unchanged if its label is not renamed.

        Raises:
            ConfigError: If its classes are not exclusive.
        """
        if self.names and record.findings:
            raise ConfigError(
                f"label_map renames exclusive labels, but images such as {record.image_id} may show several classes at "
                f"once ({', '.join(record.findings)}). Leave label_map out."
            )
        label = self.names.get(record.label) if record.label is not None else None
        return record if label is None else replace(record, label=label)


_PROJECTIONS = {  # words of a view as data sets write it -> what it shows
    "lateral": {"l", "ll", "rl", "lat", "lateral", "oblique", "decubitus"},
    "abdomen": {"abdomen", "kub"},
    "CT slice": {"ct", "axial", "coronal", "sagittal", "volume"},
    "unknown view": {"unknown"},
}


@cache
def projection(view: str | None) -> str:
    """Return what kind of image a view stands for.

    Args:
        view: As the source states it ("PA", "AP Supine", "L", "Axial", ...); "unknown" where the source states views,
            but not this one; None where it states no views.

    Returns:
        "frontal", "lateral", "abdomen", "CT slice" or "unknown view". What is not stated, and any other word, counts
        as frontal.
    """
    words = set(re.split(r"[^a-z]+", (view or "").lower()))
    return next((name for name, known in _PROJECTIONS.items() if words & known), "frontal")


def bimcv_view(name: str) -> str | None:
    """Read the view from the file name of a BIMCV image.

    Args:
        name: Say, "sub-S00001_ses-E00002_run-1_bp-chest_vp-pa_dx.png".

    Returns:
        The view in upper case, "PA"; None if the name has none.
    """
    tag = re.search(r"_vp-([a-z]+)_", name)
    return tag[1].upper() if tag else None
