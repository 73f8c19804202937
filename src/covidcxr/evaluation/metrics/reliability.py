"""Whether probabilities mean what they say, in bins; calibration; and signs that a model has learnt nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Integer

from covidcxr import aliases
from covidcxr.config import EnsembleConfig, ModelConfig
from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.evaluation.metrics.bootstrap import Estimate, Statistics, number_patients
from covidcxr.evaluation.metrics.calibration import brier_interval, brier_of, error_intervals, recalibration
from covidcxr.evaluation.metrics.classification import BINS, check_labels, check_predictions
from covidcxr.evaluation.metrics.conformal import conformal_thresholds
from covidcxr.evaluation.metrics.weighted import bin_of, ratio, two_columns, weighted_calibration_error, weighted_mean
from covidcxr.evaluation.predictions import PredictionTable, Rows, list_rows
from covidcxr.types import CoverageBy

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "Reliability",
    "ReliabilityBin",
    "calibrate",
    "expected_calibration_error",
    "find_warning_signs",
    "fit_temperature",
    "loss_signs",
    "measure_reliability",
    "temperature_signs",
    "threshold_signs",
]

Config = TypeVar("Config", bound=ModelConfig | EnsembleConfig)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images with about the same predicted probability.

    Attributes:
        low: Lower end of the bin, outside it.
        high: Upper end, inside it.
        confidence: Mean probability given.
        share: Share of the images of which it was true.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.metrics.reliability import ReliabilityBin

        part = ReliabilityBin(0.8, 0.9, confidence=0.85, share=Estimate(0.7, 0.5, 0.9, 20, 20))
        assert part.to_dict()["share"]["value"] == 0.7
        ```
    """

    low: float
    high: float
    confidence: float
    share: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"low": self.low, "high": self.high, "confidence": self.confidence, "share": self.share.to_dict()}


@dataclass(frozen=True)
class Reliability:
    """How predicted probabilities compare with what was true (DeGroot and Fienberg 1983).

    Attributes:
        of: What the probabilities are of: "the answer", the most probable class of each image; or a class.
        bins: Those that hold images.
        ece: Expected calibration error over these bins, which chance alone raises; its interval is of the true one.
        brier: Brier score, of all classes or of the class; see `classification_metrics`.
        debiased: The calibration error without what chance adds.
        calibrated: The error that a calibrated model shows on so many images, with the ends of 95 % of them.
        skill: Brier skill: by how much the Brier score is better than that of guessing the share of each class; 1 =
            perfect, 0 = no better.
        intercept: Of a class: 0 = calibrated, above 0 = its probability is too low (Van Calster 2019).
        slope: Of a class: 1 = calibrated, below 1 = its probability is too extreme.
        by_class: Expected calibration error of the probability of each class (class-wise ECE; Kull 2019).

    Example:
        ```python
        from covidcxr.evaluation import measure_reliability

        rows = [{"label": "ab"[n % 2], "probability_a": 0.9, "probability_b": 0.1} for n in range(20)]
        assert abs(measure_reliability(rows, resamples=20).ece.value - 0.4) < 1e-9  # right in half of the images
        ```
    """

    of: str
    bins: tuple[ReliabilityBin, ...]
    ece: Estimate
    brier: Estimate
    debiased: Estimate | None = None
    calibrated: Estimate | None = None
    skill: Estimate | None = None
    intercept: Estimate | None = None
    slope: Estimate | None = None
    by_class: Mapping[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        scores = {
            name: estimate.to_dict()
            for name in ("ece", "brier", "debiased", "calibrated", "skill", "intercept", "slope")
            if isinstance(estimate := getattr(self, name), Estimate)
        }
        by_class = {name: estimate.to_dict() for name, estimate in self.by_class.items()}
        return {"of": self.of, "bins": [part.to_dict() for part in self.bins], **scores, "ece_by_class": by_class}


def measure_reliability(
    rows: Rows, class_name: str | None = None, *, bins: int = BINS, resamples: int = 1000, seed: int = 0
) -> Reliability:
    """Compare probabilities with what was true, in bins of equal width.

    Args:
        rows: Of images that the model was neither trained nor calibrated on; see `score_rows`.
        class_name: Whose probability; None = that of each image's most probable class, of exclusive classes.
        bins: Number of bins.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        The bins, the expected calibration error and the Brier score, and what stands beside them.

    Raises:
        ConfigError: If there is no such class, nothing to score, or findings without `class_name`.
    """
    predictions = PredictionTable.read(rows).in_order.scored
    if bins < 1:
        raise ConfigError(f"bins must be above 0, not {bins}.")
    if class_name is None and not predictions.exclusive:
        raise ConfigError(f"Findings have a reliability each: give class_name, of {', '.join(predictions.classes)}.")
    probability = _Probability.of(predictions, class_name)
    predictions, confidence, true = probability.predictions, probability.given, probability.true
    inside = np.eye(bins, dtype=bool)[bin_of(confidence, bins)]
    filled = np.flatnonzero(inside.any(0)).tolist()
    columns = [inside * column[:, None] for column in (np.ones_like(true), true)]

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        images, right = (weights @ column for column in columns)
        scores = {str(place): ratio(right[:, place], images[:, place]) for place in filled}
        return scores | {"brier": weighted_mean(weights, probability.distance)}

    shares = {str(place): inside[:, place] for place in filled}
    of_brier = partial(brier_interval, probability.distance, probability.wrong, worst=probability.worst)
    statistics = Statistics(compute, shares, tuple(shares), {}, {"brier": of_brier})
    estimates = statistics.estimate(predictions.patients, resamples, seed)

    def describe(place: int) -> ReliabilityBin:
        mean = float(confidence[inside[:, place]].mean())
        return ReliabilityBin(place / bins, (place + 1) / bins, mean, estimates[str(place)])

    patient = number_patients(predictions.patients)
    errors = error_intervals(inside * (true - confidence)[:, None], patient, 0.95, seed)
    intercept, slope = (None, None) if class_name is None else recalibration(confidence, true == 1, patient, 0.95)
    by_class = _errors_by_class(predictions, patient, bins, seed) if class_name is None else {}
    return Reliability(
        class_name or "the answer",
        tuple(map(describe, filled)),
        errors["measured"],
        estimates["brier"],
        errors["debiased"],
        errors["calibrated"],
        _skill(estimates["brier"], float(probability.guess.mean())),
        intercept,
        slope,
        by_class,
    )


@dataclass(frozen=True)
class _Probability:
    """A probability of each image, what was true, and its squared errors."""

    predictions: PredictionTable
    given: np.ndarray
    true: np.ndarray
    wrong: np.ndarray
    distance: np.ndarray
    guess: np.ndarray
    worst: float

    @classmethod
    def of(cls, predictions: PredictionTable, class_name: str | None) -> _Probability:
        """Take that of each image's most probable class, or of one class."""
        if class_name is not None:
            predictions, given, positive = of_class(predictions, class_name)
            true, wrong = positive.astype(float), (given >= 0.5) != positive
            return cls(predictions, given, true, wrong, np.square(given - true), np.square(true.mean() - true), 1.0)
        if not len(predictions):
            raise ConfigError("There are no labelled images with a prediction.")
        values, labels = predictions.probabilities, predictions.labels
        right = values.argmax(1) == labels
        guess = brier_of(np.broadcast_to(predictions.truths.mean(0), values.shape), labels)
        worst = 1.0 if values.shape[1] == 2 else 2.0
        return cls(predictions, values.max(1), right.astype(float), ~right, brier_of(values, labels), guess, worst)


def _skill(brier: Estimate, guess: float) -> Estimate:
    """Return by how much a Brier score is better than that of guessing the class shares, which are given."""
    if not guess:
        return replace(brier, value=math.nan, low=math.nan, high=math.nan, note="all images are of one class")
    return replace(brier, value=1 - brier.value / guess, low=1 - brier.high / guess, high=1 - brier.low / guess)


def _errors_by_class(predictions: PredictionTable, patient: np.ndarray, bins: int, seed: int) -> dict[str, Estimate]:
    errors = {}
    for place, name in enumerate(predictions.classes):
        probability = predictions.probabilities[:, place]
        gaps = np.eye(bins)[bin_of(probability, bins)] * (predictions.truths[:, place] - probability)[:, None]
        errors[name] = error_intervals(gaps, patient, 0.95, seed)["measured"]
    return errors


def of_class(predictions: PredictionTable, name: str) -> tuple[PredictionTable, np.ndarray, np.ndarray]:
    """Select the images for which it is known whether they are of a class.

    Args:
        predictions: The images.
        name: The class.

    Returns:
        These images, the probability of the class and whether they are of it, [images].

    Raises:
        ConfigError: If there is no such class, or no such image.
    """
    if name not in predictions.classes:
        raise ConfigError(f"There is no class {name!r}. {did_you_mean(name, predictions.classes)}")
    number = predictions.classes.index(name)
    predictions = predictions.take(~np.isnan(predictions.truths[:, number]))
    if not len(predictions):
        raise ConfigError(f"No image is labelled as {name} or not.")
    return predictions, predictions.probabilities[:, number], predictions.truths[:, number] == 1


COLDEST, HOTTEST = 0.05, 20.0
"""Limits of the temperature: on images that are all answered right the best one would be 0."""


def fit_temperature(logits: Float[np.ndarray, "images outputs"], labels: Integer[np.ndarray, " images"]) -> float:
    """Find the temperature that makes a classifier's probabilities most likely (Guo 2017).

    Args:
        logits: Of validation images; one column = sigmoid of the second class, else softmax over the columns.
        labels: Index of the true class of each image.

    Returns:
        T in [0.05, 20]: divide logits by it before softmax or sigmoid. Above 1 = the classifier was overconfident.

    Raises:
        ConfigError: If shapes differ, a label is out of range or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels) or not np.isfinite(logits).all():
        raise ConfigError(
            f"Logits must be finite [images, outputs] with one label each, not {logits.shape} with {labels.shape}."
        )
    check_labels(labels, logits.shape[1])
    logits = two_columns(logits.astype(float), 0.0)
    images = np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature), axis=1)[images, labels].mean())

    best = minimize_scalar(cost, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return math.exp(best.x)


def calibrate(config: Config, rows: Rows, coverage: float | None = None, by: CoverageBy = "class") -> Config:
    """Fit a classifier's temperature, and the thresholds of its answer sets, on the rows of validation images.

    Args:
        config: The classifier or ensemble that gave the probabilities; of exclusive classes.
        rows: What `Trainer.validate` left in the task's `rows`, or `covidcxr.tasks.predict_rows` returned.
        coverage: How often a set of plausible answers shall hold the truth, in (0, 1); None = no sets, the most
            probable class is the answer.
        by: Of which images that is promised: of those of each class ("class"), of each class in each source ("source"),
            or of all together ("all"), where a rare class may get less; see
            `covidcxr.evaluation.conformal_thresholds`.

    Returns:
        The config with its temperature (Guo 2017), its thresholds (split conformal prediction, Sadinle 2019), and what
        they promise (`coverage`, `coverage_by`).

    Raises:
        ConfigError: If the classes are not exclusive, or there are no rows.
    """
    predictions = PredictionTable.read(rows).scored if len(list_rows(rows)) else None
    if config.mode == "multilabel" or config.task != "classification" or not predictions:
        raise ConfigError(f"Only exclusive classes of labelled images are calibrated, not {config.mode} {config.task}.")
    if set(predictions.classes) != set(config.classes):
        raise ConfigError(f"The rows are of {list(predictions.classes)}, the model is of {list(config.classes)}.")
    order = [predictions.classes.index(name) for name in config.classes]
    probabilities, labels = predictions.probabilities[:, order], predictions.truths[:, order].argmax(1)
    # Softmax forgets a constant, so the logarithm serves as logits; they were divided by the temperature already.
    logits = np.log(probabilities.clip(1e-12)) * config.temperature
    temperature = fit_temperature(logits, labels)
    config = replace(config, temperature=temperature, thresholds={}, coverage=None, coverage_by=None)
    if coverage is None:
        return config
    scaled = np.exp(logits / temperature)
    thresholds = conformal_thresholds(
        scaled / scaled.sum(1, keepdims=True),
        labels,
        coverage,
        by=by,
        patients=predictions.patients,
        sources=predictions.trait("source").tolist(),
    )
    named = dict(zip(config.classes, thresholds.tolist(), strict=True))
    return replace(config, thresholds=named, coverage=coverage, coverage_by=by)


def expected_calibration_error(
    probabilities: Float[np.ndarray, "images classes"], labels: Integer[np.ndarray, " images"], bins: int = 15
) -> float:
    """Return how far confidence is from accuracy, mean over images in bins of equal width (Naeini 2015; Guo 2017).

    Args:
        probabilities: One row an image; one column = probability of the second class.
        labels: Index of the true class of each image.
        bins: Number of bins of the top class's probability.

    Returns:
        In [0, 1]; 0 = calibrated. It is biased upwards when bins hold few images.

    Raises:
        ConfigError: If shapes differ, a label is out of range or a probability is not in [0, 1].
    """
    check_predictions(probabilities, labels)
    if bins < 1:
        raise ConfigError(f"bins must be above 0, not {bins}.")
    return float(weighted_calibration_error(np.ones((1, len(labels))), probabilities, labels, bins)[0])


LEAST_IMAGES = 10
"""Fewer images are not compared with the shares of their classes, which are chance."""


def find_warning_signs(rows: Rows, *, temperature: float = 1.0) -> list[str]:
    """Look for what a model without any use does: one answer for all, or no more than the shares of the classes.

    Args:
        rows: A row an image, as `covidcxr test` writes them.
        temperature: By which the probabilities are still to be calibrated, above 0; see
            `covidcxr.evaluation.calibrate`.

    Returns:
        A sentence for each sign; none of them for a model that has learnt something.

    Raises:
        ConfigError: If there are no rows, or nothing in them can be scored.

    Example:
        ```python
        from covidcxr.evaluation.metrics.reliability import find_warning_signs

        row = {"probability_covid19": 0.4, "probability_normal": 0.6}
        rows = [{**row, "image_id": str(n), "label": ("covid19", "normal")[n % 2]} for n in range(12)]
        assert "the same answer, normal" in find_warning_signs(rows)[0]
        ```
    """
    table = PredictionTable.read(rows)
    scored = table.scored
    signs = [*_mask_signs(table)]
    if len(scored) and len(scored.classes) > 1:
        signs += _class_signs(scored, temperature) if scored.exclusive else _finding_signs(scored)
    return signs


def temperature_signs(temperature: float) -> list[str]:
    """Say whether a temperature lies at a bound of its search.

    Args:
        temperature: Of a calibrated classifier, above 0.

    Returns:
        A sentence, or nothing.
    """
    if temperature >= 0.99 * HOTTEST:
        reason = "the probabilities say next to nothing about the images that it was fitted on"
    elif temperature <= 1.01 * COLDEST:
        reason = "the images that it was fitted on are too few, or too easy, to tell how sure it may be"
    else:
        return []
    return [f"The temperature {temperature:.3f} is the bound of its search: {reason}. Do not trust the probabilities."]


def threshold_signs(config: ModelConfig | EnsembleConfig) -> list[str]:
    """Say for which classes a promised coverage could not be kept but by naming them always.

    Args:
        config: Of a calibrated classifier.

    Returns:
        A sentence, or nothing.
    """
    always = [name for name, threshold in config.thresholds.items() if threshold == 0]
    if config.coverage is None or not always:
        return []
    return [
        f"There are too few validation patients of {', '.join(always)} to promise a coverage of {config.coverage:g}: "
        f"{'this class is' if len(always) == 1 else 'these classes are'} plausible for every image."
    ]


def loss_signs(epochs: Sequence[Mapping[str, float]]) -> list[str]:
    """Say whether the loss of a training stopped being a number.

    Args:
        epochs: An entry for each epoch, as `history.json` holds them.

    Returns:
        A sentence, or nothing.
    """
    for entry in epochs:
        if not math.isfinite(entry.get("train/loss", 0.0)):
            return [
                f"The training loss of epoch {entry['epoch']:.0f} is not finite: no image was labelled, or the "
                f"training diverged (lower the learning rate, or clip gradients by gradient_clip_val)."
            ]
    return []


def _class_signs(table: PredictionTable, temperature: float) -> Iterator[str]:
    answers, labels = table.probabilities.argmax(1), table.labels
    present = np.bincount(labels, minlength=len(table.classes))
    if (present > 0).sum() < 2:
        return
    if (answers == answers[0]).all():
        constant = np.ptp(table.probabilities, axis=0).max() < 1e-6
        yield (
            f"All {len(table)} images get the same answer, {table.classes[answers[0]]},"
            f"{' with the same probabilities,' if constant else ''} though they are of {(present > 0).sum()} classes: "
            f"the model has collapsed."
        )
    if len(table) < LEAST_IMAGES:
        return
    shares = present / len(table)
    prior = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    chosen = _at_temperature(table.probabilities, temperature)[np.arange(len(table)), labels]
    loss = -float(np.log(chosen.clip(1e-12)).mean())
    if loss >= 0.99 * prior:
        yield (
            f"The probabilities say no more than the shares of the classes (log loss {loss:.3f}, of the shares "
            f"{prior:.3f}): nothing was learnt, or the probabilities are far too sure."
        )


def _at_temperature(
    probabilities: Float[np.ndarray, "images classes"], temperature: float
) -> Float[np.ndarray, "images classes"]:
    powers = probabilities.clip(1e-12) ** (1 / temperature)
    scaled: np.ndarray = powers / powers.sum(1, keepdims=True)
    return scaled


def _finding_signs(table: PredictionTable) -> Iterator[str]:
    for name, truths, values in zip(table.classes, table.truths.T, table.probabilities.T, strict=True):
        both = (truths == 1).any() and (truths == 0).any()
        if both and np.ptp(values) < 1e-6:
            yield f"All {len(table)} images get the same probability of {name}: the model has collapsed."


def _mask_signs(table: PredictionTable) -> Iterator[str]:
    for name, values in table.masks.items():
        known = values[~np.isnan(values)]
        if name.startswith("dice_") and len(known) and not known.any():
            yield f"No mask of {name.removeprefix('dice_')} meets the true one in any of {len(known)} images."
