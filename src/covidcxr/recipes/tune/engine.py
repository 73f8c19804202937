"""The search itself: check, claim, train, tell, until enough trials are finished."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import optuna
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.recipes.run import Run
from covidcxr.recipes.tune.findings import Findings, trial_folder
from covidcxr.recipes.tune.study import claims, retry
from covidcxr.training.recipe import Recipe, claim
from covidcxr.training.search_space import Choice
from covidcxr.utils.console import print_line

if TYPE_CHECKING:
    import optuna

__all__ = ["tune", "FAILURES", "Objective", "Reporter", "SurplusError"]

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
                "No validation image gave a score to search by: give validation images, of more than one class."
            )
        return max(numbers)


# A line a trial in place of Lightning's pages; one device, because more of them are for more processes.
_QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.devices", "1")


_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def tune(
    recipe: Recipe,
    folder: Path,
    words: Sequence[str] = (),
    *,
    trials: int = 20,
    sampler: Literal["tpe", "random"] = "tpe",
    pruner: Literal["median", "none"] = "median",
    storage: str | None = None,
    seed: int = 0,
) -> Findings:
    """Search the settings that a recipe leaves open, by the score of the validation images.

    The score is the best of all epochs of the one that the task says to watch (`val/auroc`, `val/dice`). Test images are
    not touched. Processes with the same recipe and the same study share its trials; a trial whose process died is
    queued anew; a finished one is not repeated. With one process, the same seed gives the same trials.

    Args:
        recipe: What to search; has a `search`.
        folder: Where the results go.
        words: Command-line words of `covidcxr fit` that change every trial, say `["--data.root", "images"]`.
        trials: How many finished trials the study shall have, those of all processes together, 1 or more.
        sampler: "tpe" (tree-structured Parzen estimators: Bergstra et al. 2011, "Algorithms for hyper-parameter
            optimization") or "random" (Bergstra and Bengio 2012).
        pruner: "median" ends a trial whose best score is below the median of the others' at its epoch, the first one
            excepted, once five are finished; "none".
        storage: URL of the study's database; by default SQLite in `folder`.
        seed: Of the draws. The seed of the trainings is the recipe's.

    Returns:
        What was found, which lies in `folder` too: best.yaml, trials.csv, trials.json and pictures.

    Raises:
        ConfigError: If Optuna is not installed, the recipe has no `search`, or the database cannot be had.
        CovidCXRError: If a setting of the recipe or a value of its search is wrong: nothing was trained then.
    """
    _refuse(recipe, words, trials)
    from covidcxr.recipes.tune.study import open_study

    quiet_words = [*_QUIET, *words]
    with _quiet():
        _check(recipe, quiet_words)
        digest = claim(folder, [recipe.config, recipe.search], words)
        url = storage or f"sqlite:///{(folder / 'study.db').resolve().as_posix()}"
        study = open_study(url, f"{recipe.name}-{digest[:8]}", sampler, pruner, seed)
        findings = Findings(recipe, folder, tuple(words), trials, study)
        _work(study, findings, quiet_words)
        findings.write()
        findings.draw()
    return findings


def _work(study: optuna.Study, findings: Findings, words: Sequence[str]) -> None:
    """Run trials until enough are finished, here or elsewhere."""
    from optuna.exceptions import UpdateFinishedTrialError

    from covidcxr.recipes.tune.study import HEARTBEAT, claims, fail_dead, finished

    recipe, wanted = findings.recipe, findings.wanted
    objective = Objective(recipe, findings.folder, words, wanted)

    def told(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        findings.tidy()
        if finished(trial):
            print_line(findings.line(trial))
            findings.write()

    waiting = False
    while True:
        fail_dead(study, len(recipe.search))
        known = study.get_trials(deepcopy=False)
        if sum(map(finished, known)) >= wanted:
            return
        taken = [trial for trial in known if claims(trial) and trial.state.name != "WAITING"]
        if len(taken) < wanted:
            waiting = False
            try:
                study.optimize(objective, n_trials=1, catch=FAILURES, callbacks=[told])
            except UpdateFinishedTrialError:
                print_line("A trial was taken for dead and given to another process.")
        else:
            if not waiting:
                print_line("The last trials run in other processes: waiting for them.")
            waiting = True
            time.sleep(min(2, HEARTBEAT))


def _refuse(recipe: Recipe, words: Sequence[str], trials: int) -> None:
    """Tell what is wrong before anything is built."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError('covidcxr tune needs Optuna: pip install "covidcxr[tune]"')
    if not recipe.search:
        raise ConfigError(f"The recipe {recipe.name} has no `search`; `covidcxr recipes show wali2021-next` shows one.")
    for key, means in (("compare", "{}"), ("masks", "null"), ("ensemble", "null")):
        if getattr(recipe, key):
            raise ConfigError(
                f"The recipe {recipe.name} has `{key}`, and a search trains one config: set `{key}: {means}`. "
                "(Masks that are drawn already are found by --data.drawn_masks DIR.)"
            )
    if trials < 1:
        raise ConfigError(f"--trials must be 1 or more, not {trials}.")
    flags = {word.partition("=")[0].removeprefix("--").replace(".init_args", "") for word in words}
    for name, parameter in recipe.search.items():
        for key in parameter.keys:
            if key.replace(".init_args", "") in flags:
                raise ConfigError(f"--{key} is what the search {name!r} of the recipe {recipe.name} chooses.")


def _check(recipe: Recipe, words: Sequence[str]) -> None:
    """Build everything, so often that each value of each choice was in use once, and train nothing."""
    sizes = [len(one.values) if isinstance(one, Choice) else 2 for one in recipe.search.values()]
    for number in range(max(sizes)):
        values = {name: one.probe(number) for name, one in recipe.search.items()}
        with tempfile.TemporaryDirectory() as scratch:
            Run("", Path(scratch), recipe.with_values(values).base(), words).check()


@contextmanager
def _quiet() -> Iterator[None]:
    """A line a trial: what Optuna and Lightning say of each is left out, but for warnings."""
    import optuna

    level = optuna.logging.get_verbosity()
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in _LOGGERS}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
        for logger, before in loggers.items():
            logger.setLevel(before)
