"""Tables and folders of runs, each with a name, and what they are to one another: controls, rivals, held-out tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covidcxr.evaluation.metrics.scores import title
from covidcxr.evaluation.plots import COLORS, as_picture, panels
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.predictions.table import RunFolder, read_folder, read_rows
from covidcxr.evaluation.report.evaluation import Part
from covidcxr.evaluation.report.headline import plain
from covidcxr.evaluation.report.held_out import is_held_out, score_held_out
from covidcxr.evaluation.report.model_comparison import REGIONS, Controls, compare_models, compare_regions
from covidcxr.page import Section, sections_of

__all__ = ["Source", "read_sources", "relate_sources", "LearningCurves"]

_WANTED = ("loss", "accuracy", "auroc", "f1", "dice")


_STAGES = {"train": ("training", COLORS[0]), "val": ("validation", COLORS[1])}


@dataclass(frozen=True)
class LearningCurves:
    """What was logged in each epoch.

    Attributes:
        histories: By name of the training: an entry an epoch, as `fit` writes history.json.
    """

    histories: Mapping[str, Sequence[Mapping[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain(list(map(dict, epochs))) for name, epochs in self.histories.items()}


@sections_of.register
def _(curves: LearningCurves) -> list[Section]:
    logged = {name for epochs in curves.histories.values() for entry in epochs for name in entry}
    scores = [score for score in _WANTED if {f"train/{score}", f"val/{score}"} & logged]
    if not scores:
        return []
    figure, axes = panels(len(scores), columns=3)
    several = len(curves.histories) > 1
    for axis, score in zip(axes, scores, strict=True):
        for epochs in curves.histories.values():
            for stage, (_, color) in _STAGES.items():
                points = [
                    (entry["epoch"] + 1, entry[name])
                    for entry in epochs
                    if (name := f"{stage}/{score}") in entry and entry[name] is not None
                ]
                if points:
                    width, alpha = (0.8, 0.7) if several else (1.6, 1.0)
                    axis.plot(*zip(*points, strict=True), color=color, linewidth=width, alpha=alpha)
        axis.set(xlabel="epoch", title=title(score))
        axis.locator_params(axis="x", integer=True)
    for stage, color in _STAGES.values():
        axes[0].plot([], [], color=color, label=stage)
    axes[0].legend(frameon=False, fontsize=8)
    trained = f"{len(curves.histories)} trainings, a thin line each" if several else "One training"
    picture = as_picture(figure, "Learning curves of training and validation")
    lead = f"{trained}. Validation images chose the epoch that was kept, so their scores flatter."
    return [Section("Learning curves", lead, [picture])]


@dataclass(frozen=True)
class Source:
    """Predictions of one model.

    Attributes:
        name: Names it among the others.
        variant: The variants of its recipe that it stands for; "" = none.
        rows: A row an image.
        run: The folder that they come from; None = a table.
    """

    name: str
    variant: str
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    run: RunFolder | None = None

    @property
    def held_out(self) -> bool:
        """Whether every image was tested by a model that never saw its source."""
        return is_held_out(self.rows)


def read_sources(paths: Sequence[str]) -> list[Source]:
    """Read tables of predictions and folders of runs, compared runs each by itself.

    Args:
        paths: Tables (CSV, ...) and folders.

    Raises:
        ConfigError: If a folder holds no predictions, or a table nothing to score.
        DatasetError: If a table cannot be read.
    """
    sources: list[Source] = []
    for place in map(Path, paths):
        if place.is_dir():
            for run in read_folder(place):
                name = "/".join(part for part in (place.resolve().name, run.name) if part)
                sources.append(Source(name, run.name, run.rows, run))
        else:
            sources.append(Source(place.stem, "", read_rows(place)))
    names = [source.name for source in sources]
    return [
        Source(f"{source.name} ({number})", source.variant, source.rows, source.run)
        if names.count(source.name) > 1
        else source
        for number, source in enumerate(sources, 1)
    ]


def relate_sources(
    sources: Sequence[Source], *, resamples: int = 1000, seed: int = 0
) -> tuple[Source, dict[str, Part | None]]:
    """Choose the model that the report is about, and compare the others with it.

    Of runs that differ in the region, it is the one that saw the whole image; of others the first. A run in which
    sources were held out is shown beside the mixed one of the same variant, if that is there. Models that know other
    classes are not compared with it.

    Args:
        sources: One or more.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        The model, and the parts "regions", "held_out", "compared" and "learning" of its report.

    Raises:
        ConfigError: If models to be compared have no image in common, or know other classes.
    """
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    mixed = [source for source in sources if not source.held_out] or list(sources)
    controls = compare_regions({source.variant or source.name: source.rows for source in mixed}, **settings)
    main = next((source for source in mixed if "full" in (source.variant or source.name).split("+")), mixed[0])
    controls.sort(key=lambda control: control.name != _without_region(main))
    held = [source for source in sources if source.held_out and source is not main]
    beside = next((source for source in held if source.variant == main.variant), held[0] if held else None)
    parts: dict[str, Part | None] = {"regions": Controls(tuple(controls)) if controls else None}
    if main.held_out:
        parts["held_out"] = score_held_out(main.rows, **settings)
    elif beside is not None:
        parts["held_out"] = score_held_out(beside.rows, main.rows, **settings)
    shown = {name for control in controls for name in control.runs}
    rivals = {
        source.name: source.rows
        for source in mixed
        if source is not main and (source.variant or source.name) not in shown and _asked_alike(source, main)
    }
    if rivals:
        parts["compared"] = compare_models({main.name: main.rows} | rivals, **settings)
    if main.run is not None and main.run.histories:
        parts["learning"] = LearningCurves(main.run.histories)
    return main, parts


def _asked_alike(source: Source, other: Source) -> bool:
    """Return whether two models answer the same question."""
    first, second = PredictionTable.read(source.rows), PredictionTable.read(other.rows)
    return set(first.classes) == set(second.classes) and first.exclusive == second.exclusive


def _without_region(source: Source) -> str:
    return "+".join(part for part in (source.variant or source.name).split("+") if part not in REGIONS)
