"""Infected fractions as part of a report: how far a pipeline agrees with the readers who outlined the infection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.agreement import PLACES, SEVERITIES, Agreement, limits_of_agreement
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.segmentation import segmentation_metrics
from covidcxr.evaluation.plots import COLORS, INK, as_picture, panels
from covidcxr.evaluation.predictions.predictions import Answers
from covidcxr.evaluation.report.headline import plain
from covidcxr.page import Block, Section, Table, Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["InfectionAgreement", "plot_agreement", "score_agreement"]

_LEFT_OUT = {
    "no-reader": "without a reader's infection mask",
    "no-lungs": "without lungs, the reader's or the pipeline's",
    "not-drawn": "on which the pipeline did not look for infection",
    "error": "that cannot be read",
}


@dataclass(frozen=True)
class InfectionAgreement:
    """Infected fractions, predicted and read.

    Attributes:
        places: Bias and limits of agreement, by the names of `covidcxr.evaluation.agreement.PLACES`.
        dice: Dice of the infection, by the names of `covidcxr.evaluation.agreement.SEVERITIES`.
        outside: Share of the reader's infection that lies outside the lungs and so counts in no fraction; means over
            images on which a reader outlined any.
        lungs: In how many images the lungs are those of the "reader" and of the "pipeline".
        left_out: Images that do not count, by reason.
    """

    places: Mapping[str, Agreement]
    dice: Mapping[str, Estimate]
    outside: Estimate | None
    lungs: Mapping[str, int]
    left_out: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}

    def sections(self) -> list[Section]:
        """Return the part of the report."""
        blocks: list[Block] = []
        if self.places:
            figure = plot_agreement({PLACES[place]: one for place, one in self.places.items()})
            shown = "Solid: bias. Dashed: limits of agreement. Pale: their intervals. A dot an image."
            alt = "Bland-Altman plots of the infected fraction: predicted less read over their mean"
            blocks += [self._fractions(), as_picture(figure, alt, shown), self._severities()]
            blocks.append(Words(self._whose_lungs()))
        if left := self._left_out():
            blocks.append(Words(left))
        lead = (
            "How much of the lungs is infected, predicted and as readers outlined it, within the same lungs. The bias "
            "is the mean of predicted less read. Between the limits of agreement lie 95 % of the images, if differences "
            "are spread normally (Bland and Altman, Lancet 1986)."
        )
        return [Section("Infected fraction", lead, blocks)]

    def _fractions(self) -> Table:
        rows = [
            [
                PLACES[place],
                str(one.bias.count),
                str(one.bias.patients),
                *map(_points, (one.bias, one.lower, one.upper)),
            ]
            for place, one in self.places.items()
        ]
        heads = ["where", "images", "patients", "bias", "lower limit", "upper limit"]
        caption = "In percentage points of the area; sides are the patient's, zones are thirds of a lung by its height"
        return Table(heads, rows, caption)

    def _severities(self) -> Table:
        rows = [[SEVERITIES[name], str(one.count), str(one.patients), _told(one)] for name, one in self.dice.items()]
        caption = (
            "Overlap by how much of both lungs the reader outlined; the cuts are those of Wong 2020 (Radiology) for a "
            "single lung, the names ours"
        )
        return Table(["infected, as read", "images", "patients", "Dice of the infection"], rows, caption)

    def _whose_lungs(self) -> str:
        told = f"The lungs are the reader's on {self.lungs['reader']} images, else the pipeline's."
        if self.outside is not None:
            one = self.outside
            part = f"{100 * one.value:.1f} %"
            part += "" if math.isnan(one.low) else f" [{100 * one.low:.1f}, {100 * one.high:.1f}]"
            told += f" Of the readers' infection {part} lies outside of them and counts in no fraction."
        return told

    def _left_out(self) -> str:
        told = [f"{count} {_LEFT_OUT[reason]}" for reason, count in self.left_out.items()]
        return f"Images left out: {'; '.join(told)}." if told else ""


def plot_agreement(agreements: Mapping[str, Agreement]) -> Figure:
    """Draw a Bland-Altman plot for each place: differences over means, bias and limits with their intervals.

    Args:
        agreements: By title. One scale serves all, so that they can be compared by eye.
    """
    figure, axes = panels(len(agreements), width=2.8, height=2.3, columns=3)
    reach = max(float(np.abs(one.predicted - one.read).max()) for one in agreements.values())
    ends = [abs(end) for one in agreements.values() for line in (one.lower, one.upper) for end in (line.low, line.high)]
    reach = 1.08 * 100 * max([reach, 0.05, *(end for end in ends if not math.isnan(end))])
    for axis, (title, one) in zip(axes, agreements.items(), strict=True):
        _draw_agreement(axis, one)
        axis.set_title(f"{title} ({one.bias.count})", fontsize=9, color=INK)
        axis.set(ylim=(-reach, reach), xlim=(-3, 103))
    figure.supxlabel("mean of predicted and read, % of the area; in brackets the images", fontsize=8, color=INK)
    figure.supylabel("predicted less read, percentage points", fontsize=8, color=INK)
    return figure


def _draw_agreement(axis: Axes, one: Agreement) -> None:
    for line, color, style in ((one.bias, COLORS[0], "-"), (one.lower, COLORS[1], "--"), (one.upper, COLORS[1], "--")):
        if not math.isnan(line.value):
            axis.axhline(100 * line.value, color=color, linewidth=1.2, linestyle=style)
        if not math.isnan(line.low):
            axis.axhspan(100 * line.low, 100 * line.high, color=color, alpha=0.15, linewidth=0)
    axis.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    means, differences = 50 * (one.predicted + one.read), 100 * (one.predicted - one.read)
    axis.plot(means, differences, "o", color=INK, markersize=3, alpha=0.6)


def score_agreement(answers: Answers, *, resamples: int = 1000, seed: int = 0) -> InfectionAgreement | None:
    """Compare infected fractions with the readers'; None where no image has an infection outlined by both.

    Args:
        answers: Rows of `covidcxr.evaluation.predictions.run_pipeline.pipeline_rows`.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Raises:
        ConfigError: If a fraction is not in [0, 1], or there is no such severity.
    """
    counts = Counter(map(_standing, answers.rows))
    if not counts.keys() & {"reader", "pipeline", "no-lungs"}:
        return None
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    places = {}
    for place in PLACES:
        predicted, read = (_fraction(answers, f"{who}_{place}") for who in ("infected", "reader"))
        if not np.isnan(predicted - read).all():
            places[place] = limits_of_agreement(predicted, read, answers.patients, **settings)
    outside = _fraction(answers, "reader_outside")
    scores = {f"dice_{name}": values for name, values in _dice_by_severity(answers).items()}
    if not np.isnan(outside).all():
        scores["outside"] = outside
    found = segmentation_metrics(scores, answers.patients, **settings)
    return InfectionAgreement(
        places,
        {name: found[f"dice_{name}"] for name in SEVERITIES if f"dice_{name}" in found},
        found.get("outside"),
        {owner: counts[owner] for owner in ("reader", "pipeline")},
        {reason: counts[reason] for reason in _LEFT_OUT if counts[reason]},
    )


def _standing(row: Mapping[str, Any]) -> str:
    """Return whose lungs an image is measured in, else why it is not measured."""
    return "error" if row.get("error") else str(row.get("lungs_by") or "no-reader")


def _fraction(answers: Answers, name: str) -> np.ndarray:
    values = answers.numbers(name)
    if ((values < 0) | (values > 1)).any():
        raise ConfigError(f"The column {name!r} must hold fractions in [0, 1].")
    return values


def _dice_by_severity(answers: Answers) -> dict[str, np.ndarray]:
    """Return the Dice of each image, NaN but for the images of a severity; severities without images are absent."""
    dice, found = answers.numbers("dice_infection"), [row.get("severity") for row in answers.rows]
    if unknown := set(found) - {*SEVERITIES, None}:
        raise ConfigError(f"The column 'severity' must hold {', '.join(SEVERITIES)}, not {unknown.pop()!r}.")
    severity = np.array([one or "" for one in found])
    return {name: np.where(severity == name, dice, np.nan) for name in SEVERITIES if name in found}


def _points(one: Estimate) -> str:
    """Return a fraction in percentage points."""
    if math.isnan(one.value):
        return "not defined"
    told = f"{100 * one.value:+.1f}"
    return told if math.isnan(one.low) else f"{told} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _told(one: Estimate) -> str:
    return f"{one.value:.3f}" if math.isnan(one.low) else str(one)
