"""Patients are split, not images: the one place that decides who trains, who validates and who tests."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError, did_you_mean
from covidcxr.types import SplitName

__all__ = ["assign_splits", "k_folds", "number_folds", "split_name", "take_fold"]

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_OTHER_NAMES: dict[str, SplitName] = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def assign_splits(
    records: Iterable[Record],
    fractions: tuple[float, float] = (0.7, 0.15),
    *,
    seed: int = 0,
    group: str = "patient_id",
    hold_out_source: str | Collection[str] | None = None,
) -> list[Record]:
    """Give every image a split: patients whole; classes and sources in proportion.

    The result depends on the records and the seed only: not on their order, nor on where the files lie.

    Images that have a split already keep it. What such an official split lacks (validation or test) is cut from its
    training images; images that have none join them. When a source is held out, official splits are set aside.

    Args:
        records: The images.
        fractions: Training and validation share of what is to be split; the rest is for testing.
        seed: Another seed gives another split.
        group: The field whose groups stay whole; an image where it is None is a group of its own.
        hold_out_source: Source, or sources, whose images are the test split. A patient who has images there goes
            there with all images; everybody else is shared between training and validation.

    Returns:
        The records in their order, each with its split.

    Raises:
        ConfigError: If the fractions are out of range or `group` is no field of a record.
        DatasetError: If there are no records, or none of a held-out source.
    """
    records = list(records)
    _check(records, group)
    if len(tuple(fractions)) != 2 or min(fractions) < 0 or sum(fractions) > 1 + 1e-9:
        raise ConfigError(
            f"fractions must be two numbers, the shares of training and validation, from 0 up and at most 1 together, "
            f"not {tuple(fractions)}; the rest is for testing."
        )
    shares = {"train": fractions[0], "val": fractions[1], "test": max(0.0, 1 - sum(fractions))}
    if hold_out_source is not None:
        records = _hold_out(records, hold_out_source, group)
    official = {record.split for record in records if record.split is not None}
    open_splits = [name for name in _SPLITS if name == "train" or name not in official]
    splits, pool = _keep_official(records, group, refill=len(open_splits) > 1)
    chosen = _assign(pool, [shares[name] for name in open_splits], seed)
    return [
        _with_split(record, split or open_splits[chosen[_key(record, group)]])
        for record, split in zip(records, splits, strict=True)
    ]


def k_folds(records: Iterable[Record], k: int, *, seed: int = 0) -> list[list[Record]]:
    """Split for cross-validation: patients whole; classes and sources in proportion.

    Every image is in the test split of one fold and in the validation split of one other. Official splits are set
    aside.

    Args:
        records: The images.
        k: Number of folds, from 3 up: one tests, one validates, the others train.
        seed: Another seed gives other folds.

    Returns:
        For each fold all records in their order: fold i tests in list i, fold i + 1 validates, the others train.

    Raises:
        ConfigError: If `k` is below 3.
        DatasetError: If there are no records, or fewer patients than folds.
    """
    records = list(records)
    numbers = _fold_numbers(records, k, seed)
    return [_with_roles(records, numbers, k, fold) for fold in range(k)]


def number_folds(records: Sequence[Record], k: int, *, seed: int = 0) -> list[int]:
    """Return the fold that tests each image, as `k_folds` splits them.

    Args:
        records: The images.
        k: Number of folds, from 3 up.
        seed: Another seed gives other folds.

    Returns:
        A number from 0 to k - 1 an image; no patient is in two folds.

    Raises:
        ConfigError: If `k` is below 3.
        DatasetError: If there are no records, or fewer patients than folds.
    """
    numbers = _fold_numbers(list(records), k, seed)
    return [numbers[record.patient] for record in records]


def take_fold(records: Iterable[Record], k: int, fold: int, *, seed: int = 0) -> list[Record]:
    """Return one list of `k_folds`, without building the others.

    Args:
        records: The images.
        k: Number of folds, from 3 up.
        fold: Which one tests, from 0.
        seed: Another seed gives other folds.

    Returns:
        The records in their order, each with its split.

    Raises:
        ConfigError: If `k` is below 3 or `fold` is not in 0 ... k - 1.
        DatasetError: If there are no records, or fewer patients than folds.
    """
    records = list(records)
    numbers = _fold_numbers(records, k, seed)
    if not 0 <= fold < k:
        raise ConfigError(f"There is no fold {fold}: the {k} folds are numbered from 0 to {k - 1}.")
    return _with_roles(records, numbers, k, fold)


def _fold_numbers(records: list[Record], k: int, seed: int) -> dict[str, int]:
    """Return from patient to the fold in which the patient is tested."""
    if k < 3:
        raise ConfigError(f"Cross-validation needs 3 folds or more (one tests, one validates), not {k}.")
    _check(records, "patient_id")
    groups = _groups(records, "patient_id")
    if len(groups) < k:
        raise DatasetError(f"{len(groups)} patients cannot be shared among {k} folds; take fewer folds.")
    return _assign(groups, [1 / k] * k, seed)


def _with_roles(records: list[Record], numbers: dict[str, int], k: int, fold: int) -> list[Record]:
    roles: dict[int, SplitName] = {fold: "test", (fold + 1) % k: "val"}
    return [_with_split(record, roles.get(numbers[record.patient], "train")) for record in records]


def _with_split(record: Record, split: SplitName) -> Record:
    return record if record.split == split else replace(record, split=split)


def split_name(text: str) -> SplitName:
    """Read the name of a split as data sets write it: "Train", "valid", "testing", ...

    Args:
        text: The name.

    Returns:
        "train", "val" or "test".

    Raises:
        DatasetError: If it is none.
    """
    names: dict[str, SplitName] = {name: name for name in _SPLITS} | _OTHER_NAMES
    if text.lower() not in names:
        raise DatasetError(f"{text!r} is no split. {did_you_mean(text.lower(), names)}")
    return names[text.lower()]


def _check(records: list[Record], group: str) -> None:
    if not records:
        raise DatasetError("There are no records to split.")
    if group not in Record.__dataclass_fields__:
        raise ConfigError(f"Records cannot be grouped by {group!r}. {did_you_mean(group, Record.__dataclass_fields__)}")


def _key(record: Record, group: str) -> str:
    value = getattr(record, group)
    return record.image_id if value is None else str(value)


def _groups(records: Iterable[Record], group: str) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[_key(record, group)].append(record)
    return groups


def _hold_out(records: list[Record], sources: str | Collection[str], group: str) -> list[Record]:
    """Fix the test split to the groups that have an image of the sources, and open everything else."""
    wanted = {sources} if isinstance(sources, str) else set(sources)
    known = {record.source for record in records}
    for source in sorted(wanted - known):
        raise DatasetError(f"No image is of the held-out source {source!r}. {did_you_mean(source, known)}")
    held_out = {_key(record, group) for record in records if record.source in wanted}
    return [replace(record, split="test" if _key(record, group) in held_out else None) for record in records]


def _keep_official(
    records: list[Record], group: str, *, refill: bool
) -> tuple[list[SplitName | None], dict[str, list[Record]]]:
    """Settle the images whose split is fixed, and gather the groups that are still open.

    Args:
        records: The images.
        group: The field whose groups stay whole.
        refill: Whether the official training images are to give some to another split.

    Returns:
        The split of each record, None where it is open; and the open groups.
    """
    fixed: dict[str, SplitName] = {}
    for record in records:
        if record.split in ("val", "test"):
            fixed[_key(record, group)] = record.split
    splits: list[SplitName | None] = []
    pool: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        key = _key(record, group)
        # A patient who is in an official test and training set is a leak of the data set: it stays as published.
        split = record.split or fixed.get(key)
        if split is None or (split == "train" and refill and key not in fixed):
            split = None
            pool[key].append(record)
        splits.append(split)
    return splits, pool


def _assign(groups: dict[str, list[Record]], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Share groups out so that every label and source comes near its share in every part.

    Greedy least squares: the largest group first, each to the part that is most short of what the group holds.

    Returns:
        From group key to the number of its part.
    """
    counts = {key: Counter(trait for record in members for trait in _traits(record)) for key, members in groups.items()}
    totals: Counter[str] = Counter()
    for held in counts.values():
        totals.update(held)
    parts = [part for part, share in enumerate(shares) if share > 0] or [0]
    whole = sum(shares) or 1.0
    # Patients with many images have most of the rare findings, and training is at first the most short of all: unless
    # what a part lacks counts in proportion to its share, they all train. Exclusive labels keep the older rule, by
    # which the splits of published figures were made.
    by_share = any(record.findings for members in groups.values() for record in members)
    scale = {part: shares[part] or 1.0 if by_share else 1.0 for part in parts}
    short = {part: {trait: total * shares[part] / whole for trait, total in totals.items()} for part in parts}
    chosen: dict[str, int] = {}
    for key in sorted(groups, key=lambda key: (-len(groups[key]), _shuffle(key, seed))):
        held = counts[key]
        best = max(parts, key=lambda part: sum(n * short[part][trait] for trait, n in held.items()) / scale[part])
        chosen[key] = best
        for trait, n in held.items():
            short[best][trait] -= n
    return chosen


def _traits(record: Record) -> Iterator[str]:
    yield f"label {record.label}"
    for name, shown in record.findings.items():
        if shown:
            yield f"label {name}"
    # Not by masks: who tests must not change with the folder of predicted masks that is given.
    yield f"source {record.source}"


def _shuffle(key: str, seed: int) -> bytes:
    # Python's own hash differs from run to run.
    return blake2b(f"{seed} {key}".encode(), digest_size=8).digest() + key.encode()
