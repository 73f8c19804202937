"""The model card: what a reader of the weights must know, in Markdown (Mitchell 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from covidcxr.page import Page, Section, Table, Words

if TYPE_CHECKING:
    from covidcxr.evaluation.report.evaluation import Evaluation

__all__ = ["model_card"]

KEPT = (
    "classes", "masks", "agreement", "answers", "point", "regions", "held_out", "shortcuts", "groups", "robustness",
    "lineage",
)  # fmt: skip
"""The parts of an evaluation that belong on a card: no image is named there."""


def model_card(evaluation: Evaluation) -> Page:
    """Return the card of an evaluated model.

    Args:
        evaluation: What `evaluate_rows` returned.
    """
    what = ", ".join(evaluation.answers.classes) or "masks"
    use = [
        Words(f"It answers with: {what}." if evaluation.answers.classes else "It draws masks."),
        Words(
            "It is meant for research on methods. It is no medical device: no patient may be diagnosed, treated or "
            "turned away by its answers."
        ),
        Words(
            "Images that differ from those of this test (other hospitals, machines, children, lateral views, images of a "
            "screen) were not asked about: there its scores are unknown."
        ),
    ]
    limits = [Words(note) for note in evaluation.notes]
    limits.append(Words("Intervals are of 95 %, resampled over patients, not images."))
    kept = [one for name in KEPT for one in evaluation.part_sections.get(name, ())]
    sections = [
        Section("What it is for", "", use),
        *evaluation.verdict.sections(),
        Section("How it was scored", "", limits),
        *map(_without_images, kept),
    ]
    return Page(f"Model card: {evaluation.name}", evaluation.verdict.sentence, evaluation.facts, sections)


def _without_images(section: Section) -> Section:
    def kept() -> Iterator[Words | Table]:
        for block in section.blocks:
            if isinstance(block, Words) or (isinstance(block, Table) and "film" not in block.columns):
                yield block

    return Section(section.title, section.lead, list(kept()))
