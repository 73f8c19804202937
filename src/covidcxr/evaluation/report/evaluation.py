"""An evaluation from rows, put together and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

from covidcxr import aliases
from covidcxr.aliases import old_arguments
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.reliability import Reliability, measure_reliability
from covidcxr.evaluation.metrics.scores import format_estimate, headline, title
from covidcxr.evaluation.predictions.predictions import PredictionTable, find_positive
from covidcxr.evaluation.predictions.run_pipeline import ImageLookup
from covidcxr.evaluation.report.abstention import score_abstention
from covidcxr.evaluation.report.agreement import score_agreement
from covidcxr.evaluation.report.classes import ClassScores, score_classes, score_point
from covidcxr.evaluation.report.errors import ErrorAnalysis, draw_gallery, find_errors
from covidcxr.evaluation.report.headline import LEAST
from covidcxr.evaluation.report.mask_scores import MaskScores, score_masks
from covidcxr.evaluation.report.provenance import Provenance, hash_rows
from covidcxr.evaluation.report.shortcuts import find_shortcuts
from covidcxr.evaluation.report.subgroups import score_groups
from covidcxr.evaluation.report.verdict import Verdict, weigh

__all__ = ["Evaluation", "Part", "evaluate_rows"]

__getattr__ = partial(aliases.find, __name__)

ORDER = (
    "classes", "masks", "agreement", "reliability", "answers", "point", "regions", "held_out", "compared", "shortcuts",
    "groups", "mistakes", "gallery", "attention", "robustness", "learning", "audit", "lineage",
)  # fmt: skip
"""How the parts follow one another; others stand before the last."""


@runtime_checkable
class Part(Protocol):
    """A part of a report: a result with its numbers, which `covidcxr.page.sections_of` can show."""

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a model scores, for whom, on what, and what that means.

    Attributes:
        name: Names the model or the run.
        predictions: The images.
        positive: The class whose sensitivity and specificity count; None = not said.
        verdict: In a sentence, and in a table of questions.
        parts: By name, in the order of the page; each has `to_dict`, and `covidcxr.page.sections_of` shows it.
        notes: What the reader must know of the rows.
    """

    name: str
    predictions: PredictionTable = field(repr=False)
    positive: str | None
    verdict: Verdict
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> PredictionTable:
        """The images, by the name of 0.1."""
        return self.predictions

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The few figures of the first screen."""
        predictions = self.predictions
        patients = str(predictions.number_of()) if predictions.patients_known else "not known"
        facts = [("images", str(len(predictions))), ("patients", patients)]
        sources = set(predictions.trait("source").tolist()) - {"not stated"}
        facts.append(("sources", str(len(sources)) if sources else "not known"))
        for name, estimate in self._headline().items():
            facts.append((title(name), format_estimate(estimate, digits=2)))
        return facts

    def _headline(self) -> dict[str, Estimate]:
        scores: dict[str, Estimate] = {}
        for part in (self.parts.get("classes"), self.parts.get("masks")):
            if isinstance(part, ClassScores | MaskScores):
                scores |= part.scores
        return {name: scores[name] for name in headline(scores, self.positive, most=2)}

    def to_dict(self) -> dict[str, Any]:
        """Return every number of every part."""
        return {
            "name": self.name,
            "verdict": self.verdict.to_dict(),
            "positive": self.positive,
            "films": len(self.predictions),
            "patients": self.predictions.number_of(),
            "patients_known": self.predictions.patients_known,
            "notes": list(self.notes),
            **{name: part.to_dict() for name, part in self.parts.items()},
        }


@old_arguments(shelf="lookup")
def evaluate_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    validation: Sequence[Mapping[str, Any]] | None = None,
    name: str = "predictions",
    positive: str | None = None,
    sensitivity: float = 0.95,
    prevalence: float | None = None,
    parts: Mapping[str, Part | None] | None = None,
    lookup: ImageLookup | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate predictions, made here or elsewhere.

    Args:
        rows: A row an image, as `covidcxr test` writes them; see `covidcxr.evaluation.read_rows`.
        validation: Rows of validation images, on which the operating point is chosen; None = there are none.
        name: Names the model or the run.
        positive: The class whose sensitivity and specificity count. Of two exclusive classes it must be said (where
            only one has a probability it is that one); of more, None = there is none.
        sensitivity: What is wanted of the operating point on validation images, in (0, 1].
        prevalence: Share of the sick where the answers are used, for predictive values; None = as in these images.
        parts: Further parts, by name: an audit of the data ("audit"), "regions", "held_out", "robustness", ...; the
            verdict takes them into account.
        lookup: The images behind the rows: the surest errors and the worst masks are shown. None = no image is opened.
        resamples: How often to resample patients.
        seed: Same seed, same numbers.

    Raises:
        ConfigError: If there are no rows, nothing in them can be scored, nobody said which of two classes is positive,
            or a setting is out of range.
    """
    predictions = PredictionTable.read(rows)
    number = find_positive(predictions, positive)
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    validation_predictions = None if validation is None else PredictionTable.read(validation)
    results: dict[str, Part | None] = {
        "classes": score_classes(predictions, **settings),
        "masks": score_masks(predictions, **settings),
        "agreement": score_agreement(predictions, **settings),
        "reliability": _reliability(predictions, settings),
        "answers": score_abstention(predictions, **settings),
        "point": score_point(
            predictions,
            validation_predictions,
            positive=number,
            sensitivity=sensitivity,
            prevalence=prevalence,
            **settings,
        ),
        "shortcuts": find_shortcuts(predictions, positive=number, **settings),
        "groups": score_groups(predictions, positive=number, **settings),
        "mistakes": find_errors(predictions, positive=number),
        "lineage": Provenance(data={"sha256 of the rows": hash_rows(rows)}, seed=seed, resamples=resamples),
    }
    results |= parts or {}
    errors, masks = results["mistakes"], results["masks"]
    if lookup is not None:
        results["gallery"] = draw_gallery(
            predictions,
            lookup,
            mistakes=errors if isinstance(errors, ErrorAnalysis) else None,
            masks=masks if isinstance(masks, MaskScores) else None,
        )
    order = sorted(results, key=lambda part: ORDER.index(part) if part in ORDER else len(ORDER) - 1.5)
    kept = {part: result for part in order if (result := results[part]) is not None}
    return Evaluation(
        name,
        predictions,
        None if number is None else predictions.classes[number],
        weigh(predictions, number, kept),
        kept,
        tuple(_notes(predictions)),
    )


def _notes(predictions: PredictionTable) -> list[str]:
    notes = []
    if not predictions.patients_known:
        notes.append(
            "No patients are told: every image counts as a patient of its own, so intervals may be too narrow."
        )
    elif any(patient is None for patient in predictions.patients):
        lacking = sum(patient is None for patient in predictions.patients)
        notes.append(f"The patients of {lacking} images are not known: each counts as one of its own.")
    if predictions.classes and (left := len(predictions) - len(predictions.scored)):
        notes.append(f"{left} images have no label or no answer and count in no score of classes.")
    if predictions.number_of() < LEAST:
        notes.append(f"There are fewer than {LEAST} patients: no interval of so few is to be trusted.")
    return notes


def _reliability(predictions: PredictionTable, settings: Mapping[str, Any]) -> Reliability | None:
    scored = predictions.scored
    return measure_reliability(scored.rows, **settings) if predictions.exclusive and len(scored) else None
