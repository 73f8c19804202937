"""Runs of a recipe: fit, test and pictures; runs that are compared end in a table and a plot.

A finished run is not repeated and an interrupted one is resumed: the state of a run is in the files of its folder,
which are written atomically.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from covidcxr import aliases, training
from covidcxr.config import check_keys
from covidcxr.data import CXRDataModule
from covidcxr.data.files import MASK_INDEX
from covidcxr.errors import ConfigError, CovidCXRError, did_you_mean
from covidcxr.evaluation.metrics.scores import format_interval, table_columns, title
from covidcxr.evaluation.plots import COLORS, draw_comparison, panels, save_figure
from covidcxr.io.folders import path_inside, replace_file
from covidcxr.io.pretrained import write_json
from covidcxr.pipeline.lung_masks import MaskReport, draw_masks
from covidcxr.recipes.ensemble import EnsembleStep
from covidcxr.recipes.run import Fold, PooledRun, Run, without_sources
from covidcxr.training.changes import Changes, GivenChanges
from covidcxr.training.parser import open_data, parse_data, parse_masks
from covidcxr.training.recipe import Recipe, claim, write_yaml
from covidcxr.utils.console import print_line, print_table
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.plain import count_of

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "Sweep",
    "headline_scores",
    "run_recipe",
]

_BESIDE = {
    "comparison_classes.md": "Scores of each class",
    "epochs.md": "Values by epoch",
    "curves.png": "Learning curves of all runs",
}


@dataclass(frozen=True)
class Sweep:
    """The runs of a recipe.

    Attributes:
        recipe: The recipe.
        folder: Folder of the only run; or, beside the table and the plot, a folder for each run.
        runs: The runs, in order.
        failed: From the name of a run to the error in its training.
        masks: The lung masks that were predicted for the runs, in the folder `masks`; None = none were.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.recipes import Run, Sweep
        from covidcxr.training import Recipe

        recipe = Recipe.read("song2023-cnn19")
        runs = tuple(Run(name, Path("runs") / name, config) for name, config in recipe.runs())
        assert Sweep(recipe, Path("runs"), runs).to_dict()["runs"] == {}  # none is finished
        ```
    """

    recipe: Recipe
    folder: Path
    runs: tuple[Run, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    masks: MaskReport | None = None

    @property
    def positive(self) -> str | None:
        """The positive class in the configs of the runs; None = there is none, or they differ."""
        classes = {_classifier_config(run.config).get("positive") for run in self.runs if run.config}
        return classes.pop() if len(classes) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: variants and scores of each run, or its error; and of masks what was predicted."""
        axes = list(self.recipe.compare)
        table: dict[str, Any] = {"recipe": self.recipe.name, "runs": {}, "failed": dict(self.failed)}
        for run in self.runs:
            if run.finished:
                variants = dict(zip(axes, run.name.split("+"), strict=False))
                table["runs"][run.name] = {"variants": variants, "scores": run.scores()}
        return table if self.masks is None else {**table, "masks": self.masks.to_dict()}

    def write(self) -> None:
        """Write the comparison into the folder.

        `comparison.json` holds all numbers, `comparison.md` the table and `comparison.png` its plot;
        `comparison_classes.md` the scores of each class where there are more than two; `epochs.md` and `curves.png`
        what was logged by epoch.
        """
        data = self.to_dict()
        write_json(self.folder / "comparison.json", data)
        _write_table(self.table(), self.folder / "comparison.md")
        scores = {name: entry["scores"] for name, entry in data["runs"].items()}
        _write_table(_class_table(scores), self.folder / "comparison_classes.md")
        histories = {run.name: run.history() for run in self.runs if run.finished and run.history()}
        _write_table(_epoch_table(histories), self.folder / "epochs.md")
        _draw_curves(histories, self.folder / "curves.png")
        draw_comparison(
            {name: entry["scores"] for name, entry in data["runs"].items()},
            headline_scores(data["runs"].values(), self.positive),
            self.folder / "comparison.png",
        )

    def table(self) -> list[list[str]]:
        """Return the table as text: a header, and a row for each run, each score with its 95 % interval."""
        data = self.to_dict()["runs"]
        names = headline_scores(data.values(), self.positive)
        table = [[*self.recipe.compare, *(name.replace("_", " ") for name in names), "images", "patients"]]
        for entry in data.values():
            scores = entry["scores"]
            size = (str(scores[names[0]][key]) for key in ("count", "patients"))
            table.append([*entry["variants"].values(), *(_format_score(scores.get(name)) for name in names), *size])
        return table

    def print_table(self) -> None:
        """Print the table and the path of the plot."""
        from rich.table import Table

        header, *rows = self.table()
        table = Table(*header)
        for row in rows:
            table.add_row(*(cell.replace(" [", "\n[") for cell in row))
        for column in table.columns[: len(self.recipe.compare)]:  # lines are broken in the other columns
            column.no_wrap = True
        print_table(table)
        print_line(f"Intervals are bootstrapped over patients. Plot: {self.folder / 'comparison.png'}")
        for name, holds in _BESIDE.items():
            if (self.folder / name).is_file():
                print_line(f"{holds}: {self.folder / name}")


@old_arguments(words="changes")
def run_recipe(
    recipe: Recipe,
    folder: Path,
    changes: GivenChanges = (),
    only: Sequence[str] = (),
    *,
    folds: int | None = None,
    leave_one_source_out: bool = False,
) -> Sweep:
    """Run a recipe: all runs are checked before the first is trained, and a finished run is not repeated.

    Args:
        recipe: The recipe.
        folder: Output folder.
        changes: Changes of every run by dotted key, say `{"data.root": "images"}`, or as flags of `covidcxr fit`; and
            `masks.KEY` for the settings under `masks`.
        only: Names of runs or variants, or several variants joined by "+": only runs with all variants of one of these.
        folds: Cross-validate every run in so many folds, 3 or more, with all images of a patient in the same fold.
        leave_one_source_out: Train every run without each source in turn, and test on that source.

    Returns:
        The runs. A run that fails in training is named in `failed`; the others are trained.

    Raises:
        CovidCXRError: If a flag is unknown or a setting of any run is wrong: nothing was trained then.
        ConfigError: If `only` names no run; if the recipe has nothing to run; or if an ensemble, or masks alone, are to
            be cross-validated.
    """
    pooled = folds is not None or leave_one_source_out
    if pooled and (recipe.ensemble is not None or "model" not in recipe.config or (folds and leave_one_source_out)):
        raise ConfigError(
            "--folds and --leave-one-source-out go with recipes that train models and no ensemble, one of the two."
        )
    parts = Fold.folds(folds) if folds is not None else ()
    ensemble = None
    if recipe.ensemble is not None:
        ensemble = EnsembleStep.read(recipe.ensemble, f"the recipe {recipe.name}")
    ensemble = None if only else ensemble
    recipe, changes = _with_masks(recipe, Changes.of(changes))
    if "model" not in recipe.config:
        return Sweep(recipe, folder, (), masks=_predict_only(recipe, folder, changes, only))
    if recipe.masks is not None and not (folder / "masks" / MASK_INDEX).is_file():
        _check_settings(recipe, folder, changes, only)  # predicting the masks takes long
    masks, changes = _predict_masks(recipe, folder, changes)
    runs = tuple(_chosen(recipe, folder, changes, only))
    if pooled:
        parts = parts or _sources(recipe, changes)
        runs = tuple(PooledRun.of(run, parts) for run in runs)
    if recipe.compare:
        _check_positive(recipe, runs)
    _check_runs(runs)
    if ensemble is not None:
        _check_ensemble(recipe, folder, runs, ensemble)
    failed = _train(recipe, runs)
    if ensemble is not None and not failed:
        runs = (*runs, *_combine(folder, runs, ensemble))
    sweep = Sweep(recipe, folder, runs, failed, masks)
    if recipe.compare and any(run.finished for run in runs):
        sweep.write()
    return sweep


def _check_runs(runs: Sequence[Run]) -> None:
    """Claim the folder of every run, and build every run that is not finished."""
    for run in runs:
        run.claim_folder()
    for run in runs:
        if run.finished:
            run.tidy()
    for run in runs:
        if not run.finished:
            run.check()


def _train(recipe: Recipe, runs: Sequence[Run]) -> dict[str, str]:
    """Fit and test the runs that are not finished; return the errors of compared runs, by name."""
    failed: dict[str, str] = {}
    unfinished = [run for run in runs if not run.finished]
    for number, run in enumerate(unfinished, 1):
        if recipe.compare:
            print_line(f"Run {number} of {len(unfinished)}: {run.name}")
        try:
            run.go()
        except (CovidCXRError, RuntimeError) as error:  # RuntimeError: out of memory, shapes that do not fit
            if not recipe.compare:
                raise
            failed[run.name] = f"{type(error).__name__}: {error}"
            print_line(f"{run.name} failed: {error}")
    return failed


def _classifier_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the classifier: of a classification task, or of a multitask; empty if there is none."""
    settings = config.get("model", {}).get("init_args", {})
    model = settings.get("classification") or settings.get("model") or {}
    return model if isinstance(model, Mapping) and model.get("task") == "classification" else {}


def _check_positive(recipe: Recipe, runs: Sequence[Run]) -> None:
    """Require the positive class of two classes before anything is trained: the table shows its scores."""
    for run in runs:
        config = _classifier_config(run.config)
        classes: Sequence[str] = config.get("classes") or []
        if len(classes) == 2 and config.get("mode") != "multilabel" and config.get("positive") is None:
            raise ConfigError(
                f"Which class of {run.name or recipe.name} is the positive one, {classes[0]} or {classes[1]}? Say it "
                f"beside `classes` in the recipe: `positive: CLASS`."
            )


def _check_settings(recipe: Recipe, folder: Path, changes: Changes, only: Sequence[str]) -> None:
    """Build every run without its images, whose masks are not predicted yet."""
    for run in _chosen(recipe, folder, changes, only):
        training.check(run.settings, images=False)


def _with_masks(recipe: Recipe, changes: Changes) -> tuple[Recipe, Changes]:
    """Return the recipe with the changes `masks.KEY` applied, and the other changes."""
    if recipe.masks is None:
        return recipe, changes
    settings = dict(recipe.masks)
    check_keys(settings, {"model", "postprocess", "min_lung_area"}, f"masks of the recipe {recipe.name}")
    loaded = {} if isinstance(settings.get("model", ""), str) else {"model": settings.pop("model")}  # in Python
    masks = {**loaded, **parse_masks(settings, changes.part("masks"))}
    return replace(recipe, masks=masks), changes.without("masks")


def _predict_only(recipe: Recipe, folder: Path, changes: Changes, only: Sequence[str]) -> MaskReport:
    """Predict the lung masks of a recipe that trains nothing."""
    if recipe.masks is None or "data" not in recipe.config:
        raise ConfigError(
            f"The recipe {recipe.name} has nothing to run: it needs `model` and `data`, or `masks` and `data`."
        )
    idle = [key for key in recipe.config if key not in ("data", "seed_everything")]
    idle += [key for key in ("compare", "ensemble", "search") if getattr(recipe, key)]
    if idle or only:
        what = ", ".join([*idle, *(f"--only {name}" for name in only)])
        raise ConfigError(f"The recipe {recipe.name} has no `model`, and so no use for {what}: leave it out.")
    report = _draw(recipe, open_data(recipe.base(), changes), folder)
    masks = {name: value if name != "model" else str(value) for name, value in recipe.masks.items()}
    write_yaml(folder / "config.yaml", {"data": parse_data(recipe.base(), changes), "masks": masks})
    return report


def _predict_masks(recipe: Recipe, folder: Path, changes: Changes) -> tuple[MaskReport | None, Changes]:
    """Predict the lung masks that the runs need, and return the changes with those by which the runs find them."""
    if recipe.masks is None:
        return None, changes
    least = {"data.min_lung_area": recipe.masks.get("min_lung_area", 0.0)}
    if "data.drawn_masks" in changes:
        return None, changes + least
    report = _draw(recipe, open_data(recipe.base(), changes.part("data")), folder)
    return report, changes + {"data.drawn_masks": str(folder / "masks"), **least}


def _draw(recipe: Recipe, data: CXRDataModule, folder: Path) -> MaskReport:
    report = draw_masks(data, folder / "masks", **(recipe.masks or {}))
    print_line(
        f"Lung masks of {count_of(report.images, 'image')}: {folder / 'masks'}. The lungs of {len(report.small)} cover "
        f"less than {report.min_lung_area:.0%} of the image (small.csv); {len(report.failed)} images could not be read."
    )
    return report


def _sources(recipe: Recipe, changes: Changes) -> tuple[Fold, ...]:
    """Return the sources to hold out, and print which cannot be."""
    masks_only = recipe.base()["model"].get("class_path") == "SegmentationTask"
    data = open_data(recipe.base(), changes.part("data"))
    parts, reasons = without_sources(data, labels=not masks_only)
    for source, reason in reasons.items():
        print_line(f"{source} is never held out: {reason}.")
    return parts


def _check_ensemble(recipe: Recipe, folder: Path, runs: Sequence[Run], step: EnsembleStep) -> None:
    """Build what the ensemble adds to the runs, and claim its folders."""
    if not (folder / "ensemble" / "scores.json").is_file():
        step.with_weights(runs[0].settings).check(runs[0].check().task, [run.name for run in runs])
    changes = runs[0].changes
    if step.boosting:
        claim(folder / "boosting", [dict(step.boosting), runs[0].config], changes)
    claim(folder / "ensemble", [recipe.ensemble, [[run.name, run.config] for run in runs]], changes)


def _combine(folder: Path, runs: Sequence[Run], step: EnsembleStep) -> list[Run]:
    """Fit the boosted member, if there is one, and combine all members, unless that was done."""
    first = runs[0]
    session = first.check()
    step = step.with_weights(first.settings)
    data, promise = session.data, (session.settings.coverage, session.settings.coverage_by)
    assert isinstance(data, CXRDataModule)
    extra = [Run("boosting", folder / "boosting", {})] if step.boosting else []
    for run in extra:
        if not run.finished:
            step.fit_boosted(next(iter(session.task.models.values())).config, data, run.folder, *promise)
    whole = Run("ensemble", folder / "ensemble", {})
    members = {run.name: run.folder / "model" for run in (*runs, *extra)}
    if not whole.finished:
        step.combine(members, data, whole.folder, *promise)
    record = {key: first.settings[key] for key in ("seed_everything", "coverage", "coverage_by", "data")}
    for run in (*extra, whole):
        settings = step.boosting if run.name == "boosting" else {"vote": step.vote, "members": list(members)}
        write_yaml(run.folder / "config.yaml", {**record, run.name: dict(settings)})
        run.tidy()
    return [*extra, whole]


def headline_scores(runs: Iterable[Mapping[str, Any]], positive: str | None = None) -> list[str]:
    """Choose the scores that a table shows: those of classes, and all scores of masks, or two beside those of classes.

    With two classes these are the scores of the positive class, with more classes the means.

    Args:
        runs: Each run with its `scores`, by name.
        positive: The positive class; needed where the runs have two classes.

    Returns:
        Names of scores.
    """
    return table_columns(list(dict.fromkeys(name for entry in runs for name in entry["scores"])), positive)


def _chosen(recipe: Recipe, folder: Path, changes: Changes, only: Sequence[str]) -> Iterator[Run]:
    named = dict(recipe.runs())
    known = {*named, *(variant for name in named for variant in name.split("+"))} - {""}
    parts = [set(wanted.split("+")) for wanted in only]
    for wanted, variants in zip(only, parts, strict=True):
        if not any(variants <= set(name.split("+")) for name in named if name):
            raise ConfigError(f"The recipe {recipe.name} has no run {wanted!r}. {did_you_mean(wanted, known)}")
    for name, config in named.items():
        if not only or any(variants <= set(name.split("+")) for variants in parts):
            yield Run(name, path_inside(folder, name) if name else folder, config, changes)


_OF_CLASSES = ("sensitivity", "specificity", "precision", "f1", "auroc")
_OF_EPOCHS = ("loss", "accuracy", "f1", "dice")
_EPOCHS = (5, 10, 20, 50, 100)
_LINES = ("-", "--", ":", "-.")

History = Sequence[Mapping[str, float]]


def _class_table(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the scores of each class, for the runs with more than two classes."""
    rows = []
    for run, table in scores.items():
        classes = [name.removeprefix("sensitivity_") for name in table if name.startswith("sensitivity_")]
        for each in classes if len(classes) > 2 else ():
            rows.append([run, each, *(_format_score(table.get(f"{score}_{each}")) for score in _OF_CLASSES)])
    return [["run", "class", *_OF_CLASSES], *rows] if rows else []


def _epoch_table(histories: Mapping[str, History]) -> list[list[str]]:
    """Return what was logged after 5, 10, 20, 50 and 100 epochs and after the last one, without intervals."""
    logged = {name for epochs in histories.values() for entry in epochs for name in entry}
    stages = {"train": "training", "val": "validation"}
    names = [f"{stage}/{score}" for score in _OF_EPOCHS for stage in stages if f"{stage}/{score}" in logged]
    rows = []
    for run, epochs in histories.items():
        for number, entry in enumerate(epochs, 1):
            if number in _EPOCHS or number == len(epochs):
                values = (entry.get(name) for name in names)
                rows.append([run, str(number), *("-" if value is None else f"{value:.4f}" for value in values)])
    heads = (name.partition("/") for name in names)
    return [["run", "epochs", *(f"{stages[stage]} {score}" for stage, _, score in heads)], *rows] if rows else []


def _draw_curves(histories: Mapping[str, History], path: Path) -> None:
    """Draw the curves of all runs over each other: a panel for each score of training and of validation images."""
    logged = {name for epochs in histories.values() for entry in epochs for name in entry}
    names = [f"{stage}/{score}" for score in _OF_EPOCHS for stage in ("train", "val") if f"{stage}/{score}" in logged]
    if not names:
        return
    figure, axes = panels(len(names), columns=2)
    for axis, name in zip(axes, names, strict=True):
        for place, (run, epochs) in enumerate(histories.items()):
            points = [(number, entry[name]) for number, entry in enumerate(epochs, 1) if entry.get(name) is not None]
            style: dict[str, Any] = {
                "color": COLORS[place % len(COLORS)],
                "linestyle": _LINES[place // len(COLORS) % len(_LINES)],
            }
            marker = "o" if len(points) < 10 else None  # a line through one point is not seen
            axis.plot([x for x, _ in points], [y for _, y in points], label=run, marker=marker, markersize=4, **style)
        stage, _, score = name.partition("/")
        of_stage = "training images" if stage == "train" else "validation images"
        axis.set(xlabel="epoch", title=f"{title(score)}, {of_stage}")
        axis.locator_params(axis="x", integer=True)
    axes[0].legend(frameon=False, fontsize=7)
    save_figure(figure, path)


def _write_table(table: Sequence[Sequence[str]], path: Path) -> None:
    """Write a table as Markdown, atomically."""
    if table:
        header, *rows = table
        lines = [header, ["---"] * len(header), *rows]
        with replace_file(path) as draft:
            draft.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def _format_score(score: Mapping[str, Any] | None) -> str:
    """Return a score with its 95 % confidence interval as text."""
    return "-" if score is None else format_interval(score["value"], score["low"], score["high"])
