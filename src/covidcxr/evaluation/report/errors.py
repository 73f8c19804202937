"""Errors: wrong predictions by kind, and the page of a search for wrong labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from covidcxr import aliases
from covidcxr.evaluation.label_errors import LabelErrors, SuspectLabel
from covidcxr.evaluation.metrics.scores import format_estimate
from covidcxr.evaluation.predictions import TRAITS, PredictionTable
from covidcxr.evaluation.report.masks import MaskScores
from covidcxr.evaluation.report.subgroups import find_groups
from covidcxr.page import Block, Gallery, Page, Picture, Section, Table, Words, sections_of, side_by_side
from covidcxr.pipeline.prediction import Prediction, as_image
from covidcxr.utils.plain import count_of

if TYPE_CHECKING:
    from covidcxr.evaluation.predictions.run_pipeline import ImageLookup, ImageView

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "WrongPrediction",
    "ErrorGroup",
    "ErrorAnalysis",
    "find_errors",
    "ImageGallery",
    "draw_gallery",
    "label_error_page",
    "label_error_verdict",
]

SHOWN = 12
"""Errors that the page shows; the JSON holds all."""


@dataclass(frozen=True)
class WrongPrediction:
    """An image whose predicted class is wrong.

    Attributes:
        image_id: Names it.
        patient_id: Who is on it; "" = not known.
        source: Where it comes from.
        fold: What tested it, in pooled rows.
        truth: Its label; of findings the finding in question, with "no " before it where it is absent.
        answer: The predicted class.
        confidence: Its probability.
        kind: "missed" (the positive class), "false alarm", or "mixed up" (between other classes).

    Example:
        ```python
        from covidcxr.evaluation.report.errors import WrongPrediction

        error = WrongPrediction("image 7", "", "", "", truth="a", answer="b", confidence=0.9, kind="false alarm")
        assert error.confidence == 0.9
        ```
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
class ErrorGroup:
    """Errors among the images of a group.

    Attributes:
        trait: "source", "view", "sex", "age", "fold", or "" = all images.
        name: The trait's value.
        missed: Images of the positive class with another prediction.
        sick: Images of that class.
        sick_patients: Their patients.
        alarms: Other images that were predicted as that class.
        others: Images of other classes.
        other_patients: Their patients.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        rows += [{"image_id": f"c{n}", "label": "b", "probability_b": 0.1} for n in range(2)]
        result = evaluate_rows(rows, resamples=20).parts["mistakes"]
        assert result.groups[0].missed == 2 and result.groups[0].sick == 12
        ```
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
class ErrorAnalysis:
    """The wrong predictions.

    Attributes:
        positive: The positive class; of findings or several classes without one, "a class".
        mistakes: Most confident first.
        groups: All images first.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        result = evaluate_rows(rows, resamples=20).parts["mistakes"]
        assert result.mistakes == ()
        ```
    """

    positive: str
    mistakes: tuple[WrongPrediction, ...]
    groups: tuple[ErrorGroup, ...]

    @property
    def shown(self) -> list[WrongPrediction]:
        """Those that the page shows: the most confident ones, in turn missed, false alarms and mixed up."""
        kinds = [
            [error for error in self.mistakes if error.kind == kind] for kind in ("missed", "false alarm", "mixed up")
        ]
        in_turn = [error for turn in zip_longest(*kinds) for error in turn if error is not None]
        return sorted(in_turn[:SHOWN], key=lambda error: -error.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, and every error."""
        return {
            "positive": self.positive,
            "mistakes": [asdict(error) for error in self.mistakes],
            "groups": [asdict(error) for error in self.groups],
        }


@sections_of.register
def _(result: ErrorAnalysis) -> list[Section]:
    if not result.mistakes:
        return [Section("Errors", "No prediction is wrong.")]
    blocks: list[Block] = []
    if result.groups:
        blocks.append(_group_table(result))
    rows = [
        [error.image_id, error.source, error.kind, error.truth, error.answer, f"{error.confidence:.2f}"]
        for error in result.shown
    ]
    shown = f"{len(rows)} most confident ones of each kind, out of {len(result.mistakes)}"
    blocks.append(Table(["image", "source", "kind", "true class", "predicted class", "probability of it"], rows, shown))
    blocks.append(Words("report.json lists every error."))
    lead = f"{len(result.mistakes)} wrong predictions; the predicted class is the most probable one."
    return [Section("Errors", lead, blocks)]


def _group_table(result: ErrorAnalysis) -> Table:
    rows = [
        [
            error.name if error.trait in ("", "fold") else f"{error.trait} {error.name}",
            f"{error.missed} of {error.sick}",
            str(error.sick_patients),
            f"{error.alarms} of {error.others}",
            str(error.other_patients),
        ]
        for error in result.groups
    ]
    heads = ["images", f"{result.positive} missed", "patients", f"{result.positive} by mistake", "patients"]
    return Table(heads, rows, "Where they lie")


def find_errors(predictions: PredictionTable, *, positive: int | None) -> ErrorAnalysis | None:
    """Find the images whose predicted class is wrong.

    Args:
        predictions: The images. Of exclusive classes the most probable is predicted; of findings those from 0.5 up.
        positive: Number of the positive class; None = there is none.

    Returns:
        None where there is no classifier, or no image has both a label and a prediction.
    """
    predictions = predictions.scored
    if not len(predictions) or not predictions.classes:
        return None
    wrong = _exclusive(predictions, positive) if predictions.exclusive else _findings(predictions)
    wrong = sorted(wrong, key=lambda error: -error.confidence)
    name = predictions.classes[positive] if positive is not None else "a class"
    return ErrorAnalysis(name, tuple(wrong), tuple(_groups(predictions, positive)) if positive is not None else ())


def _exclusive(predictions: PredictionTable, positive: int | None) -> Sequence[WrongPrediction]:
    predicted = predictions.probabilities.argmax(1)
    kinds = {True: "missed", False: "false alarm"}
    return [
        _wrong(
            predictions,
            image,
            predictions.classes[truth],
            predictions.classes[answer],
            float(predictions.probabilities[image, answer]),
            kinds[truth == positive] if positive in (truth, answer) else "mixed up",
        )
        for image, (truth, answer) in enumerate(zip(predictions.labels.tolist(), predicted.tolist(), strict=True))
        if truth != answer
    ]


def _findings(predictions: PredictionTable) -> Sequence[WrongPrediction]:
    errors = []
    predicted = predictions.probabilities >= 0.5
    for image, c in np.argwhere(~np.isnan(predictions.truths) & ((predictions.truths == 1) != predicted)).tolist():
        name, chance = predictions.classes[c], float(predictions.probabilities[image, c])
        if predicted[image, c]:
            errors.append(_wrong(predictions, image, f"no {name}", name, chance, "false alarm"))
        else:
            errors.append(_wrong(predictions, image, name, f"no {name}", 1 - chance, "missed"))
    return errors


def _wrong(
    predictions: PredictionTable, image: int, truth: str, answer: str, confidence: float, kind: str
) -> WrongPrediction:
    row = predictions.rows[image]
    image_id, patient, source, fold = (
        "" if row.get(name) is None else str(row[name]) for name in ("image_id", "patient_id", "source", "fold")
    )
    return WrongPrediction(image_id, patient, source, fold, truth, answer, confidence, kind)


def _groups(predictions: PredictionTable, positive: int) -> Sequence[ErrorGroup]:
    truth, known = predictions.truths[:, positive] == 1, ~np.isnan(predictions.truths[:, positive])
    most_probable = predictions.probabilities.argmax(1) == positive
    predicted = most_probable if predictions.exclusive else predictions.probabilities[:, positive] >= 0.5
    everyone = {("", "all images"): np.ones(len(predictions), bool)}
    errors = {(trait, name): images for trait in TRAITS for name, images in find_groups(predictions, trait).items()}
    seen = {trait for trait in TRAITS if len(predictions.groups(trait)) > 1}
    return [
        ErrorGroup(
            trait,
            name,
            int((images & known & truth & ~predicted).sum()),
            int((images & truth).sum()),
            predictions.number_of(images & truth),
            int((images & known & ~truth & predicted).sum()),
            int((images & known & ~truth).sum()),
            predictions.number_of(images & known & ~truth),
        )
        for (trait, name), images in (everyone | errors).items()
        if not trait or trait in seen
    ]


TRUE_COLOR = (60, 230, 120)


@dataclass(frozen=True)
class ImageGallery:
    """Images to look at.

    Attributes:
        mistakes: Of the most confident errors.
        masks: Of the worst masks.
        missing: How many images were to be shown and could not be found or read.

    Example:
        ```python
        from covidcxr.evaluation.report.errors import ImageGallery

        assert ImageGallery((), (), missing=2).to_dict() == {"mistakes": [], "masks": [], "missing": 2}
        ```
    """

    mistakes: tuple[Picture, ...] = field(repr=False)
    masks: tuple[Picture, ...] = field(repr=False)
    missing: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what is shown, without the pictures."""
        shown = {name: [error.caption for error in getattr(self, name)] for name in ("mistakes", "masks")}
        return {**shown, "missing": self.missing}


@sections_of.register
def _(gallery: ImageGallery) -> list[Section]:
    sections = []
    outlines = "; ".join(f"{name.replace('_', ' ')} {word}" for name, word in _COLOR_WORDS.items())
    key = Words(f"Outlines: {outlines}; true masks green. These are images of patients: mind who sees this page.")
    if gallery.mistakes:
        blocks: list[Block] = [key, Gallery(gallery.mistakes)]
        lead = "Left the image with its masks, right the heat map of the predicted class, where a model was at hand."
        sections.append(Section("The most confident errors", lead, blocks))
    if gallery.masks:
        sections.append(
            Section("The worst masks", "Where predicted and true outlines differ most.", [key, Gallery(gallery.masks)])
        )
    if gallery.missing and sections:
        sections[-1] = Section(
            sections[-1].title,
            sections[-1].lead,
            [*sections[-1].blocks, Words(f"{gallery.missing} more images could not be found or read.")],
        )
    return sections


_COLOR_WORDS = {"lung": "violet", "lung_field": "blue", "infection": "red"}


def draw_gallery(
    predictions: PredictionTable,
    lookup: ImageLookup,
    *,
    mistakes: ErrorAnalysis | None = None,
    masks: MaskScores | None = None,
) -> ImageGallery | None:
    """Open the images of errors and of bad masks again and draw them.

    Args:
        predictions: The rows.
        lookup: The images and their pipelines.
        mistakes: The most confident ones are shown.
        masks: Their worst ones are shown.

    Returns:
        None if there is nothing to show.
    """
    rows = {str(row["image_id"]): row for row in predictions.rows}
    missing = 0
    wrong, bad = [], []
    for error in mistakes.shown if mistakes else ():
        view = lookup.look(rows[error.image_id], error.answer)
        if view is None:
            missing += 1
            continue
        source = f", {error.source}" if error.source else ""
        caption = f"{error.image_id}{source}: is {error.truth}, predicted {error.answer} ({error.confidence:.2f})"
        wrong.append(
            Picture(side_by_side(_image_and_heat(view)), f"Image of {error.truth} predicted as {error.answer}", caption)
        )
    for image_id, name, dice in masks.worst[: SHOWN // 2] if masks else ():
        view = lookup.look(rows[image_id])
        if view is None:
            missing += 1
            continue
        caption = f"{image_id}: {name.replace('_', ' ')}, Dice {dice:.3f}"
        bad.append(Picture(side_by_side([_with_outlines(view, [name])]), f"Image whose {name} fits badly", caption))
    return ImageGallery(tuple(wrong), tuple(bad), missing) if wrong or bad else None


def _image_and_heat(view: ImageView) -> list[UInt8[np.ndarray, "height width 3"]]:
    drawn = list(view.prediction.masks) if view.prediction is not None else []
    pictures = [_with_outlines(view, drawn)]
    if view.heat is not None:
        pictures.append(view.heat.overlay(as_image(view.image)))
    return pictures


def _with_outlines(view: ImageView, names: Sequence[str]) -> UInt8[np.ndarray, "height width 3"]:
    import cv2

    image = as_image(view.image)
    masks = (
        {} if view.prediction is None else {name: mask for name, mask in view.prediction.masks.items() if name in names}
    )
    picture = Prediction("", None, {}, (), masks, image).overlay()
    thickness = max(1, round(max(image.shape) / 300))
    for name, mask in view.masks.items():
        if name in names or not names:
            outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, TRUE_COLOR, thickness, cv2.LINE_AA)
    return picture


_SHOWN_LABELS = 48  # images of a target


def label_error_verdict(errors: LabelErrors) -> str:
    """State how many labels are estimated to be wrong.

    Args:
        errors: The label errors of a target.

    Returns:
        One sentence.
    """
    value, low, high = errors.count
    what = "labels" if errors.target == "label" else f"labels of {errors.target}"
    return (
        f"About {value:.0f} of {len(errors.images):,} {what} are estimated to be wrong (95 % interval {low:.0f} to "
        f"{high:.0f}); {count_of(len(errors.suspects), 'image')} should be looked at."
    )


def label_error_page(results: Sequence[LabelErrors], name: str, lookup: ImageLookup | None = None) -> Page:
    """Return the page of a search for label errors.

    Args:
        results: From `find_label_errors`.
        name: What the predictions are of.
        lookup: The images, for the contact sheet; None = a table alone.

    Returns:
        The page; `covidcxr.page.write_html` writes it. With `lookup` it holds images of patients.
    """
    facts = [("images", f"{len(results[0].images):,}"), ("to be looked at", str(sum(len(r.suspects) for r in results)))]
    facts += [(f"wrong: {label}", format_estimate(share)) for label, share in results[0].by_class.items()]
    sections = [section for errors in results for section in _sections(errors, lookup, many=len(results) > 1)]
    return Page(
        f"Label errors of {name}", " ".join(map(label_error_verdict, results)), facts, [*sections, _method(results)]
    )


def _sections(errors: LabelErrors, lookup: ImageLookup | None, *, many: bool) -> Iterator[Section]:
    of = f": {errors.target}" if many else ""
    rows = [("all", format_estimate(errors.share))]
    rows += [(f"label {name}", format_estimate(share)) for name, share in errors.by_class.items()]
    rows += [(f"source {name}", format_estimate(share)) for name, share in errors.by_source.items()]
    joint = [
        (f"label {name}", *(f"{share:.1%}" for share in row))
        for name, row in zip(errors.classes, errors.joint.tolist(), strict=True)
    ]
    blocks: list[Block] = [
        Table(("images of", "share of wrong labels"), rows, "With 95 % intervals over patients"),
        Table(("", *(f"truly {name}" for name in errors.classes)), joint, "Estimated share of the images"),
        *(Words(note, warning=True) for note in errors.notes),
    ]
    yield Section(f"How many labels are wrong{of}", label_error_verdict(errors) if many else "", blocks)
    shown = errors.suspects[:_SHOWN_LABELS]
    if not shown:
        yield Section(f"Images to look at{of}", "No image is confident of another class than its label.")
        return
    lead = "The least fitting label first. The model may be wrong: only a person who reads the image can tell."
    pictures = [] if lookup is None else list(_pictures(shown, lookup))
    if pictures:
        notice = Words("These are images of patients: mind who sees this page.")
        yield Section(f"Images to look at{of}", lead, [notice, Gallery(pictures)])
        return
    cells = [(e.image_id, e.patient_id, e.source, e.label, e.suggested, f"{e.margin:.2f}") for e in shown]
    heads = ("image", "patient", "source", "label", "rather", "margin")
    yield Section(f"Images to look at{of}", lead, [Table(heads, cells)])


def _pictures(images: Sequence[SuspectLabel], lookup: ImageLookup) -> Iterator[Picture]:
    for image in images:
        view = lookup.look({"image_id": image.image_id})
        if view is None:
            continue
        picture = Prediction("", None, {}, (), {}, as_image(view.image)).overlay()
        source = f", {image.source}" if image.source else ""
        caption = (
            f"{image.image_id}{source}: label {image.label} ({image.self_confidence:.2f}), rather {image.suggested} "
            f"(margin {image.margin:.2f})"
        )
        yield Picture(side_by_side([picture]), f"Image labelled {image.label}, predicted {image.suggested}", caption)


def _method(results: Sequence[LabelErrors]) -> Section:
    text = (
        "Confident learning (Northcutt, Jiang and Chuang 2021): an image is confident of a class if that class is at "
        "least as probable as on average over the images that bear its label. Images that are confident of another "
        "class than their label are to be looked at; their share, scaled to the labels, is the estimate. Intervals are "
        "95 %, bootstrapped over patients; they do not hold the errors of the model, which look like errors of labels: "
        "with a weak model the estimate is too high, and with one that learnt wrong labels too low."
    )
    rows = [
        (errors.target, name, f"{threshold:.2f}") for errors in results for name, threshold in errors.thresholds.items()
    ]
    blocks: list[Block] = [Words(text), Table(("target", "class", "confident from"), rows)]
    if unlabelled := sum(errors.unlabelled for errors in results):
        blocks.append(Words(f"{count_of(unlabelled, 'image')} without a label or a prediction did not count."))
    return Section("Method", "", blocks)
