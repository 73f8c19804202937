"""Several models on the same images side by side: compared runs, and the control that takes the lungs away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from covidcxr import aliases
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.comparison import compare_rows, significance
from covidcxr.evaluation.metrics.scores import format_estimate, headline, on_picture, title
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.evaluation.predictions.table import score_rows
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.utils.plain import plain_result

__all__ = ["Controls", "RegionControl", "ModelComparison", "compare_models", "compare_regions", "main_scores"]

__getattr__ = partial(aliases.find, __name__)

REGIONS = ("full", "lungs", "background")


@dataclass(frozen=True)
class ModelComparison:
    """Models compared with the first of them.

    Attributes:
        first: The model that the others are compared with.
        scores: By model, the headline scores of its own images.
        differences: By model but the first: paired differences, that model less the first, on the images of both.
        images: By model but the first: how many images both were tested on.
        p_values: By model but the first: two-sided p values of McNemar's and DeLong's tests; see `significance`.

    Example:
        ```python
        from covidcxr.evaluation.report.model_comparison import compare_models

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        comparison = compare_models({"ours": rows, "theirs": rows}, resamples=20)
        assert comparison.first == "ours" and comparison.images == {"theirs": 20}
        ```
    """

    first: str
    scores: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    images: Mapping[str, int]
    p_values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {
            "scores": plain_result(self.scores),
            "differences": plain_result(self.differences),
            "films": plain_result(self.images),
            "p_values": plain_result(self.p_values),
        }


@sections_of.register
def _(result: ModelComparison) -> list[Section]:
    lead = (
        f"Every model beside {result.first}, on the same resampled patients: where the interval of a difference "
        f"leaves out 0, the two differ on these images."
    )
    return [Section("Models compared", lead, _comparison_blocks(result))]


def _comparison_blocks(result: ModelComparison) -> list[Block]:
    """Return pictures of scores and of differences, and the differences in a table."""
    blocks: list[Block] = []
    for name in main_scores(result.scores[result.first])[:2]:
        shown = {on_picture(model): scores[name] for model, scores in result.scores.items() if name in scores}
        chance = 0.5 if "auroc" in name else None
        figure = plot_estimates(shown, title=title(name), chance=chance)
        blocks.append(as_picture(figure, f"{title(name)} of each model"))
    names = list(dict.fromkeys(name for scores in result.differences.values() for name in main_scores(scores)))[:4]
    rows = [
        [
            model,
            str(result.images[model]),
            *(format_estimate(scores[name], signed=True) if name in scores else "-" for name in names),
        ]
        for model, scores in result.differences.items()
    ]
    if rows:
        heads = ["model", "images of both", *(f"difference in {title(name)}" for name in names)]
        blocks.append(Table(heads, rows, f"Less {result.first}, paired"))
    for model, values in result.p_values.items():
        text = ", ".join(
            f"{title(name)} p = {value:.3f}" if value >= 0.001 else f"{title(name)} p < 0.001"
            for name, value in values.items()
            if not math.isnan(value)
        )
        if text:
            blocks.append(
                Words(f"{model}, tests beside the intervals (McNemar for accuracy, DeLong for AUROC): {text}.")
            )
    return blocks


@dataclass(frozen=True)
class RegionControl:
    """One model trained three times: on the whole image, on the lungs alone, and on the image without them.

    Attributes:
        name: Of what differs besides the region; "" = nothing.
        versus: The regions, compared with the image without the lungs.
        runs: Names of the runs behind them.

    Example:
        ```python
        from covidcxr.evaluation.report.model_comparison import compare_regions

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        (control,) = compare_regions({"full": rows, "background": rows}, resamples=20)
        assert control.lungs_add.value == 0 and control.background.value == 1
        ```
    """

    name: str
    comparison: ModelComparison
    runs: tuple[str, ...] = ()

    @property
    def background(self) -> Estimate | None:
        """AUROC without the lungs."""
        return self.comparison.scores["background"].get("macro_auroc")

    @property
    def lungs_add(self) -> Estimate | None:
        """AUROC on the whole image less that without the lungs, paired."""
        return self.comparison.differences.get("full", {}).get("macro_auroc")

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {"name": self.name, **self.comparison.to_dict()}


@sections_of.register
def _(control: RegionControl) -> list[Section]:
    lead = (
        "The same network, trained and tested on the whole image, on the lungs alone and on the image with the lungs "
        "removed. What the last one scores needs no lungs."
    )
    blocks = [*_comparison_blocks(control.comparison), *(Words(text) for text in _describe_regions(control))]
    return [Section(f"With and without the lungs{f': {control.name}' if control.name else ''}", lead, blocks)]


def _describe_regions(control: RegionControl) -> list[str]:
    texts = []
    whole = {"full": "The whole image", "lungs": "The lungs alone"}
    for region, scores in control.comparison.differences.items():
        name = next(iter(main_scores(scores)), None)
        if name is None or region not in whole:
            continue
        gap = scores[name]
        text = f"{whole[region]} against the image without lungs: {title(name)} {format_estimate(gap, signed=True)}. "
        if gap.low > 0:
            text += "The lungs add something that the rest of the image does not have."
        elif gap.high < 0:
            text += "It is worse: the prediction rests on what lies outside the lungs."
        else:
            text += "No difference is shown: these images do not show that the prediction needs the lungs."
        texts.append(text)
    left = control.background
    if left is not None and left.low > 0.5:
        texts.append(f"With the lungs removed the macro AUROC is still {left}; guessing gives 0.5.")
    return texts


@dataclass(frozen=True)
class Controls:
    """The region controls of a comparison, one for each network or the like.

    Attributes:
        controls: One or more.

    Example:
        ```python
        from covidcxr.evaluation.report.model_comparison import Controls

        assert Controls(()).first is None
        ```
    """

    controls: tuple[RegionControl, ...]

    @property
    def first(self) -> RegionControl | None:
        """The control of the model that the report is about."""
        return self.controls[0] if self.controls else None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {control.name or "regions": control.to_dict() for control in self.controls}


@sections_of.register
def _(result: Controls) -> list[Section]:
    return [section for control in result.controls for section in sections_of(control)]


def compare_models(
    models: Mapping[str, Rows], first: str | None = None, *, resamples: int = 1000, seed: int = 0
) -> ModelComparison | None:
    """Compare models with one of them, on the images that both were tested on.

    Args:
        models: Rows by name.
        first: The one that the others are compared with; None = the first.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is one model only.

    Raises:
        ConfigError: If two models have no image or class in common.
    """
    if len(models) < 2:
        return None
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    first = first or next(iter(models))
    tables = {name: PredictionTable.read(rows) for name, rows in models.items()}
    others = [name for name in models if name != first]
    scores = {name: score_rows(table, **settings) for name, table in tables.items()}
    images = {name: {row["image_id"] for row in table.rows} for name, table in tables.items()}
    return ModelComparison(
        first,
        {model: {name: table[name] for name in main_scores(table)} for model, table in scores.items()},
        {name: compare_rows(tables[name], tables[first], common=True, **settings) for name in others},
        {name: len(images[first] & images[name]) for name in others},
        {name: significance(tables[name], tables[first], common=True) for name in others},
    )


def compare_regions(variants: Mapping[str, Rows], *, resamples: int = 1000, seed: int = 0) -> list[RegionControl]:
    """Find runs that differ in the region alone, and compare them with the one that saw no lungs.

    Args:
        variants: Rows by the name of the run: "full", or with other variants "full+resnet18".
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        One control for each network or the like that was trained without the lungs too.
    """
    regions_by_rest: dict[str, dict[str, Rows]] = {}
    runs: dict[str, list[str]] = {}
    for name, rows in variants.items():
        parts = name.split("+")
        regions = [part for part in parts if part in REGIONS]
        if len(regions) == 1:
            rest = "+".join(part for part in parts if part not in REGIONS)
            regions_by_rest.setdefault(rest, {})[regions[0]] = rows
            runs.setdefault(rest, []).append(name)
    controls = []
    for rest, regions_of in regions_by_rest.items():
        if "background" in regions_of and len(regions_of) > 1:
            ordered = {name: regions_of[name] for name in REGIONS if name in regions_of}
            comparison = compare_models(ordered, "background", resamples=resamples, seed=seed)
            assert comparison is not None
            controls.append(RegionControl(rest, comparison, tuple(runs[rest])))
    return controls


def main_scores(scores: Mapping[str, Estimate]) -> list[str]:
    """Choose the scores by which models are compared.

    Args:
        scores: By name.

    Returns:
        Names of those that are defined, the most important first.
    """
    return [name for name in headline(scores) if not math.isnan(scores[name].value)]
