"""What an audit found, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from covidcxr.evaluation.shortcuts.association import (
    FeatureTest,
    QualityAudit,
    detectable_auroc,
    standard_errors_required,
)
from covidcxr.evaluation.shortcuts.drift import Drift
from covidcxr.evaluation.shortcuts.leakage import Leakage
from covidcxr.evaluation.shortcuts.probes import (
    ProbeScore,
    count_tests,
    has_clear_feature,
    stands_out,
)
from covidcxr.evaluation.shortcuts.targets import CrossTable

__all__ = ["DataAudit", "TargetAudit", "mark_alarms"]


@dataclass(frozen=True)
class TargetAudit:
    """How well everything but the lungs predicts one target.

    Attributes:
        name: "label"; the name of a finding where classes are not exclusive; or "source".
        images: Number of images of each class.
        patients: Number of patients of each class; an image whose patient is not known counts as one.
        probes: Scores on all images, cross-validated with whole patients.
        official: Scores on the official test images after training on the others; empty = there is no official split.
        within: The same as `probes`, among the images of one source or view only, by "view AP", "source nih", ...
        by_source: The classes by source.
        by_view: The classes by view.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts import TargetAudit

        audit = TargetAudit("label", {"normal": 8, "covid19": 4}, {"normal": 8, "covid19": 2})
        assert audit.alarms == []
        ```
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
    def alarms(self) -> list[ProbeScore]:
        """The probes that see no lung and yet stand out, best first."""
        return sorted((score for score in self.probes if score.alarm), key=lambda score: -score.strength)

    @property
    def blind(self) -> list[ProbeScore]:
        """The scores on all images of the probes that see no lung."""
        return [score for score in self.probes if score.probe.blind]

    @property
    def seeing(self) -> list[ProbeScore]:
        """The probes that see the lungs too and predict a class above chance, best first."""
        seeing = (score for score in self.probes if score.above_chance and not score.probe.blind)
        return sorted(seeing, key=lambda score: -score.best[1].value)

    def get(self, probe: str) -> ProbeScore | None:
        """Return the score of a probe on all images.

        Args:
            probe: Its name.

        Returns:
            The score; None if the probe was not run.
        """
        return next((score for score in self.probes if score.probe.name == probe), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "films": dict(self.images),
            "patients": dict(self.patients),
            "probes": [score.to_dict() for score in self.probes],
            "official_test": [score.to_dict() for score in self.official],
            "within": {name: [score.to_dict() for score in scores] for name, scores in self.within.items()},
            "by_source": None if self.by_source is None else self.by_source.to_dict(),
            "by_view": None if self.by_view is None else self.by_view.to_dict(),
        }


@dataclass(frozen=True)
class DataAudit:
    """The shortcuts in a data set, and its patient leakage between splits.

    Attributes:
        name: Name of the data set.
        images: Number of images.
        patients: Number of known patients; None = no patient is known.
        targets: How well each probe predicts the label; where classes are not exclusive, each of the most frequent
            findings.
        sources: How well each probe predicts the source; None = there is one source.
        leakage: What leaks between splits.
        skipped: From probe to why it was not run.
        missing: Number of images that are not on the disk.
        failed: From image id to why an image could not be read.
        tests: Number of AUROCs among which an alarm must stand out.
        settings: How it was measured.
        notes: Further remarks, a sentence each.
        seconds: Computing time of each step.
        verdict: The conclusion in one sentence.
        findings: The three to six main findings, the most important first, each with its figure.
        drift: How the official training and test images differ; None = there is no such split, or it is too small.
        quality: The quality of the images by label and source; None = no image was opened.

    Example:
        ```python
        from covidcxr import CSVDataModule
        from covidcxr.evaluation.shortcuts import audit_data

        audit = audit_data(CSVDataModule("phantoms"), folds=3, pixels=False)
        assert audit.images == 24
        assert audit.to_dict()["verdict"] == audit.verdict
        ```
    """

    name: str
    images: int
    patients: int | None
    targets: tuple[TargetAudit, ...]
    sources: TargetAudit | None
    leakage: Leakage
    skipped: Mapping[str, str]
    missing: int
    failed: Mapping[str, str]
    tests: int
    settings: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""
    findings: tuple[str, ...] = ()
    drift: Drift | None = None
    quality: QualityAudit | None = None

    @property
    def units(self) -> int:
        """What counts as independent: the known patients, and each image whose patient is not known."""
        return (self.patients or 0) + self.leakage.unknown_patients

    @property
    def unit(self) -> str:
        """What `units` counts, in a word: "image" where no patient is known, else "patient"."""
        return "image" if self.patients is None else "patient"

    @property
    def detectable(self) -> dict[str, dict[str, float]]:
        """By target and class: the AUROC of the weakest shortcut that would be noticed with a chance of 80 %.

        It is that of one number which a probe of median size sees, in all the images that were opened.
        """
        return {target.name: _detectable(target, self.tests) for target in self.targets}

    @property
    def questions(self) -> tuple[TargetAudit, ...]:
        """The targets under their name of 0.1.0."""
        return self.targets

    @property
    def threshold(self) -> float:
        """Standard errors above chance from which a probe raises an alarm."""
        return standard_errors_required(self.tests)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "findings": list(self.findings),
            "films": self.images,
            "patients": self.patients,
            "questions": [target.to_dict() for target in self.targets],
            "sources": None if self.sources is None else self.sources.to_dict(),
            "leakage": self.leakage.to_dict(),
            "drift": None if self.drift is None else self.drift.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "skipped": dict(self.skipped),
            "missing": self.missing,
            "failed": dict(self.failed),
            "tests": self.tests,
            "detectable_auroc": self.detectable,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "seconds": {"films" if step == "images" else step: value for step, value in self.seconds.items()},
        }


def mark_alarms(audit: DataAudit) -> DataAudit:
    """Return an audit with the alarms of its scores, corrected for the number of AUROCs that were tried.

    Args:
        audit: The audit before.

    Returns:
        The audit with `tests` and with the alarm of each score.
    """
    audit = replace(
        audit, tests=count_tests(s for target in audit.targets for s in _all_scores(target) if s.probe.blind)
    )

    def mark(scores: tuple[ProbeScore, ...]) -> tuple[ProbeScore, ...]:
        above = [stands_out(s, audit.threshold) or has_clear_feature(s, audit.tests) for s in scores]
        return tuple(replace(s, above_chance=a, alarm=a and s.probe.blind) for s, a in zip(scores, above, strict=True))

    def mark_target(target: TargetAudit) -> TargetAudit:
        within = {name: mark(scores) for name, scores in target.within.items()}
        return replace(target, probes=mark(target.probes), official=mark(target.official), within=within)

    sources = audit.sources and mark_target(audit.sources)
    return replace(audit, targets=tuple(map(mark_target, audit.targets)), sources=sources)


def _detectable(target: TargetAudit, tests: int) -> dict[str, float]:
    table: dict[str, list[FeatureTest]] = {}
    for score in target.blind:
        for name, test in score.strongest.items():
            table.setdefault(name, []).append(test)
    people = {name: max(test.patients for test in own) for name, own in table.items()}
    everyone = sum(people.values())
    return {
        name: detectable_auroc(
            people[name], everyone - people[name], tests=tests, features=median(test.features for test in own)
        )
        for name, own in table.items()
    }


def _all_scores(target: TargetAudit) -> Iterator[ProbeScore]:
    yield from target.probes
    yield from target.official
    for scores in target.within.values():
        yield from scores
