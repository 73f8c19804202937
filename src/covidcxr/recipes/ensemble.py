"""The ensemble at the end of a recipe: gradient boosting on deep features, and the votes of all members combined."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

from covidcxr.config import ModelConfig, check_keys
from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, PretrainedError, did_you_mean
from covidcxr.evaluation.metrics.reliability import calibrate, find_warning_signs
from covidcxr.evaluation.plots import draw_run
from covidcxr.evaluation.predictions.table import score_sources, write_scores
from covidcxr.models import ClassificationModel, Classifier, EnsembleModel
from covidcxr.tasks import Task, fit_boosting, predict_rows
from covidcxr.tasks.classification import FRACTIONS, check_fraction
from covidcxr.types import CoverageBy, Vote

__all__ = ["EnsembleStep"]

_BOOSTING = {"network_args", "pretrained_backbone", *FRACTIONS}


@dataclass(frozen=True)
class EnsembleStep:
    """The settings under the key `ensemble` of a recipe.

    Attributes:
        vote: "soft" averages the members' probabilities, "hard" counts their predicted classes.
        boosting: Adds a member: gradient boosting on the features of a backbone. Holds `network_args` of the network
            "boosted" (`backbone`, `stages`, `depth`), `pretrained_backbone`, and `learning_rate`, `subsample` and
            `max_features` of `covidcxr.tasks.fit_boosting`; empty = no such member.

    Example:
        ```python
        from covidcxr.recipes.ensemble import EnsembleStep

        step = EnsembleStep.read({"vote": "hard"}, "my recipe")
        assert step == EnsembleStep("hard", {})
        ```
    """

    vote: Vote = "soft"
    boosting: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read the settings.

        Args:
            data: Plain data, as the recipe has it.
            where: Name of the recipe, for error messages.

        Returns:
            The checked settings.

        Raises:
            ConfigError: If a key is unknown (says the nearest), or a value is wrong.
        """
        check_keys(data, {"vote", "boosting"}, f"ensemble of {where}")
        boosting = _table(data.get("boosting"), f"ensemble.boosting of {where}")
        check_keys(boosting, _BOOSTING, f"ensemble.boosting of {where}")
        _table(boosting.get("network_args"), f"ensemble.boosting.network_args of {where}")
        for key in boosting.keys() & set(FRACTIONS):
            check_fraction(f"ensemble.boosting.{key} of {where}", boosting[key])
        vote: Any = data.get("vote") or "soft"
        if vote not in get_args(Vote):
            raise ConfigError(
                f"ensemble.vote of {where}: there is no vote {vote!r}. {did_you_mean(str(vote), get_args(Vote))}"
            )
        return cls(vote, boosting)

    def check(self, task: Task, members: Collection[str]) -> None:
        """Check, before the runs are trained, that their models can be combined.

        Args:
            task: Task of the first run.
            members: Names of the runs, each of which gives a model.

        Raises:
            ConfigError: If there will be nothing to combine, or the boosted member cannot be built.
            PretrainedError: If the weights of its backbone cannot be loaded.
        """
        configs = [model.config for model in task.models.values()]
        if [config.task for config in configs] != ["classification"]:
            raise ConfigError(
                "An ensemble combines classifiers, and these runs train other models: leave `ensemble` out."
            )
        for name in {"boosting", "ensemble"} & set(members):
            raise ConfigError(f"A variant may not be named {name!r} beside an ensemble, which uses this folder.")
        _check_count(len(members) + bool(self.boosting))
        if self.boosting:
            if configs[0].mode == "multilabel":
                raise ConfigError("Boosted trees predict exclusive classes, not findings: leave `boosting` out.")
            try:
                self.boosted(configs[0])
            except (ConfigError, PretrainedError) as error:
                raise type(error)(f"ensemble.boosting: {error}") from error

    def with_weights(self, settings: Mapping[str, Any]) -> Self:
        """Return the step with the pretrained weights of the runs for the boosted member too.

        Args:
            settings: Settings of a run. Where its `pretrained_backbone` is a path, or false, it holds for the backbone
                of the boosted member, unless the recipe names a file for that.

        Returns:
            The same step, or a changed one.
        """
        given = settings["model"]["init_args"].get("pretrained_backbone")
        if self.boosting.get("pretrained_backbone") is not True or given is True:
            return self
        return replace(self, boosting={**self.boosting, "pretrained_backbone": given})

    def boosted(self, config: ModelConfig) -> ClassificationModel:
        """Build the boosted member, not fitted yet.

        Args:
            config: Config of another member, whose classes and preprocessing it takes.

        Returns:
            The classifier.

        Raises:
            ConfigError: If `network_args` are wrong.
            PretrainedError: If pretrained weights cannot be loaded.
        """
        arguments = dict(self.boosting.get("network_args") or {})
        pretrained = self.boosting.get("pretrained_backbone") or False
        config = replace(config, network="boosted", network_args=arguments, temperature=1.0, thresholds={})
        return ClassificationModel(config, pretrained_backbone=pretrained)

    def fit_boosted(
        self,
        config: ModelConfig,
        data: CXRDataModule,
        folder: Path,
        coverage: float | None,
        coverage_by: CoverageBy = "class",
    ) -> None:
        """Fit, calibrate, test and save the boosted member.

        Args:
            config: Config of another member, whose classes and preprocessing it takes.
            data: Data module with training, validation and test images.
            folder: Output folder: `model`, scores, rows and pictures.
            coverage: Coverage of the sets of plausible classes, in (0, 1); None = no thresholds.
            coverage_by: Whom it is promised; see `covidcxr.evaluation.calibrate`.
        """
        settings = {key: self.boosting[key] for key in FRACTIONS if key in self.boosting}
        model = fit_boosting(self.boosted(config), data, seed=data.seed, **settings)
        _finish(model, data, folder, coverage, coverage_by)

    def combine(
        self,
        members: Mapping[str, Path],
        data: CXRDataModule,
        folder: Path,
        coverage: float | None,
        coverage_by: CoverageBy = "class",
    ) -> None:
        """Combine the saved members; calibrate, test and save the ensemble.

        Args:
            members: From name to the folder of a saved classifier.
            data: Data module with validation and test images.
            folder: Output folder: `model`, scores, rows and pictures.
            coverage: Coverage of the sets of plausible classes, in (0, 1); None = no thresholds.
            coverage_by: Whom it is promised; see `covidcxr.evaluation.calibrate`.

        Raises:
            ConfigError: If there are fewer than two members, or their classes differ.
        """
        _check_count(len(members))
        models: dict[str, ClassificationModel] = {}
        for name, saved in members.items():
            plain = re.sub(
                r"[^A-Za-z0-9_-]", "-", name
            )  # a member's name has fewer characters than a run's ("focal+0.01")
            plain = plain if plain not in models else f"{plain}-{len(models)}"
            models[plain] = ClassificationModel.from_pretrained(saved)
        _finish(EnsembleModel(models, vote=self.vote), data, folder, coverage, coverage_by)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value or {}, Mapping):
        raise ConfigError(f"{where} must map keys to values, not be {value!r}.")
    return value or {}


def _check_count(members: int) -> None:
    if members < 2:
        raise ConfigError(f"An ensemble needs two members or more, not {members}.")


def _finish(
    model: Classifier, data: CXRDataModule, folder: Path, coverage: float | None, coverage_by: CoverageBy
) -> None:
    """Calibrate on the validation images, save, score the test images, and draw."""
    if rows := predict_rows(model, data, "val"):
        model.config = calibrate(model.config, rows, coverage, coverage_by)
    model.save_pretrained(folder / "model")
    tested = predict_rows(model, data, "test")
    write_scores(tested, score_sources(tested), folder, find_warning_signs(tested))
    draw_run(folder)
