"""The search itself: check, claim, train and report, until enough trials are finished."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from covidcxr.errors import ConfigError
from covidcxr.recipes.run import Run
from covidcxr.recipes.tune.findings import Findings
from covidcxr.training.recipe import Recipe, claim
from covidcxr.training.search_space import Choice, require_search
from covidcxr.utils.console import print_line

if TYPE_CHECKING:
    import optuna

__all__ = ["tune"]

# The search prints a line for each trial; a trial uses one device, as further devices are for further processes.
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

    The score of a trial is the best of its epochs of what the task monitors (`val/auroc`, `val/dice`). Test images are
    not used. Processes with the same recipe and the same study share its trials; a trial whose process died is queued
    again; a finished trial is not repeated. With a single process, the same seed gives the same trials.

    Args:
        recipe: Recipe with a `search`.
        folder: Output folder.
        words: Flags of `covidcxr fit` that change every trial, say `["--data.root", "images"]`.
        trials: Number of finished trials that the study shall have, of all processes together, 1 or more.
        sampler: "tpe" (tree-structured Parzen estimators: Bergstra et al. 2011, "Algorithms for hyper-parameter
            optimization") or "random" (Bergstra and Bengio 2012).
        pruner: "median" ends a trial whose best score is below the median of the other trials at its epoch, except in
            the first epoch, once five trials are finished; "none" ends no trial early.
        storage: URL of the study's database; by default SQLite in `folder`.
        seed: Seed of the sampler. The seed of the trainings is the recipe's.

    Returns:
        The trials, which `folder` holds too: best.yaml, trials.csv, trials.json and pictures.

    Raises:
        ConfigError: If Optuna is not installed, the recipe has no `search`, or the database cannot be opened.
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

    from covidcxr.recipes.tune.study import FAILURES, HEARTBEAT, Objective, claims, fail_dead, finished

    recipe, wanted = findings.recipe, findings.wanted
    objective = Objective(recipe, findings.folder, words, wanted)

    def report(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
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
                study.optimize(objective, n_trials=1, catch=FAILURES, callbacks=[report])
            except UpdateFinishedTrialError:
                print_line("A trial was considered dead and given to another process.")
        else:
            if not waiting:
                print_line("The last trials run in other processes: waiting for them.")
            waiting = True
            time.sleep(min(2, HEARTBEAT))


def _refuse(recipe: Recipe, words: Sequence[str], trials: int) -> None:
    """Refuse what can never be searched, before anything is built."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError('covidcxr tune needs Optuna: pip install "covidcxr[tune]"')
    require_search(recipe.search, f"the recipe {recipe.name}")
    for key, means in (("compare", "{}"), ("masks", "null"), ("ensemble", "null")):
        if getattr(recipe, key):
            raise ConfigError(
                f"The recipe {recipe.name} has `{key}`, and a search trains one config: set `{key}: {means}`. "
                "(--data.drawn_masks DIR gives lung masks that were predicted before.)"
            )
    if trials < 1:
        raise ConfigError(f"--trials must be 1 or more, not {trials}.")
    flags = {word.partition("=")[0].removeprefix("--").replace(".init_args", "") for word in words}
    for name, parameter in recipe.search.items():
        for key in parameter.keys:
            if key.replace(".init_args", "") in flags:
                raise ConfigError(f"--{key} is what the search {name!r} of the recipe {recipe.name} chooses.")


def _check(recipe: Recipe, words: Sequence[str]) -> None:
    """Build everything, once for each value of the longest choice, and train nothing."""
    sizes = [len(parameter.values) if isinstance(parameter, Choice) else 2 for parameter in recipe.search.values()]
    for number in range(max(sizes)):
        values = {name: parameter.probe(number) for name, parameter in recipe.search.items()}
        with tempfile.TemporaryDirectory() as scratch:
            Run("", Path(scratch), recipe.with_values(values).base(), words).check()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Optuna and Lightning print of each trial, except warnings."""
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
