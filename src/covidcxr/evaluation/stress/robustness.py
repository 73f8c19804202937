"""Robustness: do predictions hold when an image changes in ways that leave the lungs as they are?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.data import Record
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.segmentation import dice_score, segmentation_metrics
from covidcxr.evaluation.metrics.weighted import weighted_auroc, weighted_mean
from covidcxr.evaluation.predictions.sample import Asked, Images, ImageSample, as_pipeline, known_classes
from covidcxr.evaluation.stress.perturbations import Perturbation, find_perturbations
from covidcxr.models import Classifier
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.types import SplitName
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.threads import tracked

__all__ = ["Effect", "Robustness", "robustness"]

Probabilities: TypeAlias = Float[np.ndarray, "images classes"]
Column: TypeAlias = Float[np.ndarray, " images"]

_SEPARATOR = "\0"
_BEFORE, _AFTER, _CHANGE = "_before", "_after", "_change"
_ENDS = tuple(score + end for score in ("accuracy", "macro_auroc") for end in (_BEFORE, _AFTER))
_SHARES = ("accuracy", "macro_auroc", *_ENDS, "changed", "unanswered")


@dataclass(frozen=True)
class Effect:
    """What a perturbation does to a model, with patient-clustered intervals.

    Attributes:
        name: Kind of the perturbation.
        strength: Its strength, as text.
        scores: Of a classifier `changed` (share of predictions that change: the most probable class, or the findings
            above their thresholds), `unanswered` (share of images that lose their prediction because no lungs are found
            any more), `shift` (mean absolute change of the probability that changes most), and of labelled images the
            paired differences `accuracy_change` and `macro_auroc_change`, perturbed minus clean. Of masks `dice_CLASS`,
            the overlap with the mask of the clean image, moved as the image was.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.stress.robustness import Effect

        effect = Effect("rotation", "+5 degrees", {"changed": Estimate(0.1, 0.0, 0.2, 20, 10)})
        assert effect.title == "rotation, +5 degrees"
        ```
    """

    name: str
    strength: str
    scores: dict[str, Estimate]

    @property
    def title(self) -> str:
        """Name and strength."""
        return f"{self.name}, {self.strength}" if self.strength else self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        scores = {name: estimate.to_dict() for name, estimate in self.scores.items()}
        return {"name": self.name, "strength": self.strength, "scores": scores}


@dataclass(frozen=True)
class Robustness:
    """What perturbations do to a model.

    Attributes:
        images: Number of images.
        patients: Number of patients of these images.
        clean: `accuracy` and `macro_auroc` on the clean images, where they have labels.
        effects: The effect of each perturbation, in the order of the call.
        failed: From image id to why an image could not be read.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.stress.robustness import Effect, Robustness

        values = {"blur": 0.1, "inversion": 0.6}
        effects = (Effect(name, "", {"changed": Estimate(value, 0.0, 1.0, 20, 10)}) for name, value in values.items())
        assert Robustness(20, 10, {}, tuple(effects)).ranked()[0].name == "inversion"
        ```
    """

    images: int
    patients: int
    clean: dict[str, Estimate]
    effects: tuple[Effect, ...]
    failed: dict[str, str] = field(default_factory=dict)

    def ranked(self, score: str = "changed") -> list[Effect]:
        """Return the effects by a score.

        Args:
            score: Name of the score.

        Returns:
            The effects with a known value of the score, the largest first.
        """
        known = [e for e in self.effects if score in e.scores and not math.isnan(e.scores[score].value)]
        return sorted(known, key=lambda effect: -effect.scores[score].value)

    @property
    def summary(self) -> str:
        """The conclusion in one or two sentences."""
        ranked = self.ranked()
        if not ranked:
            name = next((name for effect in self.effects for name in effect.scores if name.startswith("dice_")), "")
            if not self.ranked(name):
                return "There is no prediction, so there is nothing to compare."
            worst = self.ranked(name)[-1]
            dice = f"Dice {worst.scores[name]} with those of the clean images"
            return f"The masks are changed most by {worst.title}: {dice}."
        most = " and ".join(f"{effect.title} ({_percent(effect.scores['changed'])})" for effect in ranked[:2])
        words = f"The most predictions are changed by {most}."
        letters = [effect for effect in ranked if effect.name == "letter"]
        if letters and letters[0] not in ranked[:2]:
            share = _percent(letters[0].scores["changed"])
            words = f"A letter in the corner changes up to {share} of the predictions. {words}"
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "summary": self.summary,
            "films": self.images,
            "patients": self.patients,
            "clean": {name: estimate.to_dict() for name, estimate in self.clean.items()},
            "effects": [effect.to_dict() for effect in self.effects],
            "failed": dict(self.failed),
        }


@old_arguments(max_films="max_images")
def robustness(
    model: Asked,
    data: Images,
    *,
    split: SplitName | None = "test",
    perturbations: Sequence[str | Perturbation] | None = None,
    max_images: int | None = None,
    batch_size: int = 16,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Robustness:
    """Compare the predictions for perturbed images with those for the clean images, image by image.

    A pipeline segments the lungs on the perturbed image itself, as it would in use.

    Args:
        model: A pipeline, a classifier of the full image, or a segmenter.
        data: A data module, or records or paths of images; labels are used where they are the model's classes.
        split: Of a data module: "train", "val" or "test"; None = all images.
        perturbations: Kinds of `PERTURBATIONS`, or your own `Perturbation`; None = all.
        max_images: Most images, drawn from as many patients as possible; None = all.
        batch_size: Images in a batch.
        resamples: Number of bootstrap resamples of patients.
        seed: Seed of the draw, of random perturbations, and of the intervals.
        progress: Show a progress bar on standard error.

    Returns:
        The effects; the same seed gives the same bits.

    Raises:
        ConfigError: If there are no images, none can be read, or a classifier of a region is given without its
            pipeline.
        UnknownNameError: If there is no such perturbation.
    """
    changes = find_perturbations(perturbations)
    sample = ImageSample(data, split=split, max_images=max_images, seed=seed)
    with as_pipeline(model) as pipeline:
        run = _Run(changes)
        for batch in tracked(sample.batches(batch_size), -(-len(sample) // batch_size), "batches", progress):
            run.add(pipeline, batch, seed)
        classifier = pipeline.classifier
    if not run.records:
        raise ConfigError(f"None of {len(sample)} images can be read: {next(iter(sample.failed.values()))}")
    clean, scores = run.score(classifier, resamples=resamples, seed=seed)
    effects = tuple(Effect(change.name, change.strength, scores[change.title]) for change in changes)
    patients = {record.patient for record in run.records}
    return Robustness(len(run.records), len(patients), clean, effects, dict(sample.failed))


class _Run:
    """The predictions for clean and perturbed images, collected batch by batch."""

    def __init__(self, changes: Sequence[Perturbation]) -> None:
        self.changes = changes
        self.records: list[Record] = []
        self.clean: list[Prediction] = []
        self.changed: dict[str, list[Prediction]] = {change.title: [] for change in changes}
        self.overlaps: dict[str, list[dict[str, float]]] = {change.title: [] for change in changes}

    def add(self, pipeline: Pipeline, batch: Sequence[tuple[Record, Float[np.ndarray, "_ _"]]], seed: int) -> None:
        self.records += [record for record, _ in batch]
        clean = _predict(pipeline, [image for _, image in batch])
        self.clean += map(_without_pixels, clean)
        for change in self.changes:
            images = [change(image, image_id=record.image_id, seed=seed) for record, image in batch]
            changed = _predict(pipeline, images)
            self.overlaps[change.title] += [_overlaps(*pair, change) for pair in zip(clean, changed, strict=True)]
            self.changed[change.title] += map(_without_pixels, changed)

    def score(
        self, classifier: Classifier | None, **settings: int
    ) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
        masks = {title: _score_masks(self.records, rows, **settings) for title, rows in self.overlaps.items()}
        if classifier is None:
            return {}, masks
        clean, scores = _compare(self.records, classifier, self.clean, self.changed, **settings)
        return clean, {title: scores[title] | masks[title] for title in masks}


def _predict(pipeline: Pipeline, images: Sequence[Float[np.ndarray, "_ _"]]) -> list[Prediction]:
    predictions = pipeline.predict(images, batch_size=len(images))
    return [prediction for prediction in predictions if isinstance(prediction, Prediction)]  # arrays can all be read


def _without_pixels(prediction: Prediction) -> Prediction:
    """Drop masks and image: those of many perturbations would fill the memory."""
    kept = prediction.image_id, prediction.label, prediction.probabilities, prediction.reasons
    return Prediction(*kept, {}, prediction.image[:1, :1])


def _overlaps(clean: Prediction, changed: Prediction, change: Perturbation) -> dict[str, float]:
    return {
        # A view check that rejects the changed image leaves it without masks: the change lost all of them.
        f"dice_{name}": dice_score(changed.masks[name], change.move(mask)) if name in changed.masks else 0.0
        for name, mask in clean.masks.items()
    }


def _score_masks(
    records: Sequence[Record], overlaps: Sequence[Mapping[str, float]], **settings: Any
) -> dict[str, Estimate]:
    """Average the overlaps; clean images that a view check rejects have no masks to compare."""
    known = [number for number, row in enumerate(overlaps) if row]
    columns = {name: np.array([overlaps[n][name] for n in known]) for name in overlaps[known[0]]} if known else {}
    groups = [records[number].patient for number in known]
    return segmentation_metrics(columns, groups, **settings) if columns else {}


def _compare(
    records: Sequence[Record],
    classifier: Classifier,
    clean: Sequence[Prediction],
    others: Mapping[str, Sequence[Prediction]],
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Compare predictions with those for the clean images, all on the same resamples of patients.

    Args:
        records: The images.
        classifier: The classifier of all predictions.
        clean: The predictions for the clean images.
        others: Further predictions for the same images, by name.
        resamples: Number of resamples.
        seed: Same seed, same intervals.

    Returns:
        `accuracy` and `macro_auroc` of the clean images, and by name the scores of `Effect`; scores without an image
        are left out.
    """
    classes, exclusive = classifier.config.classes, classifier.config.mode != "multilabel"
    truth = np.array([known_classes(record, classes) for record in records])
    first = _probabilities(clean, classes)
    tables = {name: _probabilities(predictions, classes) for name, predictions in others.items()}
    accuracy = _correct(_decisions(first, classifier), truth, ~np.isnan(first[:, 0]))
    columns = {"accuracy": accuracy} if exclusive else {}
    areas = {"macro_auroc": first}
    for name, values in tables.items():
        changes = _changes(classifier, truth, first, values)
        columns |= {f"{name}{_SEPARATOR}{key}": column for key, column in changes.items()}
        both = np.where(np.isnan(values[:, :1] + first[:, :1]), math.nan, 0.0)
        for end, probabilities in ((_BEFORE, first), (_AFTER, values)):
            areas[f"{name}{_SEPARATOR}macro_auroc{end}"] = probabilities + both

    def table(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
        rows = {name: weighted_mean(weights, values) for name, values in columns.items()}
        return rows | {name: _macro_auroc(weights, truth, values) for name, values in areas.items()}

    images = {name: ~np.isnan(values) for name, values in columns.items()}
    images |= {name: _labelled(truth, values) for name, values in areas.items()}
    scored = [name.removesuffix(_AFTER) for name in images if name.endswith(_AFTER)]
    estimates = bootstrap_many(
        table,
        groups=[record.patient for record in records],
        images=images | {name + _CHANGE: images[name + _AFTER] for name in scored},
        kinds={name: _kinds(truth, values, exclusive) for name, values in areas.items()},
        shares=[name for name in images if name.rpartition(_SEPARATOR)[2] in _SHARES],
        differences={name + _CHANGE: (name + _AFTER, name + _BEFORE) for name in scored},
        resamples=resamples,
        seed=seed,
    )
    scores: dict[str, dict[str, Estimate]] = {name: {} for name in ("", *others)}
    for key, estimate in estimates.items():
        name, _, score = key.rpartition(_SEPARATOR)
        if estimate.count and score not in _ENDS:
            scores[name][score] = estimate
    return scores.pop(""), scores


def _changes(
    classifier: Classifier, truth: Probabilities, first: Probabilities, values: Probabilities
) -> dict[str, Column]:
    """Return what differs on each image; NaN where it is not known."""
    predicted = ~np.isnan(first[:, 0])
    both = predicted & ~np.isnan(values[:, 0])
    before, after = _decisions(first, classifier), _decisions(values, classifier)
    columns = {
        "changed": _where(both, (before != after).any(1)),
        "unanswered": _where(predicted, ~both),
        "shift": _where(both, np.abs(np.nan_to_num(values - first)).max(1)),
    }
    if classifier.config.mode != "multilabel":
        columns["accuracy" + _BEFORE] = _correct(before, truth, both)
        columns["accuracy" + _AFTER] = _correct(after, truth, both)
    return columns


def _probabilities(predictions: Sequence[Prediction], classes: Sequence[str]) -> Probabilities:
    return np.array([[prediction.probabilities.get(name, math.nan) for name in classes] for prediction in predictions])


def _decisions(probabilities: Probabilities, classifier: Classifier) -> Bool[np.ndarray, "images classes"]:
    """Return which classes are predicted: the most probable one, or the findings from their thresholds up."""
    config = classifier.config
    if config.mode == "multilabel":
        return np.asarray(probabilities >= np.array([config.thresholds.get(name, 0.5) for name in config.classes]))
    return np.asarray(np.arange(probabilities.shape[1]) == np.nan_to_num(probabilities).argmax(1)[:, None])


def _correct(decisions: np.ndarray, truth: Probabilities, known: np.ndarray) -> Column:
    return _where(known & ~np.isnan(truth[:, 0]), (decisions == (truth == 1)).all(1))


def _where(known: np.ndarray, values: np.ndarray) -> Column:
    return np.where(known, values.astype(float), math.nan)


def _labelled(truth: Probabilities, probabilities: Probabilities) -> Bool[np.ndarray, " images"]:
    return np.asarray(~np.isnan(truth + probabilities).all(1))


def _columns_of_both(truth: Probabilities, known: Bool[np.ndarray, "images classes"]) -> list[int]:
    """Return the classes that have both positive and negative images."""
    return [c for c in range(truth.shape[1]) if len(np.unique(truth[known[:, c], c])) == 2]


def _kinds(truth: Probabilities, probabilities: Probabilities, exclusive: bool) -> list[Bool[np.ndarray, " images"]]:
    """Return the kinds of images that the mean AUROC needs: those of each class, of findings also those without."""
    known = ~np.isnan(truth + probabilities)
    wanted = (1,) if exclusive else (1, 0)
    return [known[:, c] & (truth[:, c] == kind) for c in _columns_of_both(truth, known) for kind in wanted]


def _macro_auroc(
    weights: np.ndarray, truth: Probabilities, probabilities: Probabilities
) -> Float[np.ndarray, " resamples"]:
    """Return the mean AUROC of the classes that have both positive and negative images."""
    known = ~np.isnan(truth + probabilities)
    areas = [
        weighted_auroc(weights, np.where(known[:, c], probabilities[:, c], math.nan), truth[:, c] == 1)
        for c in _columns_of_both(truth, known)
    ]
    return np.asarray(np.mean(areas, axis=0)) if areas else np.full(len(weights), math.nan)


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%}" + ("" if math.isnan(share.low) else f" [{share.low:.0%}, {share.high:.0%}]")
