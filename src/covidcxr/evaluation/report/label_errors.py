"""The page of a search for label errors: estimates, and the images whose labels fit least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from covidcxr.evaluation.label_errors import LabelErrors, SuspectLabel
from covidcxr.evaluation.metrics.scores import format_estimate
from covidcxr.page import Block, Gallery, Page, Picture, Section, Table, Words, side_by_side
from covidcxr.pipeline.prediction import Prediction, as_image
from covidcxr.utils.plain import count_of

if TYPE_CHECKING:
    from covidcxr.evaluation.predictions.run_pipeline import ImageLookup

__all__ = ["make_page", "state_verdict"]

_SHOWN = 48  # images of a target


def state_verdict(errors: LabelErrors) -> str:
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


def make_page(results: Sequence[LabelErrors], name: str, lookup: ImageLookup | None = None) -> Page:
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
    return Page(f"Label errors of {name}", " ".join(map(state_verdict, results)), facts, [*sections, _method(results)])


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
    yield Section(f"How many labels are wrong{of}", state_verdict(errors) if many else "", blocks)
    shown = errors.suspects[:_SHOWN]
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
