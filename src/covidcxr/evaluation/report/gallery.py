"""Films of which a model was most sure and wrong, and masks that fit worst: outlines and heat maps beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from covidcxr.evaluation.predictions.predictions import Answers
from covidcxr.evaluation.report.errors import SHOWN, Mistakes
from covidcxr.evaluation.report.mask_scores import MaskScores
from covidcxr.page import Block, Gallery, Picture, Section, Words
from covidcxr.pipeline.prediction import Prediction, as_film

if TYPE_CHECKING:
    from covidcxr.evaluation.predictions.run_pipeline import FilmShelf, Look

__all__ = ["FilmGallery", "draw_gallery"]

HEIGHT = 320
"""Of a film in the gallery, in pixels."""

TRUE_COLOR = (60, 230, 120)


@dataclass(frozen=True)
class FilmGallery:
    """Films to look at.

    Attributes:
        mistakes: Of the surest wrong answers.
        masks: Of the worst masks.
        missing: How many films were to be shown and could not be found or read.
    """

    mistakes: tuple[Picture, ...] = field(repr=False)
    masks: tuple[Picture, ...] = field(repr=False)
    missing: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what is shown, without the pictures."""
        shown = {name: [one.caption for one in getattr(self, name)] for name in ("mistakes", "masks")}
        return {**shown, "missing": self.missing}

    def sections(self) -> list[Section]:
        """Return the parts of the report."""
        sections = []
        outlines = "; ".join(f"{name.replace('_', ' ')} {word}" for name, word in _COLOR_WORDS.items())
        key = Words(f"Outlines: {outlines}; true masks green. These are films of patients: mind who sees this page.")
        if self.mistakes:
            blocks: list[Block] = [key, Gallery(self.mistakes)]
            lead = "Left the film with its masks, right what spoke for the wrong answer, where a model was at hand."
            sections.append(Section("The surest errors", lead, blocks))
        if self.masks:
            sections.append(
                Section("The worst masks", "Where drawn and true outlines differ most.", [key, Gallery(self.masks)])
            )
        if self.missing and sections:
            sections[-1] = Section(
                sections[-1].title,
                sections[-1].lead,
                [*sections[-1].blocks, Words(f"{self.missing} more films could not be found or read.")],
            )
        return sections


_COLOR_WORDS = {"lung": "violet", "lung_field": "blue", "infection": "red"}


def draw_gallery(
    answers: Answers, shelf: FilmShelf, *, mistakes: Mistakes | None = None, masks: MaskScores | None = None
) -> FilmGallery | None:
    """Open the films of errors and of bad masks again and draw them.

    Args:
        answers: The rows.
        shelf: The films and the pipelines that answered.
        mistakes: Their surest ones are shown.
        masks: Their worst ones are shown.

    Returns:
        None if there is nothing to show.
    """
    rows = {str(row["image_id"]): row for row in answers.rows}
    missing = 0
    wrong, bad = [], []
    for one in mistakes.shown if mistakes else ():
        look = shelf.look(rows[one.image_id], one.answer)
        if look is None:
            missing += 1
            continue
        source = f", {one.source}" if one.source else ""
        caption = f"{one.image_id}{source}: is {one.truth}, called {one.answer} ({one.confidence:.2f})"
        wrong.append(Picture(_as_png(_film_and_heat(look)), f"Film of {one.truth} called {one.answer}", caption))
    for image_id, name, dice in masks.worst[: SHOWN // 2] if masks else ():
        look = shelf.look(rows[image_id])
        if look is None:
            missing += 1
            continue
        caption = f"{image_id}: {name.replace('_', ' ')}, Dice {dice:.3f}"
        bad.append(Picture(_as_png([_with_outlines(look, [name])]), f"Film whose {name} fits badly", caption))
    return FilmGallery(tuple(wrong), tuple(bad), missing) if wrong or bad else None


def _film_and_heat(look: Look) -> list[UInt8[np.ndarray, "height width 3"]]:
    drawn = list(look.answer.masks) if look.answer is not None else []
    pictures = [_with_outlines(look, drawn)]
    if look.heat is not None:
        pictures.append(look.heat.overlay(as_film(look.film)))
    return pictures


def _with_outlines(look: Look, names: Sequence[str]) -> UInt8[np.ndarray, "height width 3"]:
    import cv2

    film = as_film(look.film)
    masks = {} if look.answer is None else {name: mask for name, mask in look.answer.masks.items() if name in names}
    picture = Prediction("", None, {}, (), masks, film).overlay()
    thickness = max(1, round(max(film.shape) / 300))
    for name, mask in look.masks.items():
        if name in names or not names:
            outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, TRUE_COLOR, thickness, cv2.LINE_AA)
    return picture


def _as_png(pictures: Sequence[UInt8[np.ndarray, "height width 3"]]) -> bytes:
    from PIL import Image

    shrunk = [
        Image.fromarray(one).resize((max(1, round(one.shape[1] * HEIGHT / one.shape[0])), HEIGHT)) for one in pictures
    ]
    sheet = Image.new("RGB", (sum(one.width for one in shrunk), HEIGHT))
    left = 0
    for one in shrunk:
        sheet.paste(one, (left, 0))
        left += one.width
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
