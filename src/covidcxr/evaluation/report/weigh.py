"""The evidence that the parts of an evaluation hold, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covidcxr.evaluation.answers import Answers
from covidcxr.evaluation.intervals import Estimate
from covidcxr.evaluation.report.held_out import HeldOutSources
from covidcxr.evaluation.report.mask_scores import MaskScores
from covidcxr.evaluation.report.shortcuts import Shortcuts
from covidcxr.evaluation.report.verdict import Evidence, Verdict, judge
from covidcxr.evaluation.report.versus import Controls

__all__ = ["weigh"]


def weigh(answers: Answers, positive: int | None, parts: Mapping[str, Any]) -> Verdict:
    """Return the verdict on an evaluation.

    Args:
        answers: The films.
        positive: Number of the class looked for.
        parts: Of the evaluation, by name; "shortcuts", "audit", "regions", "held_out" and "masks" count.
    """
    shortcuts, masks = parts.get("shortcuts"), parts.get("masks")
    if not isinstance(shortcuts, Shortcuts):
        if isinstance(masks, MaskScores):
            return Verdict(_masks_in_words(masks))
        return Verdict("No film has both a label and an answer: there is nothing to score.")
    scored = answers.scored
    columns = range(len(answers.classes)) if positive is None else [positive]
    kinds = [scored.truths[:, c] == kind for c in columns for kind in (1, 0)]
    rest = "the rest" if len(answers.classes) != 2 or positive is None else answers.classes[1 - positive]
    about = f"tells {answers.classes[positive]} from {rest}" if positive is not None else "tells the classes apart"
    if len(answers.classes) > 2 and answers.exclusive:
        about = f"tells {', '.join(answers.classes[:-1])} and {answers.classes[-1]} apart"
    region, held = parts.get("regions"), parts.get("held_out")
    control = region.first if isinstance(region, Controls) else None
    loss = held.losses.get("macro_auroc") if isinstance(held, HeldOutSources) else None
    return judge(
        Evidence(
            about,
            shortcuts.model,
            len(scored),
            min(scored.number_of(kind) for kind in kinds),
            answers.patients_known,
            shortcuts,
            _best_probe(parts.get("audit")),
            control.background if control else None,
            control.lungs_add if control else None,
            held.pooled.get("macro_auroc") if isinstance(held, HeldOutSources) else None,
            loss,
        )
    )


def _masks_in_words(masks: MaskScores) -> str:
    dice = {name.removeprefix("dice_"): one for name, one in masks.scores.items() if name.startswith("dice_")}
    if not dice:
        return "Masks were scored, but not by their Dice; see below."
    told = "; ".join(
        f"{name.replace('_', ' ')} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] on {one.count} films of "
        f"{one.patients} patients"
        for name, one in dice.items()
    )
    return f"Drawn masks overlap with the true ones by a Dice of: {told}. Films from elsewhere can do worse."


def _best_probe(audit: Any) -> tuple[str, Estimate] | None:
    """Return the probe of an audit of exclusive labels that tells them best without seeing a lung."""
    questions = getattr(audit, "questions", ())
    blind = [one for question in questions if question.name == "label" for one in question.probes if one.probe.blind]
    best = max(blind, key=lambda one: one.auroc.value, default=None)
    return None if best is None else (best.probe.title, best.auroc)
