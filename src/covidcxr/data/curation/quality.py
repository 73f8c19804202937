"""The quality of the images of a data set: dark, flat, blurred, of odd size, cut off, framed, copied, not readable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool

from covidcxr.data.collection import Collection
from covidcxr.data.curation.duplicates import Duplicates, find_duplicates
from covidcxr.data.curation.image_scores import (
    CRITERIA,
    Image,
    clipped_share,
    find_limits,
    flag_scores,
    measure_quality,
    reduced,
)
from covidcxr.data.dataset import box_slices
from covidcxr.data.records import Record, count_by, labels_of
from covidcxr.errors import CovidCXRError, DatasetError
from covidcxr.io.image import read_mask
from covidcxr.types import LUNG_CLASSES
from covidcxr.utils.plain import field_values
from covidcxr.utils.threads import Progress, Steps, map_threads, no_steps

__all__ = ["OTHER_FLAGS", "ImageQuality", "Look", "QualityReport", "check_quality"]

_THREADS = 4
_BATCH = 16

OTHER_FLAGS = ("inverted", "turned", "not frontal", "exact copy", "near copy", "not readable")
"""Flags that come from a view check, the search for copies, and the reader."""


@dataclass(frozen=True)
class Look:
    """What a pipeline says of an image for `check_quality`: `covidcxr.pipeline.lung_masks.look_at` makes a function.

    Attributes:
        lungs: Where the lungs are; None = not found.
        flags: Of "inverted", "turned" and "not frontal" those that hold.

    Example:
        ```python
        from covidcxr.data.curation.quality import Look

        assert Look(flags=("inverted",)).lungs is None
        ```
    """

    lungs: Bool[np.ndarray, "height width"] | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageQuality:
    """The quality of one image.

    Attributes:
        record: The image.
        scores: By name, as `measure_quality` returns them; empty where it cannot be read.
        flags: What is wrong with it.
        copies: Ids of its copies.
        error: Why it cannot be read; "" = it can.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.data import Record
        from covidcxr.data.curation.quality import ImageQuality

        quality = ImageQuality(Record(Path("a.png")), {"brightness": 0.05}, ("dark",))
        assert quality.row()["flags"] == "dark"
        ```
    """

    record: Record
    scores: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    error: str = ""

    def row(self) -> dict[str, Any]:
        """Return a row of a table: what is known of the image, its flags and its scores."""
        record = self.record
        known = {"image_id": record.image_id, "label": "; ".join(labels_of(record)), "source": record.source}
        flags = {"flags": "; ".join(self.flags), "copies": "; ".join(self.copies), "error": self.error}
        return {**known, "patient_id": record.patient_id, "split": record.split, **flags, **self.scores}


@dataclass(frozen=True)
class QualityReport:
    """The quality of the images of a data set.

    Attributes:
        images: Each image, in the order of the records.
        limits: From flag to the limit of its score that was found for this set.
        copies: Whether copies were searched.

    Example:
        ```python
        from covidcxr.data import CSVDataModule
        from covidcxr.data.curation.quality import check_quality

        report = check_quality(CSVDataModule("phantoms"), duplicates=False)
        assert len(report.images) == 24 and "dark" in report.limits
        ```
    """

    images: tuple[ImageQuality, ...]
    limits: Mapping[str, float]
    copies: bool = True

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by flag, in the order of `CRITERIA`; flags that no image has are left out."""
        counts = Counter(flag for image in self.images for flag in image.flags)
        order = [*(criterion.flag for criterion in CRITERIA), *OTHER_FLAGS]
        return {flag: counts[flag] for flag in order if counts[flag]}

    @property
    def flagged(self) -> int:
        """Number of images with any flag."""
        return sum(bool(image.flags) for image in self.images)

    def worst(self, flag: str, most: int) -> list[ImageQuality]:
        """Return the images with a flag, the worst first.

        Args:
            flag: One of the flags.
            most: How many at most.

        Returns:
            The images.
        """
        kept = [image for image in self.images if flag in image.flags]
        criterion = next((own for own in CRITERIA if own.flag == flag), None)
        if criterion is not None:
            sign = -1 if criterion.high else 1
            kept.sort(key=lambda image: sign * image.scores[criterion.score])
        return kept[:most]

    def limit_in_words(self, flag: str) -> str:
        """Say from where on an image has a flag.

        Args:
            flag: One of the flags.

        Returns:
            "noise above 0.02"; "" for a flag that no score makes.
        """
        own = next((criterion for criterion in CRITERIA if criterion.flag == flag), None)
        if own is None:
            return ""
        return f"{own.score.replace('_', ' ')} {'above' if own.high else 'below'} {self.limits[flag]:.3g}"

    def by(self, trait: str) -> dict[str, dict[str, int]]:
        """Count flags by a trait.

        Args:
            trait: A field of `covidcxr.data.Record`, as of `covidcxr.data.count_by`: "label", "source", ...

        Returns:
            From value of the trait to flag to number of images; "images" stands for all of them.
        """
        totals = count_by((image.record for image in self.images), trait)
        flags = {flag: count_by((i.record for i in self.images if flag in i.flags), trait) for flag in self.counts}
        return {
            value: {"images": total, **{flag: own.get(value, 0) for flag, own in flags.items()}}
            for value, total in totals.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: counts, limits, and the images that have a flag."""
        return {
            "images": len(self.images),
            "flagged": self.flagged,
            "copies_searched": self.copies,
            "flags": self.counts,
            "by_label": self.by("label"),
            "by_source": self.by("source"),
            "limits": {
                criterion.flag: {**field_values(criterion), "limit": self.limits[criterion.flag]}
                for criterion in CRITERIA
            },
            "flagged_images": [image.row() for image in self.images if image.flags],
        }


def check_quality(
    data: Collection,
    *,
    duplicates: bool = True,
    look: Callable[[Sequence[Image]], Sequence[Look]] | None = None,
    progress: Steps | None = None,
) -> QualityReport:
    """Check the quality of every image of a data set.

    An image that cannot be read, or is not there, costs one entry. Lungs that the edge of the image cuts are found
    where the data set has lung masks, or `look` finds lungs.

    Args:
        data: The data set.
        duplicates: Search for copies of images too.
        look: Finds lungs and says how an image lies, for some images at a time; None = masks of the data set only.
        progress: From the name of a step to a progress bar, as `covidcxr.utils.console.show_progress`.

    Returns:
        The report.

    Raises:
        DatasetError: If the data set is not there or has no image.
    """
    with data.collected_faults() as faults:
        records = data.unsplit_records()
    if not records:
        raise DatasetError(faults[0]) if faults else data.no_image()
    steps = progress or no_steps
    with steps("images") as bar:
        measured = list(_measure(data, records, look, bar))
    copies = None
    if duplicates:
        readable = [image.record for image in measured if not image.error]
        with steps("copies") as bar:
            copies = find_duplicates(readable, read=data.load_image, progress=bar)
    limits = find_limits([image.scores for image in measured])
    return QualityReport(tuple(_flagged(measured, limits, copies)), limits, duplicates)


def _measure(
    data: Collection,
    records: Sequence[Record],
    look: Callable[[Sequence[Image]], Sequence[Look]] | None,
    progress: Progress,
) -> Iterator[ImageQuality]:
    batch: list[tuple[ImageQuality, Image | None]] = []
    for result in map_threads(partial(_open, data), records, threads=_THREADS, progress=progress):
        batch.append(result)
        if len(batch) == _BATCH:
            yield from _with_looks(batch, look)
            batch = []
    yield from _with_looks(batch, look)


def _open(data: Collection, record: Record) -> tuple[ImageQuality, Image | None]:
    """Return the scores of an image, and a smaller copy of it."""
    try:
        image = data.load_image(record)
        image = image[box_slices(record, (image.shape[0], image.shape[1]))]
        scores = measure_quality(image)
        name = next((name for name in LUNG_CLASSES if name in record.mask_paths), None)
        if name is not None:
            scores["lungs_at_border"] = clipped_share(read_mask(record.mask_paths[name]))
    except CovidCXRError as error:
        return ImageQuality(record, error=str(error)), None
    return ImageQuality(record, scores), reduced(image)


def _with_looks(
    batch: Sequence[tuple[ImageQuality, Image | None]], look: Callable[[Sequence[Image]], Sequence[Look]] | None
) -> Iterator[ImageQuality]:
    readable = [image for _, image in batch if image is not None]
    looks = iter(look(readable) if look is not None and readable else ())
    for quality, image in batch:
        seen = next(looks, None) if image is not None else None
        if seen is None:
            yield quality
            continue
        scores = dict(quality.scores)
        if seen.lungs is not None and "lungs_at_border" not in scores:
            scores["lungs_at_border"] = clipped_share(seen.lungs)
        yield replace(quality, scores=scores, flags=seen.flags)


def _flagged(
    measured: Sequence[ImageQuality], limits: Mapping[str, float], copies: Duplicates | None
) -> Iterator[ImageQuality]:
    """Add the flags of scores and copies to those that a view check gave."""
    groups = {name: group for group in copies or () for name in group.image_ids}
    for image in measured:
        flags = [*flag_scores(image.scores, limits), *image.flags, *(["not readable"] if image.error else [])]
        group = groups.get(image.record.image_id)
        others: tuple[str, ...] = ()
        if group is not None:
            flags.append("near copy" if group.kind == "near" else "exact copy")
            others = tuple(name for name in group.image_ids if name != image.record.image_id)
        yield replace(image, flags=tuple(flags), copies=others)
