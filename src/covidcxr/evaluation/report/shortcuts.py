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
from covidcxr.evaluation.predictions.predictions import Answers
from covidcxr.evaluation.report.headline import asked_classes, chief_scores, on_picture, plain, rank, stratified_auroc
from covidcxr.evaluation.report.subgroups import find_groups
from covidcxr.page import Picture, Section, Words

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

    def sections(self) -> list[Section]:
        """Return the parts of the report."""
        guessed = (
            "How well a label is guessed without an image, from how frequent it is among others of the same group."
        )
        within = "A model that knows where an image comes from, or how it was taken, gains nothing from it here."
        told: dict[str, Estimate] = {}
        inside: dict[str, Estimate] = {}
        for name in self._shown():
            told[f"this model, {name}"] = inside[f"all images, {name}"] = self.classes[name]
            told |= {f"the {trait} alone, {name}": found[name] for trait, found in self.guesses.items()}
            inside |= {f"within one {trait}, {name}": found[name] for trait, found in self.within.items()}
        inside |= {f"only {group}": one for group, one in self.by_group.items()}
        return [
            Section("What needs no image", guessed, [*map(Words, self._guesses_in_words()), *_picture(told)]),
            Section(
                "Within one source and one view",
                within,
                [
                    *(Words(text, warning="cannot be told" in text) for text in self._within_in_words()),
                    *_picture(inside),
                ],
            ),
        ]

    def _shown(self) -> list[str]:
        """Return the classes to draw: of many those that are guessed best."""
        best = {name: max([_or(one[name].value, 0) for one in self.guesses.values()] or [0]) for name in self.classes}
        kept = sorted(best, key=lambda name: -best[name])[:CLASSES_SHOWN]
        return [name for name in self.classes if name in kept]

    def _guesses_in_words(self) -> list[str]:
        texts = [
            f"{pure} of {groups} {trait} groups hold images of one label alone: there the {trait} is the label."
            for trait, (pure, groups) in self.one_label.items()
            if pure and groups > 1
        ]
        if not self.guesses:
            texts.append("Neither source, view, sex nor age differs between these images, as far as the rows tell.")
        return texts

    def _within_in_words(self) -> list[str]:
        texts = []
        for trait in ("source", "view"):
            found = self.within.get(trait)
            if found is None:
                texts.append(f"The {trait} is not told, or all images share it.")
            elif lacking := [name for name, one in found.items() if math.isnan(one.value)]:
                texts.append(
                    f"No {trait} holds images both with and without {', '.join(lacking)}: what this model scores for it "
                    f"within one {trait} cannot be told from these data."
                )
        return texts


def find_shortcuts(answers: Answers, *, positive: int | None, resamples: int = 1000, seed: int = 0) -> Shortcuts | None:
    """Compare a classifier with guesses from the rows, and score it within one source and one view.

    Args:
        answers: The images.
        positive: Number of the class looked for.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no image is both labelled and answered.
    """
    answers = answers.scored
    if not len(answers) or not answers.classes:
        return None
    asked = asked_classes(answers, positive)
    strata = {trait: answers.trait(trait) for trait in GUESSES if len(answers.groups(trait)) > 1}
    within = [trait for trait in ("source", "view") if trait in strata]
    guesses = {trait: _guess(answers, trait) for trait in strata}
    score = chief_scores(answers, positive)["auroc"]
    groups = {
        f"{trait} {name}": images
        for trait in within
        for name, images in find_groups(answers, trait).items()
        if score.too_few(answers, images) is None
    }

    ranked = {c: rank(answers.probabilities[:, c], answers.truths[:, c]) for c in asked}
    guessed = {(trait, c): rank(found[:, c], answers.truths[:, c]) for trait, found in guesses.items() for c in asked}

    def table(weights: np.ndarray) -> dict[Key, np.ndarray]:
        numbers: dict[Key, np.ndarray] = {("model", "", ""): score.statistic(weights, np.ones(len(answers), bool))}
        for c in asked:
            name, model, truth = answers.classes[c], answers.probabilities[:, c], answers.truths[:, c]
            whole = numbers["class", "", name] = ranked[c].areas(weights)[0]
            for trait in strata:
                numbers["guess", trait, name] = guessed[trait, c].areas(weights)[0]
                numbers["lead", trait, name] = whole - numbers["guess", trait, name]
            for trait in within:
                numbers["within", trait, name] = stratified_auroc(weights, model, truth, strata[trait])
                numbers["loss", trait, name] = whole - numbers["within", trait, name]
        return numbers | {("group", name, ""): score.statistic(weights, images) for name, images in groups.items()}

    images: dict[Key, np.ndarray] = {("group", name, ""): members for name, members in groups.items()}
    for c in asked:
        name, known = answers.classes[c], ~np.isnan(answers.truths[:, c])
        images["class", "", name] = known
        images |= {("guess", trait, name): known for trait in strata}
        mixed = {trait: known & _mixed(answers.truths[:, c], strata[trait]) for trait in within}
        images |= {(kind, trait, name): one for trait, one in mixed.items() for kind in ("within", "loss")}
    names = {"\0".join(key): key for key in table(np.ones((1, len(answers))))}
    estimates = bootstrap_many(
        lambda weights: {"\0".join(key): one for key, one in table(weights).items()},
        groups=answers.patients,
        images={"\0".join(key): one for key, one in images.items()},
        shares=[name for name, key in names.items() if key[0] not in ("lead", "loss")],
        resamples=resamples,
        seed=seed,
    )
    found = {names[name]: one for name, one in estimates.items()}

    def part(kind: str) -> dict[str, dict[str, Estimate]]:
        by_trait: dict[str, dict[str, Estimate]] = {}
        for (of, trait, name), one in found.items():
            if of == kind:
                by_trait.setdefault(trait, {})[name] = one
        return by_trait

    return Shortcuts(
        found["model", "", ""],
        part("class")[""],
        part("guess"),
        part("lead"),
        part("within"),
        part("loss"),
        {trait: one[""] for trait, one in part("group").items()},
        {trait: _one_label(answers, strata[trait]) for trait in within},
    )


def _guess(answers: Answers, trait: str) -> Float[np.ndarray, "images classes"]:
    """Return how frequent each class is among the images of other patients that share the trait."""
    values, folds = answers.trait(trait), _folds(answers)
    guess = np.full(answers.truths.shape, np.nan)
    for fold in range(FOLDS):
        for value in np.unique(values[folds == fold]):
            others = (folds != fold) & (values == value)
            learnt = answers.truths[others if others.any() else folds != fold]
            known = ~np.isnan(learnt)
            found = np.where(known, learnt, 0).sum(0)
            chances = np.divide(found, known.sum(0), out=np.full(len(found), np.nan), where=known.sum(0) > 0)
            guess[(folds == fold) & (values == value)] = chances
    return guess


def _folds(answers: Answers) -> np.ndarray:
    """Deal the patients out to folds, those with the same truths evenly, so that no fold is richer in a class."""
    images: dict[object, list[int]] = {}
    for image, patient in enumerate(answers.patients):
        images.setdefault(("film", image) if patient is None else patient, []).append(image)
    truth = np.nan_to_num(answers.truths, nan=0.5)
    by_truth = sorted(images.values(), key=lambda members: (tuple(truth[members].mean(0)), len(members), members))
    folds = np.empty(len(answers), int)
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


def _one_label(answers: Answers, strata: np.ndarray) -> tuple[int, int]:
    mixed = np.any([_mixed(truth, strata) for truth in answers.truths.T], axis=0)
    groups = np.unique(strata).tolist()
    return sum(not mixed[strata == group].any() for group in groups), len(groups)


def _picture(shown: Mapping[str, Estimate]) -> list[Picture]:
    shown = {name: one for name, one in shown.items() if not math.isnan(one.value)}
    if len(shown) < 2:
        return []
    shown = {on_picture(name): one for name, one in shown.items()}
    figure = plot_estimates(shown, title="AUROC of a class against the rest (0.5 = chance)", chance=0.5)
    return [as_picture(figure, "AUROC of the model beside that of guesses, or within groups")]


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value
