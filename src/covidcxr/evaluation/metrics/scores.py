"""The table of scores, how a score and its interval are written, and the few headline scores of a group of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covidcxr import aliases
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.weighted import Ranking, weighted_mean
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.utils.plain import count_of

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "LEAST",
    "SCORES",
    "Score",
    "ScoreKind",
    "format_estimate",
    "format_interval",
    "group_scores",
    "headline",
    "missing_intervals",
    "on_picture",
    "rank",
    "scored_classes",
    "split_name",
    "table_columns",
    "title",
]

UNKNOWN = "-"

LONGEST = 32
"""Letters of a name on a picture."""


@dataclass(frozen=True)
class ScoreKind:
    """A score, whatever class or mask it is of.

    Attributes:
        name: As in `scores.json`; scores of a class or a mask have its name behind: "dice" -> "dice_lung".
        title: Its name for readers.
        of: "images" (one number for all classes), "class" or "mask".
        best: The best value, 1 or 0.
        highest: Upper end of its range, which starts at 0.
        headline: Place among the headline scores, from 1; 0 = it is none.
        column: Whether tables that compare runs have a column for it.
        digits: Decimal places.

    Example:
        ```python
        from covidcxr.evaluation.metrics.scores import SCORES

        assert SCORES["macro_auroc"].headline == 1 and SCORES["hd95"].best == 0
        ```
    """

    name: str
    title: str
    of: Literal["images", "class", "mask"]
    best: float = 1.0
    highest: float = 1.0
    headline: int = 0
    column: bool = False
    digits: int = 3


SCORES = {
    kind.name: kind
    for kind in (
        ScoreKind("accuracy", "accuracy", "images", headline=4, column=True),
        ScoreKind("balanced_accuracy", "balanced accuracy", "images", headline=2, column=True),
        ScoreKind("macro_specificity", "macro specificity", "images", column=True),
        ScoreKind("macro_precision", "macro precision", "images", column=True),
        ScoreKind("macro_f1", "macro F1", "images", headline=3, column=True),
        ScoreKind("macro_auroc", "macro AUROC", "images", headline=1, column=True),
        ScoreKind("macro_average_precision", "macro average precision", "images"),
        ScoreKind("ece", "ECE", "images", best=0),
        ScoreKind("sensitivity", "sensitivity", "class", column=True),
        ScoreKind("specificity", "specificity", "class", column=True),
        ScoreKind("precision", "precision", "class", column=True),
        ScoreKind("f1", "F1", "class", column=True),
        ScoreKind("auroc", "AUROC", "class", column=True),
        ScoreKind("average_precision", "average precision", "class"),
        ScoreKind("brier", "brier", "class", best=0, highest=2),
        ScoreKind("dice", "Dice", "mask", headline=5, column=True),
        ScoreKind("iou", "IoU", "mask", headline=6, column=True),
        ScoreKind("recall", "recall", "mask", column=True),
        ScoreKind("hd95", "HD95", "mask", best=0, highest=math.inf, digits=1),
        ScoreKind("nsd", "NSD", "mask"),
        ScoreKind("failed", "failed images", "mask", best=0),
        ScoreKind("rest", "Dice of the rest", "mask"),
        ScoreKind("median", "median Dice", "mask"),
        ScoreKind("median_hd95", "median HD95", "mask", best=0, highest=math.inf, digits=1),
        ScoreKind("false_alarm", "false alarms", "mask", best=0),
        ScoreKind("lesion_sensitivity", "sensitivity for lesions", "mask"),
        ScoreKind("false_lesions", "false lesions an image", "mask", best=0, highest=math.inf, digits=2),
    )
}
"""Every score by name. The precision of a mask goes by that of a class; the Brier score is also one of all classes."""

MASK_SCORES = (
    *("dice", "median", "failed", "rest", "iou", "precision", "recall", "nsd", "hd95", "median_hd95"),
    *("false_alarm", "lesion_sensitivity", "false_lesions"),
)
"""Those of masks, in the order of tables."""


def title(name: str) -> str:
    """Return a score's name for readers.

    Args:
        name: As in `scores.json`, with or without the class or mask: "macro_auroc", "dice_lung_field".

    Returns:
        "macro AUROC", "Dice, lung field"; an unknown name with spaces.

    Example:
        ```python
        from covidcxr.evaluation.metrics.scores import title

        assert title("macro_auroc") == "macro AUROC" and title("dice_lung_field") == "Dice, lung field"
        ```
    """
    if name in SCORES:
        return SCORES[name].title
    kind, of = split_name(name)
    if kind in MASK_SCORES:
        return f"{SCORES[kind].title}, {of.replace('_', ' ')}"
    return " ".join(SCORES[word].title if word in SCORES else word for word in name.split("_"))


def split_name(name: str) -> tuple[str, str]:
    """Tell the score from the class or mask.

    Args:
        name: As in `scores.json`: "dice_lung_field", "median_hd95_lung".

    Returns:
        "dice" and "lung_field"; of what is no known score its first word and the rest.

    Example:
        ```python
        from covidcxr.evaluation.metrics.scores import split_name

        assert split_name("median_hd95_lung") == ("median_hd95", "lung")
        ```
    """
    known = [kind for kind in SCORES if name.startswith(f"{kind}_")]
    kind = max(known, key=len) if known else name.partition("_")[0]
    return kind, name.removeprefix(kind)[1:]


def on_picture(name: str) -> str:
    """Shorten a name to what a picture has room for, and keep matplotlib from reading a dollar as a formula.

    Args:
        name: Of a class, a group or a model.

    Returns:
        At most 32 letters.

    Example:
        ```python
        from covidcxr.evaluation.metrics.scores import on_picture

        assert on_picture("covid19") == "covid19" and len(on_picture("a" * 99)) == 32
        ```
    """
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
    return short.replace("$", r"\$")


def headline(names: Iterable[str], positive: str | None = None, *, most: int = 6) -> list[str]:
    """Choose the headline scores: those by which models are compared and that stand first in a report.

    Args:
        names: The scores at hand.
        positive: The positive class, whose sensitivity and specificity count too; None = there is none.
        most: Up to which place of `ScoreKind.headline`; 2 = those of the first screen. Dice is always among them.

    Returns:
        Some of `names`, the most important first: of classes, of the positive class, of masks.

    Example:
        ```python
        from covidcxr.evaluation.metrics.scores import headline

        assert headline(["dice_lung", "accuracy", "macro_auroc"]) == ["macro_auroc", "accuracy", "dice_lung"]
        ```
    """
    names = list(names)
    ranked = sorted((kind for kind in SCORES.values() if kind.headline), key=lambda kind: kind.headline)
    chosen = [kind.name for kind in ranked if kind.of == "images" and kind.headline <= most and kind.name in names]
    chosen += [name for score in ("sensitivity", "specificity") if (name := f"{score}_{positive}") in names]
    masks = [kind.name for kind in ranked if kind.of == "mask" and (kind.headline <= most or kind.name == "dice")]
    return chosen + [name for mask in masks for name in names if name.startswith(f"{mask}_")]


def table_columns(names: Collection[str], positive: str | None = None) -> list[str]:
    """Choose the scores that a table of compared runs shows.

    Args:
        names: The scores of the runs.
        positive: The positive class: of two classes its own scores are shown, of more the means.

    Returns:
        The scores of classes, then of masks all, or Dice and IoU where there are classes; all if there is none of them.

    Example:
        ```python
        from covidcxr.evaluation.metrics.scores import table_columns

        assert table_columns(["accuracy", "macro_f1", "f1_covid19"]) == ["accuracy", "macro_f1"]
        ```
    """
    known = [name for name in names if name.startswith("sensitivity_")]
    kinds = [kind for kind in SCORES.values() if kind.column]
    means = [kind.name for kind in kinds if kind.of == "images"]
    of_positive = ["accuracy", *(f"{kind.name}_{positive}" for kind in kinds if kind.of == "class")]
    classes = [name for name in (of_positive if len(known) == 2 else means) if name in names]
    masks = ("dice", "iou") if classes else ("dice", "iou", "precision", "recall")
    return [*classes, *(name for mask in masks for name in names if name.startswith(f"{mask}_"))] or list(names)


def format_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    digits: int = 3,
    signed: bool = False,
    scale: float = 1.0,
) -> str:
    """Return a value with its 95 % confidence interval as text.

    Args:
        value: The value; None or NaN = unknown.
        low: Lower end of the interval; None or NaN = there is no interval.
        high: Upper end.
        digits: Decimal places.
        signed: Write a plus sign too, as for differences.
        scale: Multiplies all three; 100 = percentage points.

    Returns:
        Text such as "0.812 [0.774, 0.846]"; "0.812" without an interval, "-" without a value.

    Example:
        ```python
        from covidcxr.evaluation.metrics.scores import format_interval

        assert format_interval(0.812, 0.774, 0.846) == "0.812 [0.774, 0.846]"
        assert format_interval(None, None, None) == "-"
        ```
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    shape = f"{'+' if signed else ''}.{digits}f"
    text = format(scale * value, shape)
    if low is None or high is None or math.isnan(low):
        return text
    return f"{text} [{format(scale * low, shape)}, {format(scale * high, shape)}]"


def format_estimate(
    estimate: Estimate | None, *, digits: int = 3, signed: bool = False, scale: float = 1.0, counts: bool = False
) -> str:
    """Return an estimate as text; see `format_interval`.

    Args:
        estimate: The estimate; None = unknown.
        digits: Decimal places.
        signed: Write a plus sign too, as for differences.
        scale: Multiplies value and interval; 100 = percentage points.
        counts: Add the numbers of images and patients.

    Returns:
        Text such as "0.812 [0.774, 0.846]".

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.metrics.scores import format_estimate

        estimate = Estimate(0.812, 0.774, 0.846, count=90, patients=60)
        assert format_estimate(estimate, digits=2) == "0.81 [0.77, 0.85]"
        assert format_estimate(estimate, counts=True) == "0.812 [0.774, 0.846] (90 images of 60 patients)"
        ```
    """
    if estimate is None:
        return UNKNOWN
    text = format_interval(estimate.value, estimate.low, estimate.high, digits=digits, signed=signed, scale=scale)
    return (
        f"{text} ({count_of(estimate.count, 'image')} of {count_of(estimate.patients, 'patient')})" if counts else text
    )


def missing_intervals(estimates: Mapping[str, Estimate]) -> list[str]:
    """Say why numbers have no interval.

    Args:
        estimates: Estimates by the name of their score.

    Returns:
        A sentence for each reason; none where every number that is known has its interval.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.metrics.scores import missing_intervals

        estimate = Estimate(0.8, float("nan"), float("nan"), count=3, patients=1, note="one patient stands behind it")
        assert missing_intervals({"dice_lung": estimate}) == ["No interval of Dice, lung: one patient stands behind
        it."] ```
    """
    reasons: dict[str, list[str]] = {}
    for name, estimate in estimates.items():
        if estimate.note and not math.isnan(estimate.value):
            reasons.setdefault(estimate.note, []).append(title(name))
    return [f"No interval of {'; '.join(names)}: {note}." for note, names in reasons.items()]


LEAST = 10
"""Patients of a kind below which a group's score is not shown: an interval of ten covers too little."""

Weights: TypeAlias = Float[np.ndarray, "resamples images"]


@dataclass(frozen=True)
class Score:
    """A score of any part of the images.

    Attributes:
        statistic: Weights [resamples, images] and the images that count -> one number a resample.
        kinds: The images of each kind that it needs: of an AUROC those with the class and those without.
        chance: What guessing scores; None = no such thing.

    Example:
        ```python
        import numpy as np
        from covidcxr.evaluation.predictions import PredictionTable
        from covidcxr.evaluation.metrics.scores import group_scores

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        auroc = group_scores(PredictionTable.read(rows), positive=1)["auroc"]
        assert auroc.statistic(np.ones((1, 20)), np.ones(20, bool))[0] == 1
        ```
    """

    statistic: Callable[[Weights, Bool[np.ndarray, " images"]], Float[np.ndarray, " resamples"]] = field(repr=False)
    kinds: tuple[Bool[np.ndarray, " images"], ...] = field(repr=False)
    chance: float | None = None

    def too_few(self, predictions: PredictionTable, images: Bool[np.ndarray, " images"]) -> int | None:
        """Say whether a score rests on too few patients of a kind.

        Args:
            predictions: All images.
            images: Which of them count.

        Returns:
            The number of patients of the rarest kind, if it is below `LEAST`; else None.
        """
        least = min(predictions.number_of(images & kind) for kind in self.kinds)
        return least if least < LEAST else None


def group_scores(predictions: PredictionTable, positive: int | None = None) -> dict[str, Score]:
    """Choose the scores of groups: AUROC, rates of exclusive classes, and Dice of masks.

    Args:
        predictions: All images; those without label or answer count in no score of classes.
        positive: Number of the positive class; None = there is none.

    Returns:
        By name: `auroc`; of exclusive classes `accuracy`, and `sensitivity` and `specificity` of the positive class;
        `dice_MASK`.
    """
    scores: dict[str, Score] = {}
    known = ~np.isnan(predictions.truths) & ~np.isnan(predictions.probabilities)
    if predictions.classes and known.any():
        scores["auroc"] = _auroc(predictions, known, positive)
        if predictions.exclusive:
            scores |= _rates(predictions, known.all(1), positive)
    for name, values in predictions.masks.items():
        if name.startswith("dice_"):
            scores[name] = Score(_mean(values), (~np.isnan(values),))
    return scores


def scored_classes(predictions: PredictionTable, positive: int | None) -> list[int]:
    """Choose the classes that are scored against the rest; of two exclusive ones one says all.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.

    Returns:
        Numbers of classes.
    """
    if predictions.exclusive and len(predictions.classes) == 2:
        return [1 if positive is None else positive]
    return list(range(len(predictions.classes)))


def _auroc(predictions: PredictionTable, known: np.ndarray, positive: int | None) -> Score:
    scored_columns = scored_classes(predictions, positive)
    kinds = [known[:, c] & (predictions.truths[:, c] == kind) for c in scored_columns for kind in (1, 0)]
    present = [kind for kind in kinds if kind.any()] or kinds

    ranked: dict[bytes, list[Ranking]] = {}  # images are sorted once, not once for every few resamples

    def statistic(weights: Weights, images: np.ndarray) -> np.ndarray:
        part = images.tobytes()
        if part not in ranked:
            defined = [c for c in scored_columns if _both(predictions.truths[images, c], known[images, c])]
            ranked[part] = [rank(predictions.probabilities[images, c], predictions.truths[images, c]) for c in defined]
        areas = [ranking.areas(weights[:, images])[0] for ranking in ranked[part]]
        return np.asarray(np.mean(areas, axis=0)) if areas else np.full(len(weights), np.nan)

    return Score(statistic, tuple(present), 0.5)


def _both(truth: np.ndarray, known: np.ndarray) -> bool:
    return bool((truth[known] == 1).any() and (truth[known] == 0).any())


def _rates(predictions: PredictionTable, known: np.ndarray, positive: int | None) -> dict[str, Score]:
    truth = predictions.truths.argmax(1)
    answer = np.nan_to_num(predictions.probabilities, nan=-1).argmax(1)
    scores = {"accuracy": Score(_mean(np.where(known, truth == answer, np.nan)), (known,))}
    if positive is not None:
        positives, predicted_positive = truth == positive, answer == positive
        scores["sensitivity"] = Score(
            _mean(np.where(known & positives, predicted_positive, np.nan)), (known & positives,)
        )
        scores["specificity"] = Score(
            _mean(np.where(known & ~positives, ~predicted_positive, np.nan)), (known & ~positives,)
        )
    return scores


def _mean(values: np.ndarray) -> Callable[[Weights, np.ndarray], np.ndarray]:
    def statistic(weights: Weights, images: np.ndarray) -> np.ndarray:
        return weighted_mean(weights[:, images], values[images])

    return statistic


def rank(score: Float[np.ndarray, " images"], truth: Float[np.ndarray, " images"]) -> Ranking:
    """Sort images for the AUROC of a class against the rest.

    Args:
        score: Probability of the class; NaN = unknown, left out.
        truth: 1, 0 or NaN = unknown, left out.

    Returns:
        The images in order.
    """
    return Ranking(np.where(np.isnan(truth), np.nan, score), truth == 1)
