"""A study that several processes share, and what each of its trials does.

Optuna is imported here, so this module is imported only by functions that need it.
"""

from __future__ import annotations

import gc
import hashlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.recipes.run import Run
from covidcxr.recipes.tune import trial_folder
from covidcxr.training.changes import Changes
from covidcxr.training.recipe import Recipe
from covidcxr.utils.console import show_status

__all__ = ["FAILURES", "NumberedSampler", "Objective", "Reporter", "claims", "fail_dead", "finished", "open_study"]

FAILURES = (CovidCXRError, RuntimeError)
"""Errors that end a trial, but not the search. RuntimeError: out of memory, shapes that do not fit."""
HEARTBEAT = 15
"""Seconds between two heartbeats of a running trial."""
_RETRIES = 3  # of a trial whose processes died, so that a trial that kills its process does not do so for ever
_ATTEMPTS = 5  # at opening: the first processes of a study may create its tables at the same time


def open_study(url: str, name: str, sampler: str, pruner: str, seed: int) -> optuna.Study:
    """Open a study, or create it.

    Args:
        url: URL of its database, in the notation of SQLAlchemy.
        name: Its name in the database.
        sampler: "tpe" (Bergstra et al. 2011) or "random".
        pruner: "median" (Golovin et al. 2017) or "none".
        seed: Seed of the sampler.

    Returns:
        The study, which maximises.

    Raises:
        ConfigError: If the database cannot be opened.
    """
    kinds: dict[str, type[TPESampler] | type[RandomSampler]] = {"tpe": TPESampler, "random": RandomSampler}
    with _experimental():
        storage = _open_storage(url)
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=NumberedSampler(kinds[sampler], seed),
            pruner=MedianPruner(n_warmup_steps=2) if pruner == "median" else NopPruner(),
            load_if_exists=True,
        )


def finished(trial: FrozenTrial) -> bool:
    """Whether a trial ran to its end: with a value, pruned, or with an error of its own, but not killed.

    Args:
        trial: A trial of the study.

    Returns:
        True if it is not run again.
    """
    over = (TrialState.COMPLETE, TrialState.PRUNED)
    return trial.state in over or (trial.state == TrialState.FAIL and "error" in trial.user_attrs)


def claims(trial: FrozenTrial) -> bool:
    """Whether a trial counts towards the number of trials: it is finished, runs, or waits for its retry.

    Args:
        trial: A trial of the study.

    Returns:
        True if it counts.
    """
    return finished(trial) or trial.state in (TrialState.RUNNING, TrialState.WAITING)


def fail_dead(study: optuna.Study, parameters: int) -> None:
    """Mark the trials of dead processes as failed, and queue them again.

    Args:
        study: The study.
        parameters: Number of parameters of its search; a trial with fewer has not begun to train.
    """
    with _experimental():
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A trial killed between its claim and its first heartbeat looks alive for ever; it has not drawn all values.
        old = trial.datetime_start is not None and datetime.now() - trial.datetime_start > timedelta(
            seconds=4 * HEARTBEAT
        )
        if old and len(trial.params) < parameters:
            with suppress(UpdateFinishedTrialError, ValueError):  # another process was faster
                study.tell(trial.number, state=TrialState.FAIL)


def _retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial that was stopped: the next free process takes it, with the same parameters."""
    with _experimental():
        RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)(study, trial)


class NumberedSampler(BaseSampler):
    """Draws by the seed and the number of the trial, not by how many were drawn in this process.

    So a resumed search draws what an undisturbed one would have drawn, and two processes with the same seed never draw
    the same values.

    Args:
        kind: Sampler that draws the values of a trial.
        seed: Seed of the search.

    Example:
        ```python
        import optuna

        from covidcxr.recipes.study import NumberedSampler

        samplers = [NumberedSampler(optuna.samplers.RandomSampler, seed=0) for _ in range(2)]
        first, again = (optuna.create_study(sampler=sampler).ask().suggest_float("lr", 0, 1) for sampler in samplers)
        assert first == again
        ```
    """

    def __init__(self, kind: type[TPESampler] | type[RandomSampler], seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._samplers: dict[int, BaseSampler] = {}

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number not in self._samplers:
            digest = hashlib.sha256(f"{self._seed}/{trial.number}".encode()).digest()
            self._samplers = {trial.number: self._kind(seed=int.from_bytes(digest[:4], "big"))}
        return self._samplers[trial.number]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prepare the sampler of a trial; see `BaseSampler`.

        Args:
            study: The study.
            trial: The trial, which has its number.
        """
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together; see `BaseSampler`.

        Args:
            study: The study.
            trial: The trial.

        Returns:
            From name to distribution.
        """
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the parameters that are drawn together; see `BaseSampler`.

        Args:
            study: The study.
            trial: The trial.
            search_space: Their distributions, by name.

        Returns:
            From name to value.
        """
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter by itself; see `BaseSampler`.

        Args:
            study: The study.
            trial: The trial.
            param_name: Name of the parameter.
            param_distribution: Its distribution.

        Returns:
            The value.
        """
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


@dataclass(frozen=True)
class Objective:
    """Trains a trial and returns its score.

    Attributes:
        recipe: The recipe that is searched.
        folder: Output folder of the search.
        changes: Changes of every trial.
        trials: Number of finished trials that the study shall have.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.recipes.study import Objective
        from covidcxr.training import Recipe
        from covidcxr.training.changes import Changes

        changes = Changes.of({"data.root": "images"})
        objective = Objective(Recipe.read("wali2021-next"), Path("runs/mine"), changes, trials=20)
        assert "lr" in objective.recipe.search
        ```
    """

    recipe: Recipe
    folder: Path
    changes: Changes
    trials: int

    def __call__(self, trial: optuna.Trial) -> float:
        """Train with the values that the trial draws, and return the best score of its epochs.

        Args:
            trial: The trial, claimed by this process.

        Returns:
            The score, higher is better.

        Raises:
            RuntimeError: If another process claimed the last trial before: this one is not run.
            KeyboardInterrupt: If the training was stopped.
        """
        study = trial.study
        earlier = [known for known in study.get_trials(deepcopy=False) if known.number < trial.number]
        if sum(map(claims, earlier)) >= self.trials:
            trial.set_user_attr("surplus", True)
            raise RuntimeError("Another process has claimed the last trial.")
        values = {name: parameter.suggest(trial) for name, parameter in self.recipe.search.items()}
        folder = trial_folder(self.folder, trial.number)
        shutil.rmtree(folder, ignore_errors=True)  # left by a study whose database was removed
        reporter = Reporter(trial)
        try:
            with show_status(f"trial {trial.number}: reading the data") as reporter.show:
                self._fit(Run("", folder, self.recipe.with_values(values).base(), self.changes), reporter)
            value = reporter.best()
        except optuna.TrialPruned:
            raise
        except FAILURES as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            raise
        except BaseException as error:  # this process ends: a full disk, Ctrl+C, of which Lightning makes a SystemExit
            _retry(study, study.get_trials(deepcopy=False)[trial.number])
            if isinstance(error, SystemExit):
                raise KeyboardInterrupt from None  # on which Optuna closes the trial
            raise
        finally:
            trial.set_user_attr("epochs", reporter.epochs)
        study.set_user_attr("monitor", reporter.monitor)
        return value

    def _fit(self, run: Run, reporter: Reporter) -> None:
        run.folder.mkdir(parents=True)
        try:
            with (run.folder / "log.txt").open("w", encoding="utf-8") as log, redirect_stdout(log):
                run.fit([reporter])
        finally:
            gc.collect()  # model and trainer refer to each other: without this the next trial runs out of memory
        shutil.copy(run.folder / "model" / "history.json", run.folder)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


class Reporter(Callback):
    """Reports the score of each epoch to the study, and stops a training that the pruner ends.

    Args:
        trial: The trial that is trained.

    Attributes:
        monitor: Name of the score, `val/auroc` say; "" before the first epoch.
        epochs: Number of epochs so far.
        values: Score of each epoch.
        show: Called with words on how far the training is.

    Example:
        ```python
        import optuna

        from covidcxr.recipes.study import Reporter

        reporter = Reporter(optuna.create_study().ask())
        reporter.values += [0.6, float("nan"), 0.7]
        assert reporter.best() == 0.7
        ```
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.monitor = ""
        self.epochs = 0
        self.values: list[float] = []
        self.show: Callable[[str], None] = lambda words: None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the score that the task monitors.

        Args:
            trainer: Runs the training, and has the logged values.
            pl_module: The task.

        Raises:
            optuna.TrialPruned: If the pruner ends the trial.
        """
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self.monitor = str(pl_module.monitor)
        self.epochs = trainer.current_epoch + 1
        self.values.append(float(trainer.callback_metrics[self.monitor]))
        self.show(f"trial {self.trial.number}: epoch {self.epochs}, {self.monitor} {self.values[-1]:.3f}")
        self.trial.report(self.values[-1], len(self.values))
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def best(self) -> float:
        """Return the best score.

        Raises:
            ConfigError: If there is no score.
        """
        numbers = [value for value in self.values if not math.isnan(value)]
        if not numbers:
            raise ConfigError(
                "No validation image gave a score to search by: give validation images, of more than one class."
            )
        return max(numbers)


def _open_storage(url: str) -> RDBStorage:
    try:
        shown = make_url(url).render_as_string()  # without the password
    except ArgumentError:
        raise ConfigError("--storage is no URL; a URL looks like postgresql+psycopg://USER@HOST/STUDIES.") from None
    # SQLite waits while another process writes; a pool would leave its connections open after the search.
    settings = {"connect_args": {"timeout": 60}, "poolclass": NullPool} if url.startswith("sqlite") else {}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return RDBStorage(
                url,
                engine_kwargs=settings,
                heartbeat_interval=HEARTBEAT,
                grace_period=4 * HEARTBEAT,
                heartbeat_stale_trial_callback=_retry,
            )
        except ImportError as error:
            raise ConfigError(f"{shown} needs a driver that is not installed: {error.__cause__ or error}.") from error
        except ArgumentError as error:
            raise ConfigError(f"{shown} is not a supported kind of database: {error}.") from error
        except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            if attempt == _ATTEMPTS:
                raise ConfigError(
                    f"The study's database {shown} cannot be opened: {str(error).splitlines()[0]}"
                ) from error
            time.sleep(0.2 * attempt)
    raise AssertionError("unreachable")


@contextmanager
def _experimental() -> Iterator[None]:
    """Ignore Optuna's warnings about experimental names: tests cover those that are used here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
