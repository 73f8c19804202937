"""Labels that are likely to be wrong, by confident learning on predictions of images that trained nothing.

An image of a class is confident of another class if that class is as probable as it is on average for the images that
bear its label (Northcutt, Jiang and Chuang 2021, Confident Learning). Counts of such images, scaled to the labels,
estimate the joint distribution of given and true labels; images are ranked by how little their label fits. A model's
own errors look like errors of labels: what is found is for a person to look at, never to be corrected by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.utils.plain import field_values

__all__ = ["LabelErrors", "SuspectLabel", "confident_joint", "find_label_errors"]

_PERFECT = 0.999  # accuracy from which predictions look like those of images that trained
_LEAST_IMAGES = 50  # below, such an accuracy may be chance


@dataclass(frozen=True)
class SuspectLabel:
    """How well the label of an image fits.

    Attributes:
        image_id: The image.
        patient_id: Who is on it; "" = not known.
        source: Where it comes from; "" = not known.
        target: "label", or the finding in question.
        label: Its label.
        suggested: The most probable class.
        self_confidence: Probability of its label, in [0, 1].
        margin: Normalized margin: that probability minus the largest of another class, in [-1, 1].
        suspect: Whether it counts as a label error: confident of another class.

    Example:
        ```python
        from covidcxr.evaluation.label_errors import SuspectLabel

        image = SuspectLabel("a.png", "", "", "label", "normal", "covid19", 0.1, -0.7, True)
        assert image.to_dict()["suggested"] == "covid19"
        ```
    """

    image_id: str
    patient_id: str
    source: str
    target: str
    label: str
    suggested: str
    self_confidence: float
    margin: float
    suspect: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON and tables."""
        return field_values(self)


@dataclass(frozen=True)
class LabelErrors:
    """The label errors of a target, estimated.

    Attributes:
        target: "label", or the finding in question.
        classes: Names of the classes.
        images: Every image, the least fitting label first.
        share: Share of the labels that are wrong, with its interval over patients.
        by_class: The same by label.
        by_source: The same by source; empty where no source is known.
        joint: Estimated share of the images by given label (rows) and true label (columns); sums to 1.
        thresholds: By class, from which probability on an image is confident of it.
        unlabelled: Images without a label, which do not count.
        notes: What to know before trusting it, a sentence each.

    Example:
        ```python
        from covidcxr.evaluation.label_errors import find_label_errors

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.1 + 0.8 * (n % 2)} for n in range(20)]
        rows.append({"image_id": "wrong", "label": "a", "probability_b": 0.95})
        (errors,) = find_label_errors(rows, resamples=20)
        assert errors.images[0].image_id == "wrong" and errors.images[0].suspect
        ```
    """

    target: str
    classes: tuple[str, ...]
    images: tuple[SuspectLabel, ...]
    share: Estimate
    by_class: Mapping[str, Estimate]
    by_source: Mapping[str, Estimate]
    joint: Float[np.ndarray, "given true"]
    thresholds: Mapping[str, float]
    unlabelled: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def suspects(self) -> list[SuspectLabel]:
        """The images that are confident of another class than their label, the least fitting label first."""
        return [image for image in self.images if image.suspect]

    @property
    def count(self) -> tuple[float, float, float]:
        """Estimated number of label errors, with the ends of its interval."""
        images = len(self.images)
        return self.share.value * images, self.share.low * images, self.share.high * images

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        value, low, high = self.count
        return {
            "target": self.target,
            "classes": list(self.classes),
            "images": len(self.images),
            "unlabelled": self.unlabelled,
            "label_errors": {"value": value, "low": low, "high": high},
            "share": self.share.to_dict(),
            "share_by_class": {name: estimate.to_dict() for name, estimate in self.by_class.items()},
            "share_by_source": {name: estimate.to_dict() for name, estimate in self.by_source.items()},
            "joint_of_given_and_true": self.joint.tolist(),
            "thresholds": dict(self.thresholds),
            "notes": list(self.notes),
            "suspects": [image.to_dict() for image in self.suspects],
        }


def find_label_errors(
    rows: Rows, *, trained: Sequence[str] = (), resamples: int = 1000, seed: int = 0
) -> tuple[LabelErrors, ...]:
    """Estimate how many labels are wrong, and rank the images by how little their label fits.

    Args:
        rows: Predictions, a row an image, of a model that did not train on the image: the pooled rows of a
            cross-validation (`fold`), or those of test images.
        trained: Ids of images on which the model trained: rows of them are refused, as are rows whose `split` is
            "train".
        resamples: How often to resample patients.
        seed: Seeds the resamples.

    Returns:
        One result of exclusive classes; where classes are findings one a finding, among the images that are labelled
        for it.

    Raises:
        ConfigError: If the model trained on the images, or there are no two classes with labels and probabilities.
    """
    table = PredictionTable.read(rows).in_order
    _refuse_trained(table, trained)
    if table.exclusive:
        scored = table.scored
        targets = [("label", scored.classes, scored, scored.probabilities, scored.labels)] if len(scored) else []
    else:
        targets = [_finding(table, number) for number in range(len(table.classes))]
    results = []
    for name, classes, images, probabilities, labels in targets:
        if len(np.unique(labels)) > 1:
            results.append(
                _find(name, classes, images, probabilities, labels, len(table) - len(images), resamples, seed)
            )
    if not results:
        raise ConfigError(
            "Label errors need labels of two classes or more, with a probability of each class: there is none such."
        )
    return tuple(results)


def _finding(
    table: PredictionTable, number: int
) -> tuple[str, tuple[str, ...], PredictionTable, np.ndarray, np.ndarray]:
    """Return a finding as two classes, of the images that are labelled for it and have a probability."""
    name = table.classes[number]
    images = table.take(~np.isnan(table.truths[:, number]) & ~np.isnan(table.probabilities[:, number]))
    shown = images.probabilities[:, number]
    return name, (f"no {name}", name), images, np.stack([1 - shown, shown], 1), images.truths[:, number].astype(int)


def _refuse_trained(table: PredictionTable, trained: Sequence[str]) -> None:
    known = set(trained)
    inside = [row for row in table.rows if row.get("split") == "train" or row["image_id"] in known]
    if inside:
        raise ConfigError(
            f"The model trained on {len(inside):,} of the {len(table):,} images, such as {inside[0]['image_id']}. "
            f"It has learnt their labels, wrong ones too: give predictions of a cross-validation (covidcxr recipes run "
            f"RECIPE --folds 5), or of test images only."
        )


def confident_joint(
    probabilities: Float[np.ndarray, "images classes"],
    labels: Integer[np.ndarray, " images"],
    weights: Float[np.ndarray, "resamples images"] | None = None,
    counted: Bool[np.ndarray, " images"] | None = None,
) -> tuple[Float[np.ndarray, "resamples given true"], Float[np.ndarray, "resamples classes"]]:
    """Count images by label and by the class that they are confident of.

    Args:
        probabilities: Of the classes, in [0, 1].
        labels: Number of each image's label.
        weights: Weights of the images, a row a resample; None = one row of ones.
        counted: The images that are counted; thresholds are always of all images. None = all.

    Returns:
        The counts [resamples, label, confident class], each label scaled to its number of images, and the thresholds
        [resamples, classes]: the mean probability of a class over the images of that label.

    Example:
        ```python
        import numpy as np

        from covidcxr.evaluation.label_errors import confident_joint

        probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.2, 0.8]])
        counts, thresholds = confident_joint(probabilities, np.array([0, 0, 1, 0]))
        assert np.allclose(thresholds, [[0.6, 0.9]]) and np.allclose(counts, [[[3, 0], [0, 1]]])
        ```
    """
    images, classes = probabilities.shape
    weights = np.ones((1, images)) if weights is None else weights
    given = np.eye(classes)[labels]
    totals = weights @ given
    thresholds = np.divide(
        weights @ (given * probabilities), totals, out=np.full_like(totals, np.inf), where=totals > 0
    )
    counts = np.zeros((len(weights), classes, classes))
    used = given if counted is None else given * counted[:, None]
    for start in range(0, len(weights), step := max(1, 1_000_000 // (images * classes))):
        part = slice(start, start + step)
        confident = np.where(probabilities >= thresholds[part, None] - 1e-12, probabilities, -1.0)
        best = np.where(confident.max(2) >= 0, confident.argmax(2), -1)
        for number in range(classes):
            counts[part, :, number] = (weights[part] * (best == number)) @ used
    rows = counts.sum(2, keepdims=True)
    sure = np.broadcast_to(np.eye(classes), counts.shape)  # of a label without a confident image no error is known
    return np.divide(counts, rows, out=sure.copy(), where=rows > 0) * (weights @ used)[:, :, None], thresholds


def _find(
    target: str,
    classes: tuple[str, ...],
    table: PredictionTable,
    probabilities: np.ndarray,
    labels: np.ndarray,
    unlabelled: int,
    resamples: int,
    seed: int,
) -> LabelErrors:
    counts, thresholds = confident_joint(probabilities, labels)
    sources = table.groups("source")

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        joint, _ = confident_joint(probabilities, labels, weights)
        result = {"all": _wrong(joint)}
        result |= {f"class {number}": _wrong(joint[:, [number]], number) for number in range(len(classes))}
        for name, own in sources.items():
            result[f"source {name}"] = _wrong(confident_joint(probabilities, labels, weights, own)[0])
        return result

    about = {f"class {number}": labels == number for number in range(len(classes))}
    about |= {f"source {name}": own for name, own in sources.items()}
    estimates = bootstrap_many(
        statistics, groups=table.patients, images=about, shares=["all", *about], resamples=resamples, seed=seed
    )
    return LabelErrors(
        target,
        classes,
        _rank(target, classes, table, probabilities, labels, thresholds[0]),
        estimates["all"],
        {name: estimates[f"class {number}"] for number, name in enumerate(classes) if (labels == number).any()},
        {name: estimates[f"source {name}"] for name in sources},
        counts[0] / counts[0].sum(),
        dict(zip(classes, thresholds[0].tolist(), strict=True)),
        unlabelled,
        tuple(_notes(table, probabilities, labels)),
    )


def _wrong(joint: np.ndarray, first: int = 0) -> np.ndarray:
    """Return the share of the counts that lies off the diagonal, which begins in column `first`."""
    total = joint.sum((1, 2))
    right = np.trace(joint[:, :, first:], axis1=1, axis2=2)
    return np.asarray(np.divide(total - right, total, out=np.full_like(total, np.nan), where=total > 0).clip(0, 1))


def _rank(
    target: str,
    classes: Sequence[str],
    table: PredictionTable,
    probabilities: np.ndarray,
    labels: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[SuspectLabel, ...]:
    own = probabilities[np.arange(len(labels)), labels]
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1
    confident = np.where(probabilities >= thresholds - 1e-12, probabilities, -1)
    suspect = (confident.max(1) >= 0) & (confident.argmax(1) != labels)
    margins = own - others.max(1)
    images = []
    for number in np.lexsort((own, margins)).tolist():
        row = table.rows[number]
        images.append(
            SuspectLabel(
                str(row["image_id"]),
                str(row.get("patient_id") or ""),
                str(row.get("source") or ""),
                target,
                classes[labels[number]],
                classes[int(probabilities[number].argmax())],
                float(own[number]),
                float(margins[number]),
                bool(suspect[number]),
            )
        )
    return tuple(images)


def _notes(table: PredictionTable, probabilities: np.ndarray, labels: np.ndarray) -> list[str]:
    notes = []
    right = float((probabilities.argmax(1) == labels).mean())
    if not all(row.get("fold") or row.get("split") for row in table.rows):
        notes.append(
            "The rows do not say by which fold or split an image was tested. If the model trained on these images, it "
            "has learnt their wrong labels too, and few are found: give predictions of a cross-validation or of test "
            "images."
        )
    if right >= _PERFECT and len(labels) >= _LEAST_IMAGES:
        notes.append(
            f"The model is right on {right:.1%} of the images, as models are on images that they trained on: no label "
            f"error can be found that way."
        )
    if not table.patients_known:
        notes.append("No patient is known: every image counts as a patient, and the intervals may be too narrow.")
    return notes
