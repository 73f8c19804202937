"""An evaluation from rows: put together, and written as a page, as numbers and as a model card (Mitchell 2019)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.reliability import (
    Reliability,
    find_warning_signs,
    measure_reliability,
    temperature_signs,
)
from covidcxr.evaluation.metrics.scores import LEAST, format_estimate, headline, title
from covidcxr.evaluation.predictions import PredictionTable, Rows, find_positive, list_rows
from covidcxr.evaluation.predictions.run_pipeline import ImageLookup
from covidcxr.evaluation.report.classes import ClassScores, score_classes, score_point
from covidcxr.evaluation.report.copies import score_copies
from covidcxr.evaluation.report.decisions import Abstention, score_abstention, score_decisions
from covidcxr.evaluation.report.errors import ErrorAnalysis, ImageGallery, draw_gallery, find_errors
from covidcxr.evaluation.report.masks import MaskScores, score_agreement, score_masks
from covidcxr.evaluation.report.provenance import Provenance, hash_rows
from covidcxr.evaluation.report.shortcuts import find_shortcuts
from covidcxr.evaluation.report.subgroups import score_groups
from covidcxr.evaluation.report.verdict import Verdict, weigh
from covidcxr.io.hub import front_matter
from covidcxr.io.pretrained import write_json
from covidcxr.page import Page, Section, Table, Words, sections_of, write_html, write_markdown
from covidcxr.types import TaskName
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.plain import count_of, user_path

__all__ = ["Evaluation", "Part", "evaluate_rows", "make_page", "model_card", "write_report"]

ORDER = (
    "ablation", "copies", "classes", "masks", "agreement", "reliability", "answers", "point", "decisions", "regions",
    "held_out", "compared", "shortcuts", "groups", "mistakes", "gallery", "audit", "attention", "robustness",
    "learning", "lineage",
)  # fmt: skip
"""How the parts follow one another; others stand before the last."""


@runtime_checkable
class Part(Protocol):
    """A part of a report: a result with its numbers, which `covidcxr.page.sections_of` can show.

    Example:
        ```python
        from covidcxr.evaluation.report import Part, evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        assert all(isinstance(part, Part) for part in evaluate_rows(rows, resamples=20).parts.values())
        ```
    """

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a model scores, for whom, on what, and what that means.

    Attributes:
        name: Names the model or the run.
        predictions: The images.
        positive: The class whose sensitivity and specificity count; None = there is none.
        verdict: In a sentence, and in a table of questions.
        parts: By name, in the order of the page; each has `to_dict`, and `covidcxr.page.sections_of` shows it.
        notes: What the reader must know of the rows.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        evaluation = evaluate_rows(rows, resamples=20)
        assert evaluation.positive == "b" and "AUROC" in evaluation.verdict.sentence
        ```
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
            few = f"not stated: {count_of(estimate.patients, 'patient')}"
            facts.append((title(name), few if estimate.patients < LEAST else format_estimate(estimate, digits=2)))
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
    rows: Rows,
    *,
    validation: Rows | None = None,
    name: str = "predictions",
    positive: str | None = None,
    sensitivity: float = 0.95,
    prevalence: float | Sequence[float] | None = None,
    parts: Mapping[str, Part | None] | None = None,
    copied: Collection[str] | None = None,
    lookup: ImageLookup | None = None,
    temperature: float = 1.0,
    coverage: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate predictions, made here or elsewhere.

    Args:
        rows: A row an image, as `covidcxr test` writes them; see `covidcxr.evaluation.read_rows`.
        validation: Rows of validation images, which choose the operating point; None = there are none.
        name: Names the model or the run.
        positive: The class whose sensitivity and specificity count. Of two exclusive classes it must be given (where
            only one has a probability it is that one); of more, None = there is none.
        sensitivity: What is wanted of the operating point on validation images, in (0, 1].
        prevalence: Share of positive patients where it is used; None = as here. Several: more decision curves.
        parts: Further parts, by name: "ablation", "audit", "regions", "held_out", ...; the verdict counts them.
        copied: Ids of the images that have a copy in training; None = nobody searched for them.
        lookup: The images behind the rows, to show the most confident errors and the worst masks; None = show none.
        temperature: Of the classifier that gave the rows; a note warns if it is the bound of its search.
        coverage: How often its plausible classes shall hold the truth, as its config promises; None = not known.
        resamples: How often to resample patients.
        seed: Same seed, same numbers.

    Returns:
        The evaluation.

    Raises:
        ConfigError: If nothing can be scored, it is not given which of two classes is positive, or a setting is wrong.
    """
    rows = list_rows(rows)
    predictions = PredictionTable.read(rows).in_order  # scores do not depend on the order of rows
    number = find_positive(predictions, positive)
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    prevalences = [prevalence] if isinstance(prevalence, int | float) else list(prevalence or [])
    wanted: dict[str, Any] = {"positive": number, "sensitivity": sensitivity}
    wanted["prevalence"] = prevalences[0] if prevalences else None
    results: dict[str, Part | None] = {
        "answers": score_abstention(predictions, coverage=coverage, **settings),
        "point": score_point(predictions, validation, **wanted, **settings),
        "lineage": Provenance(data={"sha256 of the rows": hash_rows(rows)}, seed=seed, resamples=resamples),
        "copies": score_copies(predictions, copied, positive=number, **settings),
        **_score(predictions, number, prevalences, settings),
        **(parts or {}),
    }
    results["gallery"] = None if lookup is None else _gallery(predictions, lookup, results)
    kept = _in_order(results)
    chosen = None if number is None else predictions.classes[number]
    notes = _notes(predictions, (*temperature_signs(temperature), *_broken(results["answers"])))
    return Evaluation(name, predictions, chosen, weigh(predictions, number, kept), kept, tuple(notes))


def _score(
    predictions: PredictionTable, positive: int | None, prevalences: Sequence[float], settings: Mapping[str, Any]
) -> dict[str, Part | None]:
    """Score what the rows alone show."""
    return {
        "classes": score_classes(predictions, **settings),
        "masks": score_masks(predictions, **settings),
        "agreement": score_agreement(predictions, **settings),
        "reliability": _reliability(predictions, settings),
        "decisions": score_decisions(predictions, positive=positive, prevalences=prevalences),
        "shortcuts": find_shortcuts(predictions, positive=positive, **settings),
        "groups": score_groups(predictions, positive=positive, **settings),
        "mistakes": find_errors(predictions, positive=positive),
    }


def _in_order(parts: Mapping[str, Part | None]) -> dict[str, Part]:
    order = sorted(parts, key=lambda part: ORDER.index(part) if part in ORDER else len(ORDER) - 1.5)
    return {part: result for part in order if (result := parts[part]) is not None}


def _gallery(
    predictions: PredictionTable, lookup: ImageLookup, parts: Mapping[str, Part | None]
) -> ImageGallery | None:
    errors, masks = parts["mistakes"], parts["masks"]
    return draw_gallery(
        predictions,
        lookup,
        mistakes=errors if isinstance(errors, ErrorAnalysis) else None,
        masks=masks if isinstance(masks, MaskScores) else None,
    )


def _notes(predictions: PredictionTable, signs: Iterable[str]) -> list[str]:
    notes = [f"Warning: {sign}" for sign in (*signs, *find_warning_signs(predictions.rows))]
    if not predictions.patients_known:
        notes.append(
            "No patients are known: every image counts as a patient of its own, so intervals may be too narrow."
        )
    elif any(patient is None for patient in predictions.patients):
        lacking = sum(patient is None for patient in predictions.patients)
        notes.append(f"The patients of {lacking} images are not known: each counts as one of its own.")
    if predictions.classes and (left := len(predictions) - len(predictions.scored)):
        notes.append(f"{left} images have no label or no prediction and count in no score of classes.")
    if predictions.number_of() < LEAST:
        notes.append(f"There are fewer than {LEAST} patients: no interval of so few is to be trusted.")
    return notes


def _broken(answers: Part | None) -> Iterator[str]:
    """Say for whom the plausible classes hold the truth less often than the model promises."""
    if isinstance(answers, Abstention) and answers.broken:
        broken = ", ".join(f"{whom} {format_estimate(kept, digits=2)}" for whom, kept in answers.broken.items())
        yield f"The plausible classes hold the truth less often than the promised {answers.coverage:.0%}: {broken}."


def _reliability(predictions: PredictionTable, settings: Mapping[str, Any]) -> Reliability | None:
    scored = predictions.scored
    return measure_reliability(scored, **settings) if predictions.exclusive and len(scored) else None


KEPT = (
    "ablation", "copies", "classes", "masks", "agreement", "answers", "point", "decisions", "regions", "held_out",
    "shortcuts", "groups", "robustness", "lineage",
)  # fmt: skip
"""The parts of an evaluation that belong on a card: no image is named there."""


def write_report(evaluation: Evaluation, folder: str | Path) -> dict[str, Path]:
    """Write an evaluation: `report.html`, `report.json` and `MODEL_CARD.md`.

    Args:
        evaluation: What `evaluate_rows` returned.
        folder: Made if need be.

    Returns:
        The paths: "html", "json" and "card".

    Example:
        ```python
        from pathlib import Path

        from covidcxr.evaluation.report import evaluate_rows, write_report

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        paths = write_report(evaluate_rows(rows, resamples=20), Path("report"))
        assert paths["html"].name == "report.html" and paths["json"].is_file()
        ```
    """
    target = user_path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = {"html": target / "report.html", "json": target / "report.json", "card": target / "MODEL_CARD.md"}
    sections = _render_parts(evaluation)
    write_json(paths["json"], evaluation.to_dict())
    write_markdown(model_card(evaluation, sections), paths["card"], _front_matter(evaluation))
    write_html(make_page(evaluation, sections), paths["html"])
    return paths


def make_page(evaluation: Evaluation, sections: Mapping[str, Sequence[Section]] | None = None) -> Page:
    """Return the page of an evaluation.

    Args:
        evaluation: What `evaluate_rows` returned.
        sections: Those of its parts, by part; None = they are rendered here.

    Returns:
        The page: verdict, headline scores, and every part.
    """
    sections = _render_parts(evaluation) if sections is None else sections
    notes = [
        "For research only, not for clinical use. Intervals are of 95 %, resampled over patients, not images.",
        *evaluation.notes,
    ]
    blocks = [*sections_of(evaluation.verdict), *(section for part in sections.values() for section in part)]
    return Page(
        f"Evaluation of {evaluation.name}", evaluation.verdict.sentence, evaluation.facts, blocks, " ".join(notes)
    )


def _render_parts(evaluation: Evaluation) -> dict[str, list[Section]]:
    return {name: sections_of(part) for name, part in evaluation.parts.items()}


def model_card(evaluation: Evaluation, sections: Mapping[str, Sequence[Section]] | None = None) -> Page:
    """Return the card of an evaluated model.

    Args:
        evaluation: What `evaluate_rows` returned.
        sections: Those of its parts, by part; None = they are rendered here.

    Returns:
        The card, which names no image.
    """
    sections = _render_parts(evaluation) if sections is None else sections
    what = ", ".join(evaluation.predictions.classes) or "masks"
    use = [
        Words(f"It predicts: {what}." if evaluation.predictions.classes else "It predicts masks."),
        Words(
            "It is meant for research on methods. It is no medical device: no patient may be diagnosed, treated or "
            "turned away by its predictions."
        ),
        Words(
            "Images that differ from those of this test (other hospitals, machines, children, lateral views, images of "
            "a screen) were not tested: there its scores are unknown."
        ),
    ]
    limits = [Words(note) for note in evaluation.notes]
    limits.append(Words("Intervals are of 95 %, resampled over patients, not images."))
    kept = [section for name in KEPT for section in sections.get(name, ())]
    card = [
        Section("What it is for", "", use),
        *sections_of(evaluation.verdict),
        Section("How it was scored", "", limits),
        *map(_without_images, kept),
    ]
    return Page(f"Model card: {evaluation.name}", evaluation.verdict.sentence, evaluation.facts, card)


def _front_matter(evaluation: Evaluation) -> str:
    """Return what the Hugging Face Hub reads of a card: the task, and the main scores with their data set."""
    classes, masks, source = (evaluation.parts.get(name) for name in ("classes", "masks", "lineage"))
    scores = dict(classes.means) if isinstance(classes, ClassScores) else {}
    if isinstance(masks, MaskScores):
        scores |= {f"dice_{name}": masks.scores[f"dice_{name}"] for name in masks.classes}
    tasks: list[TaskName] = ["classification"] if isinstance(classes, ClassScores) else []
    tasks += ["segmentation"] if isinstance(masks, MaskScores) else []
    facts = source.data if isinstance(source, Provenance) else {}
    values = {name: estimate.value for name, estimate in scores.items() if math.isfinite(estimate.value)}
    dataset = str(facts.get("name") or facts.get("predictions") or "unnamed")
    return front_matter(tasks, name=evaluation.name, dataset=dataset, scores=values)


def _without_images(section: Section) -> Section:
    def kept() -> Iterator[Words | Table]:
        for block in section.blocks:
            if isinstance(block, Words) or (isinstance(block, Table) and "image" not in block.columns):
                yield block

    return Section(section.title, section.lead, list(kept()))
