"""Probes: small classifiers that see one thing beside the lungs, cross-validated with patients whole."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.weighted import weighted_auroc, weighted_confusion
from covidcxr.evaluation.shortcuts.features import Sheet

__all__ = [
    "PROBES",
    "Probe",
    "ProbeScore",
    "Question",
    "cross_validate",
    "score_answers",
    "train_and_test",
    "ModelName",
    "answer",
    "MARGIN",
    "SCATTER",
    "count_tests",
    "stands_out",
    "standard_error",
    "standard_errors_wanted",
]

ModelName: TypeAlias = Literal["table", "forest", "pixels"]


"""Logistic regression over the values of a column, random forest over numbers, strongly regularised logistic regression
over pixels."""


_MOST_TRAINING_IMAGES = 20_000


_TREES = 60


_TREE_IMAGES = 2_000  # each tree of a forest sees no more: that bounds the time for any number of images


def answer(
    model: ModelName, values: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int, seed: int
) -> Float[np.ndarray, "images classes"]:
    """Train a classifier in which every class weighs alike, and return its probabilities for other images."""
    if len(values) > _MOST_TRAINING_IMAGES:
        kept = np.sort(np.random.default_rng(seed).permutation(len(values))[:_MOST_TRAINING_IMAGES])
        values, labels = values[kept], labels[kept]
    trained = _classifier(model, len(values), seed)
    trained.fit(values, labels)
    answers = np.zeros((len(asked), classes))
    answers[:, trained.classes_] = trained.predict_proba(asked)
    return answers


def _classifier(name: ModelName, images: int, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "forest":
        return RandomForestClassifier(
            n_estimators=_TREES,
            min_samples_leaf=3,
            max_samples=min(images, _TREE_IMAGES),
            class_weight="balanced",
            random_state=seed,
        )
    if name == "table":
        return LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))


@dataclass(frozen=True)
class Probe:
    """What one probe sees.

    Attributes:
        name: Its key.
        title: Its name in words.
        sees: What it is shown, in words that complete "... sees nothing but ...".
        model: Its classifier.
        blind: Whether it sees no lung. Those that see the whole image coarsely are no proof of a shortcut: an opacity
            may be seen in a thumbnail.
        kind: "column" of the table, or "film".
    """

    name: str
    title: str
    sees: str
    model: ModelName
    blind: bool = True
    kind: Literal["column", "film"] = "film"


PROBES = (
    Probe("source", "source", "the name of the source", "table", kind="column"),
    Probe("view", "view", "the view as it is stated", "table", kind="column"),
    Probe("sex", "sex", "the patient's sex", "table", kind="column"),
    Probe("age", "age", "the patient's age", "forest", kind="column"),
    Probe("facts", "view, sex and age", "view, sex and age together", "forest", kind="column"),
    Probe("header", "file header", "format, mode, size in bytes and other entries of the file's header", "forest"),
    Probe("shape", "image shape", "height, width and their ratio", "forest"),
    Probe("border", "border", "the outermost 2 % of each side, and frames of one grey", "forest"),
    Probe("corners", "corners", "a small picture of each corner", "pixels"),
    Probe("background", "lungs removed", "the image without the lungs, as a thumbnail", "pixels"),
    Probe("grey", "grey values", "brightness, contrast and other grey statistics of the image", "forest", blind=False),
    Probe("thumbnail", "thumbnail", "the image squeezed to 24 x 24 pixels", "pixels", blind=False),
)


"""All probes, those that see no lung first."""


@dataclass(frozen=True)
class Question:
    """What is to be told from what a probe sees.

    Attributes:
        name: "label", "source", or the name of a finding.
        classes: The answers.
        labels: Index of the true answer of each image; -1 = the image does not count.
    """

    name: str
    classes: tuple[str, ...]
    labels: Integer[np.ndarray, " images"]

    def among(self, images: Bool[np.ndarray, " images"], patients: np.ndarray, least: int) -> Question:
        """Return the question for some of the images; answers with fewer than `least` patients drop out."""
        labels = np.full(len(self.labels), -1)
        kept: list[str] = []
        for number, name in enumerate(self.classes):
            own = images & (self.labels == number)
            if len(np.unique(patients[own])) >= least:
                labels[own] = len(kept)
                kept.append(name)
        return Question(self.name, tuple(kept), labels)


@dataclass(frozen=True)
class ProbeScore:
    """How well a probe answers a question.

    Attributes:
        probe: What it sees.
        auroc: Mean over the answers, each against the rest; chance is 0.5.
        balanced_accuracy: Mean sensitivity; chance is 1 / number of answers.
        accuracy: Share of right answers; to be held against `majority`.
        majority: Share of the most frequent answer.
        by_class: AUROC of each answer against the rest, counted over the images of the answer.
        alarm: Whether the answer that it tells best stands out above chance, with all that was tried allowed for.
        seconds: What it cost.
    """

    probe: Probe
    auroc: Estimate
    balanced_accuracy: Estimate
    accuracy: Estimate
    majority: float
    by_class: Mapping[str, Estimate]
    alarm: bool = False
    seconds: float = 0.0

    @property
    def best(self) -> tuple[str, Estimate]:
        """The answer that it tells best from the rest."""
        return max(self.by_class.items(), key=lambda item: item[1].value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "probe": self.probe.name,
            "sees": self.probe.sees,
            "sees_no_lung": self.probe.blind,
            "auroc": self.auroc.to_dict(),
            "balanced_accuracy": self.balanced_accuracy.to_dict(),
            "chance_of_balanced_accuracy": 1 / len(self.by_class),
            "accuracy": self.accuracy.to_dict(),
            "majority": self.majority,
            "auroc_by_class": {name: one.to_dict() for name, one in self.by_class.items()},
            "alarm": self.alarm,
        }


def cross_validate(
    probe: Probe,
    sheet: Sheet,
    question: Question,
    folds: Integer[np.ndarray, " images"],
    patients: Integer[np.ndarray, " images"],
    seed: int,
) -> ProbeScore:
    """Score a probe on images of patients that it was not trained on.

    Args:
        probe: What it sees.
        sheet: Its features.
        question: What it is asked; images without features do not count.
        folds: Fold of each image; no patient is in two.
        patients: Patient of each image.
        seed: Seeds classifier and resamples.
    """
    start = time.perf_counter()
    images = np.flatnonzero(sheet.known & (question.labels >= 0))
    labels, values, fold = question.labels[images], sheet.values[images], folds[images]
    answers = np.full((len(images), len(question.classes)), 1 / len(question.classes))
    weighted = answers.copy()
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        if len(np.unique(labels[train])) > 1:
            answers[test] = answer(probe.model, values[train], labels[train], values[test], len(question.classes), seed)
            weighted[test] = answers[test] * np.bincount(labels[train], minlength=len(question.classes))
    score = score_answers(probe, answers, weighted, question.classes, labels, patients[images], seed)
    return replace(score, seconds=time.perf_counter() - start)


def train_and_test(
    probe: Probe,
    sheet: Sheet,
    question: Question,
    train: Bool[np.ndarray, " images"],
    test: Bool[np.ndarray, " images"],
    patients: Integer[np.ndarray, " images"],
    seed: int,
) -> ProbeScore | None:
    """Train a probe on some images and score it on others, as an official split wants it; None if one lacks a class."""
    start = time.perf_counter()
    usable = sheet.known & (question.labels >= 0)
    train, test = train & usable, test & usable
    found = np.unique(question.labels[train])
    if len(found) < 2 or len(np.unique(question.labels[test])) < 2:
        return None
    labels = question.labels
    answers = answer(probe.model, sheet.values[train], labels[train], sheet.values[test], len(question.classes), seed)
    weighted = answers * np.bincount(labels[train], minlength=len(question.classes))
    score = score_answers(probe, answers, weighted, question.classes, labels[test], patients[test], seed)
    return replace(score, seconds=time.perf_counter() - start)


def score_answers(
    probe: Probe,
    answers: Float[np.ndarray, "images classes"],
    weighted: Float[np.ndarray, "images classes"],
    classes: Sequence[str],
    labels: Integer[np.ndarray, " images"],
    patients: Integer[np.ndarray, " images"],
    seed: int,
) -> ProbeScore:
    """Score answers with patient-clustered 95 % intervals.

    Args:
        probe: Who answered.
        answers: Probabilities, every class taken for equally frequent.
        weighted: The same with the frequencies of training, for plain accuracy.
        classes: The answers' names.
        labels: Index of the true one.
        patients: Patient of each image.
        seed: Seeds the resamples.
    """
    count = len(classes)
    present = np.isin(np.arange(count), labels)
    called, right = answers.argmax(1), weighted.argmax(1) == labels

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        # Of two classes, what tells one tells the other.
        areas = [weighted_auroc(weights, answers[:, c], labels == c) for c in range(1 if count == 2 else count)]
        areas = areas * 2 if count == 2 else areas
        counts = weighted_confusion(weights, labels, called, count)
        sums = counts.sum(2)
        hits = np.diagonal(counts, axis1=1, axis2=2)
        rates = np.divide(hits, sums, out=np.full(sums.shape, np.nan), where=sums > 0)
        rows = {"auroc": np.stack(areas, 1)[:, present].mean(1), "balanced_accuracy": rates[:, present].mean(1)}
        rows["accuracy"] = (weights @ right.astype(float)) / weights.sum(1)
        return rows | {f"auroc {name}": areas[c] for c, name in enumerate(classes) if present[c]}

    resamples = min(1000, max(200, 20_000_000 // len(labels)))
    images = {f"auroc {name}": labels == c for c, name in enumerate(classes)}
    found = bootstrap_many(table, groups=patients.tolist(), images=images, resamples=resamples, seed=seed)
    return ProbeScore(
        probe,
        found["auroc"],
        found["balanced_accuracy"],
        found["accuracy"],
        float(np.bincount(labels).max() / len(labels)),
        {name: found[f"auroc {name}"] for c, name in enumerate(classes) if present[c]},
    )


MARGIN = 0.1


"""How far above 0.5 an AUROC must be to be worth an alarm: on many images less is certain, but harmless."""


SCATTER = 1.4


"""By how much a cross-validated AUROC scatters wider than its interval says, which holds its classifiers for given; on
clean data 1.3 was measured (375 audits' worth of probes, 60 to 600 images). No interval is free of it (Bengio and
Grandvalet 2004)."""


def count_tests(scores: Iterable[ProbeScore]) -> int:
    """Count the AUROCs among which an alarm must stand out; of two answers, what tells one tells the other."""
    return sum(1 if len(one.by_class) == 2 else len(one.by_class) for one in scores)


def standard_errors_wanted(tests: int) -> float:
    """Return how many standard errors above chance an alarm is (one-sided 2.5 %, Bonferroni over `tests`)."""
    return NormalDist().inv_cdf(1 - 0.025 / max(1, tests))


def standard_error(one: Estimate, patients: int) -> float:
    """Return the doubt of an answer's AUROC: that of its interval, at the least what chance would give, and `SCATTER`.

    Where an answer is told perfectly the interval has no width, however few patients there are; under chance it has
    that of the Mann-Whitney statistic (Mann and Whitney 1947), here with patients for units.

    Args:
        one: The AUROC, counted over the images of the answer.
        patients: Patients of all answers.
    """
    others = max(1, patients - one.patients)
    by_chance = math.sqrt((one.patients + others + 1) / (12 * max(1, one.patients) * others))
    measured = (one.high - one.low) / (2 * 1.96)
    return SCATTER * (by_chance if math.isnan(measured) else max(measured, by_chance))


def stands_out(score: ProbeScore, wanted: float) -> bool:
    """Whether a probe tells any answer with an AUROC that is `MARGIN` and so many standard errors above chance."""
    return any(
        one.value >= 0.5 + MARGIN and one.value - 0.5 > wanted * standard_error(one, score.auroc.patients)
        for one in score.by_class.values()
    )
