"""Learning curves of one training or of all folds in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covidcxr.evaluation.plots import COLORS, as_picture, panels
from covidcxr.evaluation.report.chief import in_words, plain
from covidcxr.page import Section

__all__ = ["LearningCurves"]

_WANTED = ("loss", "accuracy", "auroc", "f1", "dice")
_STAGES = {"train": ("training", COLORS[0]), "val": ("validation", COLORS[1])}


@dataclass(frozen=True)
class LearningCurves:
    """What was logged in each epoch.

    Attributes:
        histories: By name of the training: an entry an epoch, as `fit` writes history.json.
    """

    histories: Mapping[str, Sequence[Mapping[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain(list(map(dict, epochs))) for name, epochs in self.histories.items()}

    def sections(self) -> list[Section]:
        """Return the part of the report."""
        logged = {name for epochs in self.histories.values() for entry in epochs for name in entry}
        scores = [score for score in _WANTED if {f"train/{score}", f"val/{score}"} & logged]
        if not scores:
            return []
        figure, axes = panels(len(scores), columns=3)
        several = len(self.histories) > 1
        for axis, score in zip(axes, scores, strict=True):
            for epochs in self.histories.values():
                for stage, (_, color) in _STAGES.items():
                    points = [
                        (entry["epoch"] + 1, entry[name])
                        for entry in epochs
                        if (name := f"{stage}/{score}") in entry and entry[name] is not None
                    ]
                    if points:
                        width, alpha = (0.8, 0.7) if several else (1.6, 1.0)
                        axis.plot(*zip(*points, strict=True), color=color, linewidth=width, alpha=alpha)
            axis.set(xlabel="epoch", title=in_words(score))
            axis.locator_params(axis="x", integer=True)
        for stage, color in _STAGES.values():
            axes[0].plot([], [], color=color, label=stage)
        axes[0].legend(frameon=False, fontsize=8)
        trained = f"{len(self.histories)} trainings, a thin line each" if several else "One training"
        picture = as_picture(figure, "Learning curves of training and validation")
        lead = f"{trained}. Validation films chose the epoch that was kept, so their scores flatter."
        return [Section("Learning curves", lead, [picture])]
