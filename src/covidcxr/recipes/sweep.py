"""Runs of recipes: fit, test, pictures; and where several runs are compared, one table and one plot.

A finished run is never repeated and an interrupted one goes on where it was: whatever a run has reached lies in its
folder, in files that appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covidcxr import training
from covidcxr.config import check_keys
from covidcxr.data import CXRDataModule
from covidcxr.data.files import MASK_INDEX
from covidcxr.errors import ConfigError, CovidCXRError, did_you_mean
from covidcxr.evaluation.plots import draw_comparison
from covidcxr.io.atomic import replace_file
from covidcxr.pipeline.lung_masks import draw_masks
from covidcxr.recipes.cross_validation import HeldOut, without_sources
from covidcxr.recipes.ensemble import EnsembleStep
from covidcxr.recipes.run import PooledRun, Run
from covidcxr.training.parser import open_data
from covidcxr.training.recipe import Recipe, claim
from covidcxr.utils.console import print_line, print_table

__all__ = ["Comparison", "run_recipe"]

_MASKS = ("dice_", "iou_", "precision_", "recall_")
_CLASSES = ("accuracy", "balanced_accuracy", "macro_specificity", "macro_precision", "macro_f1", "macro_auroc")
_TWO_CLASSES = ("sensitivity", "specificity", "precision", "f1", "auroc")


@dataclass(frozen=True)
class Comparison:
    """The runs of a recipe.

    Attributes:
        recipe: What is run.
        folder: Holds the only run, or a folder a run beside the table and the plot.
        runs: The runs, in order.
        failed: From name of a run to what went wrong in it.
    """

    recipe: Recipe
    folder: Path
    runs: tuple[Run, ...]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def positive(self) -> str | None:
        """The positive class, which the configs of the runs say; None = they do not, or not the same."""
        said = {_classifier_config(run.config).get("positive") for run in self.runs if run.config}
        return said.pop() if len(said) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: of each run the variants that it stands for and its scores, or what went wrong."""
        axes = list(self.recipe.compare)
        table: dict[str, Any] = {"recipe": self.recipe.name, "runs": {}, "failed": dict(self.failed)}
        for one in self.runs:
            if one.finished:
                variants = dict(zip(axes, one.name.split("+"), strict=False))
                table["runs"][one.name] = {"variants": variants, "scores": one.scores()}
        return table

    def write(self) -> None:
        """Write `comparison.json` (all numbers), `comparison.md` (the table) and `comparison.png` (the plot)."""
        data = self.to_dict()
        with replace_file(self.folder / "comparison.json") as draft:
            draft.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        with replace_file(self.folder / "comparison.md") as draft:
            header, *rows = self.table()
            lines = [header, ["---"] * len(header), *rows]
            draft.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
        draw_comparison(
            {name: entry["scores"] for name, entry in data["runs"].items()},
            chief_scores(data["runs"].values(), self.positive),
            self.folder / "comparison.png",
        )

    def table(self) -> list[list[str]]:
        """Return the table in words: a header, and a row a run, each figure with its interval."""
        data = self.to_dict()["runs"]
        names = chief_scores(data.values(), self.positive)
        table = [[*self.recipe.compare, *(name.replace("_", " ") for name in names), "images", "patients"]]
        for entry in data.values():
            scores = entry["scores"]
            size = (str(scores[names[0]][key]) for key in ("count", "patients"))
            table.append([*entry["variants"].values(), *(_in_words(scores.get(name)) for name in names), *size])
        return table

    def print_table(self) -> None:
        """Print the table, and where the plot is."""
        from rich.table import Table

        header, *rows = self.table()
        table = Table(*header)
        for row in rows:
            table.add_row(*(cell.replace(" [", "\n[") for cell in row))
        for column in table.columns[: len(self.recipe.compare)]:  # what does not fit is broken elsewhere
            column.no_wrap = True
        print_table(table)
        print_line(f"Intervals are bootstrapped over patients. Plot: {self.folder / 'comparison.png'}")


def run_recipe(
    recipe: Recipe,
    folder: Path,
    words: Sequence[str] = (),
    only: Sequence[str] = (),
    *,
    folds: int | None = None,
    leave_one_source_out: bool = False,
) -> Comparison:
    """Run a recipe: every run is checked before the first is trained, and a finished one is not repeated.

    Args:
        recipe: What to run.
        folder: Where the runs go.
        words: Command-line words of `covidcxr fit` that change every run, say `["--data.root", "images"]`.
        only: Run only those whose name holds one of these variants (or is one of these names).
        folds: Train and test every run in so many folds, patients whole, and score all of them as one.
        leave_one_source_out: Train every run once without each source, test on that source, and score all as one.

    Returns:
        The runs. One that went wrong in training is told in `failed`; the others were run.

    Raises:
        CovidCXRError: If a setting of any run is wrong: nothing was trained then.
        ConfigError: If `only` names no run, or folds are asked of what has none: an ensemble, or masks alone.
    """
    pooled = folds is not None or leave_one_source_out
    if pooled and (recipe.ensemble is not None or "model" not in recipe.config or (folds and leave_one_source_out)):
        raise ConfigError(
            "--folds and --leave-one-source-out go with recipes that train models and no ensemble, one of the two."
        )
    ensemble = (
        None if recipe.ensemble is None or only else EnsembleStep.read(recipe.ensemble, f"the recipe {recipe.name}")
    )
    if recipe.masks is not None and not (folder / "masks" / MASK_INDEX).is_file():
        _check_settings(recipe, folder, words, only)  # drawing takes long
    words = [*words, *_draw_masks(recipe, folder, words)]
    if "model" not in recipe.config:
        return Comparison(recipe, folder, ())
    runs = tuple(_chosen(recipe, folder, words, only))
    if pooled:
        held_out = HeldOut.folds(folds) if folds is not None else _sources(recipe, words)
        runs = tuple(PooledRun.of(one, held_out) for one in runs)
    if recipe.compare:
        _check_positive(recipe, runs)
    for one in runs:
        one.claim_folder()
    todo = [one for one in runs if not one.finished]
    for one in runs:
        if one.finished:
            one.tidy()
    for one in todo:
        one.check()
    if ensemble is not None:
        _check_ensemble(recipe, folder, runs, ensemble)
    failed: dict[str, str] = {}
    for number, one in enumerate(todo, 1):
        if recipe.compare:
            print_line(f"Run {number} of {len(todo)}: {one.name}")
        try:
            one.go()
        except (CovidCXRError, RuntimeError) as error:  # RuntimeError: out of memory, shapes that do not fit
            if not recipe.compare:
                raise
            failed[one.name] = f"{type(error).__name__}: {error}"
            print_line(f"{one.name} went wrong: {error}")
    if ensemble is not None and not failed:
        runs = (*runs, *_combine(folder, runs, ensemble))
    comparison = Comparison(recipe, folder, runs, failed)
    if recipe.compare and any(one.finished for one in runs):
        comparison.write()
    return comparison


def _classifier_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config says of the classifier: that of a classification task or the one of a multitask."""
    settings = config.get("model", {}).get("init_args", {})
    found = settings.get("classification") or settings.get("model") or {}
    return found if isinstance(found, Mapping) and found.get("task") == "classification" else {}


def _check_positive(recipe: Recipe, runs: Sequence[Run]) -> None:
    """Ask for the positive class of two before anything is trained: the table shows its scores."""
    for run in runs:
        config = _classifier_config(run.config)
        classes: Sequence[str] = config.get("classes") or []
        if len(classes) == 2 and config.get("mode") != "multilabel" and config.get("positive") is None:
            raise ConfigError(
                f"Which class of {run.name or recipe.name} is the positive one, {classes[0]} or {classes[1]}? Say it "
                f"beside `classes` in the recipe: `positive: CLASS`."
            )


def _check_settings(recipe: Recipe, folder: Path, words: Sequence[str], only: Sequence[str]) -> None:
    """Build every run but its images, whose masks are not drawn yet."""
    for one in _chosen(recipe, folder, words, only) if "model" in recipe.config else ():
        training.check(one.settings, images=False)


def _draw_masks(recipe: Recipe, folder: Path, words: Sequence[str]) -> list[str]:
    """Draw the lung masks that the recipe asks for, and return the words by which the runs find them."""
    if recipe.masks is None:
        return []
    settings = dict(recipe.masks)
    check_keys(settings, {"model", "postprocess", "min_lung_area"}, f"masks of the recipe {recipe.name}")
    least = ["--data.min_lung_area", str(settings.get("min_lung_area", 0.0))]
    if any(word.startswith("--data.drawn_masks") for word in words):
        return least
    report = draw_masks(open_data(recipe.base(), words), folder / "masks", **settings)
    print_line(
        f"Lung masks of {report.images} images: {folder / 'masks'}. The lungs of {len(report.small)} cover less than "
        f"{report.min_lung_area:.0%} of the image (small.csv); {len(report.failed)} images could not be read."
    )
    return ["--data.drawn_masks", str(folder / "masks"), *least]


def _sources(recipe: Recipe, words: Sequence[str]) -> tuple[HeldOut, ...]:
    """Return the sources to hold out, and say which cannot be."""
    masks_only = recipe.base()["model"].get("class_path") == "SegmentationTask"
    held_out, reasons = without_sources(open_data(recipe.base(), words), labels=not masks_only)
    for source, reason in reasons.items():
        print_line(f"{source} is never held out: {reason}.")
    return held_out


def _check_ensemble(recipe: Recipe, folder: Path, runs: Sequence[Run], step: EnsembleStep) -> None:
    """Build what the ensemble adds to the runs, and take its folders; see `claim`."""
    if not (folder / "ensemble" / "scores.json").is_file():
        step.check(runs[0].check().task, [one.name for one in runs])
    words = runs[0].words
    if step.boosting:
        claim(folder / "boosting", [dict(step.boosting), runs[0].config], words)
    claim(folder / "ensemble", [recipe.ensemble, [[one.name, one.config] for one in runs]], words)


def _combine(folder: Path, runs: Sequence[Run], step: EnsembleStep) -> list[Run]:
    """Fit the boosted member, if there is one, and combine all members; what is finished is not repeated."""
    first = runs[0]
    session = first.check()
    data, coverage = session.data, session.settings.coverage
    assert isinstance(data, CXRDataModule)
    extra = [Run("boosting", folder / "boosting", {})] if step.boosting else []
    for one in extra:
        if not one.finished:
            step.fit_boosted(next(iter(session.task.models.values())).config, data, one.folder, coverage)
    whole = Run("ensemble", folder / "ensemble", {})
    if not whole.finished:
        members = {one.name: one.folder / "model" for one in (*runs, *extra)}
        step.combine(members, data, whole.folder, coverage)
    for one in (*extra, whole):
        one.tidy()
    return [*extra, whole]


def chief_scores(runs: Iterable[Mapping[str, Any]], positive: str | None = None) -> list[str]:
    """Choose the scores that a table shows: those of predictions, and all of masks, or beside predictions two.

    Of two classes the scores of the positive one are shown; of more the means.

    Args:
        runs: Of each run its `scores`, by name.
        positive: The positive class; needed where the runs have two classes.

    Returns:
        Names of scores.
    """
    found = list(dict.fromkeys(name for entry in runs for name in entry["scores"]))
    names = [name.removeprefix("sensitivity_") for name in found if name.startswith("sensitivity_")]
    of_two = ("accuracy", *(f"{score}_{positive}" for score in _TWO_CLASSES)) if len(names) == 2 else _CLASSES
    classes = [name for name in of_two if name in found]
    masks = [name for start in _MASKS[: 2 if classes else None] for name in found if name.startswith(start)]
    return [*classes, *masks] or found


def _chosen(recipe: Recipe, folder: Path, words: Sequence[str], only: Sequence[str]) -> Iterator[Run]:
    named = dict(recipe.runs())
    known = {*named, *(variant for name in named for variant in name.split("+"))} - {""}
    for wanted in only:
        if wanted not in known:
            raise ConfigError(f"The recipe {recipe.name} has no run {wanted!r}. {did_you_mean(wanted, known)}")
    for name, config in named.items():
        if not only or {name, *name.split("+")} & set(only):
            yield Run(name, folder / name, config, tuple(words))


def _in_words(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "-"
    if score["low"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
