"""The questions behind a verdict: what the evidence says on each, and how that weighs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.scores import LEAST, format_estimate, format_interval
from covidcxr.evaluation.report.copies import CopyScores
from covidcxr.evaluation.report.shortcuts import Shortcuts
from covidcxr.evaluation.stress.ablation import Ablation
from covidcxr.utils.plain import count_of

__all__ = ["Evidence", "Finding", "above_chance", "ask_all", "new_images", "pairs_apart"]

FEW_PATIENTS = 50
"""Patients of the rarer kind below which a score counts as uncertain, however narrow its interval."""


CLEAR_LOSS = 0.05
"""A loss of AUROC that counts."""


BLIND = 0.6
"""AUROC from which the score of a blind probe counts."""


PERFECT = 0.99
"""AUROC from which a score is doubted for itself: in radiology it is more often a leak than a skill."""


_short = partial(format_estimate, digits=2)
_long = partial(format_estimate, digits=2, counts=True)

Weight: TypeAlias = Literal["for", "against", "doubt", "open"]


@dataclass(frozen=True)
class Evidence:
    """All that bears on the verdict; what was not measured is None.

    Attributes:
        about: What the model does, in words that follow its name: "separates covid19 from normal".
        score: Its AUROC on all images.
        images: Number of images.
        rarest: Patients of the rarer kind: with, or without, the positive class.
        patients_known: Whether patients are known.
        shortcuts: Shortcuts that the rows alone show.
        probe: Name and AUROC of the best probe that sees no lung.
        ablation: The trained model on images without their lungs, and on lungs alone: the chief control.
        copies: With and without the images that have a copy in training.
        pairs: AUROC of each pair of exclusive classes, where there are more than two.
        alike: What all images share: "the source nih", "the view PA".
        collapsed: What shows that the model has learnt nothing: a sentence; None = it does not look so.
        background: AUROC of the same model trained and tested without the lungs.
        lungs_add: AUROC on the whole image less that without the lungs, paired.
        held_out: AUROC on sources that were never trained on.
        held_out_loss: AUROC of the mixed test less that on held-out sources, paired; None = no mixed test is given.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.report import Evidence, judge

        score = Estimate(0.9, 0.85, 0.95, count=200, patients=200)
        verdict = judge(Evidence("separates covid19 from normal", score, images=200, rarest=80))
        assert verdict.sentence.startswith("On these 200 images")
        ```
    """

    about: str
    score: Estimate
    images: int
    rarest: int
    patients_known: bool = True
    shortcuts: Shortcuts | None = None
    probe: tuple[str, Estimate] | None = None
    ablation: Ablation | None = None
    copies: CopyScores | None = None
    pairs: Mapping[str, Estimate] = field(default_factory=dict)
    alike: tuple[str, ...] = ()
    collapsed: str | None = None
    background: Estimate | None = None
    lungs_add: Estimate | None = None
    held_out: Estimate | None = None
    held_out_loss: Estimate | None = None

    @property
    def worst_pair(self) -> tuple[str, Estimate] | None:
        """The pair of classes that is told apart worst; None = there is none."""
        known = {name: pair for name, pair in self.pairs.items() if not math.isnan(pair.low)}
        return min(known.items(), key=lambda entry: entry[1].value) if known else None


@dataclass(frozen=True)
class Finding:
    """The evidence on one question.

    Attributes:
        question: The question.
        answer: What these data show.
        weight: "for" or "against" the score meaning what it seems to, "doubt", or "open" = not tested.
        reason: The answer as a clause, for the sentence.

    Example:
        ```python
        from covidcxr.evaluation.report.verdict import Finding

        finding = Finding("Is the score better than chance?", "AUROC 0.90", "for", "AUROC 0.90")
        assert finding.weight == "for"
        ```
    """

    question: str
    answer: str
    weight: Weight
    reason: str


def ask_all(evidence: Evidence) -> list[Finding]:
    """Answer what bears on the lungs and on other places, the chief control first.

    Args:
        evidence: What was measured.

    Returns:
        The findings.
    """
    return [
        *_without_lungs(evidence),
        *(_guessed(evidence.shortcuts) if evidence.shortcuts else []),
        *(_within(evidence.shortcuts) if evidence.shortcuts else []),
        *_perfect(evidence.score),
        _elsewhere(evidence),
    ]


def above_chance(evidence: Evidence) -> Finding:
    """Say whether the score is better than chance, and rests on enough patients.

    Args:
        evidence: What was measured.

    Returns:
        The finding.
    """
    score, question = evidence.score, "Is the score better than chance?"
    answer = f"AUROC {_long(score)}; {count_of(evidence.rarest, 'patient')} of the rarer kind."
    if not evidence.patients_known:
        answer += " Patients are not known: every image counts as one, so the interval is too narrow."
    if math.isnan(score.value):
        return Finding(question, "The images are all of one kind: there is no AUROC.", "against", "all are of one kind")
    if evidence.rarest < LEAST:
        reason = f"there are {count_of(evidence.rarest, 'patient')} of the rarer kind, and no interval of so few holds"
        return Finding(question, answer, "against", reason)
    if math.isnan(score.low) or score.low <= 0.5:
        return Finding(question, answer, "against", f"its AUROC is {_short(score)}")
    return Finding(question, answer, "doubt" if evidence.rarest < FEW_PATIENTS else "for", f"AUROC {_short(score)}")


def _without_lungs(evidence: Evidence) -> list[Finding]:
    findings = [] if evidence.ablation is None else [_ablated(evidence.ablation)]
    if evidence.probe is not None:
        findings.append(_probe(*evidence.probe, evidence.score))
    if evidence.background is not None and evidence.lungs_add is not None:
        findings.append(_region(evidence.background, evidence.lungs_add))
    if not findings:
        answer = "No image was shown without its lungs, no audit of the data and no model without lungs was given."
        findings.append(
            Finding(
                "Does it need the lungs?",
                answer,
                "open",
                "whether it uses the lungs (nothing that sees no lung was scored beside it)",
            )
        )
    return findings


def _ablated(ablation: Ablation) -> Finding:
    """Weigh what the model scores with the lungs painted out, and on the lungs alone."""
    of = ablation.overall
    whole, without, alone = of["whole"], of["without_lungs"], of["lungs_only"]
    question = "Does it need the lungs, and are they enough?"
    answer = (
        f"On {count_of(ablation.images, 'image')} of {count_of(ablation.patients, 'patient')} it scores AUROC "
        f"{_short(whole)}; with the lungs painted out {_short(without)}; on the lungs alone {_short(alone)}. The lungs "
        f"alone less all but the lungs: {format_estimate(of['lungs_lead'], signed=True)}."
    )
    both = f"with the lungs painted out it scores {_short(without)}, on the lungs alone {_short(alone)}"
    unknown = Finding(question, answer, "open", "whether it needs the lungs (too few images to show it)")
    if math.isnan(whole.low) or whole.low <= 0.5:
        return unknown
    if of["lungs_lead"].high < 0 or (without.low > 0.5 and not of["needs_lungs"].low > 0):
        return Finding(question, answer, "against", both)
    if without.low > 0.5 and without.value >= BLIND:
        return Finding(question, answer, "doubt", f"with the lungs painted out it still scores {_short(without)}")
    if not alone.low > 0.5:
        reason = f"on the lungs alone it scores {_short(alone)}, not better than chance"
        return Finding(question, answer, "doubt", reason)
    return Finding(question, answer, "for", f"it needs the lungs: {both}") if of["needs_lungs"].low > 0 else unknown


def pairs_apart(evidence: Evidence) -> list[Finding]:
    """Say whether the worst pair of classes is told apart: a mean over classes can hide that it is not.

    Args:
        evidence: What was measured.

    Returns:
        One finding, or none where there are two classes or findings.
    """
    if evidence.worst_pair is None:
        return []
    name, pair = evidence.worst_pair
    answer = f"The worst pair, {name}, is told apart with an AUROC of {_long(pair)}."
    question, words = "Are all pairs of classes told apart?", f"the worst pair is {name}, {_short(pair)}"
    if pair.low > 0.5:
        return [Finding(question, answer, "for", words)]
    return [
        Finding(question, answer, "against", f"{words}, {'below' if pair.high < 0.5 else 'not better than'} chance")
    ]


def new_images(evidence: Evidence) -> list[Finding]:
    """Say whether training images were scored, or copies of them, and what the score is without these.

    Args:
        evidence: What was measured.

    Returns:
        A finding on training images, if there are any, and one on copies, if somebody searched for them.
    """
    copies = evidence.copies
    if copies is None:
        return []
    new = copies.scores.get("new", copies.scores["all"])
    findings = []
    if copies.trained:
        answer = f"{copies.summary} A model that learnt from them knows their labels."
        unseen = f"neither are training images nor have a copy {copies.place}"
        unseen = unseen if copies.copied else "are no training images"
        reason = f"on the {count_of(copies.new, 'image')} that {unseen} it scores {_short(new)}"
        if copies.new and copies.loss is not None:
            change = format_estimate(copies.loss, signed=True)
            answer += f" On the other images it scores AUROC {_long(new)}; all images less these: {change}."
        else:
            reason = "nothing shows what it scores on images that training has not seen"
        known = copies.new and new.low > 0.5
        findings.append(Finding("Were training images left out?", answer, "doubt" if known else "against", reason))
    if copies.searched:
        findings.append(_copied(copies, new))
    return findings


def _copied(copies: CopyScores, new: Estimate) -> Finding:
    question, words = f"Does it hold on images without a copy {copies.place}?", copies.copied_in_words
    if not copies.copied or copies.loss is None:
        return Finding(question, f"{words.capitalize()}.", "for", words)
    change = format_estimate(copies.loss, signed=True)
    answer = f"{words}; without them it scores AUROC {_long(new)}; all images less these: {change}."
    if math.isnan(new.value):
        return Finding(question, answer, "against", f"{words}, and the others cannot be scored")
    if math.isnan(new.low) or new.low <= 0.5:
        return Finding(question, answer, "against", f"{words}, and on the others it scores {_short(new)}")
    if copies.loss.low > 0 and copies.loss.value > CLEAR_LOSS:
        return Finding(question, answer, "doubt", f"{words}, and on the others it falls to {_short(new)}")
    return Finding(question, answer, "for", f"{words}, and on the others it scores {_short(new)}")


def _perfect(score: Estimate) -> list[Finding]:
    if not score.value >= PERFECT:
        return []
    question = "Is a score so near to 1 plausible?"
    answer = (
        f"AUROC {_short(score)}. Readers and models of chest radiographs seldom come near it: look for copies in "
        f"training, for labels written into the images, and for classes that come from different places."
    )
    return [Finding(question, answer, "doubt", "a score so near to 1 is more often a leak than a skill")]


def _probe(name: str, probe: Estimate, score: Estimate) -> Finding:
    question = "Is it better than what sees no lung?"
    answer = f"The best blind probe of the audit, {name}, scores AUROC {_long(probe)}; the model {_short(score)}."
    if probe.low > 0.5 and probe.value >= score.low:
        return Finding(question, answer, "against", f"a probe that sees no lung ({name}) scores {_short(probe)}")
    if probe.value >= score.low or (probe.low > 0.5 and probe.value >= BLIND):
        return Finding(question, answer, "doubt", f"a probe that sees no lung ({name}) scores {_short(probe)}")
    return Finding(question, answer, "for", "no blind probe comes near it")


def _region(background: Estimate, lungs_add: Estimate) -> Finding:
    question = "Is it worse without the lungs?"
    answer = (
        f"The same model on images with the lungs removed scores AUROC {_long(background)}; the whole image adds "
        f"{format_estimate(lungs_add, signed=True)}."
    )
    if not lungs_add.low > 0:
        return Finding(question, answer, "against", f"with the lungs removed it scores {_short(background)}, as much")
    if background.low > 0.5 and background.value >= BLIND:
        return Finding(question, answer, "doubt", f"with the lungs removed it still scores {_short(background)}")
    return Finding(question, answer, "for", f"with the lungs removed it falls to {_short(background)}")


def _guessed(shortcuts: Shortcuts) -> list[Finding]:
    guesses_of = {
        (trait, name): guess
        for trait, guesses in shortcuts.guesses.items()
        for name, guess in guesses.items()
        if not math.isnan(guess.value)
    }
    if not guesses_of:
        return []
    (trait, name), guess = max(guesses_of.items(), key=lambda entry: entry[1].value)
    lead = shortcuts.leads[trait][name]
    question = "Is it better than a guess from source, view, sex or age?"
    answer = (
        f"The {trait} alone predicts {name} with an AUROC of {_long(guess)}; the model is {lead.value:+.3f} from it."
    )
    pure, groups = shortcuts.one_label.get(trait, (0, 0))
    if pure and pure == groups:
        return [Finding(question, answer, "against", f"the {trait} alone decides the label of every image")]
    if guess.low > 0.5 and guess.value >= BLIND:
        weight: Weight = "doubt" if lead.low > 0 else "against"
        return [
            Finding(question, answer, weight, f"the {trait} alone predicts {name} with an AUROC of {_short(guess)}")
        ]
    if guess.value >= BLIND and not lead.low > 0:
        reason = f"the {trait} alone may predict {name} as well as the model; these are too few images to tell"
        return [Finding(question, answer, "doubt", reason)]
    return [Finding(question, answer, "for", "source, view, sex and age do not predict the label")]


def _within(shortcuts: Shortcuts) -> list[Finding]:
    findings = []
    for trait, by_class in shortcuts.within.items():
        question = f"Does it hold among images of one {trait}?"
        known = {name: estimate for name, estimate in by_class.items() if not math.isnan(estimate.value)}
        lacking = [name for name in by_class if name not in known]
        answers = [
            f"{name} {_long(estimate)}, {-shortcuts.losses[trait][name].value:+.3f} from all images"
            for name, estimate in known.items()
        ]
        answers += [f"no {trait} holds images both with and without {', '.join(lacking)}"] if lacking else []
        words = f"AUROC among images of one {trait}: {'; '.join(answers)}."
        if lacking:
            reason = f"no {trait} holds images both with and without {', '.join(lacking)}"
            findings.append(Finding(question, words, "against", reason))
            continue
        name, worst = min(known.items(), key=lambda entry: entry[1].value - shortcuts.classes[entry[0]].value)
        loss = shortcuts.losses[trait][name]
        if math.isnan(worst.low) or worst.low <= 0.5:
            reason = f"among images of one {trait} it is not shown to be better than chance ({name} {_short(worst)})"
            findings.append(Finding(question, words, "against", reason))
        elif loss.low > 0 and loss.value > CLEAR_LOSS:
            reason = f"among images of one {trait} it falls to {_short(worst)} ({name})"
            findings.append(Finding(question, words, "doubt", reason))
        else:
            findings.append(Finding(question, words, "for", f"it holds among images of one {trait}"))
    return findings


def _elsewhere(evidence: Evidence) -> Finding:
    question = "Does it hold on a source that it never saw?"
    score, loss = evidence.held_out, evidence.held_out_loss
    if score is None:
        return Finding(
            question,
            "No source was held out of training.",
            "open",
            "whether it holds elsewhere (no source was held out)",
        )
    answer = f"AUROC {_long(score)} on held-out sources"
    if loss is not None:
        change = format_interval(-loss.value, -loss.high, -loss.low, signed=True)
        answer += f", {change} from the mixed test on the same images"
    answer += "."
    if math.isnan(score.low) or score.low <= 0.5:
        return Finding(question, answer, "against", f"on sources that it never saw it scores {_short(score)}")
    if loss is not None and loss.low > 0 and loss.value > CLEAR_LOSS:
        return Finding(question, answer, "doubt", f"on sources that it never saw it falls to {_short(score)}")
    return Finding(question, answer, "for", f"on sources that it never saw it scores {_short(score)}")
