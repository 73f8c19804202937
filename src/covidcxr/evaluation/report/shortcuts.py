"""Shortcuts that the rows alone show: guesses from source or view, and scores within one source or view."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.scores import Score, group_scores, on_picture, rank, scored_classes
from covidcxr.evaluation.metrics.weighted import stratified_auroc
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.report.subgroups import find_groups
from covidcxr.page import Picture, Section, Words, sections_of
from covidcxr.utils.plain import plain_result

__all__ = ["Shortcuts", "find_shortcuts"]

GUESSES = ("source", "view", "sex", "age")
FOLDS = 5
CLASSES_SHOWN = 4

Key: TypeAlias = tuple[str, str, str]
"""What is estimated: its kind, the trait and the class."""

Measure: TypeAlias = tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]
"""Weights [resamples, images] -> one number a resample; and the images that it is about."""


@dataclass(frozen=True)
class Shortcuts:
    """The model's AUROC beside what needs no image, class by class against the rest.

    Attributes:
        model: AUROC of the model on all images; the mean over the classes.
        classes: By class: the model's AUROC. Of two exclusive classes one stands for both.
        guesses: By trait and class: AUROC of a guess from this trait alone, learnt on the other patients.
        leads: By trait and class: the model's AUROC less that of the guess, on the same resamples.
        within: By trait ("source", "view") and class: AUROC among images that share the trait: the share of pairs, one
            with the class and one without, that are ranked right. NaN where no group holds both.
        losses: By trait and class: the AUROC of all pairs less that within the trait.
        by_group: By "trait group": the model's AUROC in each group with ten patients or more of all kinds.
        one_label: By trait: how many groups hold images of one label alone, and how many groups there are.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [
            {"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2), "source": "xy"[n % 4 // 2]}
            for n in range(40)
        ]
        result = evaluate_rows(rows, resamples=20).parts["shortcuts"]
        assert result.model.value == 1 and set(result.guesses["source"]) == {"b"}
        ```
    """

    model: Estimate
    classes: Mapping[str, Estimate]
    guesses: Mapping[str, Mapping[str, Estimate]]
    leads: Mapping[str, Mapping[str, Estimate]]
    within: Mapping[str, Mapping[str, Estimate]]
    losses: Mapping[str, Mapping[str, Estimate]]
    by_group: Mapping[str, Estimate]
    one_label: Mapping[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain_result(getattr(self, name)) for name in self.__dataclass_fields__}


@sections_of.register
def _(result: Shortcuts) -> list[Section]:
    guessed = "How well a label is guessed without an image, from how frequent it is among others of the same group."
    within = "Here a model gains nothing by recognising where an image comes from or how it was taken."
    guessed_scores: dict[str, Estimate] = {}
    inside: dict[str, Estimate] = {}
    for name in _shown(result):
        guessed_scores[f"this model, {name}"] = inside[f"all images, {name}"] = result.classes[name]
        guessed_scores |= {f"the {trait} alone, {name}": scores[name] for trait, scores in result.guesses.items()}
        inside |= {f"within one {trait}, {name}": scores[name] for trait, scores in result.within.items()}
    inside |= {f"only {group}": estimate for group, estimate in result.by_group.items()}
    return [
        Section("What needs no image", guessed, [*map(Words, _describe_guesses(result)), *_picture(guessed_scores)]),
        Section(
            "Within one source and one view",
            within,
            [*(Words(text, warning="is not known" in text) for text in _describe_within(result)), *_picture(inside)],
        ),
    ]


def _shown(result: Shortcuts) -> list[str]:
    """Return the classes to draw: of many those that are guessed best."""
    best = {
        name: max([_or(by_class[name].value, 0) for by_class in result.guesses.values()] or [0])
        for name in result.classes
    }
    kept = sorted(best, key=lambda name: -best[name])[:CLASSES_SHOWN]
    return [name for name in result.classes if name in kept]


def _describe_guesses(result: Shortcuts) -> list[str]:
    texts = [
        f"{pure} of {groups} {trait} groups hold images of one label alone: there the {trait} is the label."
        for trait, (pure, groups) in result.one_label.items()
        if pure and groups > 1
    ]
    if not result.guesses:
        texts.append("Neither source, view, sex nor age differs between these images, as far as is known.")
    return texts


def _describe_within(result: Shortcuts) -> list[str]:
    texts = []
    for trait in ("source", "view"):
        scores = result.within.get(trait)
        if scores is None:
            texts.append(f"The {trait} is not given, or all images share it.")
        elif lacking := [name for name, estimate in scores.items() if math.isnan(estimate.value)]:
            texts.append(
                f"No {trait} holds images both with and without {', '.join(lacking)}: what this model scores for it "
                f"within one {trait} is not known from these data."
            )
    return texts


def find_shortcuts(
    predictions: PredictionTable, *, positive: int | None, resamples: int = 1000, seed: int = 0
) -> Shortcuts | None:
    """Compare a classifier with guesses from the rows, and score it within one source and one view.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no image has both a label and a prediction.
    """
    predictions = predictions.scored
    if not len(predictions) or not predictions.classes:
        return None
    strata = {trait: predictions.trait(trait) for trait in GUESSES if len(predictions.groups(trait)) > 1}
    within = [trait for trait in ("source", "view") if trait in strata]
    auroc = group_scores(predictions, positive)["auroc"]
    measures = _group_measures(predictions, auroc, within)
    guesses = {trait: _guess(predictions, trait) for trait in strata}
    for c in scored_classes(predictions, positive):
        measures |= _class_measures(predictions, c, guesses, {trait: strata[trait] for trait in within})

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"\0".join(key): statistic(weights) for key, (statistic, _) in measures.items()}

    differences = {
        "\0".join((difference, trait, name)): ("\0".join(("class", "", name)), "\0".join((kind, trait, name)))
        for difference, kind in (("lead", "guess"), ("loss", "within"))
        for of, trait, name in measures
        if of == kind
    }

    images = {key: members for key, (_, members) in measures.items()}
    images |= {("loss", *key[1:]): members for key, members in images.items() if key[0] == "within"}
    estimates = bootstrap_many(
        compute,
        groups=predictions.patients,
        images={"\0".join(key): members for key, members in images.items()},
        shares=["\0".join(key) for key in measures],
        kinds={"\0".join(key): _kinds(predictions, auroc, key[2], members) for key, (_, members) in measures.items()},
        differences=differences,
        resamples=resamples,
        seed=seed,
    )

    part = partial(_of_kind, estimates)
    return Shortcuts(
        part("model")[""][""],
        part("class")[""],
        part("guess"),
        part("lead"),
        part("within"),
        part("loss"),
        {group: estimate[""] for group, estimate in part("group").items()},
        {trait: _one_label(predictions, strata[trait]) for trait in within},
    )


def _kinds(predictions: PredictionTable, auroc: Score, name: str, members: np.ndarray) -> list[np.ndarray]:
    """Return the images with a class and those without, or of all classes that count."""
    if not name:
        return [members & kind for kind in auroc.kinds]
    truth = predictions.truths[:, predictions.classes.index(name)]
    return [members & (truth == kind) for kind in (1, 0)]


def _of_kind(estimates: Mapping[str, Estimate], wanted: str) -> dict[str, dict[str, Estimate]]:
    """Return the estimates of a kind, by trait and class."""
    by_trait: dict[str, dict[str, Estimate]] = {}
    for key, estimate in estimates.items():
        kind, trait, name = key.split("\0")
        if kind == wanted:
            by_trait.setdefault(trait, {})[name] = estimate
    return by_trait


def _group_measures(predictions: PredictionTable, auroc: Score, traits: Sequence[str]) -> dict[Key, Measure]:
    """Return the model's AUROC on all images, and in each group with enough patients of all kinds."""
    groups = {
        f"{trait} {name}": images
        for trait in traits
        for name, images in find_groups(predictions, trait).items()
        if auroc.too_few(predictions, images) is None
    }

    def area(images: np.ndarray) -> Measure:
        return lambda weights: auroc.statistic(weights, images), images

    everyone: dict[Key, Measure] = {("model", "", ""): area(np.ones(len(predictions), bool))}
    return everyone | {("group", name, ""): area(images) for name, images in groups.items()}


def _class_measures(
    predictions: PredictionTable, c: int, guesses: Mapping[str, np.ndarray], strata: Mapping[str, np.ndarray]
) -> dict[Key, Measure]:
    """Return the AUROC of a class against the rest: of the model, of guesses by trait, and within a trait."""
    name, truth, score = predictions.classes[c], predictions.truths[:, c], predictions.probabilities[:, c]
    known = ~np.isnan(truth)

    def area(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        ranking = rank(values, truth)
        return lambda weights: ranking.areas(weights)[0]

    measures: dict[Key, Measure] = {("class", "", name): (area(score), known)}
    for trait, guess in guesses.items():
        measures["guess", trait, name] = area(guess[:, c]), known
    for trait, groups in strata.items():
        statistic = partial(stratified_auroc, score=score, truth=truth, strata=groups)
        measures["within", trait, name] = statistic, known & _mixed(truth, groups)
    return measures


def _guess(predictions: PredictionTable, trait: str) -> Float[np.ndarray, "images classes"]:
    """Return how frequent each class is among the images of other patients that share the trait."""
    values, folds = predictions.trait(trait), _folds(predictions)
    guess = np.full(predictions.truths.shape, np.nan)
    for fold in range(FOLDS):
        for value in np.unique(values[folds == fold]):
            others = (folds != fold) & (values == value)
            learnt = predictions.truths[others if others.any() else folds != fold]
            known = ~np.isnan(learnt)
            positives = np.where(known, learnt, 0).sum(0)
            chances = np.divide(positives, known.sum(0), out=np.full(len(positives), np.nan), where=known.sum(0) > 0)
            guess[(folds == fold) & (values == value)] = chances
    return guess


def _folds(predictions: PredictionTable) -> np.ndarray:
    """Deal the patients out to folds, those with the same truths evenly, so that no fold is richer in a class."""
    images: dict[object, list[int]] = {}
    for image, patient in enumerate(predictions.patients):
        images.setdefault(image if patient is None else patient, []).append(image)
    truth, folds = np.nan_to_num(predictions.truths, nan=0.5), np.empty(len(predictions), int)
    by_truth = sorted(images.values(), key=lambda members: (tuple(truth[members].mean(0)), len(members), members))
    for number, members in enumerate(by_truth):
        folds[members] = number % FOLDS
    return folds


def _mixed(truth: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Return the images whose group holds images with and without a class."""
    mixed = np.zeros(len(truth), bool)
    for stratum in np.unique(strata):
        images = strata == stratum
        mixed[images] = bool((truth[images] == 1).any() and (truth[images] == 0).any())
    return mixed


def _one_label(predictions: PredictionTable, strata: np.ndarray) -> tuple[int, int]:
    mixed = np.any([_mixed(truth, strata) for truth in predictions.truths.T], axis=0)
    groups = np.unique(strata).tolist()
    return sum(not mixed[strata == group].any() for group in groups), len(groups)


def _picture(shown: Mapping[str, Estimate]) -> list[Picture]:
    shown = {name: estimate for name, estimate in shown.items() if not math.isnan(estimate.value)}
    if len(shown) < 2:
        return []
    shown = {on_picture(name): estimate for name, estimate in shown.items()}
    figure = plot_estimates(shown, title="AUROC of a class against the rest (0.5 = chance)", chance=0.5)
    return [as_picture(figure, "AUROC of the model beside that of guesses, or within groups")]


def _or(value: float, default: float) -> float:
    return default if math.isnan(value) else value
