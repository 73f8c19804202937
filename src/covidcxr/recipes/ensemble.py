"""The ensemble at the end of a recipe: boosted trees on deep features, and the votes of all members combined."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

from covidcxr.config import ModelConfig, check_keys
from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, PretrainedError, did_you_mean
from covidcxr.evaluation.plots import draw_run
from covidcxr.evaluation.predictions.table import calibrate, score_sources, write_scores
from covidcxr.models import ClassificationModel, Classifier, EnsembleModel
from covidcxr.tasks import Task, fit_boosting, predict_rows
from covidcxr.tasks.boosting import FRACTIONS, check_fraction
from covidcxr.types import Vote

__all__ = ["EnsembleStep"]

_BOOSTING = {"network_args", "pretrained_backbone", *FRACTIONS}


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
            ConfigError: If a key is unknown, says the nearest; or a value is wrong.
        """
        check_keys(data, {"vote", "boosting"}, f"ensemble of {where}")
        boosting = _table(data.get("boosting"), f"ensemble.boosting of {where}")
        check_keys(boosting, _BOOSTING, f"ensemble.boosting of {where}")
        _table(boosting.get("network_args"), f"ensemble.boosting.network_args of {where}")
        for key in boosting.keys() & set(FRACTIONS):
            check_fraction(f"ensemble.boosting.{key} of {where}", boosting[key])
        vote: Any = data.get("vote") or "soft"
        if vote not in get_args(Vote):
            raise ConfigError(f"ensemble.vote of {where}: {vote!r} is none. {did_you_mean(str(vote), get_args(Vote))}")
        return cls(vote, boosting)

    def check(self, task: Task, members: Collection[str]) -> None:
        """Build what will be combined with the runs' models, before these are trained.

        Args:
            task: What the first run trains.
            members: The names of the runs, each of which gives a model.

        Raises:
            ConfigError: If there will be nothing to combine, or the boosted member cannot be built.
            PretrainedError: If its backbone's weights cannot be had.
        """
        configs = [model.config for model in task.models.values()]
        if [config.task for config in configs] != ["classification"]:
            raise ConfigError("An ensemble combines classifiers, and these runs train others: leave `ensemble` out.")
        for name in {"boosting", "ensemble"} & set(members):
            raise ConfigError(f"A variant may not be named {name!r} beside an ensemble, whose folder that is.")
        _check_count(len(members) + bool(self.boosting))
        if self.boosting:
            if configs[0].mode == "multilabel":
                raise ConfigError("Boosted trees answer with exclusive classes, not findings: leave `boosting` out.")
            try:
                self.boosted(configs[0])
            except (ConfigError, PretrainedError) as error:
                raise type(error)(f"ensemble.boosting: {error}") from error

    def boosted(self, config: ModelConfig) -> ClassificationModel:
        """Build the boosted member for the classes and images of another member's config.

        Raises:
            ConfigError: If `network_args` are wrong.
            PretrainedError: If pretrained weights were asked for and cannot be had.
        """
        arguments = dict(self.boosting.get("network_args") or {})
        pretrained = self.boosting.get("pretrained_backbone") or False
        config = replace(config, network="boosted", network_args=arguments, temperature=1.0, thresholds={})
        return ClassificationModel(config, pretrained_backbone=pretrained)

    def fit_boosted(self, config: ModelConfig, data: CXRDataModule, folder: Path, coverage: float | None) -> None:
        """Fit, calibrate, test and save the boosted member."""
        settings = {key: self.boosting[key] for key in FRACTIONS if key in self.boosting}
        model = fit_boosting(self.boosted(config), data, seed=data.seed, **settings)
        finish(model, data, folder, coverage)

    def combine(self, members: Mapping[str, Path], data: CXRDataModule, folder: Path, coverage: float | None) -> None:
        """Combine the saved members; calibrate, test and save the ensemble."""
        _check_count(len(members))
        models: dict[str, ClassificationModel] = {}
        for name, place in members.items():
            plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)  # "focal+0.01": a member's name is more narrow than a run's
            plain = plain if plain not in models else f"{plain}-{len(models)}"
            models[plain] = ClassificationModel.from_pretrained(place)
        finish(EnsembleModel(models, vote=self.vote), data, folder, coverage)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value or {}, Mapping):
        raise ConfigError(f"{where} must map keys to values, not be {value!r}.")
    return value or {}


def _check_count(members: int) -> None:
    if members < 2:
        raise ConfigError(f"An ensemble needs two members or more, not {members}.")


def finish(model: Classifier, data: CXRDataModule, folder: Path, coverage: float | None) -> None:
    """Calibrate on the validation images, save, score the test images, and draw."""
    rows = predict_rows(model, data, "val")
    if rows:
        model.config = calibrate(model.config, rows, coverage)
    model.save_pretrained(folder / "model")
    tested = predict_rows(model, data, "test")
    write_scores(tested, score_sources(tested), folder)
    draw_run(folder)
