"""Scores of masks as part of a report: how well they fit, and the images on which they fit worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.segmentation import segmentation_metrics
from covidcxr.evaluation.plots import COLORS, as_picture, panels
from covidcxr.evaluation.predictions.predictions import Answers
from covidcxr.evaluation.report.headline import on_picture, plain
from covidcxr.page import Block, Section, Table, Words

__all__ = ["MaskScores", "score_masks"]

SHOWN = 12
_HEADS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "hd95": "HD95 (pixels)",
}


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

    def sections(self) -> list[Section]:
        """Return the part of the report."""
        found = [kind for kind in _HEADS if any(f"{kind}_{name}" in self.scores for name in self.classes)]
        rows = []
        for name in self.classes:
            first = next(one for kind in found if (one := self.scores.get(f"{kind}_{name}")))
            told = [_told(kind, self.scores.get(f"{kind}_{name}")) for kind in found]
            rows.append([name.replace("_", " "), str(first.count), str(first.patients), *told])
        blocks: list[Block] = [Table(["mask", "images", "patients", *(_HEADS[kind] for kind in found)], rows)]
        if self.dice:
            blocks.append(self._picture())
        if self.worst:
            cells = [[image, name.replace("_", " "), f"{dice:.3f}"] for image, name, dice in self.worst[: SHOWN // 2]]
            blocks.append(Table(["film", "mask", "Dice"], cells, "Where masks fit worst"))
        if "hd95" in found:
            blocks.append(Words("HD95: 95 % of the outline lies within so many pixels of the true one; 0 = perfect."))
        lead = "How drawn masks overlap with the true ones; means over images whose true mask is known. 1 = perfect."
        return [Section("Masks", lead, blocks)]

    def _picture(self) -> Any:
        figure, axes = panels(len(self.dice), width=3.2, height=2.4)
        for number, (axis, (name, values)) in enumerate(zip(axes, self.dice.items(), strict=True)):
            axis.hist(values, bins=np.linspace(0, 1, 41).tolist(), color=COLORS[number % len(COLORS)])
            axis.set(title=on_picture(name.replace("_", " ")), xlabel="Dice", ylabel="images", xlim=(0, 1))
        return as_picture(figure, "How many images have which Dice", "Images by their Dice")


def score_masks(answers: Answers, *, resamples: int = 1000, seed: int = 0) -> MaskScores | None:
    """Average the scores of masks over images; None where no image has any.

    Args:
        answers: The images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
    """
    if not answers.masks:
        return None
    scores = segmentation_metrics(answers.masks, answers.patients, resamples=resamples, seed=seed)
    dice = {name.removeprefix("dice_"): values for name, values in answers.masks.items() if name.startswith("dice_")}
    every = [
        (str(answers.rows[image]["image_id"]), name, float(values[image]))
        for name, values in dice.items()
        for image in np.flatnonzero(~np.isnan(values)).tolist()
    ]
    worst = tuple(sorted(every, key=lambda entry: entry[2])[:SHOWN])
    return MaskScores(scores, worst, {name: values[~np.isnan(values)] for name, values in dice.items()})


def _told(kind: str, one: Estimate | None) -> str:
    if one is None:
        return "-"
    return f"{one.value:.1f} [{one.low:.1f}, {one.high:.1f}]" if kind == "hd95" else str(one)
