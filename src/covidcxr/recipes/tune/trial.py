"""One trial: a training in a folder of its own, scored by the films of validation."""

from __future__ import annotations

import contextlib
import gc
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.recipes.run import Run
from covidcxr.recipes.tune.findings import trial_folder
from covidcxr.recipes.tune.study import claims, retry
from covidcxr.training.recipe import Recipe

__all__ = ["FAILURES", "Objective", "Reporter", "SurplusError"]

FAILURES = (CovidCXRError, RuntimeError)
"""What ends a trial and not the search. RuntimeError: out of memory, shapes that do not fit."""


class SurplusError(RuntimeError):
    """A trial was claimed that another process had claimed too, as the last one: it is not run."""


@dataclass(frozen=True)
class Objective:
    """What a trial does.

    Attributes:
        recipe: What is searched.
        folder: The output folder of the search.
        words: Command-line words of `covidcxr fit` that change every trial.
        trials: How many are wanted.
    """

    recipe: Recipe
    folder: Path
    words: Sequence[str]
    trials: int

    def __call__(self, trial: optuna.Trial) -> float:
        """Train with the values that the trial draws, and return the best score of an epoch."""
        study = trial.study
        earlier = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
        if sum(map(claims, earlier)) >= self.trials:
            trial.set_user_attr("surplus", True)
            raise SurplusError
        values = {name: parameter.suggest(trial) for name, parameter in self.recipe.search.items()}
        folder = trial_folder(self.folder, trial.number)
        shutil.rmtree(folder, ignore_errors=True)  # of a study whose database was removed
        reporter = Reporter(trial)
        try:
            self._fit(Run("", folder, self.recipe.with_values(values).base(), self.words), reporter)
            value = reporter.best()
        except optuna.TrialPruned:
            raise
        except FAILURES as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            raise
        except BaseException as error:  # this process ends: a full disk, Ctrl+C, of which Lightning makes a SystemExit
            retry(study, study.get_trials(deepcopy=False)[trial.number])
            if isinstance(error, SystemExit):
                raise KeyboardInterrupt from None  # with which Optuna closes the trial
            raise
        finally:
            trial.set_user_attr("epochs", reporter.epochs)
        study.set_user_attr("monitor", reporter.monitor)
        return value

    def _fit(self, run: Run, reporter: Reporter) -> None:
        run.folder.mkdir(parents=True)
        try:
            with (run.folder / "log.txt").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                run.fit([reporter])
        finally:
            gc.collect()  # a model and its trainer know each other: without this the next one finds no memory
        shutil.copy(run.folder / "model" / "history.json", run.folder)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


class Reporter(Callback):
    """Tells the study the score of each epoch, and ends a training that is not worth its while.

    Args:
        trial: Whose training it is.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.monitor = ""
        self.epochs = 0
        self.values: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the score that the task says is the one to watch."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self.monitor = str(pl_module.monitor)
        self.epochs = trainer.current_epoch + 1
        self.values.append(float(trainer.callback_metrics[self.monitor]))
        self.trial.report(self.values[-1], len(self.values))
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def best(self) -> float:
        """Return the best score.

        Raises:
            ConfigError: If there is none.
        """
        numbers = [value for value in self.values if not math.isnan(value)]
        if not numbers:
            raise ConfigError(
                "No validation film gave a score to search by: give validation films, of more than one class."
            )
        return max(numbers)
