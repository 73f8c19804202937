"""The report of an audit: its page and sections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from covidcxr.evaluation.metrics.intervals import Estimate
from covidcxr.evaluation.plots import COLORS, INK, LINE, as_picture, panels
from covidcxr.evaluation.shortcuts.association import QualityAudit
from covidcxr.evaluation.shortcuts.drift import Drift
from covidcxr.evaluation.shortcuts.leakage import HELD_OUT, RandomSplit
from covidcxr.evaluation.shortcuts.probes import ProbeScore
from covidcxr.evaluation.shortcuts.result import DataAudit, TargetAudit
from covidcxr.evaluation.shortcuts.targets import CrossTable
from covidcxr.evaluation.shortcuts.verdict import figure, join, state_drift, supported_comparisons
from covidcxr.page import Block, Page, Section, Table, Words, sections_of
from covidcxr.utils.plain import count_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["make_drift_page", "make_page", "make_sections"]

_ALARM, _QUIET, _SEES_LUNGS = COLORS[1], COLORS[0], "#8a939e"
_MOST_CLEAR = 8  # scores that are named
_HEADS = ("input", "AUROC", "best class", "one number", "balanced accuracy", "accuracy")

_Panels = Mapping[str, Sequence[ProbeScore]]


def make_page(audit: DataAudit) -> Page:
    """Return the report of an audit as a page.

    Args:
        audit: The audit.

    Returns:
        The page; `covidcxr.page.write_html` writes it.
    """
    patients = "not known" if audit.patients is None else f"{audit.patients:,}"
    facts = [("images", f"{audit.images:,}"), ("patients", patients)]
    for target in audit.targets[:1]:
        facts.append(("labels", str(len(target.images))))
        if target.by_source is not None:
            facts.append(("sources", str(len(target.by_source.values))))
        for score in target.alarms[:2]:
            name, auroc = score.best
            predicted = name if len(score.by_class) > 2 else "the label"
            facts.append((f"{score.probe.title} predicts {predicted}", f"{auroc.value:.2f} AUROC"))
    return Page(f"Audit of {audit.name}", audit.verdict, facts, make_sections(audit))


@sections_of.register
def make_sections(audit: DataAudit) -> list[Section]:
    """Return the sections of the report of an audit, the most important first.

    Args:
        audit: The audit.

    Returns:
        The sections.
    """
    parts = [Section("Findings", "", [Words(f"{n}. {text}") for n, text in enumerate(audit.findings, 1)])]
    for target in audit.targets:
        parts += _target_sections(target, audit.unit, many=len(audit.targets) > 1)
    if audit.sources is not None and audit.sources.probes:
        lead = "The same probes, now predicting the source of an image. What separates sources can serve as a shortcut."
        parts.append(Section("Shortcut probes of the source", lead, list(_probes({"source": audit.sources.probes}))))
    parts.append(_leakage(audit))
    if audit.drift is not None:
        parts.append(_drift(audit.drift))
    if audit.quality is not None:
        parts.append(_quality(audit.quality))
    return [*parts, _method(audit)]


def _target_sections(target: TargetAudit, unit: str, *, many: bool) -> Iterator[Section]:
    of = f": {target.name}" if many else ""
    lead = (
        "Each probe is a small classifier that is shown one thing and no lung; the grey ones see the whole image, but "
        "too coarsely for a reader. 0.5 is chance. Orange stands out above chance, corrected for all that was tried."
    )
    yield Section(f"Shortcut probes{of}", lead, list(_probes({target.name: target.probes})))
    if target.official:
        lead = "Trained on the official training images, scored on the official test images."
        yield Section(f"On the official split{of}", lead, list(_probes({"official test images": target.official})))
    if target.within:
        lead = "The same among the images of one source or one view; labels that are rare there are left out."
        blocks = [*_probes(target.within, table=False), _within_table(target.within)]
        yield Section(f"Within one source or view{of}", lead, blocks)
    for table in (target.by_source, target.by_view):
        if table is not None and len(table.values) > 1:
            yield _confounding(table, of, unit)


def _probes(panels_of: _Panels, *, table: bool = True) -> Iterator[Block]:
    shown = {name: scores for name, scores in panels_of.items() if scores}
    if not shown:
        yield Words("No probe could be run.")
        return
    alt = "; ".join(
        f"{name}: " + ", ".join(f"{score.probe.title} {score.auroc.value:.2f}" for score in scores)
        for name, scores in shown.items()
    )
    rings = any(len(score.by_class) > 2 for scores in shown.values() for score in scores)
    caption = "Dots: mean over the classes, each against the rest." + (" Rings: the best class." if rings else "")
    yield as_picture(_draw_probes(shown), alt, caption)
    for scores in shown.values() if table else ():
        yield Table(_HEADS, list(map(_probe_row, scores)), _chance(scores))


def _probe_row(score: ProbeScore) -> tuple[str, ...]:
    name, auroc = score.best
    best = f"{name} {figure(auroc)}" if len(score.by_class) > 2 else "-"
    title = f"{score.probe.title}{_sign(score)}"
    feature = score.best_feature
    single = f"{feature[1].auroc:.2f}" if feature else "-"
    return title, figure(score.auroc), best, single, figure(score.balanced_accuracy), figure(score.accuracy)


def _sign(score: ProbeScore) -> str:
    return " !" if score.alarm else " (!)" if score.above_chance else ""


def _chance(scores: Sequence[ProbeScore]) -> str:
    largest = max(scores, key=lambda score: score.accuracy.count)
    return (
        f"With 95 % intervals over patients; ! = stands out; (!) = above chance, but not blind to the lungs. One "
        f"number: the AUROC of the feature that goes with a class most clearly. Chance: AUROC 0.50, balanced accuracy "
        f"{1 / len(largest.by_class):.2f}; always the most frequent class: accuracy {largest.majority:.2f}."
    )


def _within_table(within: _Panels) -> Table:
    """Return the AUROCs within each source and view, a column each."""
    titles = {score.probe.name: score.probe.title for scores in within.values() for score in scores}
    columns = [{score.probe.name: score for score in scores} for scores in within.values()]

    def cell(score: ProbeScore | None) -> str:
        return "-" if score is None else f"{figure(score.auroc)}{_sign(score)}"

    rows = [[title, *(cell(column.get(name)) for column in columns)] for name, title in titles.items()]
    heads = [f"{name}: {' / '.join(scores[0].by_class)}" for name, scores in within.items()]
    return Table(("input", *heads), rows, "AUROC with 95 % interval over patients; ! = stands out; (!) = not blind")


def _confounding(table: CrossTable, of: str, unit: str) -> Section:
    lead = f"Cramér's V is {figure(table.cramers_v)}: 0 = no association, 1 = each determines the other."
    if table.single:
        lead += f" One label only: {join([f'{value} ({label})' for value, label in table.single.items()])}."
    alt = "; ".join(
        f"{label}: " + ", ".join(f"{value} {count}" for value, count in zip(table.values, row, strict=True))
        for label, row in zip(table.labels, table.images.tolist(), strict=True)
    )
    blocks: list[Block] = [
        as_picture(_draw_cross_table(table), alt, f"Images; darker = a larger share of the {table.column}'s images."),
        Words(f"What can be compared within one {table.column}:"),
        *map(Words, supported_comparisons(table, unit)[:12]),
    ]
    return Section(f"Label and {table.column}{of}", lead, blocks)


def _leakage(audit: DataAudit) -> Section:
    leakage, copies = audit.leakage, audit.leakage.copies
    parts = ", ".join(f"{name} {count:,}" for name, count in leakage.split.items()) or "none"
    rows = [("Official split, images", parts)]
    if len(leakage.split) > 1:
        rows.append(("Patients in more than one part", _number(leakage.shared_patients)))
        whose = "Images for validation or testing whose patient is in training too"
        rows.append((whose, _number(leakage.shared_images)))
    several = None if audit.patients is None else len(leakage.contradictory)
    rows.append(("Patients with images of several labels", _number(several)))
    rows.append(("Images whose patient is not known", f"{leakage.unknown_patients:,}"))
    if leakage.series is not None:
        rows.append(
            ("... pairs with neighbouring numbers in their names", f"{leakage.series.pairs:,}"),
        )
        rows.append(("... these are more alike than others in (0.50 = chance)", f"{leakage.series.alike:.2f}"))
        if len(leakage.split) > 1:
            whose = "... images for validation or testing with such a neighbour in training"
            rows.append((whose, f"{leakage.series.held_out:,}"))
    if copies is None:
        rows.append(("Copies of one image", "not searched"))
    else:
        rows.append((f"Sets of copies of one image, among {copies.compared:,} images", f"{len(copies.groups):,}"))
        rows.append(("... with images in more than one part", f"{copies.across_splits:,}"))
        rows.append(("... that a split by patient does not keep together", f"{copies.across_patients:,}"))
        rows.append(("... with several labels", f"{copies.contradicting:,}"))
        for part, names in copies.held_out.items():
            whose = {"val": "Validation", "test": "Test"}[part]
            rows.append((f"{whose} images with a copy in training", f"{len(names):,} of {leakage.split[part]:,}"))
        rows.append(("Pairs of images that are no copies but show near-identical bodies", f"{len(copies.bodies):,}"))
        for part, names in copies.bodies_held_out.items():
            whose = {"val": "validation", "test": "test"}[part]
            rows.append((f"... {whose} images with such an image in training", f"{len(names):,}"))
    blocks: list[Block] = [Table(("What", "How many"), rows)]
    if leakage.contradictory:
        patients = [f"{patient} ({join(labels)})" for patient, labels in list(leakage.contradictory.items())[:12]]
        blocks.append(Words(f"Patients with several labels: {'; '.join(patients)}."))
    if leakage.random:
        alt = ", ".join(f"{name} {split.share:.0%}" for name, split in leakage.random.items())
        caption = f"What a random split by image, with {HELD_OUT:.0%} held out, would leak; mean of 20 splits."
        blocks.append(as_picture(_draw_random_split(leakage.random), alt, caption))
    lead = "All images of a patient, and all copies of an image, belong in one part."
    return Section("Leakage between splits", lead, blocks)


def _number(number: int | None) -> str:
    return "not known: no patient is known" if number is None else f"{number:,}"


def make_drift_page(drift: Drift) -> Page:
    """Return the comparison of two data sets as a page.

    Args:
        drift: From `compare_data`.

    Returns:
        The page; `covidcxr.page.write_html` writes it.
    """
    facts = [(f"images of {name}", f"{count:,}") for name, count in zip(drift.names, drift.images, strict=True)]
    return Page(f"{drift.names[0]} and {drift.names[1]}", state_drift(drift), facts, [_drift(drift)])


def _drift(drift: Drift) -> Section:
    first, second = drift.names
    heads = ("what", first, second, "difference", "p", "p within one label", "")
    rows = []
    for own in (*((drift.label,) if drift.label else ()), *drift.covariates):
        sign = " ".join(word for word, holds in (("!", own.differs), ("! within", own.differs_within)) if holds)
        for number, value in enumerate(own.difference):
            name = own.name.replace("_", " ") + ("" if own.kind == "mean" else f": {value}")
            cells = [_share_or_mean(table[value], own.kind) for table in (own.first, own.second, own.difference)]
            p_values = (_p_value(own.p_value), _p_value(own.p_within), sign) if number == 0 else ("", "", "")
            rows.append((name, *cells, *p_values))
    caption = "With 95 % intervals over patients; ! = differs, corrected for all rows; ! within: also among one label"
    blocks: list[Block] = [Table(heads, rows, caption)]
    scores = {"all images": drift.classifier} | dict(drift.within)
    apart = [(name, figure(score.auroc)) for name, score in scores.items() if score is not None]
    if apart:
        caption = (
            f"A classifier that sees {drift.classifier.probe.sees if drift.classifier else 'no lung'}; 0.5 = chance"
        )
        blocks.append(Table(("images of", f"AUROC, {first} against {second}"), apart, caption))
    return Section(f"Drift between {first} and {second}", state_drift(drift), blocks)


def _share_or_mean(estimate: Estimate, kind: str) -> str:
    if kind == "mean":
        return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _p_value(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _quality(quality: QualityAudit) -> Section:
    blocks: list[Block] = []
    for trait, table in (("label", quality.by_label), ("source", quality.by_source)):
        flags = [flag for flag in next(iter(table.values())) if flag != "images"]
        rows = [
            (name, f"{own['images']:,}", *(f"{own[flag]:,} ({own[flag] / own['images']:.1%})" for flag in flags))
            for name, own in table.items()
        ]
        if flags and len(rows) > 1 - (trait == "label"):
            blocks.append(Table((trait, "images", *flags), rows, f"Images with a flag, by {trait}"))
        clear = [
            f"{score.replace('_', ' ')} of {value} (AUROC {test.auroc:.2f})"
            for score, value, test in quality.clear(trait)
        ]
        if clear:
            what = f"Scores that go with a {trait}, and can serve as a shortcut: {join(clear[:_MOST_CLEAR])}."
            blocks.append(Words(what, warning=trait == "label"))
    lead = (
        f"{quality.images:,} images were measured: brightness, contrast, sharpness, noise, size, border, and lungs at "
        f"the edge. covidcxr datasets quality lists each image."
    )
    if not any(isinstance(block, Table) for block in blocks):
        lead += " None has a flag."
    return Section("Image quality by label and source", lead, blocks)


def _method(audit: DataAudit) -> Section:
    settings = audit.settings
    paragraphs = [
        f"Cross-validated in {settings['folds']} folds with whole patients, seed {settings['seed']}; all classes have "
        f"the same weight. Intervals are 95 %, bootstrapped over patients. A probe stands out when it predicts a class "
        f"with an AUROC of 0.60 or more that is {audit.threshold:.1f} standard errors above chance, or when one of its "
        f"numbers goes with a class as clearly (rank test over patients): over all {audit.tests} AUROCs, at most one "
        f"in forty audits of clean data would raise an alarm.",
        *_power(audit),
        "An audit without alarms does not prove that there are no shortcuts: these are small classifiers. Lungs are "
        "removed by the data set's masks where all images have one, else as the segmenter predicts them: the convex "
        "hull of each, widened; opacity beyond that stays in the image.",
        *audit.notes,
    ]
    blocks: list[Block] = [*map(Words, paragraphs)]
    if audit.skipped:
        blocks.append(Table(("Not run", "Reason"), list(audit.skipped.items())))
    if audit.failed:
        blocks.append(Table(("Cannot be read", "Reason"), list(audit.failed.items())[:20]))
    blocks.append(Table(("Step", "Seconds"), [(step, f"{value:.1f}") for step, value in audit.seconds.items()]))
    return Section("Method", "", blocks)


def _power(audit: DataAudit) -> Iterator[str]:
    """State the weakest shortcut that so many patients could have shown."""
    for target, classes in audit.detectable.items():
        shown = join([f"{name} {'none' if auroc >= 1 else f'{auroc:.2f}'}" for name, auroc in classes.items()])
        if shown:
            yield (
                f"Weakest shortcut of the {target} that would be noticed with a chance of 80 %, as an AUROC: {shown}. "
                f"A shortcut that agrees with the label in 70 % of the patients has 0.70."
            )


def _draw_probes(panels_of: _Panels) -> Figure:
    """Draw the scores of probes, a panel a target: the mean AUROC as a dot, and the best class as a ring."""
    titles = {score.probe.name: score.probe.title for scores in panels_of.values() for score in scores}
    names = list(titles)
    lows = [score.auroc.low for scores in panels_of.values() for score in scores if not math.isnan(score.auroc.low)]
    columns = min(3, len(panels_of))
    lines = -(-len(panels_of) // columns)
    width = 7.5 if columns == 1 else 3.5
    figure, axes = panels(len(panels_of), width=width, height=0.9 + 0.27 * len(names), columns=columns)
    for number, (axis, (title, scores)) in enumerate(zip(axes, panels_of.items(), strict=True)):
        axis.axvline(0.5, color=INK, linewidth=1, linestyle=":")
        for score in scores:
            _draw_score(axis, score, len(names) - names.index(score.probe.name))
        axis.set(title=title if len(panels_of) > 1 else "", xlim=(min([0.35, *lows]), 1.02))
        axis.set(ylim=(0.4, len(names) + 0.7), yticks=range(len(names), 0, -1))
        axis.set_yticklabels(list(titles.values()) if number % columns == 0 else [])
        axis.grid(visible=False, axis="y")
        if number >= (lines - 1) * columns:
            axis.set_xlabel("AUROC, with 95 % interval over patients")
    return figure


def _draw_score(axis: Axes, score: ProbeScore, place: float) -> None:
    color = _ALARM if score.alarm else _QUIET if score.probe.blind else _SEES_LUNGS
    mean, best = score.auroc, score.best[1]
    if len(score.by_class) > 2:
        axis.plot([best.low, best.high], [place + 0.22] * 2, color=color, linewidth=1, alpha=0.7)
        axis.plot(best.value, place + 0.22, "o", color=color, markersize=4, markerfacecolor="white")
    if not math.isnan(mean.low):
        axis.plot([mean.low, mean.high], [place, place], color=color, linewidth=2)
    axis.plot(mean.value, place, "o", color=color, markersize=5)


def _draw_cross_table(table: CrossTable) -> Figure:
    """Draw the images of each label by another column, shaded by their share of the column."""
    shares = table.images / table.images.sum(0, keepdims=True).clip(1)
    rows, columns = table.images.shape
    figure, (axis,) = panels(1, width=min(11, 2.6 + 0.95 * columns), height=1.1 + 0.5 * rows)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(table.images):
        color = "white" if shares[row, column] > 0.6 else INK
        axis.text(column, row, f"{count:,}" if count else "·", ha="center", va="center", color=color, fontsize=8)
    axis.set(xticks=range(columns), yticks=range(rows), xlabel=table.column)
    long = max(map(len, table.values)) > 8
    axis.set_xticklabels(table.values, rotation=30 if long else 0, ha="right" if long else "center")
    axis.set_yticklabels(table.labels)
    axis.grid(visible=False)
    return figure


def _draw_random_split(splits: Mapping[str, RandomSplit]) -> Figure:
    """Draw the share of the images that a random split by image holds out whose patient is in training."""
    figure, (axis,) = panels(1, width=7.5, height=0.9 + 0.3 * len(splits))
    places = range(len(splits), 0, -1)
    for place, split in zip(places, splits.values(), strict=True):
        axis.barh(place, split.share, color=COLORS[1], height=0.6)
        axis.text(split.share + 0.01, place, f"{split.share:.0%}", va="center", fontsize=8, color=INK)
    axis.set(xlim=(0, 1.08), yticks=places, xlabel="share of the held-out images whose patient is in training too")
    axis.set_yticklabels(
        [
            f"{name}  ({count_of(split.images, 'image')} of {count_of(split.patients, 'patient')})"
            for name, split in splits.items()
        ]
    )
    axis.grid(visible=True, axis="x", color=LINE)
    axis.grid(visible=False, axis="y")
    return figure
