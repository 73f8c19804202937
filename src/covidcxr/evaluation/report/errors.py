"""Where a classifier errs: by group, and the errors of which it was most sure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from covidcxr.evaluation.predictions.predictions import TRAITS, Answers
from covidcxr.evaluation.report.mask_scores import MaskScores
from covidcxr.evaluation.report.subgroups import find_groups
from covidcxr.page import Block, Gallery, Picture, Section, Table, Words
from covidcxr.pipeline.prediction import Prediction, as_image

if TYPE_CHECKING:
    from covidcxr.evaluation.predictions.run_pipeline import ImageLookup, Look

__all__ = ["Mistake", "MistakeGroup", "Mistakes", "find_mistakes", "ImageGallery", "draw_gallery"]

SHOWN = 12


"""Mistakes that the page shows; the JSON holds all."""


@dataclass(frozen=True)
class Mistake:
    """An image that was answered wrong.

    Attributes:
        image_id: Names it.
        patient_id: Who is on it; "" = not known.
        source: Where it comes from.
        fold: What tested it, in pooled rows.
        truth: Its label; of findings the finding in question, with "no " before it where it is absent.
        answer: What was answered in place of it.
        confidence: Probability of that answer.
        kind: "missed" (the class looked for), "false alarm", or "mixed up" (between other classes).
    """

    image_id: str
    patient_id: str
    source: str
    fold: str
    truth: str
    answer: str
    confidence: float
    kind: str


@dataclass(frozen=True)
class MistakeGroup:
    """Mistakes among the images of a group.

    Attributes:
        trait: "source", "view", "sex", "age", "fold", or "" = all images.
        name: The trait's value.
        missed: Images of the class looked for that were called something else.
        sick: Images of that class.
        sick_patients: Their patients.
        alarms: Other images that were called that class.
        others: Images of other classes.
        other_patients: Their patients.
    """

    trait: str
    name: str
    missed: int
    sick: int
    sick_patients: int
    alarms: int
    others: int
    other_patients: int


@dataclass(frozen=True)
class Mistakes:
    """What was answered wrong.

    Attributes:
        positive: The class looked for; of findings or several classes without one, "a class".
        mistakes: Surest first.
        groups: All images first.
    """

    positive: str
    mistakes: tuple[Mistake, ...]
    groups: tuple[MistakeGroup, ...]

    @property
    def shown(self) -> list[Mistake]:
        """Those that the page shows: the surest ones, in turn missed, false alarms and mixed up."""
        kinds = [[one for one in self.mistakes if one.kind == kind] for kind in ("missed", "false alarm", "mixed up")]
        in_turn = [one for turn in zip_longest(*kinds) for one in turn if one is not None]
        return sorted(in_turn[:SHOWN], key=lambda one: -one.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, and every mistake."""
        return {
            "positive": self.positive,
            "mistakes": [asdict(one) for one in self.mistakes],
            "groups": [asdict(one) for one in self.groups],
        }

    def sections(self) -> list[Section]:
        """Return the part of the report, without pictures."""
        if not self.mistakes:
            return [Section("Errors", "No image was answered wrong.")]
        blocks: list[Block] = []
        if self.groups:
            blocks.append(self._group_table())
        rows = [
            [one.image_id, one.source, one.kind, one.truth, one.answer, f"{one.confidence:.2f}"] for one in self.shown
        ]
        shown = f"{len(rows)} of which the model was most sure, of each kind, out of {len(self.mistakes)}"
        blocks.append(Table(["film", "source", "kind", "truth", "answer", "probability of it"], rows, shown))
        blocks.append(Words("report.json lists every error."))
        lead = f"{len(self.mistakes)} wrong answers; the answer is the most probable class."
        return [Section("Errors", lead, blocks)]

    def _group_table(self) -> Table:
        rows = [
            [
                one.name if one.trait in ("", "fold") else f"{one.trait} {one.name}",
                f"{one.missed} of {one.sick}",
                str(one.sick_patients),
                f"{one.alarms} of {one.others}",
                str(one.other_patients),
            ]
            for one in self.groups
        ]
        heads = ["images", f"{self.positive} missed", "patients", f"called {self.positive} by mistake", "patients"]
        return Table(heads, rows, "Where they lie")


def find_mistakes(answers: Answers, *, positive: int | None) -> Mistakes | None:
    """Find the images that were answered wrong.

    Args:
        answers: The images. Of exclusive classes the most probable is the answer; of findings those from 0.5 up.
        positive: Number of the class looked for.

    Returns:
        None where there is no classifier, or no image is both labelled and answered.
    """
    answers = answers.scored
    if not len(answers) or not answers.classes:
        return None
    wrong = _exclusive(answers, positive) if answers.exclusive else _findings(answers)
    wrong = sorted(wrong, key=lambda one: -one.confidence)
    name = answers.classes[positive] if positive is not None else "a class"
    return Mistakes(name, tuple(wrong), tuple(_groups(answers, positive)) if positive is not None else ())


def _exclusive(answers: Answers, positive: int | None) -> Sequence[Mistake]:
    called = answers.probabilities.argmax(1)
    kinds = {True: "missed", False: "false alarm"}
    return [
        _mistake(
            answers,
            image,
            answers.classes[truth],
            answers.classes[answer],
            float(answers.probabilities[image, answer]),
            kinds[truth == positive] if positive in (truth, answer) else "mixed up",
        )
        for image, (truth, answer) in enumerate(zip(answers.labels.tolist(), called.tolist(), strict=True))
        if truth != answer
    ]


def _findings(answers: Answers) -> Sequence[Mistake]:
    found = []
    called = answers.probabilities >= 0.5
    for image, c in np.argwhere(~np.isnan(answers.truths) & ((answers.truths == 1) != called)).tolist():
        name, chance = answers.classes[c], float(answers.probabilities[image, c])
        if called[image, c]:
            found.append(_mistake(answers, image, f"no {name}", name, chance, "false alarm"))
        else:
            found.append(_mistake(answers, image, name, f"no {name}", 1 - chance, "missed"))
    return found


def _mistake(answers: Answers, image: int, truth: str, answer: str, confidence: float, kind: str) -> Mistake:
    row = answers.rows[image]
    image_id, patient, source, fold = (
        "" if row.get(name) is None else str(row[name]) for name in ("image_id", "patient_id", "source", "fold")
    )
    return Mistake(image_id, patient, source, fold, truth, answer, confidence, kind)


def _groups(answers: Answers, positive: int) -> Sequence[MistakeGroup]:
    truth, known = answers.truths[:, positive] == 1, ~np.isnan(answers.truths[:, positive])
    most_probable = answers.probabilities.argmax(1) == positive
    called = most_probable if answers.exclusive else answers.probabilities[:, positive] >= 0.5
    everyone = {("", "all images"): np.ones(len(answers), bool)}
    found = {(trait, name): images for trait in TRAITS for name, images in find_groups(answers, trait).items()}
    seen = {trait for trait in TRAITS if len(answers.groups(trait)) > 1}
    return [
        MistakeGroup(
            trait,
            name,
            int((images & known & truth & ~called).sum()),
            int((images & truth).sum()),
            answers.number_of(images & truth),
            int((images & known & ~truth & called).sum()),
            int((images & known & ~truth).sum()),
            answers.number_of(images & known & ~truth),
        )
        for (trait, name), images in (everyone | found).items()
        if not trait or trait in seen
    ]


HEIGHT = 320


"""Of an image in the gallery, in pixels."""


TRUE_COLOR = (60, 230, 120)


@dataclass(frozen=True)
class ImageGallery:
    """Images to look at.

    Attributes:
        mistakes: Of the surest wrong answers.
        masks: Of the worst masks.
        missing: How many images were to be shown and could not be found or read.
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
        key = Words(f"Outlines: {outlines}; true masks green. These are images of patients: mind who sees this page.")
        if self.mistakes:
            blocks: list[Block] = [key, Gallery(self.mistakes)]
            lead = "Left the image with its masks, right what spoke for the wrong answer, where a model was at hand."
            sections.append(Section("The surest errors", lead, blocks))
        if self.masks:
            sections.append(
                Section("The worst masks", "Where drawn and true outlines differ most.", [key, Gallery(self.masks)])
            )
        if self.missing and sections:
            sections[-1] = Section(
                sections[-1].title,
                sections[-1].lead,
                [*sections[-1].blocks, Words(f"{self.missing} more images could not be found or read.")],
            )
        return sections


_COLOR_WORDS = {"lung": "violet", "lung_field": "blue", "infection": "red"}


def draw_gallery(
    answers: Answers, shelf: ImageLookup, *, mistakes: Mistakes | None = None, masks: MaskScores | None = None
) -> ImageGallery | None:
    """Open the images of errors and of bad masks again and draw them.

    Args:
        answers: The rows.
        shelf: The images and the pipelines that answered.
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
        wrong.append(Picture(_as_png(_image_and_heat(look)), f"Image of {one.truth} called {one.answer}", caption))
    for image_id, name, dice in masks.worst[: SHOWN // 2] if masks else ():
        look = shelf.look(rows[image_id])
        if look is None:
            missing += 1
            continue
        caption = f"{image_id}: {name.replace('_', ' ')}, Dice {dice:.3f}"
        bad.append(Picture(_as_png([_with_outlines(look, [name])]), f"Image whose {name} fits badly", caption))
    return ImageGallery(tuple(wrong), tuple(bad), missing) if wrong or bad else None


def _image_and_heat(look: Look) -> list[UInt8[np.ndarray, "height width 3"]]:
    drawn = list(look.answer.masks) if look.answer is not None else []
    pictures = [_with_outlines(look, drawn)]
    if look.heat is not None:
        pictures.append(look.heat.overlay(as_image(look.image)))
    return pictures


def _with_outlines(look: Look, names: Sequence[str]) -> UInt8[np.ndarray, "height width 3"]:
    import cv2

    image = as_image(look.image)
    masks = {} if look.answer is None else {name: mask for name, mask in look.answer.masks.items() if name in names}
    picture = Prediction("", None, {}, (), masks, image).overlay()
    thickness = max(1, round(max(image.shape) / 300))
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
