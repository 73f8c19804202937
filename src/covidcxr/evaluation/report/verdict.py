"""What the data support and what they do not, in one sentence and in a table of questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.scores import format_estimate, format_interval
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.report.masks import MaskScores
from covidcxr.evaluation.report.model_comparison import Controls
from covidcxr.evaluation.report.shortcuts import Shortcuts
from covidcxr.evaluation.report.sources import HeldOutSources
from covidcxr.page import Section, Table, sections_of
from covidcxr.utils.plain import count_of

__all__ = ["Evidence", "Finding", "Verdict", "judge", "weigh"]

FEW_PATIENTS = 50
"""Patients of the rarer kind below which a score counts as uncertain, however narrow its interval."""


CLEAR_LOSS = 0.05
"""A loss of AUROC that counts."""


BLIND = 0.6
"""AUROC from which the score of a blind probe counts."""


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
    background: Estimate | None = None
    lungs_add: Estimate | None = None
    held_out: Estimate | None = None
    held_out_loss: Estimate | None = None


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


@dataclass(frozen=True)
class Verdict:
    """The verdict.

    Attributes:
        sentence: The first thing to be read.
        findings: Behind it.

    Example:
        ```python
        from covidcxr.evaluation.report import Verdict

        assert Verdict("There is nothing to score.").to_dict()["findings"] == ()
        ```
    """

    sentence: str
    findings: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@sections_of.register
def _(verdict: Verdict) -> list[Section]:
    if not verdict.findings:
        return []
    supported = {"for": "yes", "against": "no", "doubt": "in part", "open": "not tested"}
    rows = [[finding.question, supported[finding.weight], finding.answer] for finding in verdict.findings]
    return [Section("What the data support", "", [Table(["question", "supported?", "result"], rows)])]


def judge(evidence: Evidence) -> Verdict:
    """Weigh the evidence for a classifier's score.

    Args:
        evidence: What was measured.

    Returns:
        The verdict.
    """
    findings = [
        _above_chance(evidence),
        *_without_lungs(evidence),
        *(_guessed(evidence.shortcuts) if evidence.shortcuts else []),
        *(_within(evidence.shortcuts) if evidence.shortcuts else []),
        _elsewhere(evidence),
    ]
    return Verdict(_sentence(evidence, findings), tuple(findings))


def _sentence(evidence: Evidence, findings: Sequence[Finding]) -> str:
    by_weight: Mapping[Weight, list[str]] = {
        weight: [finding.reason for finding in findings[1:] if finding.weight == weight]
        for weight in ("for", "against", "doubt", "open")
    }
    patients = f"{count_of(evidence.score.patients, 'patient')}" if evidence.patients_known else "unknown patients"
    basis = f"On these {count_of(evidence.images, 'image')} of {patients}"
    if findings[0].weight == "against":
        return f"{basis} it is not shown that this model {evidence.about} better than by chance: {findings[0].reason}."
    result = f"{basis} this model {evidence.about} with an AUROC of {_short(evidence.score)}"
    if findings[0].weight == "doubt":
        result += f", on few patients ({evidence.rarest} of the rarer kind)"
    if by_weight["against"]:
        return f"{result}, but the data do not show that it uses the lungs: {_joined(by_weight['against'][:2])}."
    if by_weight["doubt"]:
        return f"{result}; a part of this may come from elsewhere than the lungs: {_joined(by_weight['doubt'][:2])}."
    if by_weight["for"] and not by_weight["open"]:
        return f"{result}, and every control supports it: {_joined(by_weight['for'][:3])}."
    return f"{result}. Open is {_joined(by_weight['open'])}."


def _above_chance(evidence: Evidence) -> Finding:
    score, question = evidence.score, "Is the score better than chance?"
    answer = f"AUROC {_long(score)}; {count_of(evidence.rarest, 'patient')} of the rarer kind."
    if not evidence.patients_known:
        answer += " Patients are not known: every image counts as one, so the interval is too narrow."
    if math.isnan(score.value):
        return Finding(question, "The images are all of one kind: there is no AUROC.", "against", "all are of one kind")
    if math.isnan(score.low) or score.low <= 0.5:
        return Finding(question, answer, "against", f"its AUROC is {_short(score)}")
    return Finding(
        question,
        answer,
        "doubt" if evidence.rarest < FEW_PATIENTS else "for",
        f"AUROC {_short(score)}",
    )


def _without_lungs(evidence: Evidence) -> list[Finding]:
    findings = []
    if evidence.probe is not None:
        findings.append(_probe(*evidence.probe, evidence.score))
    if evidence.background is not None and evidence.lungs_add is not None:
        findings.append(_region(evidence.background, evidence.lungs_add))
    if not findings:
        answer = "No audit of the data and no model without lungs was given."
        findings.append(
            Finding(
                "Does it need the lungs?",
                answer,
                "open",
                "whether it uses the lungs (nothing that sees no lung was scored beside it)",
            )
        )
    return findings


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
        return Finding(
            question,
            answer,
            "against",
            f"with the lungs removed it scores {_short(background)}, as much",
        )
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
            Finding(
                question,
                answer,
                weight,
                f"the {trait} alone predicts {name} with an AUROC of {_short(guess)}",
            )
        ]
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


def _joined(reasons: Sequence[str]) -> str:
    return ", and ".join(reasons)


def weigh(predictions: PredictionTable, positive: int | None, parts: Mapping[str, Any]) -> Verdict:
    """Return the verdict on an evaluation.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.
        parts: Of the evaluation, by name; "shortcuts", "audit", "regions", "held_out" and "masks" count.

    Returns:
        The verdict.
    """
    shortcuts, masks = parts.get("shortcuts"), parts.get("masks")
    if not isinstance(shortcuts, Shortcuts):
        if isinstance(masks, MaskScores):
            return Verdict(_masks_in_words(masks))
        return Verdict("No image has both a label and a prediction: there is nothing to score.")
    scored = predictions.scored
    columns = range(len(predictions.classes)) if positive is None else [positive]
    kinds = [scored.truths[:, c] == kind for c in columns for kind in (1, 0)]
    rest = "the rest" if len(predictions.classes) != 2 or positive is None else predictions.classes[1 - positive]
    about = (
        f"separates {predictions.classes[positive]} from {rest}" if positive is not None else "separates the classes"
    )
    if len(predictions.classes) > 2 and predictions.exclusive:
        about = f"separates {', '.join(predictions.classes[:-1])} and {predictions.classes[-1]}"
    region, held = parts.get("regions"), parts.get("held_out")
    control = region.first if isinstance(region, Controls) else None
    loss = held.losses.get("macro_auroc") if isinstance(held, HeldOutSources) else None
    return judge(
        Evidence(
            about,
            shortcuts.model,
            len(scored),
            min(scored.number_of(kind) for kind in kinds),
            predictions.patients_known,
            shortcuts,
            _best_probe(parts.get("audit")),
            control.background if control else None,
            control.lungs_add if control else None,
            held.pooled.get("macro_auroc") if isinstance(held, HeldOutSources) else None,
            loss,
        )
    )


def _masks_in_words(masks: MaskScores) -> str:
    dice = {name.removeprefix("dice_"): estimate for name, estimate in masks.scores.items() if name.startswith("dice_")}
    if not dice:
        return "Masks were scored, but not by their Dice; see below."
    answer = "; ".join(
        f"{name.replace('_', ' ')} {format_estimate(estimate)} on {count_of(estimate.count, 'image')} of "
        f"{count_of(estimate.patients, 'patient')}"
        for name, estimate in dice.items()
    )
    return f"Predicted masks overlap with the true ones by a Dice of: {answer}. Images from elsewhere can do worse."


def _best_probe(audit: Any) -> tuple[str, Estimate] | None:
    """Return the probe of an audit of exclusive labels that predicts them best without seeing a lung."""
    targets = getattr(audit, "targets", ())
    blind = [probe for target in targets if target.name == "label" for probe in target.blind]
    best = max(blind, key=lambda probe: probe.auroc.value, default=None)
    return None if best is None else (best.probe.title, best.auroc)
