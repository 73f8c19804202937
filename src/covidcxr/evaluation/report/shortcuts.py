"""What the rows alone tell about shortcuts: does a guess from source or view do as well, and what is left inside?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.report.headline import group_scores, on_picture, plain, rank, scored_classes, stratified_auroc
from covidcxr.evaluation.report.subgroups import find_groups
from covidcxr.page import Picture, Section, Words, sections_of

__all__ = ["Shortcuts", "find_shortcuts"]

GUESSES = ("source", "view", "sex", "age")
FOLDS = 5
CLASSES_SHOWN = 4

Key: TypeAlias = tuple[str, str, str]
"""What is estimated: its kind, the trait and the class."""


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
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}


@sections_of.register
def _(result: Shortcuts) -> list[Section]:
    guessed = "How well a label is guessed without an image, from how frequent it is among others of the same group."
    within = "A model that knows where an image comes from, or how it was taken, gains nothing from it here."
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
            [
                *(Words(text, warning="cannot be told" in text) for text in _describe_within(result)),
                *_picture(inside),
            ],
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
        texts.append("Neither source, view, sex nor age differs between these images, as far as the rows tell.")
    return texts


def _describe_within(result: Shortcuts) -> list[str]:
    texts = []
    for trait in ("source", "view"):
        scores = result.within.get(trait)
        if scores is None:
            texts.append(f"The {trait} is not told, or all images share it.")
        elif lacking := [name for name, estimate in scores.items() if math.isnan(estimate.value)]:
            texts.append(
                f"No {trait} holds images both with and without {', '.join(lacking)}: what this model scores for it "
                f"within one {trait} cannot be told from these data."
            )
    return texts


def find_shortcuts(
    predictions: PredictionTable, *, positive: int | None, resamples: int = 1000, seed: int = 0
) -> Shortcuts | None:
    """Compare a classifier with guesses from the rows, and score it within one source and one view.

    Args:
        predictions: The images.
        positive: Number of the class looked for.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no image is both labelled and answered.
    """
    predictions = predictions.scored
    if not len(predictions) or not predictions.classes:
        return None
    classes = scored_classes(predictions, positive)
    strata = {trait: predictions.trait(trait) for trait in GUESSES if len(predictions.groups(trait)) > 1}
    within = [trait for trait in ("source", "view") if trait in strata]
    guesses = {trait: _guess(predictions, trait) for trait in strata}
    score = group_scores(predictions, positive)["auroc"]
    groups = {
        f"{trait} {name}": images
        for trait in within
        for name, images in find_groups(predictions, trait).items()
        if score.too_few(predictions, images) is None
    }

    ranked = {c: rank(predictions.probabilities[:, c], predictions.truths[:, c]) for c in classes}
    guessed = {
        (trait, c): rank(guess[:, c], predictions.truths[:, c]) for trait, guess in guesses.items() for c in classes
    }

    def table(weights: np.ndarray) -> dict[Key, np.ndarray]:
        numbers: dict[Key, np.ndarray] = {("model", "", ""): score.statistic(weights, np.ones(len(predictions), bool))}
        for c in classes:
            name, model, truth = predictions.classes[c], predictions.probabilities[:, c], predictions.truths[:, c]
            whole = numbers["class", "", name] = ranked[c].areas(weights)[0]
            for trait in strata:
                numbers["guess", trait, name] = guessed[trait, c].areas(weights)[0]
                numbers["lead", trait, name] = whole - numbers["guess", trait, name]
            for trait in within:
                numbers["within", trait, name] = stratified_auroc(weights, model, truth, strata[trait])
                numbers["loss", trait, name] = whole - numbers["within", trait, name]
        return numbers | {("group", name, ""): score.statistic(weights, images) for name, images in groups.items()}

    images: dict[Key, np.ndarray] = {("group", name, ""): members for name, members in groups.items()}
    for c in classes:
        name, known = predictions.classes[c], ~np.isnan(predictions.truths[:, c])
        images["class", "", name] = known
        images |= {("guess", trait, name): known for trait in strata}
        mixed = {trait: known & _mixed(predictions.truths[:, c], strata[trait]) for trait in within}
        images |= {(kind, trait, name): members for trait, members in mixed.items() for kind in ("within", "loss")}
    names = {"\0".join(key): key for key in table(np.ones((1, len(predictions))))}
    estimates = bootstrap_many(
        lambda weights: {"\0".join(key): values for key, values in table(weights).items()},
        groups=predictions.patients,
        images={"\0".join(key): members for key, members in images.items()},
        shares=[name for name, key in names.items() if key[0] not in ("lead", "loss")],
        resamples=resamples,
        seed=seed,
    )
    scores = {names[name]: estimate for name, estimate in estimates.items()}

    def part(kind: str) -> dict[str, dict[str, Estimate]]:
        by_trait: dict[str, dict[str, Estimate]] = {}
        for (of, trait, name), estimate in scores.items():
            if of == kind:
                by_trait.setdefault(trait, {})[name] = estimate
        return by_trait

    return Shortcuts(
        scores["model", "", ""],
        part("class")[""],
        part("guess"),
        part("lead"),
        part("within"),
        part("loss"),
        {trait: estimate[""] for trait, estimate in part("group").items()},
        {trait: _one_label(predictions, strata[trait]) for trait in within},
    )


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
        images.setdefault(("film", image) if patient is None else patient, []).append(image)
    truth = np.nan_to_num(predictions.truths, nan=0.5)
    by_truth = sorted(images.values(), key=lambda members: (tuple(truth[members].mean(0)), len(members), members))
    folds = np.empty(len(predictions), int)
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


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value
