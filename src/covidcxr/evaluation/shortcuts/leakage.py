"""Leakage between splits: patients and duplicate images in several parts, and what a random split would leak."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from covidcxr.data.curation.duplicates import DuplicateGroup, Duplicates
from covidcxr.data.records import Record, find_leaks
from covidcxr.utils.plain import field_values

__all__ = ["Copies", "Leakage", "RandomSplit", "Series", "copies_across_parts", "find_leakage"]

HELD_OUT = 0.2
"""Share of the images that the random split by image holds out."""

HELD_OUT_PARTS = ("val", "test")

_SEEDS = 20
_LEAST_NEIGHBOURS = 20  # pairs; fewer say little


@dataclass(frozen=True)
class RandomSplit:
    """What a random split by image, not by patient, would leak.

    Attributes:
        share: Share of the held-out images whose patient is in training too, in [0, 1]; mean over random splits.
        low: Minimum over the splits.
        high: Maximum over the splits.
        images: Images that are split.
        patients: Patients of these images.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts import RandomSplit

        assert RandomSplit(0.8, 0.75, 0.85, images=200, patients=100).to_dict()["films"] == 200
        ```
    """

    share: float
    low: float
    high: float
    images: int
    patients: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return field_values(self)


@dataclass(frozen=True)
class Copies:
    """Duplicate images, which `find_duplicates` recognises by their pixels.

    Attributes:
        groups: Each set of copies: their image ids and what they share.
        across_splits: Number of groups in more than one part of the official split.
        across_patients: Number of groups that no split by patient keeps together: of several patients, or of images
            whose patient is not known.
        contradicting: Number of groups with more than one label.
        compared: Number of images that were compared.
        held_out: From "val" and "test" to the ids of the images of that part that have a copy in training.
        bodies: Pairs of images that are no copies but show one body, where the patient of one or both is not known.
        bodies_held_out: As `held_out`, of the images that show one body with an image in training.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts import Copies

        assert Copies((), 0, 0, 0, compared=24).to_dict()["count"] == 0
        ```
    """

    groups: tuple[DuplicateGroup, ...]
    across_splits: int
    across_patients: int
    contradicting: int
    compared: int
    held_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bodies: tuple[tuple[str, str], ...] = ()
    bodies_held_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        counts = {
            name: getattr(self, name) for name in ("across_splits", "across_patients", "contradicting", "compared")
        }
        groups = [{"image_ids": list(group.image_ids), "kind": group.kind} for group in self.groups]
        held_out, bodies_held_out = (
            {part: list(image_ids) for part, image_ids in parts.items()}
            for parts in (self.held_out, self.bodies_held_out)
        )
        bodies = {"pairs": len(self.bodies), "held_out_with_one_in_training": bodies_held_out}
        return {
            "count": len(self.groups),
            **counts,
            "held_out_with_a_copy_in_training": held_out,
            "groups": groups,
            "near_identical_bodies": bodies | {"image_ids": [list(pair) for pair in self.bodies]},
        }


@dataclass(frozen=True)
class Series:
    """Images of unknown patients whose file names are numbered, as the images of one patient often follow each other.

    Attributes:
        pairs: Number of pairs of neighbours: one label, one name but for the number, and numbers that differ by one.
        alike: How often two neighbours are more alike than two images drawn from the same names; 0.5 = chance. Well
            above it, neighbours are likely to show one patient.
        held_out: Images for validation or testing that have a neighbour in training.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts import Series

        assert Series(pairs=100, alike=0.8, held_out=12).to_dict()["alike"] == 0.8
        ```
    """

    pairs: int
    alike: float
    held_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return field_values(self)


@dataclass(frozen=True)
class Leakage:
    """Patient leakage between splits, of the official split and of a random one.

    Attributes:
        split: Number of images of each part of the official split; empty = there is none.
        shared_patients: Known patients with images in more than one part; None = no patient is known.
        shared_images: Images for validation or testing whose patient is known to be in training too; None = no patient
            is known.
        contradictory: Patients with images of more than one label, with these labels.
        contradictory_images: Images of these patients.
        unknown_patients: Images whose patient is not known.
        random: What a random split by image would leak, by label and of "all" images, among those whose patient is
            known; empty = no patient is known.
        copies: Duplicate images; None = not searched.
        series: What the numbers in file names tell where patients are not known; None = too few neighbours, or images
            were not opened.

    Example:
        ```python
        from pathlib import Path

        import numpy as np

        from covidcxr.data import Record
        from covidcxr.evaluation.shortcuts.leakage import find_leakage

        names = ["train", "test"]
        records = [Record(Path(f"{name}.png"), label="normal", patient_id="p", split=name) for name in names]
        leakage = find_leakage(records, np.array([0, 0]), copies=None, exclusive=True)
        assert leakage.shared_patients == 1
        ```
    """

    split: dict[str, int]
    shared_patients: int | None
    shared_images: int | None
    contradictory: dict[str, list[str]]
    contradictory_images: int
    unknown_patients: int
    random: dict[str, RandomSplit]
    copies: Copies | None
    series: Series | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "official_split": self.split,
            "patients_in_several_parts": self.shared_patients,
            "films_whose_patient_trains": self.shared_images,
            "patients_with_several_labels": self.contradictory,
            "films_of_these_patients": self.contradictory_images,
            "films_of_unknown_patients": self.unknown_patients,
            "random_split_by_image": {name: split.to_dict() for name, split in self.random.items()},
            "random_split_holds_out": HELD_OUT,
            "copies": None if self.copies is None else self.copies.to_dict(),
            "series": None if self.series is None else self.series.to_dict(),
        }


def find_leakage(
    records: Sequence[Record],
    patients: Integer[np.ndarray, " images"],
    *,
    copies: Duplicates | None,
    exclusive: bool,
    thumbnails: Mapping[int, Float[np.ndarray, " pixels"]] | None = None,
    seed: int = 0,
) -> Leakage:
    """Find the leakage between splits.

    Args:
        records: The images, with their official split or none.
        patients: Number of the patient of each.
        copies: What `find_duplicates` found among them; None = not searched.
        exclusive: Whether an image has one label; else the labels of a patient cannot contradict each other.
        thumbnails: From the place of an image to its small picture; None = images were not opened.
        seed: Seeds the random splits.

    Returns:
        What leaks.
    """
    known = [record for record in records if record.patient_id is not None]
    training = {record.patient_id for record in known if record.split == "train"}
    labels: dict[str, set[str]] = {}
    for record in records if exclusive else ():
        if record.label is not None:
            labels.setdefault(record.patient, set()).add(record.label)
    several = {patient: sorted(own) for patient, own in sorted(labels.items()) if len(own) > 1}
    names = ("train", "val", "test")
    split = {name: count for name in names if (count := sum(record.split == name for record in records))}
    return Leakage(
        split=split,
        shared_patients=len(find_leaks(known)) if known else None,
        shared_images=sum(record.split in HELD_OUT_PARTS and record.patient_id in training for record in known)
        if known
        else None,
        contradictory=several,
        contradictory_images=sum(record.patient in several for record in records),
        unknown_patients=len(records) - len(known),
        random=_random_split(records, patients, seed),
        copies=None if copies is None else _copies(records, copies),
        series=_series(records, thumbnails or {}, seed),
    )


def _series(
    records: Sequence[Record], thumbnails: Mapping[int, Float[np.ndarray, " pixels"]], seed: int
) -> Series | None:
    """Compare the images of unknown patients whose file names carry neighbouring numbers."""
    names: dict[tuple[str, ...], dict[int, int]] = {}
    for place, record in enumerate(records):
        parts = re.fullmatch(r"(.*?)(\d{1,9})(\D*)", record.image_path.stem)
        if record.patient_id is None and parts and place in thumbnails:
            names.setdefault((record.label or "", parts[1], parts[3]), {})[int(parts[2])] = place
    pairs, others = [], []
    rng = np.random.default_rng(seed)
    for numbered in names.values():
        own = [(place, numbered[number + 1]) for number, place in numbered.items() if number + 1 in numbered]
        pairs += own
        others += rng.choice(list(numbered.values()), (len(own), 2)).tolist()
    drawn = [(first, second) for first, second in others if first != second]
    if len(drawn) < _LEAST_NEIGHBOURS:
        return None
    near, far = (
        [_likeness(thumbnails[first], thumbnails[second]) for first, second in sets] for sets in (pairs, drawn)
    )
    order = np.argsort(np.argsort([*near, *far]))[: len(near)]
    alike = (order.sum() - len(near) * (len(near) - 1) / 2) / (len(near) * len(far))
    trained = {place for place, record in enumerate(records) if record.split == "train"}
    both_ways = [*pairs, *((second, first) for first, second in pairs)]
    held_out = {
        place for place, neighbour in both_ways if records[place].split in HELD_OUT_PARTS and neighbour in trained
    }
    return Series(len(pairs), float(alike), len(held_out))


def _likeness(image: Float[np.ndarray, " pixels"], other: Float[np.ndarray, " pixels"]) -> float:
    """Return the correlation of two small pictures; -1 where one is of one grey."""
    pixels, others = image - image.mean(), other - other.mean()
    scale = float(np.linalg.norm(pixels) * np.linalg.norm(others))
    return float(pixels @ others) / scale if scale > 0 else -1.0


def _random_split(records: Sequence[Record], patients: np.ndarray, seed: int) -> dict[str, RandomSplit]:
    """Split by image, which leaks; where there is an official test set, only the other images are split.

    An image whose patient is not known says nothing about leakage: it does not count.
    """
    known = np.array([record.patient_id is not None for record in records])
    open_images = known & [record.split not in HELD_OUT_PARTS for record in records]
    images = np.flatnonzero(open_images if open_images.any() else known)
    if not len(images):
        return {}
    labels = np.array([records[n].label or "" for n in images.tolist()])
    owners = np.unique(patients[images], return_inverse=True)[1]
    groups = {"all": np.ones(len(images), bool)} | {name: labels == name for name in sorted({*labels.tolist()} - {""})}
    shares: dict[str, list[float]] = {name: [] for name in groups}
    for number in range(_SEEDS):
        held_out = np.zeros(len(images), bool)
        chosen = np.random.default_rng([seed, number]).permutation(len(images))[: max(1, round(HELD_OUT * len(images)))]
        held_out[chosen] = True
        trains = np.bincount(owners[~held_out], minlength=owners.max() + 1) > 0
        for name, own in groups.items():
            if (own & held_out).any():
                shares[name].append(float(trains[owners[own & held_out]].mean()))
    return {
        name: RandomSplit(
            float(np.mean(values)),
            min(values),
            max(values),
            int(groups[name].sum()),
            len(np.unique(owners[groups[name]])),
        )
        for name, values in shares.items()
        if values
    }


def _copies(records: Sequence[Record], duplicates: Duplicates) -> Copies:
    by_id = {record.image_id: record for record in records}

    def differ(name: str) -> int:
        values = ({getattr(by_id[image_id], name) for image_id in group.image_ids} for group in duplicates)
        return sum(len(own - {None}) > 1 for own in values)

    bodies = tuple(
        (first, second)
        for first, second in duplicates.bodies
        if by_id[first].patient_id is None or by_id[second].patient_id is None
    )
    parts = {record.image_id: record.split for record in records}
    return Copies(
        groups=duplicates.groups,
        across_splits=differ("split"),
        across_patients=differ("patient"),
        contradicting=differ("label"),
        compared=len(records) - len(duplicates.failed),
        held_out=copies_across_parts(duplicates, parts),
        bodies=bodies,
        bodies_held_out=_with_one_in_training(bodies, parts),
    )


def copies_across_parts(
    groups: Iterable[DuplicateGroup], parts: Mapping[str, str | None]
) -> dict[str, tuple[str, ...]]:
    """Find the images for validation or testing that have a copy in training.

    Args:
        groups: Copies, from `covidcxr.data.find_duplicates`.
        parts: From image id to "train", "val" or "test"; an image that is not in here, or has None, does not count.

    Returns:
        From "val" and "test", where images have that part, to the ids of those with a copy in training, sorted.

    Example:
        ```python
        from covidcxr.data import DuplicateGroup
        from covidcxr.evaluation.shortcuts import copies_across_parts

        groups = [DuplicateGroup(("a.png", "b.png"), "bytes"), DuplicateGroup(("c.png", "d.png"), "near")]
        parts = {"a.png": "train", "b.png": "test", "c.png": "test", "d.png": "test"}
        assert copies_across_parts(groups, parts) == {"test": ("b.png",)}
        ```
    """
    return _with_one_in_training((group.image_ids for group in groups), parts)


def _with_one_in_training(sets: Iterable[Sequence[str]], parts: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """Find the images for validation or testing that are in a set with one in training."""
    held_out: dict[str, set[str]] = {part: set() for part in HELD_OUT_PARTS if part in parts.values()}
    for names in sets:
        if any(parts.get(name) == "train" for name in names):
            for name in names:
                held_out.get(parts.get(name) or "", set()).add(name)
    return {part: tuple(sorted(names)) for part, names in held_out.items()}
