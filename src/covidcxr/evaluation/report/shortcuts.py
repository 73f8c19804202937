"""What the rows alone tell about shortcuts: does a guess from source or view do as well, and what is left inside?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from covidcxr.evaluation.answers import Answers
from covidcxr.evaluation.intervals import Estimate, bootstrap_many
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.report.chief import LEAST, chief_scores, mean_auroc, plain, stratified_auroc
from covidcxr.evaluation.report.subgroups import find_groups
from covidcxr.page import Block, Section, Words

__all__ = ["Shortcuts", "find_shortcuts"]

GUESSES = ("source", "view", "sex", "age")


@dataclass(frozen=True)
class Shortcuts:
    """The model's AUROC beside what needs no film.

    Attributes:
        model: AUROC of the model on all films; the mean over the classes, each against the rest.
        guesses: By trait: AUROC of a guess from this trait alone, learnt on these very films.
        leads: By trait: the model's AUROC less that of the guess, on the same resamples.
        within: By trait ("source", "view"): AUROC among films that share the trait: the share of pairs, one with the
            class and one without, that are ranked right. NaN where no group holds both.
        losses: By trait: the AUROC of all pairs less that within the trait.
        by_group: By "trait group": the model's AUROC in each group with ten patients or more of both kinds.
        one_label: By trait: how many groups hold films of one label alone, and how many groups there are.
    """

    model: Estimate
    guesses: Mapping[str, Estimate]
    leads: Mapping[str, Estimate]
    within: Mapping[str, Estimate]
    losses: Mapping[str, Estimate]
    by_group: Mapping[str, Estimate]
    one_label: Mapping[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}

    def sections(self) -> list[Section]:
        """Return the part of the report."""
        told = {"this model": self.model}
        told |= {f"a guess from the {trait} alone": one for trait, one in self.guesses.items()}
        inside = {"all films": self.model}
        inside |= {f"within one {trait}": one for trait, one in self.within.items() if not math.isnan(one.value)}
        inside |= {f"only {group}": one for group, one in self.by_group.items()}
        guess_blocks: list[Block] = [Words(text) for text in self._guesses_in_words()]
        if len(told) > 1:
            figure = plot_estimates(told, title="AUROC (0.5 = chance)", chance=0.5)
            guess_blocks.append(as_picture(figure, "AUROC of the model and of guesses that see no film"))
        within_blocks: list[Block] = [Words(text, warning="cannot be told" in text) for text in self._within_in_words()]
        if len(inside) > 1:
            figure = plot_estimates(inside, title="AUROC of this model (0.5 = chance)", chance=0.5)
            within_blocks.append(as_picture(figure, "AUROC of the model within one source and within one view"))
        return [
            Section("What needs no film", "How well the label can be guessed without looking.", guess_blocks),
            Section(
                "Within one source and one view",
                "A model that knows where a film comes from, or how it was taken, gains nothing from it here.",
                within_blocks,
            ),
        ]

    def _guesses_in_words(self) -> list[str]:
        texts = []
        for trait, (pure, groups) in self.one_label.items():
            if pure and groups > 1:
                texts.append(
                    f"{pure} of {groups} {trait} groups hold films of one label alone: there the {trait} is the label."
                )
        if not self.guesses:
            texts.append("Neither source, view, sex nor age differs between these films, as far as the rows tell.")
        return texts

    def _within_in_words(self) -> list[str]:
        texts = []
        for trait in ("source", "view"):
            one = self.within.get(trait)
            if one is None:
                texts.append(f"The {trait} is not told, or all films share it.")
            elif math.isnan(one.value):
                texts.append(
                    f"No {trait} holds films of both kinds: what this model scores within one {trait} cannot be told "
                    f"from these data."
                )
        return texts


def find_shortcuts(answers: Answers, *, positive: int | None, resamples: int = 1000, seed: int = 0) -> Shortcuts | None:
    """Compare a classifier with guesses from the rows, and score it within one source and one view.

    Args:
        answers: The films.
        positive: Number of the class looked for.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no film is both labelled and answered.
    """
    answers = answers.scored
    if not len(answers) or not answers.classes:
        return None
    asked = answers.probabilities, answers.truths
    strata = {trait: answers.trait(trait) for trait in GUESSES if len(answers.groups(trait)) > 1}
    guessed = {trait: _guess(answers, trait) for trait in strata}
    everyone = np.ones(len(answers), bool)
    score = chief_scores(answers, positive)["auroc"]
    groups = {
        f"{trait} {name}": films
        for trait in ("source", "view")
        if trait in strata
        for name, films in find_groups(answers, trait).items()
        if score.too_few(answers, films) is None
    }

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        model = mean_auroc(weights, *asked)
        numbers = {"model": model}
        for trait, scores in guessed.items():
            numbers[f"guess {trait}"] = mean_auroc(weights, scores, answers.truths)
            numbers[f"lead {trait}"] = model - numbers[f"guess {trait}"]
        for trait in strata:
            if trait in ("source", "view"):
                numbers[f"within {trait}"] = stratified_auroc(weights, *asked, strata[trait])
                numbers[f"loss {trait}"] = model - numbers[f"within {trait}"]
        return numbers | {f"group {name}": score.statistic(weights, films) for name, films in groups.items()}

    films = {f"group {name}": members for name, members in groups.items()}
    films |= {f"{kind} {t}": _mixed(answers, strata[t]) for t in strata for kind in ("within", "loss")}
    estimates = bootstrap_many(table, groups=answers.patients, films=films, resamples=resamples, seed=seed)

    def part(kind: str) -> dict[str, Estimate]:
        return {name.removeprefix(f"{kind} "): one for name, one in estimates.items() if name.startswith(f"{kind} ")}

    model = estimates["model"]
    return Shortcuts(
        Estimate(model.value, model.low, model.high, int(everyone.sum()), answers.number_of()),
        part("guess"),
        part("lead"),
        part("within"),
        part("loss"),
        part("group"),
        {trait: _one_label(answers, trait) for trait in ("source", "view") if trait in strata},
    )


def _guess(answers: Answers, trait: str) -> Float[np.ndarray, "films classes"]:
    """Return how frequent each class is in a film's group; groups of few patients, which tell little, are one."""
    groups = answers.groups(trait)
    small = [name for name, films in groups.items() if answers.number_of(films) < LEAST]
    merged = {name: films for name, films in groups.items() if name not in small}
    if small:
        merged["the small ones"] = np.any([groups[name] for name in small], axis=0)
    guess = np.full(answers.truths.shape, np.nan)
    for films in merged.values():
        known = ~np.isnan(answers.truths[films])
        found = np.where(known, answers.truths[films], 0).sum(0)
        guess[films] = np.divide(found, known.sum(0), out=np.full(len(found), np.nan), where=known.sum(0) > 0)
    return guess


def _mixed(answers: Answers, strata: np.ndarray) -> np.ndarray:
    """Return the films whose group holds films with and without some class."""
    mixed = np.zeros(len(answers), bool)
    for stratum in np.unique(strata):
        films = strata == stratum
        truths = answers.truths[films]
        mixed[films] = bool(((truths == 1).any(0) & (truths == 0).any(0)).any())
    return mixed


def _one_label(answers: Answers, trait: str) -> tuple[int, int]:
    groups = answers.groups(trait)
    pure = [name for name, films in groups.items() if not _mixed(answers.take(films), np.zeros(films.sum())).any()]
    return len(pure), len(groups)
