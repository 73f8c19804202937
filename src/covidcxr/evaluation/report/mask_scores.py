"""Scores of masks as part of a report: how well they fit, and the images on which they fit worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.scores import MASK_SCORES, SCORES, format_estimate, title
from covidcxr.evaluation.metrics.segmentation import segmentation_metrics
from covidcxr.evaluation.plots import COLORS, as_picture, panels
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.report.headline import on_picture, plain
from covidcxr.page import Block, Section, Table, Words, sections_of

__all__ = ["MaskScores", "score_masks"]

SHOWN = 12


@dataclass(frozen=True)
class MaskScores:
    """Scores of masks.

    Attributes:
        scores: Means over images, by name ("dice_lung").
        worst: Image id, mask class and Dice of the images on which masks fit worst, worst first.
        dice: By mask class: Dice of each image where the true mask is known.
    """

    scores: Mapping[str, Estimate]
    worst: tuple[tuple[str, str, float], ...]
    dice: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def classes(self) -> list[str]:
        """The mask classes."""
        return list(dict.fromkeys(name.partition("_")[2] for name in self.scores))

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        worst = [{"image_id": image, "mask": name, "dice": dice} for image, name, dice in self.worst]
        return {"scores": plain(self.scores), "worst": worst}


@sections_of.register
def _(result: MaskScores) -> list[Section]:
    kinds = [kind for kind in MASK_SCORES if any(f"{kind}_{name}" in result.scores for name in result.classes)]
    rows = []
    for name in result.classes:
        first = next(estimate for kind in kinds if (estimate := result.scores.get(f"{kind}_{name}")))
        values = [format_estimate(result.scores.get(f"{kind}_{name}"), digits=SCORES[kind].digits) for kind in kinds]
        rows.append([name.replace("_", " "), str(first.count), str(first.patients), *values])
    blocks: list[Block] = [
        Table(
            [
                "mask",
                "images",
                "patients",
                *(f"{title(kind)} (pixels)" if kind == "hd95" else title(kind) for kind in kinds),
            ],
            rows,
        )
    ]
    if result.dice:
        blocks.append(_picture(result))
    if result.worst:
        cells = [[image, name.replace("_", " "), f"{dice:.3f}"] for image, name, dice in result.worst[: SHOWN // 2]]
        blocks.append(Table(["film", "mask", "Dice"], cells, "Where masks fit worst"))
    if "hd95" in kinds:
        blocks.append(Words("HD95: 95 % of the outline lies within so many pixels of the true one; 0 = perfect."))
    lead = "How drawn masks overlap with the true ones; means over images whose true mask is known. 1 = perfect."
    return [Section("Masks", lead, blocks)]


def _picture(result: MaskScores) -> Any:
    figure, axes = panels(len(result.dice), width=3.2, height=2.4)
    for number, (axis, (name, values)) in enumerate(zip(axes, result.dice.items(), strict=True)):
        axis.hist(values, bins=np.linspace(0, 1, 41).tolist(), color=COLORS[number % len(COLORS)])
        axis.set(title=on_picture(name.replace("_", " ")), xlabel="Dice", ylabel="images", xlim=(0, 1))
    return as_picture(figure, "How many images have which Dice", "Images by their Dice")


def score_masks(predictions: PredictionTable, *, resamples: int = 1000, seed: int = 0) -> MaskScores | None:
    """Average the scores of masks over images; None where no image has any.

    Args:
        predictions: The images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
    """
    if not predictions.masks:
        return None
    scores = segmentation_metrics(predictions.masks, predictions.patients, resamples=resamples, seed=seed)
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
