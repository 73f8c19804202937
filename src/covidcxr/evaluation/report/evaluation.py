"""An evaluation from rows, put together and written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.reliability import Reliability, measure_reliability
from covidcxr.evaluation.predictions.predictions import Answers, find_positive
from covidcxr.evaluation.predictions.run_pipeline import ImageLookup
from covidcxr.evaluation.report.abstention import score_abstention
from covidcxr.evaluation.report.agreement import score_agreement
from covidcxr.evaluation.report.classes import ClassScores, score_classes, score_point
from covidcxr.evaluation.report.errors import Mistakes, draw_gallery, find_mistakes
from covidcxr.evaluation.report.headline import LEAST, in_words
from covidcxr.evaluation.report.mask_scores import MaskScores, score_masks
from covidcxr.evaluation.report.provenance import Lineage, hash_rows
from covidcxr.evaluation.report.shortcuts import find_shortcuts
from covidcxr.evaluation.report.subgroups import score_groups
from covidcxr.evaluation.report.verdict import Verdict, weigh
from covidcxr.io.pretrained import write_json
from covidcxr.page import Page, Section, write_html, write_markdown

__all__ = ["Evaluation", "Part", "evaluate_rows", "write_report"]

ORDER = (
    "classes", "masks", "agreement", "reliability", "answers", "point", "regions", "held_out", "compared", "shortcuts",
    "groups", "mistakes", "gallery", "attention", "robustness", "learning", "audit", "lineage",
)  # fmt: skip
"""How the parts follow one another; others stand before the last."""


@runtime_checkable
class Part(Protocol):
    """A part of a report: whatever can be written as numbers and as sections."""

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        ...

    def sections(self) -> Sequence[Section]:
        """Return what the page shows."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a model scores, for whom, on what, and what that means.

    Attributes:
        name: Names the model or the run.
        answers: The images.
        positive: The class whose sensitivity and specificity count; None = not said.
        verdict: In a sentence, and in a table of questions.
        parts: By name, in the order of the page; each has `to_dict` and `sections`.
        notes: What the reader must know of the rows.
    """

    name: str
    answers: Answers = field(repr=False)
    positive: str | None
    verdict: Verdict
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The few figures of the first screen."""
        answers = self.answers
        patients = str(answers.number_of()) if answers.patients_known else "not known"
        facts = [("images", str(len(answers))), ("patients", patients)]
        sources = set(answers.trait("source").tolist()) - {"not stated"}
        facts.append(("sources", str(len(sources)) if sources else "not known"))
        for title, one in self._chief().items():
            facts.append((title, _short(one)))
        return facts

    def _chief(self) -> dict[str, Estimate]:
        classes, masks = self.parts.get("classes"), self.parts.get("masks")
        found: dict[str, Estimate] = {}
        if isinstance(classes, ClassScores):
            scores = classes.scores
            found |= {in_words(n): scores[n] for n in ("macro_auroc", "balanced_accuracy") if n in scores}
            if self.positive is not None:
                names = (f"sensitivity_{self.positive}", f"specificity_{self.positive}")
                found |= {name.replace("_", ", "): scores[name] for name in names if name in scores}
        if isinstance(masks, MaskScores):
            found |= {in_words(name): one for name, one in masks.scores.items() if name.startswith("dice_")}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return every number of every part."""
        return {
            "name": self.name,
            "verdict": self.verdict.to_dict(),
            "positive": self.positive,
            "films": len(self.answers),
            "patients": self.answers.number_of(),
            "patients_known": self.answers.patients_known,
            "notes": list(self.notes),
            **{name: part.to_dict() for name, part in self.parts.items()},
        }

    def sections(self) -> list[Section]:
        """Return all sections of the page."""
        return [*self.verdict.sections(), *(one for found in self.part_sections.values() for one in found)]

    @cached_property
    def part_sections(self) -> dict[str, list[Section]]:
        """The sections of each part, drawn once for page and card."""
        return {name: list(part.sections()) for name, part in self.parts.items()}

    def page(self) -> Page:
        """Return the page."""
        notes = [
            "For research only, not for clinical use. Intervals are of 95 %, resampled over patients, not images.",
            *self.notes,
        ]
        return Page(f"Evaluation of {self.name}", self.verdict.sentence, self.facts, self.sections(), " ".join(notes))


def evaluate_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    validation: Sequence[Mapping[str, Any]] | None = None,
    name: str = "predictions",
    positive: str | None = None,
    sensitivity: float = 0.95,
    prevalence: float | None = None,
    parts: Mapping[str, Part | None] | None = None,
    shelf: ImageLookup | None = None,
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
        shelf: The images behind the rows: the surest errors and the worst masks are shown. None = no image is opened.
        resamples: How often to resample patients.
        seed: Same seed, same numbers.

    Raises:
        ConfigError: If there are no rows, nothing in them can be scored, nobody said which of two classes is positive,
            or a setting is out of range.
    """
    answers = Answers.read(rows)
    number = find_positive(answers, positive)
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    asked = None if validation is None else Answers.read(validation)
    found: dict[str, Part | None] = {
        "classes": score_classes(answers, **settings),
        "masks": score_masks(answers, **settings),
        "agreement": score_agreement(answers, **settings),
        "reliability": _reliability(answers, settings),
        "answers": score_abstention(answers, **settings),
        "point": score_point(
            answers, asked, positive=number, sensitivity=sensitivity, prevalence=prevalence, **settings
        ),
        "shortcuts": find_shortcuts(answers, positive=number, **settings),
        "groups": score_groups(answers, positive=number, **settings),
        "mistakes": find_mistakes(answers, positive=number),
        "lineage": Lineage(data={"sha256 of the rows": hash_rows(rows)}, seed=seed, resamples=resamples),
    }
    found |= parts or {}
    mistakes, masks = found["mistakes"], found["masks"]
    if shelf is not None:
        found["gallery"] = draw_gallery(
            answers,
            shelf,
            mistakes=mistakes if isinstance(mistakes, Mistakes) else None,
            masks=masks if isinstance(masks, MaskScores) else None,
        )
    order = sorted(found, key=lambda part: ORDER.index(part) if part in ORDER else len(ORDER) - 1.5)
    kept = {part: one for part in order if (one := found[part]) is not None}
    return Evaluation(
        name,
        answers,
        None if number is None else answers.classes[number],
        weigh(answers, number, kept),
        kept,
        tuple(_notes(answers)),
    )


def write_report(evaluation: Evaluation, folder: str | Path) -> dict[str, Path]:
    """Write an evaluation: `report.html`, `report.json` and `MODEL_CARD.md`.

    Args:
        evaluation: What `evaluate_rows` returned.
        folder: Made if need be.

    Returns:
        The paths: "html", "json" and "card".
    """
    from covidcxr.evaluation.report.model_card import model_card

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = {"html": target / "report.html", "json": target / "report.json", "card": target / "MODEL_CARD.md"}
    write_json(paths["json"], evaluation.to_dict())
    write_markdown(model_card(evaluation), paths["card"])
    write_html(evaluation.page(), paths["html"])
    return paths


def _notes(answers: Answers) -> list[str]:
    notes = []
    if not answers.patients_known:
        notes.append(
            "No patients are told: every image counts as a patient of its own, so intervals may be too narrow."
        )
    elif any(patient is None for patient in answers.patients):
        lacking = sum(patient is None for patient in answers.patients)
        notes.append(f"The patients of {lacking} images are not known: each counts as one of its own.")
    if answers.classes and (left := len(answers) - len(answers.scored)):
        notes.append(f"{left} images have no label or no answer and count in no score of classes.")
    if answers.number_of() < LEAST:
        notes.append(f"There are fewer than {LEAST} patients: no interval of so few is to be trusted.")
    return notes


def _reliability(answers: Answers, settings: Mapping[str, Any]) -> Reliability | None:
    scored = answers.scored
    return measure_reliability(scored.rows, **settings) if answers.exclusive and len(scored) else None


def _short(one: Estimate) -> str:
    if math.isnan(one.value):
        return "not defined"
    return f"{one.value:.2f}" if math.isnan(one.low) else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"
