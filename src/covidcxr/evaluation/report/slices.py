"""Groups that nobody named: by one or two attributes, those on which a model does worse than on all other images.

Every group is compared with the rest of the images, by scores of one kind of image each, so that a group with more ill
patients is not taken for a worse one. P values count patients, and are corrected for the number of groups that were
tried, whatever their dependence (Benjamini and Yekutieli 2001). So are the intervals of the differences that are shown
(Benjamini and Yekutieli 2005): of those, 5 % miss the truth, though they were picked because they are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import FindInterval, number_patients
from covidcxr.evaluation.metrics.intervals import Clusters, Estimate, Interval, difference_interval, share_interval
from covidcxr.evaluation.metrics.scores import LEAST, scored_classes
from covidcxr.evaluation.metrics.segmentation import count_failures, mask_statistics
from covidcxr.evaluation.predictions import MASKS, NOT_STATED, TRAITS, PredictionTable
from covidcxr.utils.plain import field_values, plain_result

__all__ = ["Slice", "SliceSearch", "find_slices"]

MOST = 12
"""Values of an attribute; one of text with more is an id or free text, and is left out."""

CLEAR = 2.58
"""Standard errors by which what is left of a group must be worse, lest other groups explain it (p = 0.01)."""

_NO_ATTRIBUTES = {
    *("image_id", "patient_id", "label", "split", "answer", "plausible", "reasons", "error", "path", "image_path"),
    *("infected_fraction", "infected_low", "infected_high", "severity", *TRAITS),
}
_NO_ATTRIBUTE_STARTS = ("probability_", "label_", "false_alarm_", "reader_", "mask_", *MASKS)

Images: TypeAlias = Bool[np.ndarray, " images"]
Group: TypeAlias = tuple[tuple[str, str], ...]
"""One or two attributes with their values."""


@dataclass(frozen=True)
class Slice:
    """A group of images on which a model does worse than on the rest.

    Attributes:
        attributes: Its one or two attributes, with their values.
        score: By which it is worse.
        images: Number of its images that the score is about.
        patients: Number of their patients.
        inside: The score of the group.
        outside: The score of all other images.
        difference: Inside less outside; its interval is corrected for the search.
        p: Two-sided p value, corrected for the search.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.report.slices import Slice

        number = Estimate(0.5, 0.4, 0.6, 40, 20)
        found = Slice({"view": "AP", "sex": "F"}, "auroc_b", 40, 20, number, number, number, 0.01)
        assert found.title == "view AP, sex F"
        ```
    """

    attributes: Mapping[str, str]
    score: str
    images: int
    patients: int
    inside: Estimate
    outside: Estimate
    difference: Estimate
    p: float

    @property
    def title(self) -> str:
        """Attributes and values."""
        return ", ".join(f"{name} {value}" for name, value in self.attributes.items())


@dataclass(frozen=True)
class SliceSearch:
    """What was looked for, and found.

    Attributes:
        slices: Groups that are worse, the surest first; one that is worse only by images of others is left out.
        tried: Comparisons that were made: groups times scores.
        attributes: By which images were grouped.
        least: Patients of a kind that a group and the rest need.

    Example:
        ```python
        from covidcxr.evaluation.predictions import PredictionTable
        from covidcxr.evaluation.report.slices import find_slices

        rows = [{"label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2), "view": "PA"} for n in range(20)]
        search = find_slices(PredictionTable.read(rows), positive=1)
        assert search.slices == () and search.tried == 0
        ```
    """

    slices: tuple[Slice, ...]
    tried: int
    attributes: tuple[str, ...]
    least: int

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return field_values(self) | {"slices": [plain_result(field_values(result)) for result in self.slices]}


def find_slices(
    predictions: PredictionTable, *, positive: int | None = None, least: int = LEAST, level: float = 0.05
) -> SliceSearch:
    """Search for groups, by one or two attributes, on which a model does worse than on the rest.

    Attributes are source, view, sex, age (in three bands and in decades) and fold, and every other column of the rows
    that is neither an id nor an output of the model: of text with at most 12 values, or of numbers, which are cut into
    thirds. So a table of image quality that is joined to the rows by `image_id` is searched too.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.
        least: Patients of each kind that a group and the rest must have, 2 or more.
        level: Share of the groups found that may be false, in (0, 1); where no group is worse, the chance to find any
            is no higher.

    Returns:
        The groups, compared by the sensitivity for each exclusive class, the AUROC of each class, and the Dice of each
        mask, of all images and of those that do not fail.

    Raises:
        ConfigError: If a setting is out of range.
    """
    if least < 2 or not 0 < level < 1:
        raise ConfigError(f"least must be 2 or more and level in (0, 1), not {least} and {level}.")
    attributes = dict(_attributes(predictions))
    pairs = product(_groups(attributes).items(), _scores(predictions, positive))
    tests = [_test(group, images, score, level) for (group, images), score in pairs if score.known(images, least)]
    harmonic = sum(1 / number for number in range(1, len(tests) + 1))
    tests.sort(key=lambda test: test.p)
    corrected = _adjusted([test.p for test in tests], harmonic)
    kept = [test for test, p in zip(tests, corrected, strict=True) if p <= level]
    confidence = 1 - level * len(kept) / (len(tests) * harmonic) if kept else 1 - level
    slices = [test.result(corrected[tests.index(test)], confidence) for test in kept if not _explained(test, kept)]
    return SliceSearch(tuple(slices), len(tests), tuple(attributes), least)


def _adjusted(p_values: Sequence[float], harmonic: float) -> list[float]:
    """Correct rising p values by Benjamini and Yekutieli."""
    adjusted: list[float] = []
    lowest = 1.0
    for place in range(len(p_values), 0, -1):
        lowest = min(lowest, p_values[place - 1] * len(p_values) * harmonic / place)
        adjusted.append(lowest)
    return adjusted[::-1]


def _attributes(predictions: PredictionTable) -> Iterator[tuple[str, dict[str, Images]]]:
    """Yield the images of each value, by attribute."""
    for trait in TRAITS:
        if groups := predictions.groups(trait):
            yield trait, groups
    ages = _numbers(predictions, "age")
    if ages is not None:
        tens = np.floor(ages / 10) * 10
        stated = np.unique(tens[~np.isnan(tens)])
        yield "decade of age", {f"{ten:.0f} to {ten + 9:.0f}": tens == ten for ten in stated}
    for name in dict.fromkeys(name for row in predictions.rows for name in row):
        is_attribute = name not in _NO_ATTRIBUTES and not name.startswith(_NO_ATTRIBUTE_STARTS)
        if is_attribute and (groups := _of_column(predictions, name)):
            yield name, groups


def _of_column(predictions: PredictionTable, name: str) -> dict[str, Images]:
    """Group images by any column: by its few values, or by thirds of its numbers."""
    texts = predictions.trait(name)
    stated = [value for value in dict.fromkeys(texts.tolist()) if value != NOT_STATED]
    if len(stated) <= MOST:
        return {value: texts == value for value in stated} if len(stated) > 1 else {}
    numbers = _numbers(predictions, name)
    if numbers is None:
        return {}
    low, high = (float(end) for end in np.nanquantile(numbers, [1 / 3, 2 / 3]))
    return {
        f"up to {low:.3g}": numbers <= low,
        f"{low:.3g} to {high:.3g}": (numbers > low) & (numbers <= high),
        f"above {high:.3g}": numbers > high,
    }


def _numbers(predictions: PredictionTable, name: str) -> Float[np.ndarray, " images"] | None:
    """Read a column of numbers; None = it is none."""
    try:
        numbers = predictions.numbers(name)
    except ConfigError:
        return None
    return numbers if np.isfinite(numbers).any() else None


def _groups(attributes: Mapping[str, Mapping[str, Images]]) -> dict[Group, Images]:
    """Return the groups by one and by two attributes; of those with the same images the first."""
    singles = [((name, value), images) for name, values in attributes.items() for value, images in values.items()]
    groups: dict[Group, Images] = {(key,): images for key, images in singles}
    for (first, images), (second, others) in combinations(singles, 2):
        if first[0] != second[0] and (both := images & others).any():
            groups[first, second] = both
    distinct = {images.tobytes(): key for key, images in reversed(groups.items())}
    return {key: images for key, images in groups.items() if distinct[images.tobytes()] == key}


@dataclass(frozen=True, eq=False)
class _Part:
    """A score of some images: its value, and how far each patient moves it. The rest is found where it is asked for."""

    value: float
    moves: Float[np.ndarray, " patients"]
    kinds: tuple[Images, ...]
    patient: Integer[np.ndarray, " images"]
    find: FindInterval | None = None  # of a mean that is no share

    @cached_property
    def clusters(self) -> Clusters:
        """What stands behind it."""
        return Clusters.count(self.patient, self.kinds)

    def interval(self, confidence: float) -> Interval:
        """Return its interval."""
        if self.find is None:
            return share_interval(self.value, float(self.moves @ self.moves), self.clusters, confidence)
        return self.find(self.patient, confidence)

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """Return it with its interval."""
        interval, about = self.interval(confidence), np.any(self.kinds, axis=0)
        patients = len(np.unique(self.patient[about]))
        return Estimate(self.value, interval.low, interval.high, int(about.sum()), patients, interval.note)


Measure: TypeAlias = Callable[[Images], _Part]


@dataclass(frozen=True)
class _Score:
    """A score of any images: the kinds of them that it needs, and how it is measured."""

    name: str
    kinds: tuple[Images, ...]
    patient: Integer[np.ndarray, " images"]
    of: Measure

    def known(self, images: Images, least: int) -> bool:
        """Return whether so many patients of each kind are in a group, and outside."""
        parts = (part & kind for kind in self.kinds for part in (images, ~images))
        return all(np.count_nonzero(np.bincount(self.patient[part])) >= least for part in parts)


def _scores(predictions: PredictionTable, positive: int | None) -> list[_Score]:
    patient = number_patients(predictions.patients)
    truths, given, classes = predictions.truths, predictions.probabilities, predictions.classes
    known = ~np.isnan(truths) & ~np.isnan(given)
    scores = []
    if predictions.exclusive and classes:
        answers = np.nan_to_num(given, nan=-1).argmax(1)
        for number, name in enumerate(classes):
            kind = known.all(1) & (truths[:, number] == 1)
            of_rest = len(classes) == 2 and positive is not None and number != positive
            title = f"specificity_{classes[1 - number]}" if of_rest else f"sensitivity_{name}"
            right = np.where(kind, answers == number, np.nan)
            scores.append(_Score(title, (kind,), patient, _mean_of(title, right, patient)))
    for number in scored_classes(predictions, positive) if classes else ():
        kinds = tuple(known[:, number] & (truths[:, number] == kind) for kind in (1, 0))
        scores.append(_Score(f"auroc_{classes[number]}", kinds, patient, _auroc_of(given[:, number], patient, kinds)))
    for name, values in (dict(predictions.masks) | count_failures(predictions.masks)).items():
        if name.startswith(("dice_", "rest_")):
            scores.append(_Score(name, (~np.isnan(values),), patient, _mean_of(name, values, patient)))
    return scores


def _moves(values: np.ndarray, patient: np.ndarray, patients: int) -> Float[np.ndarray, " patients"]:
    """Return how far each patient moves a mean over images."""
    return np.bincount(patient, values - values.mean(), patients) / len(values)


def _mean_of(name: str, values: Float[np.ndarray, " images"], patient: np.ndarray) -> Measure:
    known = ~np.isnan(values)
    is_mask = name.startswith(("dice_", "rest_"))

    def measure(images: Images) -> _Part:
        about = images & known
        own = values[about]
        moves = _moves(own, patient[about], int(patient.max()) + 1)
        find = mask_statistics({name: np.where(images, values, np.nan)}).intervals[name] if is_mask else None
        return _Part(float(own.mean()), moves, (about,), patient, find)

    return measure


def _auroc_of(score: np.ndarray, patient: np.ndarray, kinds: Sequence[Images]) -> Measure:
    def measure(images: Images) -> _Part:
        parts = tuple(images & kind for kind in kinds)
        own, others = (np.sort(score[part]) for part in parts)
        everyone, moves, value = int(patient.max()) + 1, np.zeros(1), 0.0
        for part, rivals, sign in ((parts[0], others, 1), (parts[1], own, -1)):  # DeLong 1988
            below = np.searchsorted(rivals, score[part], "left") + np.searchsorted(rivals, score[part], "right")
            placed = below / (2 * len(rivals))
            value = value if sign < 0 else float(placed.mean())
            moves = moves + sign * _moves(placed, patient[part], everyone)
        return _Part(value, moves, parts, patient)

    return measure


@dataclass(frozen=True, eq=False)
class _Test:
    """A group against the rest."""

    group: Group
    images: Images
    score: _Score
    inside: _Part
    outside: _Part
    p: float

    def without(self, others: Images) -> bool:
        """Return whether the group is still worse without some images."""
        if not self.score.known(self.images | others, 1) or not self.score.known(self.images & ~others, 2):
            return False
        return _deviation(self.score.of(self.images & ~others), self.score.of(~self.images & ~others)) < -CLEAR

    def result(self, p: float, confidence: float) -> Slice:
        """Return what is reported, with the interval of the difference at a confidence."""
        inside, ends = self.inside.estimate(), _difference(self.inside, self.outside, confidence)
        value = self.inside.value - self.outside.value
        difference = replace(inside, value=value, low=ends.low, high=ends.high, note=ends.note)
        numbers = inside.count, inside.patients, inside, self.outside.estimate(), difference
        return Slice(dict(self.group), self.score.name, *numbers, p)


def _test(group: Group, images: Images, score: _Score, level: float) -> _Test:
    inside, outside = score.of(images), score.of(~images)
    return _Test(group, images, score, inside, outside, _p_value(inside, outside, level))


def _explained(test: _Test, accepted: Sequence[_Test]) -> bool:
    """Return whether a group is worse only by the images of a group that says so better.

    Of a group and its part that explain each other, the part says it better: the rest of the group is not worse. Of
    others the surer one, which stands first.
    """
    for earlier in accepted:
        if earlier.group == test.group or test.without(earlier.images):
            continue
        mutual = not earlier.without(test.images)
        part, whole = not (test.images & ~earlier.images).any(), not (earlier.images & ~test.images).any()
        if not mutual or whole or (not part and accepted.index(earlier) < accepted.index(test)):
            return True
    return False


def _deviation(inside: _Part, outside: _Part) -> float:
    """Return by how many standard errors, counting patients, a group is above the rest."""
    error = float(np.linalg.norm(inside.moves - outside.moves))
    gap = inside.value - outside.value
    return gap / error if error > 1e-12 else math.copysign(math.inf, gap) if gap else 0.0


def _difference(inside: _Part, outside: _Part, confidence: float) -> Interval:
    lengths = float(np.linalg.norm(inside.moves) * np.linalg.norm(outside.moves))
    correlation = float(inside.moves @ outside.moves) / lengths if lengths else 0.0
    first, second = (
        Estimate(part.value, ends.low, ends.high, 0, 0, ends.note)
        for part in (inside, outside)
        for ends in (part.interval(confidence),)
    )
    return difference_interval(first, second, correlation)


def _p_value(inside: _Part, outside: _Part, level: float) -> float:
    """Return one less the confidence at which the interval of the difference touches 0; 1 if it is above a level."""

    def worse(log_p: float) -> bool:
        return _difference(inside, outside, 1 - 10**log_p).high < 0

    low, high = -10.0, math.log10(level)
    if _deviation(inside, outside) > -1.5 or not worse(high):
        return 1.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (low, middle) if worse(middle) else (middle, high)
    return float(10**high)
