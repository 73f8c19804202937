"""Where predictions come from: tables and folders of runs, how they relate, and tests on sources never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr import aliases
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.comparison import compare_rows
from covidcxr.evaluation.metrics.scores import format_estimate, format_interval, title
from covidcxr.evaluation.plots import as_picture, plot_estimates, plot_history
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.evaluation.predictions.table import RunFolder, read_folder, read_rows, score_rows
from covidcxr.evaluation.report.model_comparison import REGIONS, Controls, compare_models, compare_regions, main_scores
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.utils.plain import plain_result

if TYPE_CHECKING:
    from covidcxr.evaluation.report.evaluation import Part

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "Source",
    "read_sources",
    "relate_sources",
    "LearningCurves",
    "HeldOutSources",
    "score_held_out",
]


@dataclass(frozen=True)
class LearningCurves:
    """What was logged in each epoch.

    Attributes:
        histories: By name of the training: an entry an epoch, as `fit` writes history.json.

    Example:
        ```python
        from covidcxr.evaluation.report.sources import LearningCurves
        from covidcxr.page import sections_of

        curves = LearningCurves({"run": [{"epoch": 0, "train/loss": 0.9}, {"epoch": 1, "train/loss": 0.5}]})
        assert sections_of(curves)[0].title == "Learning curves"
        ```
    """

    histories: Mapping[str, Sequence[Mapping[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain_result(list(map(dict, epochs))) for name, epochs in self.histories.items()}


@sections_of.register
def _(curves: LearningCurves) -> list[Section]:
    if not any(curves.histories.values()):
        return []
    figure = plot_history(*curves.histories.values())
    several = len(curves.histories) > 1
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

    Example:
        ```python
        from covidcxr.evaluation.report.sources import Source

        source = Source("ours", "", [{"image_id": "1", "label": "a", "probability_a": 0.8, "probability_b": 0.2}])
        assert source.predictions.classes == ("a", "b") and not source.held_out
        ```
    """

    name: str
    variant: str
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    run: RunFolder | None = None

    @cached_property
    def predictions(self) -> PredictionTable:
        """The rows as a table, read once."""
        return PredictionTable.read(self.rows)

    @property
    def held_out(self) -> bool:
        """Whether every image was tested by a model that never saw its source."""
        return _is_held_out(self.rows)


def read_sources(paths: Sequence[str]) -> list[Source]:
    """Read tables of predictions and folders of runs, compared runs each by itself.

    Args:
        paths: Tables (CSV, ...) and folders.

    Returns:
        One or more, each with a name of its own.

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
    controls = compare_regions({source.variant or source.name: source.predictions for source in mixed}, **settings)
    main = next((source for source in mixed if "full" in (source.variant or source.name).split("+")), mixed[0])
    controls.sort(key=lambda control: control.name != _without_region(main))
    held = [source for source in sources if source.held_out and source is not main]
    beside = next((source for source in held if source.variant == main.variant), held[0] if held else None)
    parts: dict[str, Part | None] = {"regions": Controls(tuple(controls)) if controls else None}
    if main.held_out:
        parts["held_out"] = score_held_out(main.predictions, **settings)
    elif beside is not None:
        parts["held_out"] = score_held_out(beside.predictions, main.predictions, **settings)
    shown = {name for control in controls for name in control.runs}
    rivals = {
        source.name: source.predictions
        for source in mixed
        if source is not main and (source.variant or source.name) not in shown and _same_target(source, main)
    }
    if rivals:
        parts["compared"] = compare_models({main.name: main.predictions} | rivals, **settings)
    if main.run is not None and main.run.histories:
        parts["learning"] = LearningCurves(main.run.histories)
    return main, parts


def _same_target(source: Source, other: Source) -> bool:
    """Return whether two models predict the same classes."""
    first, second = source.predictions, other.predictions
    return set(first.classes) == set(second.classes) and first.exclusive == second.exclusive


def _without_region(source: Source) -> str:
    return "+".join(part for part in (source.variant or source.name).split("+") if part not in REGIONS)


START = "without-"


@dataclass(frozen=True)
class HeldOutSources:
    """Scores on sources that were never trained on.

    Attributes:
        pooled: Scores over all of them.
        sources: By held-out source, the scores of its images.
        mixed: By held-out source (and "all"), the scores of the same images where the source was trained on.
        losses: By score: mixed less held out, paired; empty without a mixed test.

    Example:
        ```python
        from covidcxr.evaluation.report.sources import score_held_out

        rows = [
            {"label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2), "fold": f"without-{n // 20}"}
            for n in range(40)
        ]
        assert score_held_out(rows, resamples=20).sources["0"]["accuracy"].value == 1
        ```
    """

    pooled: Mapping[str, Estimate]
    sources: Mapping[str, Mapping[str, Estimate]]
    mixed: Mapping[str, Mapping[str, Estimate]]
    losses: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain_result(getattr(self, name)) for name in self.__dataclass_fields__}


@sections_of.register
def _(result: HeldOutSources) -> list[Section]:
    blocks: list[Block] = []
    name = next(iter(main_scores(result.pooled)), None)
    if name is not None:
        shown = {"all held-out sources": result.pooled[name]}
        if "all" in result.mixed:
            shown["the same images, source trained on"] = result.mixed["all"][name]
        figure = plot_estimates(shown, title=title(name), chance=0.5 if "auroc" in name else None)
        blocks.append(as_picture(figure, f"{title(name)} on held-out sources and on the same images when mixed"))
    if result.losses:
        text = "; ".join(f"{title(name)} {_change(result.losses[name])}" for name in main_scores(result.losses)[:3])
        blocks.append(Words(f"From the mixed test to sources that were never seen: {text}."))
    else:
        blocks.append(Words("No mixed test of the same images was given beside it, so the loss is not known."))
    blocks.append(_table(result))
    blocks.append(
        Words("A source with one label has no AUROC. Scores over all sources pool predictions of several models.")
    )
    lead = "Each source was tested by a model that never saw an image from there: as if from another hospital."
    return [Section("Held-out sources", lead, blocks)]


def _table(result: HeldOutSources) -> Table:
    names = [name for name in ("accuracy", "macro_auroc", "balanced_accuracy") if name in result.pooled]
    names = names or main_scores(result.pooled)[:3]
    rows = []
    for source, scores in result.sources.items():
        first = scores[names[0]]
        cells = [format_estimate(scores.get(name)) for name in names]
        beside = (
            [format_estimate(result.mixed[source].get(names[0]))]
            if source in result.mixed
            else ["-"]
            if result.mixed
            else []
        )
        rows.append([source, str(first.count), str(first.patients), *cells, *beside])
    heads = ["held-out source", "images", "patients", *map(title, names)]
    return Table([*heads, *([f"{title(names[0])} when mixed"] if result.mixed else [])], rows)


def _is_held_out(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows are those of leave-one-source-out."""
    return bool(rows) and all(str(row.get("fold") or "").startswith(START) for row in rows)


def score_held_out(rows: Rows, mixed: Rows | None = None, *, resamples: int = 1000, seed: int = 0) -> HeldOutSources:
    """Score leave-one-source-out, beside a mixed test of the same images.

    Args:
        rows: Pooled rows whose `fold` is "without-SOURCE".
        mixed: Rows of a test of the same images in which no source was held out, say a cross-validation.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        The scores of each source.

    Raises:
        ConfigError: If the two tests have no image in common.
    """
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    held = PredictionTable.read(rows)
    folds = np.array([str(row["fold"]).removeprefix(START) for row in held.rows])
    parts = {source: held.take(folds == source) for source in dict.fromkeys(folds.tolist())}
    pooled = score_rows(held, **settings)
    by_source = {source: score_rows(part, **settings) for source, part in parts.items()}
    if mixed is None:
        return HeldOutSources(pooled, by_source, {}, {})
    known = PredictionTable.read(mixed)
    beside: dict[str, Mapping[str, Estimate]] = {}
    for source, part in {"all": held, **parts}.items():
        tested = {row["image_id"] for row in part.rows}
        if (same := np.array([row["image_id"] in tested for row in known.rows])).any():
            beside[source] = score_rows(known.take(same), **settings)
    return HeldOutSources(pooled, by_source, beside, compare_rows(known, held, common=True, **settings))


def _change(loss: Estimate) -> str:
    """Return a loss as a change, with the other sign."""
    return format_interval(-loss.value, -loss.high, -loss.low, signed=True)
