"""Scores by source, view, sex, age and fold, and the gaps between the groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from covidcxr.evaluation.metrics.bootstrap import Estimate, FindInterval, bootstrap_many
from covidcxr.evaluation.metrics.scores import LEAST, Score, format_estimate, group_scores, on_picture, title
from covidcxr.evaluation.metrics.segmentation import mask_statistics
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions import TRAITS, PredictionTable
from covidcxr.evaluation.report.slices import SliceSearch, find_slices
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.utils.plain import count_of, field_values, plain_result

__all__ = ["Group", "Subgroups", "find_groups", "score_groups"]

MOST = 12
"""Groups of a trait that are shown; the smaller ones are taken together."""


@dataclass(frozen=True)
class Group:
    """The images that share a trait.

    Attributes:
        trait: "source", "view", "sex", "age" or "fold".
        name: The trait's value.
        images: Number of images.
        patients: Number of patients.
        support: Patients by class; of findings those who show it.
        scores: By name.
        gaps: By name: this group less the trait's largest one, on the same resamples. Empty for that one.
        too_few: By name of a score: patients of the rarest kind that it needs, where these are fewer than 10.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [
            {"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2), "source": "xy"[n % 4 // 2]}
            for n in range(40)
        ]
        result = evaluate_rows(rows, resamples=20).parts["groups"]
        assert result.groups[0].title == "source x" and result.groups[0].images == 20
        ```
    """

    trait: str
    name: str
    images: int
    patients: int
    support: Mapping[str, int]
    scores: Mapping[str, Estimate]
    gaps: Mapping[str, Estimate]
    too_few: Mapping[str, int]

    @property
    def title(self) -> str:
        """Trait and value; a fold's name says what it is."""
        return self.name if self.trait == "fold" else f"{self.trait} {self.name}"

    def cell(self, score: str) -> str:
        """Print a score.

        Args:
            score: Its name.

        Returns:
            Value and interval, or how few patients there are.
        """
        if score in self.too_few:
            few = self.too_few[score]
            return "none of a kind" if few == 0 else f"too few ({count_of(few, 'patient')})"
        estimate = self.scores.get(score)
        return format_estimate(estimate, digits=2)


@dataclass(frozen=True)
class Subgroups:
    """Scores of all groups.

    Attributes:
        groups: In the order of traits and sizes.
        alone: By trait: the one value that all images share, or "" where it is not known.
        search: Groups by one or two attributes on which the model does worse than on the rest; None = none were tried.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        result = evaluate_rows(rows, resamples=20).parts["groups"]
        assert result.groups == () and result.alone["source"] == ""
        ```
    """

    groups: tuple[Group, ...]
    alone: Mapping[str, str]
    search: SliceSearch | None = None

    @property
    def clear_gaps(self) -> list[tuple[Group, str, Estimate]]:
        """The gaps whose interval lies on one side of 0, widest first."""
        gaps = [
            (group, name, gap)
            for group in self.groups
            for name, gap in group.gaps.items()
            if name not in group.too_few and (gap.low > 0 or gap.high < 0)
        ]
        return sorted(gaps, key=lambda entry: -abs(entry[2].value))

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {
            "groups": [plain_result(field_values(group)) for group in self.groups],
            "alone": dict(self.alone),
            "search": None if self.search is None else self.search.to_dict(),
        }


@sections_of.register
def _(result: Subgroups) -> list[Section]:
    blocks: list[Block] = [Words(_describe_gaps(result))]
    names = list(dict.fromkeys(name for group in result.groups for name in group.scores))
    for name in names[:1]:
        shown = {on_picture(g.title): g.scores[name] for g in result.groups if name not in g.too_few}
        if shown:
            figure = plot_estimates(shown, title=title(name), chance=0.5 if name == "auroc" else None)
            blocks.append(as_picture(figure, f"{title(name)} of each group with its interval"))
    if result.groups and names:
        blocks.append(_table(result, [name for name in names if name != "accuracy" or "sensitivity" not in names][:3]))
    for trait, value in result.alone.items():
        blocks.append(Words(f"All images have the {trait} {value}." if value else f"The {trait} is not known."))
    if result.search is not None:
        blocks += _show_search(result.search)
    lead = (
        f"Scores of each group, with the patients behind them. A score that rests on fewer than {LEAST} patients "
        f"of a kind is not shown."
    )
    return [Section("Groups of patients", lead, blocks)]


def _show_search(search: SliceSearch) -> list[Block]:
    """Show the groups that were found by themselves, or that there are none."""
    named = ", ".join(search.attributes)
    tried = f"{search.tried:,} comparisons of groups by one or two of {named}"
    if not search.tried:
        needed = f"{search.least} patients of each kind in it and outside it"
        return [Words(f"No group by one or two attributes ({named or 'none is known'}) has {needed}.")]
    if not search.slices:
        return [Words(f"Searched for groups that nobody named: in {tried}, none does clearly worse than the rest.")]
    rows = [
        [
            result.title,
            title(result.score),
            f"{result.images} ({result.patients})",
            format_estimate(result.inside, digits=2),
            format_estimate(result.outside, digits=2),
            format_estimate(result.difference, digits=2, signed=True),
        ]
        for result in search.slices
    ]
    heads = ["group", "score", "images (patients)", "in it", "on all others", "difference"]
    caption = f"Found in {tried}: worse than all other images. Differences and tests are corrected for the search"
    return [Table(heads, rows, caption)]


def _table(result: Subgroups, names: list[str]) -> Table:
    rows = [
        [
            group.title,
            str(group.images),
            f"{group.patients}{_by_class(group.support)}",
            *(group.cell(name) for name in names),
            _gap_cell(group, names[0]),
        ]
        for group in result.groups
    ]
    return Table(["group", "images", "patients", *map(title, names), f"gap in {title(names[0])}"], rows)


def _describe_gaps(result: Subgroups) -> str:
    gaps = result.clear_gaps
    if not gaps:
        return "No gap between groups is clear: every interval that could be computed holds 0."
    named = "; ".join(
        f"{group.title}: {title(name)} {format_estimate(gap, signed=True)} ({count_of(group.patients, 'patient')})"
        for group, name, gap in gaps[:4]
    )
    return (
        f"Clear gaps to the largest group of the same trait: {named}. Of many gaps that are looked at, one in "
        f"twenty is clear by chance."
    )


def score_groups(
    predictions: PredictionTable, *, positive: int | None = None, resamples: int = 1000, seed: int = 0
) -> Subgroups:
    """Score the images of each source, view, sex, age band and fold, and search for other groups; see `find_slices`.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        The scores of the groups.
    """
    scores = group_scores(predictions, positive)
    groups: list[Group] = []
    alone = {}
    for trait in TRAITS:
        by_value = find_groups(predictions, trait)
        if len(by_value) > 1:
            groups += _score_trait(predictions, trait, by_value, scores, resamples, seed)
        elif trait != "fold":
            alone[trait] = next(iter(by_value), "")
    return Subgroups(tuple(groups), alone, find_slices(predictions, positive=positive))


def find_groups(predictions: PredictionTable, trait: str) -> dict[str, Bool[np.ndarray, " images"]]:
    """Group images by a trait; beyond a dozen the smallest groups are taken together.

    Args:
        predictions: The images.
        trait: One of `TRAITS`.

    Returns:
        Which images each group has, by its name.
    """
    groups = predictions.groups(trait)
    if len(groups) <= MOST:
        return groups
    by_size = sorted(groups, key=lambda name: -int(groups[name].sum()))
    kept = {name: images for name, images in groups.items() if name in by_size[: MOST - 1]}
    others = np.any([groups[name] for name in by_size[MOST - 1 :]], axis=0)
    return kept | {f"{len(groups) - len(kept)} smaller ones": others}


def _score_trait(
    predictions: PredictionTable,
    trait: str,
    groups: Mapping[str, Bool[np.ndarray, " images"]],
    scores: Mapping[str, Score],
    resamples: int,
    seed: int,
) -> list[Group]:
    few = {
        (group, name): count
        for group, images in groups.items()
        for name, score in scores.items()
        if (count := score.too_few(predictions, images)) is not None
    }
    largest = {name: _largest(groups, name, few) for name in scores}

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {
            (g, n): score.statistic(weights, images) for n, score in scores.items() for g, images in groups.items()
        }
        return {f"score {g} {n}": value for (g, n), value in values.items()}

    images = {
        f"{kind} {g} {n}": members & np.any(score.kinds, axis=0)
        for kind in ("score", "gap")
        for n, score in scores.items()
        for g, members in groups.items()
    }
    estimates = bootstrap_many(
        table,
        groups=predictions.patients,
        images=images,
        shares=[f"score {g} {n}" for g in groups for n in scores if not n.startswith("dice_")],
        kinds={f"score {g} {n}": [part & k for k in s.kinds] for n, s in scores.items() for g, part in groups.items()},
        intervals=_mask_intervals(predictions, groups, scores),
        differences={
            f"gap {g} {n}": (f"score {g} {n}", f"score {best} {n}")
            for n in scores
            for g in groups
            if (best := largest[n]) not in (None, g)
        },
        resamples=resamples,
        seed=seed,
    )
    return [
        Group(
            trait,
            name,
            int(members.sum()),
            predictions.number_of(members),
            {
                c: predictions.number_of(members & (predictions.truths[:, k] == 1))
                for k, c in enumerate(predictions.classes)
            },
            {n: estimates[f"score {name} {n}"] for n in scores},
            {n: gap for n in scores if (gap := estimates.get(f"gap {name} {n}")) and not math.isnan(gap.value)},
            {n: few[name, n] for n in scores if (name, n) in few},
        )
        for name, members in groups.items()
    ]


def _mask_intervals(
    predictions: PredictionTable, groups: Mapping[str, np.ndarray], scores: Mapping[str, Score]
) -> dict[str, FindInterval]:
    masks = {
        f"score {g} {n}": (n, np.where(part, predictions.masks[n], np.nan))
        for n in scores
        if n in predictions.masks
        for g, part in groups.items()
    }
    return {name: mask_statistics({mask: values}).intervals[mask] for name, (mask, values) in masks.items()}


def _largest(groups: Mapping[str, np.ndarray], score: str, few: Mapping[tuple[str, str], int]) -> str | None:
    """Return the group with the most images of those in which the score is defined."""
    able = [name for name in groups if (name, score) not in few]
    return max(able, key=lambda name: int(groups[name].sum())) if able else None


def _gap_cell(group: Group, name: str) -> str:
    gap = group.gaps.get(name)
    if name in group.too_few:
        return "-"
    return "compared with this" if gap is None else format_estimate(gap, digits=2, signed=True)


def _by_class(support: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count} {name}' for name, count in support.items())})" if support else ""
