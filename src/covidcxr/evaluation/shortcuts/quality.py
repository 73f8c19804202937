"""The quality of the images in an audit: does a fault go with a label or a source?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer

from covidcxr.data.curation.image_scores import CRITERIA, find_limits, flag_scores
from covidcxr.data.records import Record
from covidcxr.evaluation.shortcuts.association import FeatureTest, strongest_features
from covidcxr.evaluation.shortcuts.images import ImageFeatures
from covidcxr.evaluation.shortcuts.probes import MARGIN

__all__ = ["QualityAudit", "audit_quality"]

_LEAST = 10  # patients of a label or source that is compared
_LEVEL = 0.05  # chance of any false association, over all scores and values (Bonferroni)


@dataclass(frozen=True)
class QualityAudit:
    """The quality of the images by label and source.

    Attributes:
        images: Number of images that were measured.
        limits: From flag to the limit of its score.
        by_label: From label to flag to number of images; "images" stands for all of them.
        by_source: The same by source.
        label_tests: From score to label to how clearly the score goes with that label, over patients.
        source_tests: The same with sources.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts.quality import QualityAudit

        quality = QualityAudit(2, {}, {"normal": {"images": 2, "dark": 1}}, {}, {}, {})
        assert quality.clear("label") == []
        ```
    """

    images: int
    limits: Mapping[str, float]
    by_label: Mapping[str, Mapping[str, int]]
    by_source: Mapping[str, Mapping[str, int]]
    label_tests: Mapping[str, Mapping[str, FeatureTest]]
    source_tests: Mapping[str, Mapping[str, FeatureTest]]

    def clear(self, trait: str) -> list[tuple[str, str, FeatureTest]]:
        """Return the scores that go with a label or a source, the clearest first.

        Args:
            trait: "label" or "source".

        Returns:
            Score, label or source, and its test: an AUROC of 0.6 or more, and not by chance among all that was tried.
        """
        tests = self.label_tests if trait == "label" else self.source_tests
        found = [(score, value, test) for score, own in tests.items() for value, test in own.items()]
        clear = [one for one in found if one[2].auroc >= 0.5 + MARGIN and one[2].p_value * len(found) < _LEVEL]
        return sorted(clear, key=lambda one: -one[2].auroc)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        tests = {"label": self.label_tests, "source": self.source_tests}
        return {
            "films": self.images,
            "limits": dict(self.limits),
            "by_label": {name: dict(own) for name, own in self.by_label.items()},
            "by_source": {name: dict(own) for name, own in self.by_source.items()},
            "tests": {
                trait: {score: {v: t.to_dict() for v, t in own.items()} for score, own in table.items()}
                for trait, table in tests.items()
            },
            "goes_with_label": [[score, value] for score, value, _ in self.clear("label")],
            "goes_with_source": [[score, value] for score, value, _ in self.clear("source")],
        }


def audit_quality(
    records: Sequence[Record], patients: Integer[np.ndarray, " images"], images: ImageFeatures, seed: int = 0
) -> QualityAudit | None:
    """Count the faults of images by label and source, and test whether scores go with them.

    Args:
        records: The images.
        patients: Patient of each.
        images: What was read of them.
        seed: Seeds the permutations.

    Returns:
        The counts and tests; None where no image was opened.
    """
    if not images.quality:
        return None
    numbers = sorted(images.quality)
    limits = find_limits([images.quality[number] for number in numbers])
    flags = [flag_scores(images.quality[number], limits) for number in numbers]
    names = dict.fromkeys(criterion.score for criterion in CRITERIA)
    scores = np.array([[images.quality[n].get(name, np.nan) for name in names] for n in numbers], float)
    columns = {name: [getattr(records[n], name) or "unknown" for n in numbers] for name in ("label", "source")}
    own = patients[numbers]
    counts: dict[str, dict[str, dict[str, int]]] = {}
    tests: dict[str, dict[str, dict[str, FeatureTest]]] = {}
    for trait, values in columns.items():
        counts[trait] = _count(values, flags)
        kept = [v for v in sorted(set(values)) if len(set(own[[w == v for w in values]].tolist())) >= _LEAST]
        place = {value: number for number, value in enumerate(kept)}
        labels = np.array([place.get(value, -1) for value in values])
        tests[trait] = {}
        for column, name in enumerate(names) if len(kept) > 1 else ():
            known = (labels >= 0) & np.isfinite(scores[:, column])
            result = strongest_features(scores[known][:, [column]], labels[known], own[known], kept, seed)
            if result:
                tests[trait][name] = result
    return QualityAudit(len(numbers), limits, counts["label"], counts["source"], tests["label"], tests["source"])


def _count(values: Sequence[str], flags: Sequence[Sequence[str]]) -> dict[str, dict[str, int]]:
    shown = [criterion.flag for criterion in CRITERIA if any(criterion.flag in own for own in flags)]
    table = {value: {"images": 0, **dict.fromkeys(shown, 0)} for value in sorted(set(values))}
    for value, own in zip(values, flags, strict=True):
        table[value]["images"] += 1
        for flag in own:
            table[value][flag] += 1
    return table
