"""`covidcxr tune`: a search over the settings of a recipe, shared by any number of processes."""

from __future__ import annotations

import csv
import importlib.util
import logging
import shlex
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from covidcxr.errors import ConfigError
from covidcxr.evaluation.plots import COLORS, INK, LINE, panels, save_figure
from covidcxr.io.folders import replace_file
from covidcxr.io.pretrained import write_json
from covidcxr.recipes.run import Run
from covidcxr.training.changes import Changes, Choice, GivenChanges, Parameter, require_search
from covidcxr.training.parser import apply_changes
from covidcxr.training.recipe import Recipe, claim, write_yaml
from covidcxr.utils.console import print_line
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.plain import count_of

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes


__all__ = ["tune", "Findings", "trial_folder"]

# The search prints a line for each trial; a trial uses one device, as further devices are for further processes.
_QUIET = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False, "trainer.devices": 1}
_LOGGERS = ("lightning.pytorch", "lightning.fabric")


@old_arguments(words="changes")
def tune(
    recipe: Recipe,
    folder: Path,
    changes: GivenChanges = (),
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
        changes: Changes of every trial by dotted key, say `{"data.root": "images"}`, or as flags of `covidcxr fit`.
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
    changes = Changes.of(changes)
    _refuse(recipe, changes, trials)
    from covidcxr.recipes.study import open_study

    quiet = Changes.of(_QUIET) + changes
    with _quiet():
        _check(recipe, quiet)
        digest = claim(folder, [recipe.config, recipe.search], changes)
        url = storage or f"sqlite:///{(folder / 'study.db').resolve().as_posix()}"
        study = open_study(url, f"{recipe.name}-{digest[:8]}", sampler, pruner, seed)
        findings = Findings(recipe, folder, changes, trials, study)
        _work(study, findings, quiet)
        findings.write()
        findings.draw()
    return findings


def _work(study: optuna.Study, findings: Findings, changes: Changes) -> None:
    """Run trials until enough are finished, here or elsewhere."""
    from optuna.exceptions import UpdateFinishedTrialError

    from covidcxr.recipes.study import FAILURES, HEARTBEAT, Objective, claims, fail_dead, finished

    recipe, wanted = findings.recipe, findings.wanted
    objective = Objective(recipe, findings.folder, changes, wanted)

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


def _refuse(recipe: Recipe, changes: Changes, trials: int) -> None:
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
    for name, parameter in recipe.search.items():
        for key in parameter.keys:
            if key in changes:
                raise ConfigError(f"--{key} is what the search {name!r} of the recipe {recipe.name} chooses.")


def _check(recipe: Recipe, changes: Changes) -> None:
    """Build everything, once for each value of the longest choice, and train nothing."""
    sizes = [len(parameter.values) if isinstance(parameter, Choice) else 2 for parameter in recipe.search.values()]
    for number in range(max(sizes)):
        values = {name: parameter.probe(number) for name, parameter in recipe.search.items()}
        with tempfile.TemporaryDirectory() as scratch:
            Run("", Path(scratch), recipe.with_values(values).base(), changes).check()


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


_SHOWN = 10  # rows of the printed table
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting"}


def _draw_course(rows: Sequence[Mapping[str, Any]], monitor: str, path: Path) -> None:
    """Draw the value of each trial, and the best so far."""
    figure, (axis,) = panels(1, width=5.2, height=3)
    _dots(axis, rows, [row["trial"] for row in rows], None)
    complete = [row for row in rows if row["state"] == "complete"]
    if complete:
        best = np.maximum.accumulate([row["value"] for row in complete])
        trials = [row["trial"] for row in complete]
        axis.step(trials, best, where="post", color=COLORS[1], linewidth=1.4, label="best so far")
    axis.set(xlabel="trial", ylabel=monitor)
    axis.locator_params(axis="x", integer=True)
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    save_figure(figure, path)


def _draw_slices(rows: Sequence[Mapping[str, Any]], search: Mapping[str, Parameter], monitor: str, path: Path) -> None:
    """Draw the trials over the values of each parameter, later trials darker."""
    figure, axes = panels(len(search), width=2.8, height=2.6, columns=3)
    shades = np.array([row["trial"] for row in rows], float)
    for number, (axis, (name, parameter)) in enumerate(zip(axes, search.items(), strict=True)):
        values = [row["parameters"][name] for row in rows]
        if isinstance(parameter, Choice):
            _name_values(axis, list(parameter.values))
            aside = 0.5 * (shades / max(shades.max(), 1) - 0.5)  # side by side, in the order of the trials
            values = np.array([list(parameter.values).index(value) for value in values]) + aside
        elif parameter.log:
            axis.set_xscale("log")
            axis.tick_params(which="minor", color=LINE)
        elif parameter.whole:
            axis.locator_params(axis="x", integer=True)
        _dots(axis, rows, values, shades)
        axis.set(xlabel=name, ylabel=monitor if number % 3 == 0 else "")
    save_figure(figure, path)


def _draw_importances(importances: Mapping[str, float], path: Path) -> None:
    """Draw a bar for each parameter: its share, in [0, 1]."""
    names = sorted(importances, key=lambda name: importances[name])
    figure, (axis,) = panels(1, width=4.4, height=0.9 + 0.32 * len(names))
    axis.barh(names, [importances[name] for name in names], color=COLORS[0], height=0.6)
    for place, name in enumerate(names):
        axis.text(importances[name] + 0.01, place, f"{importances[name]:.2f}", va="center", fontsize=8, color=INK)
    axis.set(xlabel="share in being among the best trials", xlim=(0, 1.1))
    axis.grid(visible=False, axis="y")
    save_figure(figure, path)


def _dots(axis: Axes, rows: Sequence[Mapping[str, Any]], places: Sequence[float], shades: np.ndarray | None) -> None:
    """Draw a dot for each trial, in one colour or by shades; a pruned trial is a cross."""
    pruned = np.array([row["state"] == "pruned" for row in rows])
    x, y = np.array(places, float), np.array([row["value"] for row in rows], float)
    for which, marker, label in ((~pruned, "o", "trial"), (pruned, "x", "pruned, best of its epochs")):
        style: dict[str, Any] = {"color": COLORS[0]}
        if shades is not None:
            style = {"c": shades[which], "cmap": "Blues", "vmin": -0.5 * shades.max() - 1, "vmax": shades.max() + 1}
        if which.any():
            axis.scatter(x[which], y[which], marker=marker, s=22, label=label, linewidths=1, **style)


def _name_values(axis: Axes, names: Sequence[str]) -> None:
    axis.set(xticks=range(len(names)), xlim=(-0.5, len(names) - 0.5))
    if sum(map(len, names)) > 24:
        axis.set_xticklabels(names, rotation=20, ha="right", rotation_mode="anchor")
    else:
        axis.set_xticklabels(names)


@dataclass(frozen=True)
class Findings:
    """The trials of a search, of all processes that take part in it.

    Attributes:
        recipe: The recipe that was searched.
        folder: Holds best.yaml, trials.csv, trials.json, pictures, and `trials` with a folder for each trial.
        changes: Changes of every trial.
        wanted: Number of finished trials that the study shall have.
        study: Optuna's study.

    Example:
        ```python
        from pathlib import Path

        import optuna

        from covidcxr.recipes.tune import Findings
        from covidcxr.training import Recipe
        from covidcxr.training.changes import Changes

        study = optuna.create_study(direction="maximize")
        trial = study.ask()
        study.tell(trial, 0.9)
        findings = Findings(Recipe.read("wali2021-next"), Path("runs/mine"), Changes(), 1, study)
        assert findings.best["value"] == 0.9
        ```
    """

    recipe: Recipe
    folder: Path
    changes: Changes
    wanted: int
    study: optuna.Study

    @property
    def monitor(self) -> str:
        """Name of the score that was searched by."""
        return str(self.study.user_attrs.get("monitor", "value"))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row a trial: trial, state, value, epochs, seconds, parameters, error, retry_of.

        States are "complete", "pruned", "failed", "killed" (and queued anew), "running" and "waiting".
        """
        return [
            _row(trial) for trial in self.study.get_trials(deepcopy=False) if not trial.user_attrs.get("surplus", False)
        ]

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best trial, the earliest of equals; None if no trial came to a value."""
        return next(iter(_ranked(self.rows)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "recipe": self.recipe.name,
            "study": self.study.study_name,
            "monitor": self.monitor,
            "best": self.best,
            "trials": self.rows,
        }

    def write(self) -> None:
        """Write `trials.json`, `trials.csv` and, if a trial came to a value, the best as a recipe, `best.yaml`."""
        data = self.to_dict()
        write_json(self.folder / "trials.json", data)
        flat = [_flat(row, self.recipe.search) for row in data["trials"]]
        with replace_file(self.folder / "trials.csv") as draft, draft.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(flat[0]) if flat else ["trial"], lineterminator="\n")
            table.writeheader()
            table.writerows(flat)
        if data["best"] is not None:
            about = {"about": self._about(data["best"]), "paper": self.recipe.paper}
            config = self._config(data["best"])
            write_yaml(self.folder / "best.yaml", {**{k: text for k, text in about.items() if text}, **config})

    def _config(self, best: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the config that the best trial trained; only the folder of the data is left to the reader."""
        recipe = self.recipe.with_values(best["parameters"])
        if not self.changes.without("data.root"):
            return recipe.config
        config = apply_changes(recipe.base(), self.changes)
        if "data.root" in self.changes:
            config["data"]["init_args"].pop("root")
        return config

    def tidy(self) -> None:
        """Remove the weights of all trials but the best, and the folders of trials without a result."""
        best = self.best
        for row in self.rows:
            folder = trial_folder(self.folder, row["trial"])
            if row["state"] in ("pruned", "failed", "killed"):
                shutil.rmtree(folder, ignore_errors=True)
            elif row["state"] == "complete" and best is not None and row["trial"] != best["trial"]:
                shutil.rmtree(folder / "model", ignore_errors=True)

    def draw(self) -> None:
        """Draw the course of the search, the importance of its parameters, and the values of each parameter."""
        rows = [row for row in self.rows if row["value"] is not None]
        if not rows:
            return
        _draw_course(rows, self.monitor, self.folder / "course.png")
        _draw_slices(rows, self.recipe.search, self.monitor, self.folder / "slices.png")
        if importances := self.importances():
            _draw_importances(importances, self.folder / "importances.png")

    def importances(self) -> dict[str, float]:
        """Return the share of each parameter in whether a trial is among the best; shares sum to 1.

        PED-ANOVA (Watanabe et al. 2023, "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary
        subspaces"), the best being a tenth of the trials, but five at least. Empty with fewer than eight
        complete trials, or where all have the same value.
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        values = [row["value"] for row in self.rows if row["state"] == "complete"]
        if len(values) < 8 or len(set(values)) == 1:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is experimental, and warns of few trials
            evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(values))))
            return get_param_importances(self.study, evaluator=evaluator)

    def line(self, trial: optuna.trial.FrozenTrial) -> str:
        """Describe a finished trial in one line.

        Args:
            trial: A finished trial of the study.

        Returns:
            Its score, epochs and parameters, and the best trial so far; or its error.
        """
        row = _row(trial)
        chosen = ", ".join(f"{name} {_format(value)}" for name, value in row["parameters"].items())
        best = self.best
        if row["state"] == "failed":
            return f"Trial {row['trial']} failed: {row['error']} ({chosen})"
        count = count_of(row["epochs"], "epoch")
        result = f"{self.monitor} {_format(row['value'])}" + (", pruned" if row["state"] == "pruned" else "")
        so_far = f"; best so far: trial {best['trial']}, {_format(best['value'])}" if best else ""
        return f"Trial {row['trial']}: {result} after {count} ({chosen}){so_far}"

    def print_table(self) -> None:
        """Print the best trials, and how to test the best of them."""
        from rich.console import Console
        from rich.table import Table

        names = list(self.recipe.search)
        table = Table("trial", self.monitor, "epochs", *names)
        rows = _ranked(self.rows)
        for row in rows[:_SHOWN]:
            cells = (row["trial"], row["value"], row["epochs"], *(row["parameters"][name] for name in names))
            table.add_row(*map(_format, cells))
        console = Console()
        console.print(table, width=None if console.is_terminal else 200)
        counts = Counter(row["state"] for row in self.rows)
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        print_line(f"{states}. Trials and pictures: {self.folder}")
        if rows:
            print_line(
                f"No test image was used. Score the best trial on the test images, once:\n  {shlex.join(self.test())}"
            )

    def test(self) -> list[str]:
        """Return the command that scores the best trial on the test images."""
        best = self.best
        assert best is not None
        recipe, model = self.folder / "best.yaml", trial_folder(self.folder, best["trial"]) / "model"
        if not model.is_dir():  # trained on another machine
            return ["covidcxr", "recipes", "run", str(recipe), *self.changes.flags()]
        out = str(self.folder / "test")
        place = ["--trainer.logger", "false", "--trainer.default_root_dir", out, "--output", out]
        return [
            "covidcxr",
            "test",
            "--config",
            str(recipe),
            *self.changes.flags(),
            "--model.init_from",
            str(model),
            *place,
        ]

    def _about(self, best: Mapping[str, Any]) -> str:
        command = shlex.join(["covidcxr", "tune", self.recipe.name, *self.changes.without("data.root").flags()])
        count = sum(row["state"] in ("complete", "pruned", "failed") for row in self.rows)
        return (
            f"{self.recipe.about} Found by `{command}`, study {self.study.study_name}: trial {best['trial']}, the best "
            f"of {count} by {self.monitor} ({_format(best['value'])}, on the images it was chosen by)."
        ).strip()


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial.

    Args:
        folder: Output folder of the search.
        number: Number of the trial, from 0.

    Returns:
        The folder, which need not exist.
    """
    return folder / "trials" / f"{number:04d}"


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the complete trials, the best first."""
    complete = [row for row in rows if row["state"] == "complete"]
    return sorted(complete, key=lambda row: (-row["value"], row["trial"]))


def _format(value: object) -> str:
    """Return a number with four significant digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    failed = "failed" if "error" in trial.user_attrs else "killed"
    value = trial.value if trial.state.name == "COMPLETE" else None
    reported = [number for number in trial.intermediate_values.values() if number == number]
    duration = trial.duration.total_seconds() if trial.duration else None
    return {
        "trial": trial.number,
        "state": _STATES.get(trial.state.name, failed),
        "value": value if value is not None else max(reported, default=None),
        "epochs": trial.user_attrs.get("epochs", len(trial.intermediate_values)),
        "seconds": round(duration, 1) if duration is not None else None,
        "parameters": trial.params,
        "error": trial.user_attrs.get("error"),
        "retry_of": next(reversed(trial.system_attrs.get("retry_history", [])), None),
    }


def _flat(row: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    """Return a row of the CSV file, with a column for each parameter."""
    flat = {key: value for key, value in row.items() if key != "parameters"}
    return {**flat, **{name: row["parameters"].get(name) for name in names}}
