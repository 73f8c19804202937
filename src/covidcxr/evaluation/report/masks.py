"""Masks as part of a report: their overlap with the true ones, and how far infected fractions agree with readers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.agreement import PLACES, SEVERITIES, Agreement, limits_of_agreement
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.scores import SCORES, format_estimate, missing_intervals, on_picture, split_name, title
from covidcxr.evaluation.metrics.segmentation import FAILED, segmentation_metrics
from covidcxr.evaluation.plots import COLORS, INK, as_picture, panels
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.utils.plain import plain_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MaskScores", "score_masks", "InfectionAgreement", "plot_agreement", "score_agreement"]

SHOWN = 12


@dataclass(frozen=True)
class MaskScores:
    """Scores of masks.

    Attributes:
        scores: Means over images, by name ("dice_lung").
        worst: Image id, mask class and Dice of the images on which masks fit worst, worst first.
        dice: By mask class: Dice of each image where the true mask is known.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "dice_lung": 0.8 + 0.2 * (n % 2)} for n in range(20)]
        result = evaluate_rows(rows, resamples=20).parts["masks"]
        assert abs(result.scores["dice_lung"].value - 0.9) < 1e-9
        ```
    """

    scores: Mapping[str, Estimate]
    worst: tuple[tuple[str, str, float], ...]
    dice: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def classes(self) -> list[str]:
        """The mask classes."""
        return list(dict.fromkeys(split_name(name)[1] for name in self.scores))

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        worst = [{"image_id": image, "mask": name, "dice": dice} for image, name, dice in self.worst]
        return {"scores": plain_result(self.scores), "worst": worst}


@sections_of.register
def _(result: MaskScores) -> list[Section]:
    blocks: list[Block] = [
        table for kinds, caption in _TABLES.items() if (table := _table(result, kinds, caption)) is not None
    ]
    blocks += [Words(sentence) for sentence in missing_intervals(result.scores)]
    if result.dice:
        blocks.append(_picture(result))
    if result.worst:
        cells = [[image, name.replace("_", " "), f"{dice:.3f}"] for image, name, dice in result.worst[: SHOWN // 2]]
        blocks.append(Table(["image", "mask", "Dice"], cells, "Where masks fit worst"))
    lead = (
        "How predicted masks overlap with the true ones; means over images whose true mask is known and not empty. "
        "1 = perfect. The interval of a mean holds failures that so many patients leave open, even where these images "
        "hold none; the median, and the mean of the images that did not fail, are known more sharply."
    )
    return [Section("Masks", lead, blocks)]


_TABLES = {
    ("dice", "median", "failed", "rest"): f"An image failed if its Dice is below {FAILED:g}",
    ("iou", "precision", "recall", "nsd", "hd95", "median_hd95"): (
        "Means over images. NSD: the share of both outlines that lies within 1 % of the longer side of the image from "
        "the other. HD95, in pixels: 95 % of an outline lies within it from the other, 0 = perfect"
    ),
    ("false_alarm", "lesion_sensitivity", "false_lesions"): (
        "False alarms: the share of images without the structure in which something is drawn. A lesion is found if a "
        "tenth of it is drawn, and false if less than a tenth of it is true"
    ),
}
"""Scores that stand in one table, and its caption."""


def _table(result: MaskScores, kinds: Sequence[str], caption: str) -> Table | None:
    kinds = [kind for kind in kinds if any(f"{kind}_{name}" in result.scores for name in result.classes)]
    rows = []
    for name in result.classes:
        estimates = [result.scores.get(f"{kind}_{name}") for kind in kinds]
        if (first := next((estimate for estimate in estimates if estimate), None)) is None:
            continue
        cells = [format_estimate(e, digits=SCORES[kind].digits) for kind, e in zip(kinds, estimates, strict=True)]
        rows.append([name.replace("_", " "), str(first.count), str(first.patients), *cells])
    return Table(["mask", "images", "patients", *map(title, kinds)], rows, caption) if rows else None


def _picture(result: MaskScores) -> Any:
    figure, axes = panels(len(result.dice), width=3.2, height=2.4)
    for number, (axis, (name, values)) in enumerate(zip(axes, result.dice.items(), strict=True)):
        axis.hist(values, bins=np.linspace(0, 1, 41).tolist(), color=COLORS[number % len(COLORS)])
        axis.set(title=on_picture(name.replace("_", " ")), xlabel="Dice", ylabel="images", xlim=(0, 1))
    return as_picture(figure, "How many images have which Dice", "Images by their Dice")


def score_masks(predictions: PredictionTable, *, resamples: int = 1000, seed: int = 0) -> MaskScores | None:
    """Average the scores of masks over images.

    Args:
        predictions: The images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        The scores; None where no image has any.
    """
    if not predictions.masks:
        return None
    predictions = predictions.in_order
    settings: dict[str, Any] = {"failures": True, "resamples": resamples, "seed": seed}
    scores = segmentation_metrics(predictions.masks, predictions.patients, **settings)
    dice = {
        name.removeprefix("dice_"): values for name, values in predictions.masks.items() if name.startswith("dice_")
    }
    every = [
        (str(predictions.rows[image]["image_id"]), name, float(values[image]))
        for name, values in dice.items()
        for image in np.flatnonzero(~np.isnan(values)).tolist()
    ]
    worst = tuple(sorted(every, key=lambda entry: entry[2])[:SHOWN])
    return MaskScores(scores, worst, {name: values[~np.isnan(values)] for name, values in dice.items()})


_LEFT_OUT = {
    "no-reader": "without a reader's infection mask",
    "no-lungs": "without lungs, the reader's or the pipeline's",
    "not-drawn": "without a predicted infection mask",
    "error": "that cannot be read",
}


@dataclass(frozen=True)
class InfectionAgreement:
    """Infected fractions, predicted and read.

    Attributes:
        places: Bias and limits of agreement, by the names of `covidcxr.evaluation.metrics.agreement.PLACES`.
        dice: Dice of the infection, by the names of `covidcxr.evaluation.metrics.agreement.SEVERITIES`.
        outside: Share of the reader's infection that lies outside the lungs and so counts in no fraction; means over
            images on which a reader outlined any.
        lungs: In how many images the lungs are those of the "reader" and of the "pipeline".
        left_out: Images that do not count, by reason.
        within: Share of images whose fraction, as read, lies in the interval that the pipeline gave; None without one.

    Example:
        ```python
        from covidcxr.evaluation.predictions import PredictionTable
        from covidcxr.evaluation.report.masks import score_agreement

        measured = {"dice_infection": 0.8, "lungs_by": "reader", "severity": "mild", "reader_lungs": 0.2}
        rows = [{"image_id": f"{n}", "infected_lungs": 0.3, **measured} for n in range(12)]
        agreement = score_agreement(PredictionTable.read(rows), resamples=20)
        assert abs(agreement.places["lungs"].bias.value - 0.1) < 1e-9
        ```
    """

    places: Mapping[str, Agreement]
    dice: Mapping[str, Estimate]
    outside: Estimate | None
    lungs: Mapping[str, int]
    left_out: Mapping[str, int]
    within: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain_result(getattr(self, name)) for name in self.__dataclass_fields__}


@sections_of.register
def _(result: InfectionAgreement) -> list[Section]:
    blocks: list[Block] = []
    if result.places:
        figure = plot_agreement({PLACES[place]: estimate for place, estimate in result.places.items()})
        shown = "Solid: bias. Dashed: limits of agreement. Pale: their intervals. A dot an image."
        alt = "Bland-Altman plots of the infected fraction: predicted less read over their mean"
        blocks += [_fractions(result), *_without_interval(result), as_picture(figure, alt, shown), _severities(result)]
        blocks.append(Words(_whose_lungs(result)))
    if result.within is not None:
        share = format_estimate(result.within, digits=1, scale=100)
        blocks.append(Words(f"In {share} % of images, the reader's fraction lies in the interval that was predicted."))
    if left := _left_out(result):
        blocks.append(Words(left))
    lead = (
        "How much of the lungs is infected, predicted and as readers outlined it, within the same lungs. The bias "
        "is the mean of predicted less read. Between the limits of agreement lie 95 % of the images, if differences "
        "are spread normally (Bland and Altman, Lancet 1986); between the quantiles lie 95 % of these images anyhow."
    )
    return [Section("Infected fraction", lead, blocks)]


def _fractions(result: InfectionAgreement) -> Table:
    rows = [
        [
            PLACES[place],
            str(estimate.bias.count),
            str(estimate.bias.patients),
            *(_points(line) for line in (estimate.bias, estimate.lower, estimate.upper)),
            *(_points(line) for line in (estimate.lower_quantile, estimate.upper_quantile)),
        ]
        for place, estimate in result.places.items()
    ]
    heads = ["where", "images", "patients", "bias", "lower limit", "upper limit", "2.5 % quantile", "97.5 % quantile"]
    caption = "In percentage points of the area; sides are the patient's, zones are thirds of a lung by its height"
    return Table(heads, rows, caption)


def _without_interval(result: InfectionAgreement) -> list[Block]:
    """Return why limits have no interval, and where further differences are expected instead."""
    reasons: dict[str, list[str]] = {}
    for place, estimate in result.places.items():
        if estimate.lower.note:
            low, high = (f"{100 * end:+.1f}" for end in estimate.expected)
            text = PLACES[place] if math.isnan(estimate.expected[0]) else f"{PLACES[place]} ({low} to {high})"
            reasons.setdefault(estimate.lower.note, []).append(text)
    return [
        Words(
            f"No interval of the limits, since {note}: {', '.join(places)}. In brackets, in percentage points: where "
            f"95 % of further images are expected from so few patients, if differences are spread normally."
        )
        for note, places in reasons.items()
    ]


def _severities(result: InfectionAgreement) -> Table:
    rows = [
        [SEVERITIES[name], str(estimate.count), str(estimate.patients), format_estimate(estimate)]
        for name, estimate in result.dice.items()
    ]
    caption = (
        "Overlap by how much of both lungs the reader outlined; the cuts are those of Wong 2020 (Radiology) for a "
        "single lung, the names ours"
    )
    return Table(["infected, as read", "images", "patients", "Dice of the infection"], rows, caption)


def _whose_lungs(result: InfectionAgreement) -> str:
    text = f"The lungs are the reader's on {result.lungs['reader']} images, else the pipeline's."
    if result.outside is not None:
        estimate = result.outside
        part = format_estimate(estimate, digits=1, scale=100)
        text += f" Of the readers' infection {part} % lies outside of them and counts in no fraction."
    return text


def _left_out(result: InfectionAgreement) -> str:
    parts = [f"{count} {_LEFT_OUT[reason]}" for reason, count in result.left_out.items()]
    return f"Images left out: {'; '.join(parts)}." if parts else ""


def plot_agreement(agreements: Mapping[str, Agreement]) -> Figure:
    """Draw a Bland-Altman plot for each place: differences over means, bias and limits with their intervals.

    Args:
        agreements: By title. One scale serves all, so that they can be compared by eye.

    Returns:
        The figure.
    """
    figure, axes = panels(len(agreements), width=2.8, height=2.3, columns=3)
    reach = max(float(np.abs(estimate.predicted - estimate.read).max()) for estimate in agreements.values())
    ends = [
        abs(end)
        for estimate in agreements.values()
        for line in (estimate.lower, estimate.upper)
        for end in (line.low, line.value, line.high)
    ]
    reach = 1.08 * 100 * max([reach, 0.05, *(end for end in ends if not math.isnan(end))])
    for axis, (name, estimate) in zip(axes, agreements.items(), strict=True):
        _draw_agreement(axis, estimate)
        axis.set_title(f"{name} ({estimate.bias.count})", fontsize=9, color=INK)
        axis.set(ylim=(-reach, reach), xlim=(-3, 103))
    figure.supxlabel("mean of predicted and read, % of the area; in brackets the images", fontsize=8, color=INK)
    figure.supylabel("predicted less read, percentage points", fontsize=8, color=INK)
    return figure


def _draw_agreement(axis: Axes, estimate: Agreement) -> None:
    for line, color, style in (
        (estimate.bias, COLORS[0], "-"),
        (estimate.lower, COLORS[1], "--"),
        (estimate.upper, COLORS[1], "--"),
    ):
        if not math.isnan(line.value):
            axis.axhline(100 * line.value, color=color, linewidth=1.2, linestyle=style)
        if not math.isnan(line.low):
            axis.axhspan(100 * line.low, 100 * line.high, color=color, alpha=0.15, linewidth=0)
    axis.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    means, differences = 50 * (estimate.predicted + estimate.read), 100 * (estimate.predicted - estimate.read)
    axis.plot(means, differences, "o", color=INK, markersize=3, alpha=0.6)


def score_agreement(predictions: PredictionTable, *, resamples: int = 1000, seed: int = 0) -> InfectionAgreement | None:
    """Compare infected fractions with the readers'.

    Args:
        predictions: Rows of `covidcxr.evaluation.predictions.run_pipeline.pipeline_rows`.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        The comparison; None where no image has an infection outlined by both.

    Raises:
        ConfigError: If a fraction is not in [0, 1], or there is no such severity.
    """
    counts = Counter(map(_standing, predictions.rows))
    if not counts.keys() & {"reader", "pipeline", "no-lungs"}:
        return None
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    places = {}
    for place in PLACES:
        predicted, read = (_fraction(predictions, f"{who}_{place}") for who in ("infected", "reader"))
        if not np.isnan(predicted - read).all():
            places[place] = limits_of_agreement(predicted, read, predictions.patients, **settings)
    outside = _fraction(predictions, "reader_outside")
    scores = {f"dice_{name}": values for name, values in _dice_by_severity(predictions).items()}
    if not np.isnan(outside).all():
        scores["outside"] = outside
    low, read, high = (_fraction(predictions, name) for name in ("infected_low", "reader_lungs", "infected_high"))
    if not np.isnan(high).all():
        scores["within"] = np.where(np.isnan(high), np.nan, (low <= read) & (read <= high))
    estimates = segmentation_metrics(scores, predictions.patients, **settings)
    return InfectionAgreement(
        places,
        {name: estimates[f"dice_{name}"] for name in SEVERITIES if f"dice_{name}" in estimates},
        estimates.get("outside"),
        {owner: counts[owner] for owner in ("reader", "pipeline")},
        {reason: counts[reason] for reason in _LEFT_OUT if counts[reason]},
        estimates.get("within"),
    )


def _standing(row: Mapping[str, Any]) -> str:
    """Return whose lungs an image is measured in, else why it is not measured."""
    return "error" if row.get("error") else str(row.get("lungs_by") or "no-reader")


def _fraction(predictions: PredictionTable, name: str) -> np.ndarray:
    values = predictions.numbers(name)
    if ((values < 0) | (values > 1)).any():
        raise ConfigError(f"The column {name!r} must hold fractions in [0, 1].")
    return values


def _dice_by_severity(predictions: PredictionTable) -> dict[str, np.ndarray]:
    """Return the Dice of each image, NaN but for the images of a severity; severities without images are absent."""
    dice, severities = predictions.numbers("dice_infection"), [row.get("severity") for row in predictions.rows]
    if unknown := set(severities) - {*SEVERITIES, None}:
        raise ConfigError(f"The column 'severity' must hold {', '.join(SEVERITIES)}, not {unknown.pop()!r}.")
    severity = np.array([name or "" for name in severities])
    return {name: np.where(severity == name, dice, np.nan) for name in SEVERITIES if name in severities}


def _points(estimate: Estimate) -> str:
    """Return a fraction in percentage points."""
    return format_estimate(estimate, digits=1, signed=True, scale=100)
