"""What an audit found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from covidcxr.evaluation.shortcuts.confounding import CrossTable
from covidcxr.evaluation.shortcuts.leakage import Leakage
from covidcxr.evaluation.shortcuts.probes import ProbeScore, count_tests, standard_errors_wanted, stands_out
from covidcxr.evaluation.shortcuts.report import make_page, make_sections
from covidcxr.evaluation.shortcuts.verdict import say_findings, say_verdict
from covidcxr.page import Page, Section

__all__ = ["DataAudit", "QuestionAudit", "judged"]


@dataclass(frozen=True)
class QuestionAudit:
    """How well everything but the lungs answers one question.

    Attributes:
        name: "label"; the name of a finding where classes are not exclusive; or "source".
        images: Number of images of each answer.
        patients: Number of patients of each answer.
        probes: Scores over all images, cross-validated with patients whole.
        official: Scores on the official test images after training on the others; empty = there is no official split.
        within: The same as `probes`, among the images of one source or view only, by "view AP", "source nih", ...
        by_source: The answers by source.
        by_view: The answers by view.
    """

    name: str
    images: Mapping[str, int]
    patients: Mapping[str, int]
    probes: tuple[ProbeScore, ...] = ()
    official: tuple[ProbeScore, ...] = ()
    within: Mapping[str, tuple[ProbeScore, ...]] = field(default_factory=dict)
    by_source: CrossTable | None = None
    by_view: CrossTable | None = None

    @property
    def title(self) -> str:
        """What is asked, in words."""
        return f"What tells the {self.name}" if self.name in ("label", "source") else f"What tells {self.name}"

    @property
    def alarms(self) -> list[ProbeScore]:
        """The probes that see no lung and stand out all the same, best first."""
        return sorted((one for one in self.probes if one.alarm), key=lambda one: -one.best[1].value)

    def get(self, probe: str) -> ProbeScore | None:
        """Return the score of a probe by its name; None if it was not run."""
        return next((one for one in self.probes if one.probe.name == probe), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "films": dict(self.images),
            "patients": dict(self.patients),
            "probes": [one.to_dict() for one in self.probes],
            "official_test": [one.to_dict() for one in self.official],
            "within": {name: [one.to_dict() for one in scores] for name, scores in self.within.items()},
            "by_source": None if self.by_source is None else self.by_source.to_dict(),
            "by_view": None if self.by_view is None else self.by_view.to_dict(),
        }


@dataclass(frozen=True)
class DataAudit:
    """What can be scored on a data set without looking at a lung, and what leaks.

    Attributes:
        name: Name of the data set.
        images: Number of images.
        patients: Number of patients; an image of an unknown one counts as a patient of its own.
        questions: How well each probe tells the label; where classes are not exclusive, each of the most frequent
            findings.
        sources: How well each probe tells the source; None = there is one source.
        leakage: What leaks.
        skipped: From probe to why it was not run.
        missing: Number of images that are not on the disk.
        failed: From image id to why an image could not be read.
        tests: Number of AUROCs among which an alarm must stand out.
        settings: How it was measured.
        notes: What to know of it, a sentence each.
        seconds: What each step took.
    """

    name: str
    images: int
    patients: int
    questions: tuple[QuestionAudit, ...]
    sources: QuestionAudit | None
    leakage: Leakage
    skipped: Mapping[str, str]
    missing: int
    failed: Mapping[str, str]
    tests: int
    settings: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """How many standard errors above chance an alarm is."""
        return standard_errors_wanted(self.tests)

    @property
    def verdict(self) -> str:
        """What it comes to, in one sentence."""
        return say_verdict(self)

    @property
    def findings(self) -> list[str]:
        """The three to six things to know, the weightiest first, each with its figure."""
        return say_findings(self)

    def sections(self) -> list[Section]:
        """Return the parts of its report."""
        return make_sections(self)

    def page(self) -> Page:
        """Return its report."""
        return make_page(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "findings": self.findings,
            "films": self.images,
            "patients": self.patients,
            "questions": [question.to_dict() for question in self.questions],
            "sources": None if self.sources is None else self.sources.to_dict(),
            "leakage": self.leakage.to_dict(),
            "skipped": dict(self.skipped),
            "missing": self.missing,
            "failed": dict(self.failed),
            "tests": self.tests,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
        }


def judged(audit: DataAudit) -> DataAudit:
    """Return an audit whose scores know whether they stand out, among all that was tried."""
    scores = [one for question in audit.questions for one in _every(question) if one.probe.blind]
    audit = replace(audit, tests=count_tests(scores))

    def judge(found: tuple[ProbeScore, ...]) -> tuple[ProbeScore, ...]:
        return tuple(replace(one, alarm=one.probe.blind and stands_out(one, audit.threshold)) for one in found)

    questions = tuple(
        replace(
            question,
            probes=judge(question.probes),
            official=judge(question.official),
            within={name: judge(found) for name, found in question.within.items()},
        )
        for question in audit.questions
    )
    sources = audit.sources and replace(audit.sources, probes=judge(audit.sources.probes))
    return replace(audit, questions=questions, sources=sources)


def _every(question: QuestionAudit) -> list[ProbeScore]:
    return [*question.probes, *question.official, *(one for found in question.within.values() for one in found)]
