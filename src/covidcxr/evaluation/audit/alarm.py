"""When is a probe's score an alarm? Where it cannot be chance, with all that was tried allowed for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

from covidcxr.evaluation.audit.probes import ProbeScore
from covidcxr.evaluation.intervals import Estimate

__all__ = ["MARGIN", "SCATTER", "count_tests", "stands_out", "standard_error", "standard_errors_wanted"]

MARGIN = 0.1
"""How far above 0.5 an AUROC must be to be worth an alarm: on many films less is certain, but harmless."""

SCATTER = 1.4
"""By how much a cross-validated AUROC scatters wider than its interval says, which holds its classifiers for given; on
clean data 1.3 was measured (375 audits' worth of probes, 60 to 600 films). No interval is free of it (Bengio and
Grandvalet 2004)."""


def count_tests(scores: Iterable[ProbeScore]) -> int:
    """Count the AUROCs among which an alarm must stand out; of two answers, what tells one tells the other."""
    return sum(1 if len(one.by_class) == 2 else len(one.by_class) for one in scores)


def standard_errors_wanted(tests: int) -> float:
    """Return how many standard errors above chance an alarm is (one-sided 2.5 %, Bonferroni over `tests`)."""
    return NormalDist().inv_cdf(1 - 0.025 / max(1, tests))


def standard_error(one: Estimate, patients: int) -> float:
    """Return the doubt of an answer's AUROC: that of its interval, at the least what chance would give, and `SCATTER`.

    Where an answer is told perfectly the interval has no width, however few patients there are; under chance it has
    that of the Mann-Whitney statistic (Mann and Whitney 1947), here with patients for units.

    Args:
        one: The AUROC, counted over the films of the answer.
        patients: Patients of all answers.
    """
    others = max(1, patients - one.patients)
    by_chance = math.sqrt((one.patients + others + 1) / (12 * max(1, one.patients) * others))
    measured = (one.high - one.low) / (2 * 1.96)
    return SCATTER * (by_chance if math.isnan(measured) else max(measured, by_chance))


def stands_out(score: ProbeScore, wanted: float) -> bool:
    """Whether a probe tells any answer with an AUROC that is `MARGIN` and so many standard errors above chance."""
    return any(
        one.value >= 0.5 + MARGIN and one.value - 0.5 > wanted * standard_error(one, score.auroc.patients)
        for one in score.by_class.values()
    )
