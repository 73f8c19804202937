"""What is in a data set, counted: classes, views, sexes, ages, sources, splits, patients, masks and grey values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, get_args

import numpy as np

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.records import Record, count_by, labels_of
from covidcxr.errors import ConfigError, DatasetError, ImageReadError
from covidcxr.types import AgeGroup, SplitName
from covidcxr.utils.threads import Progress

__all__ = ["count_ages", "labels_shown", "survey", "what_the_source_tells", "compute_mean_std"]


def compute_mean_std(
    datamodule: CXRDataModule, *, sample: int | None = None, seed: int = 0, progress: Progress | None = None
) -> tuple[float, float]:
    """Compute the mean and standard deviation of the training images' pixels, one image in memory at a time.

    Images are taken at the data module's size, without augmentation, before a region is cut, and without the black
    frame that letterboxing adds; every pixel counts alike.

    Args:
        datamodule: The data set; the images of its training split are read.
        sample: Read only that many of them, drawn at random; None = all.
        seed: Seeds the draw.
        progress: Called after each image with how many of how many are read.

    Returns:
        Mean and standard deviation, for images in [0, 1].

    Raises:
        ConfigError: If `sample` is not at least 1.
        DatasetError: If there is no training image.
        ImageReadError: If an image cannot be read.
    """
    images = datamodule.train_dataset
    if len(images) == 0:
        raise DatasetError(f"{type(datamodule).__name__} has no training image to compute a mean from.")
    if sample is not None and sample < 1:
        raise ConfigError(f"sample must be a number of images from 1 up (or null = all), not {sample}.")
    order = np.random.default_rng(seed).permutation(len(images))[:sample].tolist()
    histogram = np.zeros(256, np.int64)  # images are uint8 at this point, so the sums are exact in any order
    for done, index in enumerate(sorted(order), 1):
        histogram += np.bincount(images.pixels(index).ravel(), minlength=256)
        if progress is not None:
            progress(done, len(order))
    grey = np.arange(256) / 255
    mean = np.average(grey, weights=histogram)
    variance = np.average((grey - mean) ** 2, weights=histogram)
    return float(mean), float(np.sqrt(variance))


_UNKNOWN = "unknown"


_MOST = 6  # names in one sentence, sentences of one kind


def survey(
    data: CXRDataModule, *, pixels: bool = True, sample: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Count the images of a data set by all that is known of them.

    Args:
        data: The data set; its images are opened for `pixels` only.
        pixels: Also compute the mean and standard deviation of the training images' grey values, at the data module's
            size.
        sample: Do so over that many training images, drawn at random; None = over all.
        progress: Called with how many training images of how many were read.

    Returns:
        `images`, `left_out` (by reason), `label`, `view`, `sex`, `age` (bands), `source`, `split`, `mask` (images by
        value), `label_by_source` and `label_by_split` (images by label for each), `patients`, `pixels`, and `notes`:
        what to know before trusting a number measured on it, a sentence each. What is not stated counts as "unknown".

    Raises:
        DatasetError: If the data set is not there, lacks files, or contradicts itself.
    """
    records = data.records
    counts = Counter(label for record in records for label in labels_shown(record))
    order = [*data.classes, *sorted(counts.keys() - {*data.classes})]
    labels = {name: counts[name] for name in order if counts[name]}
    sources, splits = count_by(records, "source"), count_by(records, "split")
    by_source = _cross(records, "source", labels, sources)
    return {
        "films": len(records),
        "left_out": dict(data.left_out.most_common()),
        "label": labels,
        **{name: count_by(records, name) for name in ("view", "sex")},
        "age": count_ages(records),
        "source": sources,
        "split": {name: splits[name] for name in get_args(SplitName) if name in splits},
        "mask": count_by(records, "mask"),
        "label_by_source": by_source,
        "label_by_split": _cross(records, "split", labels, get_args(SplitName)),
        "patients": _count_patients(records),
        "pixels": _grey_values(data, sample, progress) if pixels else None,
        "notes": [] if data.multilabel else [*what_the_source_tells(by_source), *_two_labels(records)],
    }


def labels_shown(record: Record) -> tuple[str, ...]:
    """Return the labels for which an image counts.

    Args:
        record: The image.

    Returns:
        Its labels; "none of these" where it shows none of several findings.
    """
    return labels_of(record) or ("none of these",)


def count_ages(records: Iterable[Record]) -> dict[str, int]:
    """Count images by bands of ten years.

    Args:
        records: The images.

    Returns:
        From band ("40-49") to number of images, youngest first, without a gap; then images of which the age group is
        all that is known ("adult", "child"); "unknown" comes last.
    """
    records = list(records)
    bands = Counter(min(int(record.age) // 10, 9) for record in records if record.age is not None)
    groups = Counter(record.age_group or _UNKNOWN for record in records if record.age is None)
    known = list(bands)
    span = range(min(known), max(known) + 1) if known else range(0)
    counts = {f"{10 * band}-{10 * band + 9}" if band < 9 else "90+": bands[band] for band in span}
    return counts | {name: groups[name] for name in (*get_args(AgeGroup), _UNKNOWN) if groups[name]}


def _cross(
    records: Iterable[Record], name: str, labels: Iterable[str], values: Iterable[str]
) -> dict[str, dict[str, int]]:
    """Count by label for each value of another field; every row has every label, in one order."""
    table = {value: dict.fromkeys(labels, 0) for value in values}
    for record in records:
        for label in labels_shown(record):
            table[getattr(record, name)][label] += 1
    return table


def _count_patients(records: Sequence[Record]) -> dict[str, Any]:
    """Count the patients, and how many have how many images; images without a patient stand apart."""
    images = Counter(record.patient_id for record in records)
    unknown = images.pop(None, 0)
    by_images = Counter(images.values())
    return {
        "patients": len(images),
        "by_films": {str(number): by_images[number] for number in sorted(by_images)},
        "films_of_unknown_patients": unknown,
    }


def _grey_values(data: CXRDataModule, sample: int | None, progress: Progress | None) -> dict[str, Any]:
    try:
        mean, std = compute_mean_std(data, sample=sample, progress=progress)
    except ImageReadError as error:  # the counts are right all the same
        return {"error": str(error)}
    images = len(data.train_dataset)
    size = list(data.geometry.image_size)
    return {
        "mean": mean,
        "std": std,
        "films": min(images, sample or images),
        "training_films": images,
        "image_size": size,
    }


def what_the_source_tells(by_source: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say where the source gives the label away: a model can then score highly without looking at a lung.

    Args:
        by_source: From source to label to number of images.

    Returns:
        A sentence each; none where there is one class.
    """
    labelled = {
        source: known
        for source, counts in by_source.items()
        if (known := {label: count for label, count in counts.items() if count and label != _UNKNOWN})
    }
    totals = sum((Counter(labels) for labels in labelled.values()), Counter[str]())
    if len(totals) < 2:
        return []
    if len(labelled) == 1:
        return ["All images come from one source: a score on them says nothing of another hospital."]
    only: dict[str, list[str]] = {}
    for source, labels in labelled.items():
        if len(labels) == 1:
            only.setdefault(next(iter(labels)), []).append(source)
    sentences = [f"Every image of {_and(sources)} is of class {label}." for label, sources in only.items()]
    where = {label: {source for source, labels in labelled.items() if label in labels} for label in totals}
    apart = [f"{first} and {second}" for first, second in combinations(totals, 2) if not where[first] & where[second]]
    sentences += [f"No source holds both {pair}: the source alone tells these two apart." for pair in apart[:_MOST]]
    if len(apart) > _MOST:
        sentences.append(f"That holds for {len(apart) - _MOST} more pairs of classes.")
    images, (best, most) = totals.total(), totals.most_common(1)[0]
    guessed = sum(max(labels.values()) for labels in labelled.values())
    return [
        *sentences,
        f"Guessing by the source, without looking at it, is right for {100 * guessed / images:.1f} % of the images; "
        f'always guessing "{best}" for {100 * most / images:.1f} %.',
    ]


def _two_labels(records: Iterable[Record]) -> list[str]:
    labels: dict[str, set[str]] = {}
    for record in records:
        if record.label is not None:
            labels.setdefault(record.patient, set()).add(record.label)
    several = sum(len(names) > 1 for names in labels.values())
    return [f"{several} patients have images of more than one class."] if several else []


def _and(names: Sequence[str]) -> str:
    shown = [*names[:_MOST], f"{len(names) - _MOST} more"] if len(names) > _MOST else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
