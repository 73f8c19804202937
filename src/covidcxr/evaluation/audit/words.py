"""Figures, probes and comparisons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from covidcxr.evaluation.audit.confounding import ENOUGH, CrossTable, Pair
from covidcxr.evaluation.audit.probes import ProbeScore
from covidcxr.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from covidcxr.evaluation.audit.result import QuestionAudit

__all__ = [
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
    """Name the sources that have both labels, and their share of the films of the two."""
    rows = [table.labels.index(label) for label in pair.labels]
    columns = [table.values.index(value) for value in pair.supported]
    films = table.films[rows]
    share = films[:, columns].sum() / films.sum()
    return f"{list_words(pair.supported[:3])}: {share:.0%} of their films"


def named(score: ProbeScore) -> str:
    """Name what a probe sees."""
    if score.probe.name == "background":
        return "the film with the lungs removed"
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
