"""Is a copy of a data set complete? Everything that is wrong with it, at once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from covidcxr.data.collection import Collection, has_own_reader
from covidcxr.data.dataset import box_slices, check_mask_size, finding_table, label_numbers
from covidcxr.data.records import Record
from covidcxr.errors import CovidCXRError, DatasetError, ImageReadError
from covidcxr.io.image import image_size, is_sixteen_bit, read_mask
from covidcxr.io.pixels import held_bits, held_bits_in_words
from covidcxr.utils.plain import field_values
from covidcxr.utils.threads import Progress, map_threads

__all__ = ["CheckReport", "check_dataset", "depth_remark"]

_THREADS = 8  # headers are mostly waited for


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check_dataset` finds.

    Attributes:
        images: Number of images that the data module would use.
        left_out: Number of those that it would not, by reason.
        counts: All images that the data set lists, with its own labels, as "split/label" -> number; "all" where it
            gives no split.
        release: The published release whose counts these are; None = of none, or none is known.
        faults: What is wrong with the copy, a sentence each.
        notes: What to know of it that is no fault, a sentence each.

    Example:
        ```python
        from covidcxr.data import CSVDataModule
        from covidcxr.data.curation.integrity import check_dataset

        report = check_dataset(CSVDataModule("phantoms"))
        assert report.complete and report.images == 24
        ```
    """

    images: int
    left_out: dict[str, int]
    counts: dict[str, int]
    release: str | None
    faults: list[str]
    notes: list[str]

    @property
    def complete(self) -> bool:
        """Whether nothing is wrong with the copy."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        return {"complete": self.complete, **field_values(self)}


def check_dataset(collection: Collection, *, decode: bool = False, progress: Progress | None = None) -> CheckReport:
    """Look for everything that is wrong with a copy of a data set: labels, files, counts, the size of each picture.

    Args:
        collection: The data set.
        decode: Also decode every image and mask. Else only their headers are read, which does not find a file that was
            cut short.
        progress: Called with how many images of how many are looked at.

    Returns:
        Faults, counts and notes.

    Raises:
        ConfigError: If the data module's own settings contradict the data set.
    """
    with _warned() as warned, collection.collected_faults() as faults:
        records = collection.unsplit_records()
        if not records and not faults:
            collection.fault(collection.no_image())
        if records:
            try:
                collection.split_records(records)  # tells of what is in two splits
            except DatasetError as error:
                collection.fault(error)
    release, differences = _compare(collection.listed, collection.known_releases())
    examined = map_threads(
        lambda record: _examine(collection, record, decode), records, threads=_THREADS, progress=progress
    )
    every = [*faults, *differences, *_check_labels(collection, records), *chain.from_iterable(examined)]
    return CheckReport(
        images=len(records),
        left_out=dict(collection.left_out.most_common()),
        counts=dict(collection.listed),
        release=release,
        faults=list(dict.fromkeys(every)),  # an image that is listed twice is looked at twice
        notes=list(dict.fromkeys([*warned, *_notes(collection, records)])),
    )


def depth_remark(collection: Collection, records: Sequence[Record], sample: int = 8) -> str | None:
    """Look whether 16-bit images hold fewer bits, which nobody sees but for their darkness.

    Args:
        collection: The data set.
        records: Its images.
        sample: How many to look at, evenly spaced; only those of 16 bits are decoded.

    Returns:
        A message where most of them do; None where they do not, or the setting `bits` tells them.
    """
    if collection.bits is not None or collection.prepared is not None:
        return None
    looked_at = records[:: max(1, len(records) // sample)][:sample]
    deep = [record for record in looked_at if is_sixteen_bit(record.image_path)]
    held = [bits for record in deep if (bits := _held_bits(collection, record))]
    if 2 * len(held) <= len(deep):
        return None
    return f"{len(held)} of {len(deep)} images of 16 bits that were looked at: {held_bits_in_words(max(held))}"


def _held_bits(collection: Collection, record: Record) -> int | None:
    try:
        return held_bits(collection.load_image(record))
    except ImageReadError:  # reported when it is used
        return None


def _compare(listed: Mapping[str, int], releases: Mapping[str, Mapping[str, int]]) -> tuple[str | None, list[str]]:
    """Return the release that has these counts; or None, and what differs from the nearest one."""
    nearest: tuple[int, list[str]] | None = None
    for release, expected in releases.items() if listed else ():
        present = _without_splits(listed) if any(key.startswith("all/") for key in expected) else listed
        gaps = {key: abs(present.get(key, 0) - expected.get(key, 0)) for key in {**expected, **present}}
        if not any(gaps.values()):
            return release, []
        if nearest is None or sum(gaps.values()) < nearest[0]:
            different = [
                f"{key}: {present.get(key, 0):,} of {expected.get(key, 0):,} images of the release {release}."
                for key, gap in gaps.items()
                if gap
            ]
            nearest = sum(gaps.values()), different
    return None, nearest[1] if nearest else []


def _without_splits(listed: Mapping[str, int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for key, images in listed.items():
        counts[f"all/{key.partition('/')[2]}"] += images
    return counts


def _check_labels(collection: Collection, records: list[Record]) -> list[str]:
    """Return a message about labels that are no classes, if there are such."""
    multilabel = any(record.findings for record in records)
    try:
        (finding_table if multilabel else label_numbers)(records, collection.classes)
    except DatasetError as error:
        return [str(error)]
    return []


def _examine(collection: Collection, record: Record, decode: bool) -> list[str]:
    """Look at an image and its masks; files that are not there were reported before."""
    faults = []
    whole = None
    try:
        if has_own_reader(collection) or record.image_path.is_file():
            whole = _image_size(collection, record, decode)
        if whole is not None:
            box_slices(record, whole)
    except CovidCXRError as error:
        faults.append(str(error))
    for name, path in record.mask_paths.items():
        try:
            if path.is_file():
                size = _shape(read_mask(path)) if decode else image_size(path)
                if whole is not None:
                    check_mask_size(record, name, size, whole)
        except CovidCXRError as error:
            faults.append(str(error))
    return faults


def _image_size(collection: Collection, record: Record, decode: bool) -> tuple[int, int] | None:
    if decode:
        return _shape(collection.load_image(record))
    return None if has_own_reader(collection) else image_size(record.image_path)


def _shape(picture: Any) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]


def _notes(collection: Collection, records: list[Record]) -> Iterator[str]:
    if collection.left_out:
        reasons = ", ".join(f"{images:,} ({reason})" for reason, images in collection.left_out.most_common())
        yield f"Images left out: {reasons}."
    if records and (remark := depth_remark(collection, records)):
        yield remark
    if unknown := sum(record.patient_id is None for record in records):
        yield (
            f"The patients of {unknown:,} of {len(records):,} images are not known: each image counts as a patient of "
            f"its own, so images of one patient may train and test."
        )


@contextmanager
def _warned() -> Iterator[list[str]]:
    """Collect warnings as sentences."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield messages
    messages += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
