"""The model card: what a reader of the weights must know, in Markdown (Mitchell 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from covidcxr.io.pretrained import write_json
from covidcxr.page import Page, Section, Table, Words, sections_of, write_html, write_markdown

if TYPE_CHECKING:
    from covidcxr.evaluation.report.evaluation import Evaluation

__all__ = ["make_page", "model_card", "write_report"]

KEPT = (
    "classes", "masks", "agreement", "answers", "point", "regions", "held_out", "shortcuts", "groups", "robustness",
    "lineage",
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
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = {"html": target / "report.html", "json": target / "report.json", "card": target / "MODEL_CARD.md"}
    sections = _render_parts(evaluation)
    write_json(paths["json"], evaluation.to_dict())
    write_markdown(model_card(evaluation, sections), paths["card"])
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
        Words(f"It answers with: {what}." if evaluation.predictions.classes else "It draws masks."),
        Words(
            "It is meant for research on methods. It is no medical device: no patient may be diagnosed, treated or "
            "turned away by its answers."
        ),
        Words(
            "Images that differ from those of this test (other hospitals, machines, children, lateral views, images of "
            "a screen) were not asked about: there its scores are unknown."
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


def _without_images(section: Section) -> Section:
    def kept() -> Iterator[Words | Table]:
        for block in section.blocks:
            if isinstance(block, Words) or (isinstance(block, Table) and "film" not in block.columns):
                yield block

    return Section(section.title, section.lead, list(kept()))
