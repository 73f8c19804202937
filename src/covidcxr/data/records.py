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
from covidcxr.types import AgeGroup, SplitName

__all__ = ["Record", "count_by", "find_leaks", "labels_of", "LabelMap", "bimcv_view", "no_collector", "projection"]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set.

    Attributes:
        image_path: The image's file.
        label: Name of its class; None = not labelled, or what is known stands in `findings`.
        patient_id: Who is on it, unique over the whole data set; None = not known.
        source: Hospital or collection that it came from.
        split: "train", "val" or "test" where the data set's authors fixed it; None = not fixed.
        mask_paths: Mask files by mask class, say "lung_field", "lung", "infection". An absent class is unknown, not
            empty.
        empty_masks: Mask classes of which the image shows nothing, known without a file.
        view: Projection as the source states it ("PA", "AP", ...).
        sex: As the source states it.
        age: In years.
        age_group: "adult" or "child", where that is all that is known of the age.
        box: The part of the image that counts, in pixels: top, left, bottom, right; the last two exclusive.
        findings: Where classes are not exclusive: by class, whether the image shows it. An absent class is unknown.
        image_id: Names the image, uniquely in its data set and alike on every machine. Data modules fill in the path
            below their root; else it is `image_path`.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.data import Record

        record = Record(Path("images/a.png"), label="normal", patient_id=" 12 ")
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
    age_group: AgeGroup | None = None

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
        """The patient; an image whose patient is not known stands for a patient of its own."""
        return self.patient_id or self.image_id


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
    """Return the labels for which an image counts: where classes are not exclusive, the findings that it shows.

    Args:
        record: The image.

    Returns:
        The labels; "unknown" where it has none.
    """
    if record.findings:
        return tuple(name for name, shown in record.findings.items() if shown)
    return (record.label or "unknown",)


def find_leaks(records: Iterable[Record]) -> dict[str, set[SplitName]]:
    """Find the patients whose images lie in more than one split.

    Args:
        records: The images; those without a split do not count.

    Returns:
        From patient id to the splits that share the patient; empty if the splits are clean.
    """
    splits: dict[str, set[SplitName]] = {}
    for record in records:
        if record.split is not None:
            splits.setdefault(record.patient, set()).add(record.split)
    return {patient: parts for patient, parts in splits.items() if len(parts) > 1}


class LabelMap:
    """Renames labels.

    Args:
        names: From label to its new name; None leaves the images of that label out. Other labels stay as they are.

    Example:
        ```python
        from covidcxr.data.records import LabelMap

        names = LabelMap({"COVID-19": "covid19", "Normal": "normal", "Non-COVID": None})
        assert names.classes(("COVID-19", "Non-COVID", "Normal")) == ("covid19", "normal")
        ```
    """

    def __init__(self, names: Mapping[str, str | None] | None = None) -> None:
        self.names = dict(names or {})

    def classes(self, labels: Collection[str]) -> tuple[str, ...]:
        """Rename the labels of a data set, in their order; those that become one stand where the first stood.

        A map that names every label also says the order.

        Args:
            labels: The data set's own labels.

        Returns:
            The classes.

        Raises:
            ConfigError: If the map names a label that the data set has not.
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
            The image, with its new label if it has one.

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
    """Tell what an image shows from its view.

    Args:
        view: As the source states it ("PA", "AP Supine", "L", "Axial", ...); "unknown" where a source that states the
            views of its images does not know this one's; None where the source states no views.

    Returns:
        "frontal", "lateral", "abdomen", "CT slice" or "unknown view". What is not stated, and any other word, counts
        as frontal.
    """
    words = set(re.split(r"[^a-z]+", (view or "").lower()))
    return next((name for name, known in _PROJECTIONS.items() if words & known), "frontal")


def bimcv_view(name: str) -> str | None:
    """Read the view from the name of a BIMCV image: "PA" from "sub-S00001_ses-E00002_run-1_bp-chest_vp-pa_dx.png".

    Args:
        name: The file's name.

    Returns:
        The view in capitals; None if the name does not tell it.
    """
    return tag[1].upper() if (tag := re.search(r"_vp-([a-z]+)_", name)) else None


@contextmanager
def no_collector() -> Iterator[None]:
    """Let Python not look for cycles while many records are made, which have none.

    It would look again and again through all that are there: at a hundred thousand that is a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
