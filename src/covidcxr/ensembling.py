"""The ensemble at the end of a recipe: boosted trees on deep features, and the votes of all members combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from covidcxr.config import ModelConfig, check_keys
from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError
from covidcxr.evaluation.plots import draw_run
from covidcxr.evaluation.rows import calibrate
from covidcxr.models import ClassificationModel, Classifier, EnsembleModel
from covidcxr.tasks import fit_boosting, predict_rows
from covidcxr.training import score_sources, write_scores
from covidcxr.types import Vote

__all__ = ["EnsembleStep"]

_BOOSTING = {"network_args", "pretrained_backbone", "learning_rate", "subsample", "max_features"}


@dataclass(frozen=True)
class EnsembleStep:
    """What the key `ensemble` of a recipe says.

    Attributes:
        vote: "soft" averages the members' probabilities, "hard" counts their answers.
        boosting: Makes one member more: gradient boosting on the features of a backbone. Holds `network_args` of the
            network "boosted" (`backbone`, `stages`, `depth`), `pretrained_backbone`, and `learning_rate`, `subsample`
            and `max_features` of `covidcxr.tasks.fit_boosting`; empty = no such member.
    """

    vote: Vote = "soft"
    boosting: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read the key.

        Raises:
            ConfigError: If a key is unknown; says the nearest.
        """
        check_keys(data, {"vote", "boosting"}, f"ensemble of {where}")
        check_keys(data.get("boosting") or {}, _BOOSTING, f"ensemble.boosting of {where}")
        return cls(**{key: value for key, value in data.items() if value is not None})

    def boosted(self, config: ModelConfig, *, weights: bool = True) -> ClassificationModel:
        """Build the boosted member for the classes and films of another member's config.

        Raises:
            ConfigError: If `network_args` are wrong.
            PretrainedError: If pretrained weights were asked for and cannot be had.
        """
        arguments = dict(self.boosting.get("network_args", {}))
        pretrained = self.boosting.get("pretrained_backbone", False) if weights else False
        config = replace(config, network="boosted", network_args=arguments, temperature=1.0, thresholds={})
        return ClassificationModel(config, pretrained_backbone=pretrained)

    def fit_boosted(self, config: ModelConfig, data: CXRDataModule, folder: Path, coverage: float | None) -> None:
        """Fit, calibrate, test and save the boosted member."""
        settings = {
            key: self.boosting[key] for key in ("learning_rate", "subsample", "max_features") if key in self.boosting
        }
        model = fit_boosting(self.boosted(config), data, seed=data.seed, **settings)
        finish(model, data, folder, coverage)

    def combine(self, members: Mapping[str, Path], data: CXRDataModule, folder: Path, coverage: float | None) -> None:
        """Combine the saved members; calibrate, test and save the ensemble."""
        models = {name: ClassificationModel.from_pretrained(place) for name, place in members.items()}
        if len(models) < 2:
            raise ConfigError(f"An ensemble needs two members or more, not {len(models)}.")
        finish(EnsembleModel(models, vote=self.vote), data, folder, coverage)


def finish(model: Classifier, data: CXRDataModule, folder: Path, coverage: float | None) -> None:
    """Calibrate on the validation films, save, score the test films, and draw."""
    rows = predict_rows(model, data, "val")
    if rows:
        model.config = calibrate(model.config, rows, coverage)
    model.save_pretrained(folder / "model")
    tested = predict_rows(model, data, "test")
    write_scores(tested, score_sources(tested), folder)
    draw_run(folder)
