"""What the data support and what they do not, in one sentence and in a table of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.reliability import find_warning_signs
from covidcxr.evaluation.metrics.scores import LEAST, format_estimate
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.report.classes import ClassScores
from covidcxr.evaluation.report.copies import CopyScores
from covidcxr.evaluation.report.masks import MaskScores
from covidcxr.evaluation.report.model_comparison import Controls
from covidcxr.evaluation.report.questions import (
    Evidence,
    Finding,
    Weight,
    above_chance,
    ask_all,
    new_images,
    pairs_apart,
)
from covidcxr.evaluation.report.shortcuts import Shortcuts
from covidcxr.evaluation.report.sources import HeldOutSources
from covidcxr.evaluation.stress.ablation import Ablation
from covidcxr.page import Section, Table, sections_of
from covidcxr.utils.plain import count_of

__all__ = ["Evidence", "Finding", "Verdict", "judge", "weigh"]

_short = partial(format_estimate, digits=2)


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
    first = [above_chance(evidence), *pairs_apart(evidence), *new_images(evidence)]
    others = ask_all(evidence)
    return Verdict(_sentence(evidence, first[0], others), (*first, *others))


def _sentence(evidence: Evidence, chance: Finding, others: Sequence[Finding]) -> str:
    patients = f"{count_of(evidence.score.patients, 'patient')}" if evidence.patients_known else "unknown patients"
    alike = f", all of {' and '.join(evidence.alike)}," if evidence.alike else ""
    seen = evidence.copies.trained_in_words if evidence.copies is not None else ""
    seen = f"{'' if alike else ','} {seen}," if seen else ""
    basis = f"On these {count_of(evidence.images, 'image')} of {patients}{alike}{seen}"
    if evidence.collapsed is not None and not evidence.score.low > 0.5:
        return f"{basis} this model tells nothing: {evidence.collapsed[0].lower()}{evidence.collapsed[1:]}"
    if evidence.rarest >= LEAST and evidence.score.high < 0.5:
        return (
            f"{basis} this model is far below chance, with an AUROC of {_short(evidence.score)}: are the columns of "
            f"the classes swapped, or is another class the positive one?"
        )
    if chance.weight == "against":
        return f"{basis} it is not shown that this model {evidence.about} better than by chance: {chance.reason}."
    return _with_doubts(evidence, f"{basis} {_result(evidence, chance)}", others)


def _result(evidence: Evidence, chance: Finding) -> str:
    """Return the score with what bounds it: few patients, and the worst pair of classes."""
    mean = "a mean AUROC" if evidence.pairs else "an AUROC"
    result = f"this model {evidence.about} with {mean} of {_short(evidence.score)}"
    if chance.weight == "doubt":
        result += f", on few patients ({evidence.rarest} of the rarer kind)"
    result += "".join(f" ({finding.reason})" for finding in pairs_apart(evidence))
    same = ", though its most probable class is the same for all images"
    return result if evidence.collapsed is None else result + same


def _with_doubts(evidence: Evidence, result: str, others: Sequence[Finding]) -> str:
    """Add to the result what speaks against it, else what it may come from, else what is open."""
    of: Mapping[Weight, list[str]] = {
        weight: [finding.reason for finding in others if finding.weight == weight]
        for weight in ("for", "against", "doubt", "open")
    }
    needed = evidence.ablation is not None and others[0].weight == "for"  # the chief control comes first
    lungs = f"; {others[0].reason}" if needed else ""
    for finding in new_images(evidence):
        if finding.weight in ("against", "doubt"):
            return f"{result}, but {finding.reason}{lungs if needed else _rest(of['against'])}."
    if of["against"] and needed:
        return f"{result}{lungs}. But its score may be due to more than that: {_joined(of['against'][:2])}."
    if of["against"]:
        return f"{result}, but the data do not show that it uses the lungs: {_joined(of['against'][:2])}."
    if of["doubt"]:
        return f"{result}{lungs}; a part of this may come from elsewhere than the lungs: {_joined(of['doubt'][:2])}."
    if of["for"] and not of["open"]:
        return f"{result}, and every control supports it: {_joined(of['for'][:3])}."
    return f"{result}{lungs}. Open is {_joined(of['open'])}."


def _rest(against: Sequence[str]) -> str:
    return f"; nor do the data show that it uses the lungs: {against[0]}" if against else ""


def _joined(reasons: Sequence[str]) -> str:
    return ", and ".join(reasons)


def weigh(predictions: PredictionTable, positive: int | None, parts: Mapping[str, Any]) -> Verdict:
    """Return the verdict on an evaluation.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.
        parts: Of the evaluation, by name; "classes", "ablation", "copies", "shortcuts", "audit", "regions", "held_out"
            and "masks" count.

    Returns:
        The verdict.
    """
    shortcuts, masks = parts.get("shortcuts"), parts.get("masks")
    if not isinstance(shortcuts, Shortcuts):
        if isinstance(masks, MaskScores):
            return Verdict(_masks_in_words(masks, int(predictions.trained.sum()), len(predictions)))
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
    ablated, copies, classes = (parts.get(name) for name in ("ablation", "copies", "classes"))
    return judge(
        Evidence(
            about,
            shortcuts.model,
            len(scored),
            min(scored.number_of(kind) for kind in kinds),
            predictions.patients_known,
            shortcuts,
            _best_probe(parts.get("audit")),
            ablated if isinstance(ablated, Ablation) else None,
            copies if isinstance(copies, CopyScores) else None,
            classes.pairs if isinstance(classes, ClassScores) else {},
            _alike(scored),
            next((sign for sign in find_warning_signs(scored) if "collapsed" in sign), None),
            control.background if control else None,
            control.lungs_add if control else None,
            held.pooled.get("macro_auroc") if isinstance(held, HeldOutSources) else None,
            loss,
        )
    )


def _alike(predictions: PredictionTable) -> tuple[str, ...]:
    """Name the source and the view that all images share, where they are stated."""
    groups = {trait: list(predictions.groups(trait)) for trait in ("source", "view")}
    return tuple(f"the {trait} {names[0]}" for trait, names in groups.items() if len(names) == 1)


def _masks_in_words(masks: MaskScores, trained: int, images: int) -> str:
    dice = {name.removeprefix("dice_"): estimate for name, estimate in masks.scores.items() if name.startswith("dice_")}
    if not dice:
        return "Masks were scored, but not by their Dice; see below."
    answer = "; ".join(
        f"{name.replace('_', ' ')} {format_estimate(estimate)} on {count_of(estimate.count, 'image')} of "
        f"{count_of(estimate.patients, 'patient')}"
        for name, estimate in dice.items()
    )
    seen = f"{trained:,} of the {count_of(images, 'image')} are training images. " if trained else ""
    return (
        f"{seen}Predicted masks overlap with the true ones by a Dice of: {answer}. Images from elsewhere can do worse."
    )


def _best_probe(audit: Any) -> tuple[str, Estimate] | None:
    """Return the probe of an audit of exclusive labels that predicts them best without seeing a lung."""
    targets = getattr(audit, "targets", ())
    blind = [probe for target in targets if target.name == "label" for probe in target.blind]
    best = max(blind, key=lambda probe: probe.auroc.value, default=None)
    return None if best is None else (best.probe.title, best.auroc)
