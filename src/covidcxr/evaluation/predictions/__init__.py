"""Predictions as one tidy table, wherever they were made: what is predicted and true of each image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr import aliases
from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.evaluation.metrics.segmentation import of_structures
from covidcxr.io.tables import DataFrame, is_missing, is_null
from covidcxr.types import AgeGroup

__getattr__ = partial(aliases.find, __name__)

__all__ = ["TRAITS", "PredictionTable", "Rows", "find_positive", "list_rows"]


TRAITS = ("source", "view", "sex", "age", "fold")
"""What images are grouped by."""

NOT_STATED = "not stated"

_PROBABILITY, _LABEL = "probability_", "label_"
MASKS = ("dice_", "iou_", "precision_", "recall_", "hd95_", "nsd_", "lesion_sensitivity_", "false_lesions_")
"""What scores of masks start with."""

UNBOUNDED = ("hd95_", "false_lesions_")
"""Those of them that may be above 1."""

ROUNDING = 0.02
"""How far from 1 the sum of an image's probabilities may be: tables hold them rounded."""

_EMPTY = frozenset({"", "nan"})
"""Words of rows that say nothing; fewer than in tables, since a class may be called "none"."""


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """Images with what is true and what a model predicts.

    Attributes:
        rows: A row an image, with plain text and numbers.
        classes: Names of the classes; empty where only masks were drawn.
        exclusive: Whether an image is of one class alone; else classes are findings.
        truths: [images, classes]: 1, 0, or NaN = not labelled.
        probabilities: [images, classes] in [0, 1]; NaN = no prediction.
        masks: By score ("dice_lung"): one number an image that has the structure, NaN = its true mask is not known or
            empty. Of images without it `false_alarm_<mask>` says whether anything was drawn.
        one_column: The class whose probability alone was given, which makes it the positive one; None = all were given.

    Example:
        ```python
        from covidcxr.evaluation.predictions import PredictionTable

        table = PredictionTable.read([{"label": "a", "probability_a": 0.8, "probability_b": 0.2}])
        assert table.classes == ("a", "b") and table.labels.tolist() == [0]
        ```
    """

    rows: tuple[dict[str, Any], ...]
    classes: tuple[str, ...]
    exclusive: bool
    truths: Float[np.ndarray, "images classes"]
    probabilities: Float[np.ndarray, "images classes"]
    masks: Mapping[str, Float[np.ndarray, " images"]]
    one_column: str | None = None

    @classmethod
    def read(cls, rows: Rows) -> PredictionTable:
        """Tidy rows: text of a CSV becomes numbers, and what is empty is unknown. A table is returned as it is.

        Args:
            rows: As `covidcxr test` writes them; only `label` (or `label_CLASS`) and `probability_CLASS`, or scores
                of masks, are needed. One probability column is that of its class; the other label is its absence. Or a
                `pandas.DataFrame` of such rows.

        Returns:
            The table.

        Raises:
            ConfigError: If there are no rows, nothing in them can be scored, or a value is out of range.
        """
        if isinstance(rows, PredictionTable):
            return rows
        rows = list_rows(rows)
        if not rows:
            raise ConfigError("There are no images to evaluate.")
        tidy = tuple({str(name): _tidied(value) for name, value in row.items()} for row in rows)
        for number, row in enumerate(tidy, 1):
            row["image_id"] = str(row.get("image_id") or f"row {number}")
        names = list(dict.fromkeys(name for row in tidy for name in row))
        classes = tuple(name.removeprefix(_PROBABILITY) for name in names if name.startswith(_PROBABILITY))
        masks = {name: _numbers(tidy, name) for name in names if name.startswith(MASKS)}
        masks = of_structures({name: values for name, values in masks.items() if not np.isnan(values).all()})
        if not classes and not masks:
            raise ConfigError(
                f"The rows hold nothing to score, neither probability_CLASS nor dice_CLASS: {', '.join(names)}."
            )
        probabilities = np.stack([_numbers(tidy, _PROBABILITY + name) for name in classes] or [np.empty(0)], axis=1)
        exclusive = not any(_LABEL + name in names for name in classes)
        _check_values(tidy, probabilities, masks, exclusive)
        one_column = classes[0] if exclusive and len(classes) == 1 else None
        if exclusive and classes:
            classes, probabilities = _two_classes(tidy, classes, probabilities)
        truths = _truths(tidy, classes, exclusive)
        shape = (len(tidy), len(classes))
        return cls(tidy, classes, exclusive, truths.reshape(shape), probabilities.reshape(shape), masks, one_column)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def patients(self) -> list[str | None]:
        """Patient of each image; None = not known."""
        return [None if (name := row.get("patient_id")) is None else str(name) for row in self.rows]

    @property
    def patients_known(self) -> bool:
        """Whether the patient of any image is known."""
        return any(patient is not None for patient in self.patients)

    @cached_property
    def labels(self) -> np.ndarray:
        """Number of each image's class; only of exclusive classes and images that are labelled."""
        numbers: np.ndarray = self.truths.argmax(1)
        return numbers

    @cached_property
    def scored(self) -> PredictionTable:
        """The images that have both a label and a prediction."""
        if not self.classes:
            return self.take(np.zeros(len(self), bool))
        known = ~np.isnan(self.truths).all(1) & ~np.isnan(self.probabilities).any(1)
        return self if known.all() else self.take(known)

    @cached_property
    def trained(self) -> Bool[np.ndarray, " images"]:
        """Which images the rows call training images, by their `split`; an image with a `fold` was tested by it."""
        return np.array([row.get("split") == "train" and not row.get("fold") for row in self.rows], bool)

    @property
    def noun(self) -> str:
        """What the images are, by the `split` or `fold` of their rows: "test image", "validation image", "image"."""
        parts = {"test" if row.get("fold") else row.get("split") for row in self.rows}
        nouns = {"train": "training image", "val": "validation image", "test": "test image"}
        return nouns.get(str(next(iter(parts))), "image") if len(parts) == 1 else "image"

    @cached_property
    def in_order(self) -> PredictionTable:
        """The images in the order of their ids, so that scores of shuffled rows are the same to the last bit."""
        order = sorted(range(len(self)), key=lambda image: str(self.rows[image]["image_id"]))
        return self.take(np.array(order))

    def take(self, images: Bool[np.ndarray, " images"] | Integer[np.ndarray, " taken"]) -> PredictionTable:
        """Select images.

        Args:
            images: Which, as a mask [images] or by their places.

        Returns:
            A table of these images.
        """
        return replace(
            self,
            rows=tuple(self.rows[image] for image in np.arange(len(self))[images]),
            truths=self.truths[images],
            probabilities=self.probabilities[images],
            masks={name: values[images] for name, values in self.masks.items()},
        )

    def trait(self, name: str) -> np.ndarray:
        """Return what images are grouped by, as text.

        Args:
            name: One of `TRAITS`.

        Returns:
            One value an image; "not stated" where unknown; ages are bands.
        """
        values = [row.get(name) for row in self.rows]
        if name == "age":
            return np.array([_age_band(value) for value in values])
        return np.array([NOT_STATED if value is None else str(value) for value in values])

    def numbers(self, name: str) -> Float[np.ndarray, " images"]:
        """Return any column of numbers.

        Args:
            name: Name of the column.

        Returns:
            One number an image; NaN = not known.

        Raises:
            ConfigError: If it holds something else.
        """
        return _numbers(self.rows, name)

    def groups(self, name: str) -> dict[str, Bool[np.ndarray, " images"]]:
        """Group the images by a trait.

        Args:
            name: One of `TRAITS`.

        Returns:
            Which images have each value, by the value; empty where no image states any.
        """
        values = self.trait(name)
        stated = sorted(set(values.tolist()) - {NOT_STATED}, key=_in_order)
        if not stated:
            return {}
        return {value: values == value for value in (*stated, *([NOT_STATED] if NOT_STATED in values else []))}

    def number_of(self, patients_of: Bool[np.ndarray, " images"] | None = None) -> int:
        """Count patients; each unknown one is a patient of its own.

        Args:
            patients_of: Which images; None = all.

        Returns:
            The number of patients.
        """
        kept = range(len(self)) if patients_of is None else np.flatnonzero(patients_of).tolist()
        ids = [self.patients[image] for image in kept]
        return len({patient for patient in ids if patient is not None}) + sum(patient is None for patient in ids)


Rows: TypeAlias = Sequence[Mapping[str, Any]] | DataFrame | PredictionTable
"""Predictions in memory: a mapping an image, a `pandas.DataFrame` of them, or a table that was read before."""


def list_rows(rows: Rows) -> Sequence[Mapping[str, Any]]:
    """Return predictions as mappings.

    Args:
        rows: The predictions.

    Returns:
        A mapping an image.
    """
    if isinstance(rows, PredictionTable):
        return rows.rows
    if not isinstance(rows, DataFrame):
        return rows
    columns = list(rows.columns)
    return [dict(zip(columns, row, strict=True)) for row in rows.itertuples(index=False, name=None)]


def find_positive(predictions: PredictionTable, positive: str | None = None) -> int | None:
    """Return the number of the positive class, whose sensitivity and specificity count. It is never guessed.

    Args:
        predictions: The predictions.
        positive: The class that the model, the run or the user names; None = nobody did.

    Returns:
        Its number; None where nobody named one and there are findings, or more than two classes.

    Raises:
        ConfigError: If there is no such class, or it is not given which of two exclusive classes is positive.
    """
    classes = predictions.classes
    if positive is None and predictions.one_column is not None:
        positive = predictions.one_column
    if positive is None:
        if predictions.exclusive and len(classes) == 2:
            raise ConfigError(
                f"Which of the two classes is the positive one, {classes[0]!r} or {classes[1]!r}? Say it: --positive "
                f"CLASS on the command line, positive= in Python, or `positive` in the config of the model."
            )
        return None
    if positive not in classes:
        raise ConfigError(f"There is no class {positive!r}. {did_you_mean(positive, classes)}")
    return classes.index(positive)


def _check_values(
    rows: Sequence[Mapping[str, Any]], probabilities: np.ndarray, masks: Mapping[str, np.ndarray], exclusive: bool
) -> None:
    """Refuse what cannot be scored: numbers out of range, sums other than 1, an image that stands there twice."""
    if ((probabilities < 0) | (probabilities > 1)).any():
        raise ConfigError("Probabilities must be in [0, 1]: apply softmax or sigmoid to logits first.")
    images = [row["image_id"] for row in rows]
    if exclusive and probabilities.shape[1] > 1:
        totals = probabilities.sum(1)
        if (wrong := np.flatnonzero(np.abs(totals - 1) > ROUNDING)).size:
            raise ConfigError(
                f"The probabilities of the image {images[wrong[0]]} sum to {totals[wrong[0]]:.3f}, not 1. Of findings "
                f"that may come together, give the truths as label_CLASS."
            )
    for name, values in masks.items():
        wrong = np.flatnonzero((values < 0) | ((values > 1) & (not name.startswith(UNBOUNDED))))
        if wrong.size:
            raise ConfigError(
                f"{name} of the image {images[wrong[0]]} is {values[wrong[0]]:g}, which is not in [0, 1]."
            )
    if len(set(images)) < len(images):
        twice = next(image for image, count in Counter(images).items() if count > 1)
        raise ConfigError(f"The image {twice} stands in the rows more than once: give each image one row.")


def _tidied(value: Any) -> Any:
    if is_null(value):
        return None
    if isinstance(value, str):
        value = value.strip()
        return None if is_missing(value, _EMPTY) else value
    return value


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    values = [row.get(name) for row in rows]
    try:
        return np.array([math.nan if value is None else float(value) for value in values], dtype=float)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"The column {name!r} must hold numbers ({error}).") from error


def _two_classes(
    rows: Sequence[Mapping[str, Any]], classes: tuple[str, ...], probabilities: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Write the probability of one class alone as those of two."""
    if len(classes) > 1:
        return classes, probabilities
    others = sorted({str(row["label"]) for row in rows if row.get("label") is not None} - set(classes))
    if len(others) > 1:
        raise ConfigError(
            f"There is a probability of {classes[0]!r} only, but the labels are also {', '.join(others)}."
        )
    return (others[0] if others else f"no {classes[0]}", *classes), np.hstack([1 - probabilities, probabilities])


def _truths(rows: Sequence[Mapping[str, Any]], classes: tuple[str, ...], exclusive: bool) -> np.ndarray:
    if not classes:
        return np.empty((len(rows), 0))
    if not exclusive:
        return np.stack([_numbers(rows, _LABEL + name) for name in classes], axis=1)
    truths = np.full((len(rows), len(classes)), math.nan)
    numbers = {name: number for number, name in enumerate(classes)}
    for image, row in enumerate(rows):
        label = row.get("label")
        if label is None:
            continue
        if str(label) not in numbers:
            raise ConfigError(
                f"The image {row.get('image_id', image + 1)} has the label {label!r}, which has no probability. "
                f"{did_you_mean(str(label), classes)}"
            )
        truths[image] = 0
        truths[image, numbers[str(label)]] = 1
    return truths


def _age_band(value: Any) -> str:
    from covidcxr.data.datasets.csv import parse_age  # brings Lightning, which scores alone do without

    if value in get_args(AgeGroup):
        return str(value)
    age = parse_age(str(value)) if value is not None else None
    if age is None or math.isnan(age):
        return NOT_STATED
    return "under 40" if age < 40 else "40 to 59" if age < 60 else "60 and over"


def _in_order(value: str) -> tuple[int, int, str]:
    """Sort fold-10 after fold-9, and those under 40 first."""
    number = value.rpartition("-")[2]
    return int(value != "under 40"), int(number) if number.isdigit() else 0, value
