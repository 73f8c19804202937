"""The report of an audit: sections for a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from covidcxr.evaluation.plots import COLORS, INK, LINE, as_picture, panels
from covidcxr.evaluation.shortcuts.confounding import CrossTable
from covidcxr.evaluation.shortcuts.leakage import HELD_OUT, RandomSplit
from covidcxr.evaluation.shortcuts.probes import ProbeScore
from covidcxr.evaluation.shortcuts.verdict import figure, list_words, supported_words
from covidcxr.page import Block, Page, Section, Table, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from covidcxr.evaluation.shortcuts.result import DataAudit, QuestionAudit

__all__ = ["make_page", "make_sections", "draw_cross_table", "draw_probes", "draw_random_split"]

_ALARM, _QUIET, _LOOK = COLORS[1], COLORS[0], "#8a939e"


def draw_probes(panels_of: Mapping[str, Sequence[ProbeScore]]) -> Figure:
    """Draw how well probes tell, a panel a question: the mean AUROC, and the class told best as a ring.

    Args:
        panels_of: Scores by the title of their panel.
    """
    names = list(dict.fromkeys(one.probe.name for scores in panels_of.values() for one in scores))
    titles = {one.probe.name: one.probe.title for scores in panels_of.values() for one in scores}
    lows = [one.auroc.low for scores in panels_of.values() for one in scores if not math.isnan(one.auroc.low)]
    columns = min(3, len(panels_of))
    lines = -(-len(panels_of) // columns)
    figure, axes = panels(
        len(panels_of), width=7.5 if columns == 1 else 3.5, height=0.9 + 0.27 * len(names), columns=columns
    )
    for number, (axis, (title, scores)) in enumerate(zip(axes, panels_of.items(), strict=True)):
        axis.axvline(0.5, color=INK, linewidth=1, linestyle=":")
        for score in scores:
            place = len(names) - names.index(score.probe.name)
            color = _ALARM if score.alarm else _QUIET if score.probe.blind else _LOOK
            one, best = score.auroc, score.best[1]
            if len(score.by_class) > 2:
                axis.plot([best.low, best.high], [place + 0.22] * 2, color=color, linewidth=1, alpha=0.7)
                axis.plot(best.value, place + 0.22, "o", color=color, markersize=4, markerfacecolor="white")
            if not math.isnan(one.low):
                axis.plot([one.low, one.high], [place, place], color=color, linewidth=2)
            axis.plot(one.value, place, "o", color=color, markersize=5)
        axis.set(title=title if len(panels_of) > 1 else "", xlim=(min([0.35, *lows]), 1.02))
        axis.set(ylim=(0.4, len(names) + 0.7), yticks=range(len(names), 0, -1))
        axis.set_yticklabels([titles[name] for name in names] if number % columns == 0 else [])
        axis.grid(visible=False, axis="y")
        if number >= (lines - 1) * columns:
            axis.set_xlabel("AUROC, with 95 % interval over patients")
    return figure


def draw_cross_table(table: CrossTable) -> Figure:
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


def draw_random_split(splits: Mapping[str, RandomSplit]) -> Figure:
    """Draw how many of the images that a random split by image holds out have their patient in training."""
    figure, (axis,) = panels(1, width=7.5, height=0.9 + 0.3 * len(splits))
    places = range(len(splits), 0, -1)
    for place, one in zip(places, splits.values(), strict=True):
        axis.barh(place, one.share, color=COLORS[1], height=0.6)
        axis.text(one.share + 0.01, place, f"{one.share:.0%}", va="center", fontsize=8, color=INK)
    axis.set(xlim=(0, 1.08), yticks=places, xlabel="share of the images held out whose patient is in training too")
    axis.set_yticklabels(
        [f"{name}  ({one.images:,} images of {one.patients:,} patients)" for name, one in splits.items()]
    )
    axis.grid(visible=True, axis="x", color=LINE)
    axis.grid(visible=False, axis="y")
    return figure


_HEADS = ("what it sees", "AUROC", "told best", "balanced accuracy", "accuracy")


def make_page(audit: DataAudit) -> Page:
    """Return the report of an audit."""
    facts = [("images", f"{audit.images:,}"), ("patients", f"{audit.patients:,}")]
    for question in audit.questions[:1]:
        facts.append(("labels", str(len(question.images))))
        if question.by_source is not None:
            facts.append(("sources", str(len(question.by_source.values))))
        for one in question.alarms[:2]:
            name, best = one.best
            what = f"{one.probe.title} tells {name}" if len(one.by_class) > 2 else f"{one.probe.title} tells the label"
            facts.append((what, f"{best.value:.2f} AUROC"))
    return Page(f"Audit of {audit.name}", audit.verdict, facts, make_sections(audit))


def make_sections(audit: DataAudit) -> list[Section]:
    """Return the parts of the report of an audit, the weightiest first."""
    parts = [Section("What was found", "", [Words(f"{n}. {text}") for n, text in enumerate(audit.findings, 1)])]
    for question in audit.questions:
        parts += _of_question(question, many=len(audit.questions) > 1)
    if audit.sources is not None and audit.sources.probes:
        lead = (
            "The same probes, asked where an image comes from. What tells the sources apart is at hand as a shortcut."
        )
        parts.append(Section("What tells the sources apart", lead, list(_probes({"source": audit.sources.probes}))))
    return [*parts, _leakage(audit), _method(audit)]


def _probe_rows(scores: Sequence[ProbeScore]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of probes."""
    for one in scores:
        name, best = one.best
        told = f"{name} {figure(best)}" if len(one.by_class) > 2 else "-"
        yield (
            f"{one.probe.title}{' !' if one.alarm else ''}",
            figure(one.auroc),
            told,
            figure(one.balanced_accuracy),
            figure(one.accuracy),
        )


def _of_question(question: QuestionAudit, *, many: bool) -> Iterator[Section]:
    of = f": {question.name}" if many else ""
    lead = (
        "Each probe is a small classifier that is shown one thing and no lung; the grey ones see the whole image, but "
        "too coarsely for a reader. 0.5 is chance. Orange stands out, with all that was tried allowed for."
    )
    yield Section(
        f"What can be scored without looking at a lung{of}", lead, list(_probes({question.name: question.probes}))
    )
    if question.official:
        lead = "Trained on the official training images, scored on the official test images."
        yield Section(f"On the official split{of}", lead, list(_probes({"official test images": question.official})))
    if question.within:
        lead = "What is left when all images come from one source, or show one view; labels rare there drop out."
        blocks = list(_probes(question.within, table=False))
        blocks.append(_roofs(question.within))
        yield Section(f"Within one source, within one view{of}", lead, blocks)
    for table in (question.by_source, question.by_view):
        if table is not None and len(table.values) > 1:
            yield _confounding(table, of)


def _probes(panels: Mapping[str, tuple[ProbeScore, ...]], *, table: bool = True) -> Iterator[Block]:
    shown = {name: scores for name, scores in panels.items() if scores}
    if not shown:
        yield Words("No probe could be run.")
        return
    alt = "; ".join(
        f"{name}: " + ", ".join(f"{one.probe.title} {one.auroc.value:.2f}" for one in scores)
        for name, scores in shown.items()
    )
    rings = any(len(one.by_class) > 2 for scores in shown.values() for one in scores)
    caption = "Dots: mean over the answers, each against the rest." + (" Rings: the answer told best." if rings else "")
    yield as_picture(draw_probes(shown), alt, caption)
    for scores in shown.values() if table else ():
        yield Table(_HEADS, list(_probe_rows(scores)), _chance(scores))


def _roofs(within: Mapping[str, tuple[ProbeScore, ...]]) -> Table:
    """Return the AUROCs within each source and view, a column each."""
    titles = {one.probe.name: one.probe.title for scores in within.values() for one in scores}
    found = {name: {one.probe.name: one for one in scores} for name, scores in within.items()}
    rows = [
        [
            title,
            *(
                f"{figure(own[name].auroc)}{' !' if own[name].alarm else ''}" if name in own else "-"
                for own in found.values()
            ),
        ]
        for name, title in titles.items()
    ]
    heads = [f"{name}: {' / '.join(scores[0].by_class)}" for name, scores in within.items()]
    return Table(("what it sees", *heads), rows, "AUROC with 95 % interval over patients; ! = stands out")


def _chance(scores: Sequence[ProbeScore]) -> str:
    most = max(scores, key=lambda one: one.accuracy.count)
    return (
        f"With 95 % intervals over patients; ! = stands out. Chance: AUROC 0.50, balanced accuracy "
        f"{1 / len(most.by_class):.2f}; always the most frequent answer: accuracy {most.majority:.2f}."
    )


def _confounding(table: CrossTable, of: str) -> Section:
    single = table.single
    lead = (
        f"Cramér's V is {figure(table.cramers_v)}: 0 = they have nothing to do with each other, 1 = one is the other."
    )
    if single:
        lead += f" One label only: {list_words([f'{value} ({label})' for value, label in single.items()])}."
    alt = "; ".join(
        f"{label}: " + ", ".join(f"{value} {count}" for value, count in zip(table.values, row, strict=True))
        for label, row in zip(table.labels, table.images.tolist(), strict=True)
    )
    blocks: list[Block] = [
        as_picture(draw_cross_table(table), alt, f"Films; darker = more of the {table.column}'s images.")
    ]
    blocks.append(Words(f"What can be compared within one {table.column}:"))
    blocks += [Words(words) for words in supported_words(table)[:12]]
    return Section(f"Label and {table.column}{of}", lead, blocks)


def _leakage(audit: DataAudit) -> Section:
    leakage = audit.leakage
    parts = ", ".join(f"{name} {count:,}" for name, count in leakage.split.items()) or "none"
    rows = [("Official split, images", parts)]
    if len(leakage.split) > 1:
        rows.append(("Patients in more than one part", f"{leakage.shared_patients:,}"))
        rows.append(("Images for validation or testing whose patient trains", f"{leakage.shared_images:,}"))
    rows.append(("Patients with images of several labels", f"{len(leakage.contradictory):,}"))
    rows.append(("Images whose patient is not known", f"{leakage.unknown_patients:,}"))
    copies = leakage.copies
    if copies is None:
        rows.append(("Images that are there twice", "not searched"))
    else:
        rows.append((f"Pictures that are there twice, among {copies.compared:,}", f"{len(copies.groups):,}"))
        rows.append(("... in more than one part", f"{copies.across_splits:,}"))
        rows.append(("... under several patients", f"{copies.across_patients:,}"))
        rows.append(("... with several labels", f"{copies.contradicting:,}"))
    blocks: list[Block] = [Table(("What", "How many"), rows)]
    if leakage.contradictory:
        named = [f"{patient} ({list_words(labels)})" for patient, labels in list(leakage.contradictory.items())[:12]]
        blocks.append(Words(f"Patients with several labels: {'; '.join(named)}."))
    if leakage.random:
        alt = ", ".join(f"{name} {one.share:.0%}" for name, one in leakage.random.items())
        caption = f"What a random split by image, with {HELD_OUT:.0%} held out, would leak; mean of 20 splits."
        blocks.append(as_picture(draw_random_split(leakage.random), alt, caption))
    return Section("What leaks", "Images of one patient, and copies of one image, belong into one part.", blocks)


def _method(audit: DataAudit) -> Section:
    settings = audit.settings
    words = [
        f"Cross-validated in {settings['folds']} folds with patients whole, seed {settings['seed']}; classes weigh "
        f"alike. Intervals are 95 %, bootstrapped over patients. A probe stands out when it tells an answer with an "
        f"AUROC of 0.60 or more that is {audit.threshold:.1f} standard errors above chance: over all {audit.tests} "
        f"AUROCs, one in forty audits of clean data would raise an alarm.",
        "What is not found is not proven absent: these are small classifiers. Lungs are taken out as the segmenter "
        "draws them: the convex hull of each, widened; opacity beyond that stays in the image.",
    ]
    blocks: list[Block] = [Words(text) for text in (*words, *audit.notes)]
    if audit.skipped:
        blocks.append(Table(("Not run", "Because"), list(audit.skipped.items())))
    if audit.failed:
        blocks.append(Table(("Cannot be read", "Because"), list(audit.failed.items())[:20]))
    rows = [(step, f"{seconds:.1f}") for step, seconds in audit.seconds.items()]
    blocks.append(Table(("Step", "Seconds"), rows))
    return Section("How it was measured", "", blocks)
