"""An audit in words: one sentence, and the few things to know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.shortcuts.confounding import ENOUGH, CrossTable, Pair
from covidcxr.evaluation.shortcuts.leakage import HELD_OUT
from covidcxr.evaluation.shortcuts.probes import MARGIN, ProbeScore, standard_error

if TYPE_CHECKING:
    from covidcxr.evaluation.shortcuts.result import DataAudit, QuestionAudit

__all__ = [
    "noticed_from",
    "say_findings",
    "say_verdict",
    "capital",
    "figure",
    "list_words",
    "named",
    "supported_words",
    "told",
    "told_short",
    "what_can_be_compared",
]


def figure(one: Estimate) -> str:
    """Write an estimate with its interval."""
    return f"{one.value:.2f}" if math.isnan(one.low) else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def list_words(words: Sequence[str]) -> str:
    """Write "a, b and c"."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def supported_words(table: CrossTable) -> list[str]:
    """Say of every two labels where they can be compared."""
    said = []
    for pair in table.pairs:
        one, other = pair.labels
        if pair.supported:
            places = [
                f"{name} ({pair.shared[name][0]:,} and {pair.shared[name][1]:,} patients)" for name in pair.supported
            ]
            said.append(f"{one} against {other}: within {list_words(places)}.")
        elif pair.shared:
            name, most = max(pair.shared.items(), key=lambda item: min(item[1]))
            said.append(f"{one} against {other}: hardly; {name} has {most[0]:,} and {most[1]:,} patients.")
        else:
            said.append(f"{one} against {other}: not; no {table.column} has both.")
    return said


def what_can_be_compared(question: QuestionAudit) -> str:
    """Say which comparisons are found within one source."""
    table = question.by_source
    pairs = [pair for pair in table.pairs if pair.supported] if table is not None else []
    if table is None or not pairs:
        return f"no two labels are found, with {ENOUGH} patients each, within one source"
    said = [f"{pair.labels[0]} against {pair.labels[1]} (within {_places(table, pair)})" for pair in pairs[:3]]
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    only = "" if len(pairs) == len(table.pairs) else "only "
    return f"{only}{list_words(said)}{more} can be compared within one source"


def _places(table: CrossTable, pair: Pair) -> str:
    """Name the sources that have both labels, and their share of the images of the two."""
    rows = [table.labels.index(label) for label in pair.labels]
    columns = [table.values.index(value) for value in pair.supported]
    images = table.images[rows]
    share = images[:, columns].sum() / images.sum()
    return f"{list_words(pair.supported[:3])}: {share:.0%} of their images"


def named(score: ProbeScore) -> str:
    """Name what a probe sees."""
    if score.probe.name == "background":
        return "the image with the lungs removed"
    return f"the {score.probe.title}"


def told(question: QuestionAudit, score: ProbeScore) -> str:
    """Say what a probe tells best, and how well."""
    name, one = score.best
    return f"{_what(question, score, name)} with an AUROC of {figure(one)}"


def told_short(score: ProbeScore) -> str:
    """Write what a probe tells best, where there are more than two answers, and how well."""
    name, one = score.best
    return f"{name} {figure(one)}" if len(score.by_class) > 2 else figure(one)


def _what(question: QuestionAudit, score: ProbeScore, name: str) -> str:
    if len(score.by_class) > 2:
        return f"{name} from the rest"
    return " from ".join(score.by_class) if question.name == "label" else question.name


def capital(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]


_MOST = 6


_TOO_FEW = 0.85  # a shortcut below this AUROC would go unseen: then silence is no news


def say_verdict(audit: DataAudit) -> str:
    """Say in one sentence what an audit comes to."""
    if not audit.questions:
        return "There is one label only, or too few patients of each: nothing can be told apart, and nothing scored."
    loud = [question for question in audit.questions if question.alarms]
    if not loud:
        return _all_clear(audit)
    question = max(loud, key=lambda one: one.alarms[0].best[1].value)
    source = question.get("source")
    images = [one for one in question.alarms if one.probe.kind == "film"]
    if source is not None and source.alarm:
        first = f"The source of an image alone tells {told(question, source)}"
        also = f", and so does {named(images[0])} ({figure(images[0].best[1])})" if images else ""
        compared = what_can_be_compared(question)
        return f"{first}{also}: a score on these images taken together measures the source; {compared}."
    best = question.alarms[0]
    return (
        f"{capital(named(best))} alone tells {told(question, best)}: a score on these images may be owed to it, "
        f"not to the lungs."
    )


def say_findings(audit: DataAudit) -> list[str]:
    """Say the three to six things to know, the weightiest first."""
    found = [finding for question in audit.questions for finding in _of_question(question)]
    found += [*_of_splits(audit), *_of_patients(audit)]
    if not any(question.alarms for question in audit.questions) and audit.questions:
        found.append((0.2, _quiet(audit)))
    ordered = sorted(enumerate(found), key=lambda item: (-item[1][0], item[0]))
    return [words for _, (_, words) in ordered[:_MOST]]


def noticed_from(audit: DataAudit) -> float:
    """Return the AUROC from which a shortcut would have been noticed, for the median probe."""
    errors = [
        standard_error(one.best[1], one.auroc.patients)
        for question in audit.questions
        for one in question.probes
        if one.probe.blind
    ]
    return min(1.0, 0.5 + max(MARGIN, audit.threshold * median(errors))) if errors else 1.0


def _all_clear(audit: DataAudit) -> str:
    count = len({one.probe.name for question in audit.questions for one in question.probes if one.probe.blind})
    least = noticed_from(audit)
    if count == 0:
        return "No probe could be run: what can be scored without looking at a lung is not known."
    if least > _TOO_FEW:
        return (
            f"There are too few patients to tell ({audit.patients:,}): {count} probes that see no lung found no "
            f"shortcut, but only one with an AUROC above {least:.2f} would have been noticed."
        )
    return (
        f"No shortcut found by these probes: none of {count} that see no lung stands out above chance on "
        f"{audit.images:,} images of {audit.patients:,} patients (one with an AUROC of {least:.2f} would have been "
        f"noticed)."
    )


def _of_question(question: QuestionAudit) -> Iterator[tuple[float, str]]:
    """Yield findings about one question, each with its weight."""
    source = question.get("source")
    if source is not None and source.alarm and question.by_source is not None:
        bound = question.by_source
        yield (
            1.0 + _excess(source),
            f"The source alone tells {told(question, source)}; sources with one label only: "
            f"{len(bound.single)} of {len(bound.values)} (Cramér's V of label and source {figure(bound.cramers_v)}). "
            f"{capital(what_can_be_compared(question))}.",
        )
    if question.official:
        best = max(question.official, key=lambda one: (one.probe.blind, one.probe.name == "source", one.auroc.value))
        blind = [one for one in question.official if one.alarm]
        if blind:
            best = max(blind, key=lambda one: (one.accuracy.value, one.probe.name == "source"))
            yield (
                1.2 + _excess(best),
                f"On the official test images, {named(best)} alone is right on {best.accuracy.value:.1%} "
                f"[{best.accuracy.low:.1%}, {best.accuracy.high:.1%}] of {best.accuracy.count:,} images; always the "
                f"most frequent answer is right on {best.majority:.1%}.",
            )
    yield from _of_images(question)
    columns = [one for one in question.alarms if one.probe.kind == "column" and one.probe.name != "source"]
    if columns:
        said = [f"{one.probe.title} ({told_short(one)})" for one in columns[:3]]
        words = f"Columns of the table tell the {question.name} without any image: {list_words(said)}"
        yield 0.5 + _excess(columns[0]), f"{words}{_also_within(question, 'column')}."


def _of_images(question: QuestionAudit) -> Iterator[tuple[float, str]]:
    images = [one for one in question.alarms if one.probe.kind == "film"]
    within = _also_within(question, "film")
    if images:
        best, others = images[0], images[1:]
        more = list_words([f"{named(one)} ({told_short(one)})" for one in others])
        yield (
            0.9 + _excess(best),
            f"{capital(named(best))} alone tells {told(question, best)}"
            f"{f'; to some degree so do {more}' if more else ''}{within}.",
        )
    elif within:
        yield 0.6, f"On all images together no trace of the image stands out{within}."


def _also_within(question: QuestionAudit, kind: str) -> str:
    """Say where probes of a kind still stand out under one roof, the two clearest."""
    loud = [
        (name, one)
        for name, scores in question.within.items()
        for one in scores
        if one.alarm and one.probe.kind == kind and one.probe.name != "source"
    ]
    best = dict(sorted(loud, key=lambda item: item[1].best[1].value))
    found = sorted(best.items(), key=lambda item: -item[1].best[1].value)[:3]
    said = [f"{one.probe.title} within {name} ({told_short(one)})" for name, one in found]
    return f". It holds under one roof too: {list_words(said)}" if said else ""


def _of_splits(audit: DataAudit) -> Iterator[tuple[float, str]]:
    """Yield what is in two parts of the official split, or there twice."""
    leakage, said = audit.leakage, []
    if leakage.shared_patients:
        said.append(
            f"{leakage.shared_patients:,} patients are in more than one part of the official split "
            f"({leakage.shared_images:,} images for validation or testing have their patient in training)"
        )
    copies = leakage.copies
    if copies is not None and copies.across_splits:
        said.append(f"{copies.across_splits:,} pictures lie in more than one part of it")
    elif copies is not None and copies.across_patients:
        said.append(
            f"{copies.across_patients:,} pictures are there under several patients: no split by patient parts them"
        )
    if copies is not None and copies.contradicting:
        said.append(f"{copies.contradicting:,} pictures are there with several labels")
    if said:
        yield 1.1, f"{capital(list_words(said))}."


def _of_patients(audit: DataAudit) -> Iterator[tuple[float, str]]:
    """Yield what images of one patient would do to a random split by image, and patients with two labels."""
    leakage = audit.leakage
    said, weight = [], 0.3
    whole = leakage.random.get("all")
    if whole is not None and whole.share > 0:
        worst = max(
            (name for name in leakage.random if name != "all"), key=lambda n: leakage.random[n].share, default=""
        )
        most = f" ({leakage.random[worst].share:.0%} of {worst})" if worst else ""
        said.append(
            f"a random split by image that holds out {HELD_OUT:.0%} would have the patient of {whole.share:.0%} of its "
            f"images{most} in training too: split by patient"
        )
        weight += 0.6 * max(one.share for one in leakage.random.values())
    if leakage.contradictory:
        said.append(
            f"{len(leakage.contradictory):,} patients have images of more than one label "
            f"({leakage.contradictory_images:,} images)"
        )
    if leakage.unknown_patients:
        said.append(
            f"the patients of {leakage.unknown_patients:,} images are not known: no split can keep these together"
        )
    if said:
        yield weight, f"{capital('; '.join(said))}."


def _quiet(audit: DataAudit) -> str:
    """Say what came nearest to an alarm."""
    scores = [one for question in audit.questions for one in question.probes if one.probe.blind]
    if not scores:
        return "No probe that sees no lung could be run."
    nearest = max(scores, key=lambda one: one.best[1].value)
    label, one = nearest.best
    return (
        f"Nearest to a shortcut comes {named(nearest)}, which tells {label} with an AUROC of {figure(one)}: no more "
        f"than {audit.tests} looks at chance may show."
    )


def _excess(score: ProbeScore) -> float:
    return 2 * (score.best[1].value - 0.5)
