"""Leave-one-source-out: every source tested by a model that never saw an image from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.comparison import compare_rows
from covidcxr.evaluation.metrics.scores import format_estimate, format_interval, title
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions.table import score_rows
from covidcxr.evaluation.report.headline import plain
from covidcxr.evaluation.report.model_comparison import main_scores
from covidcxr.page import Block, Section, Table, Words, sections_of

__all__ = ["HeldOutSources", "is_held_out", "score_held_out"]

Rows = Sequence[Mapping[str, Any]]
START = "without-"


@dataclass(frozen=True)
class HeldOutSources:
    """Scores on sources that were never trained on.

    Attributes:
        pooled: Scores over all of them.
        sources: By held-out source, the scores of its images.
        mixed: By held-out source (and "all"), the scores of the same images where the source was trained on.
        losses: By score: mixed less held out, paired; empty without a mixed test.
    """

    pooled: Mapping[str, Estimate]
    sources: Mapping[str, Mapping[str, Estimate]]
    mixed: Mapping[str, Mapping[str, Estimate]]
    losses: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}


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
        blocks.append(Words("No mixed test of the same images was given beside it, so the loss cannot be told."))
    blocks.append(_table(result))
    blocks.append(
        Words("A source with one label has no AUROC. Scores over all sources pool answers of several models.")
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


def is_held_out(rows: Rows) -> bool:
    """Whether rows are those of leave-one-source-out."""
    return bool(rows) and all(str(row.get("fold") or "").startswith(START) for row in rows)


def score_held_out(rows: Rows, mixed: Rows | None = None, *, resamples: int = 1000, seed: int = 0) -> HeldOutSources:
    """Score leave-one-source-out, beside a mixed test of the same images.

    Args:
        rows: Pooled rows whose `fold` is "without-SOURCE".
        mixed: Rows of a test of the same images in which no source was held out, say a cross-validation.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Raises:
        ConfigError: If the two tests have no image in common.
    """
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(str(row["fold"]).removeprefix(START), []).append(row)
    held = {source: score_rows(part, **settings) for source, part in parts.items()}
    if mixed is None:
        return HeldOutSources(score_rows(rows, **settings), held, {}, {})
    tested = {str(row.get("image_id")) for row in rows}
    same = [row for row in mixed if str(row.get("image_id")) in tested]
    beside: dict[str, Mapping[str, Estimate]] = {"all": score_rows(same, **settings)} if same else {}
    for source, part in parts.items():
        images = {str(row.get("image_id")) for row in part}
        if scored := [row for row in same if str(row.get("image_id")) in images]:
            beside[source] = score_rows(scored, **settings)
    losses = compare_rows(mixed, rows, common=True, **settings)
    return HeldOutSources(score_rows(rows, **settings), held, beside, losses)


def _change(loss: Estimate) -> str:
    """Return a loss as a change, with the other sign."""
    return format_interval(-loss.value, -loss.high, -loss.low, signed=True)
