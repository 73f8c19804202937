"""How far one number alone goes with a label, tested without a classifier; and whether faults of images' quality do.

A cross-validated classifier finds what several numbers show together, but its score scatters much. A shortcut is often
one number: a source, a sharpness, a bright spot. The rank test of that number needs half as many patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Integer

from covidcxr.data.curation.image_scores import CRITERIA, find_limits, flag_scores
from covidcxr.data.records import Record
from covidcxr.utils.plain import field_values

if TYPE_CHECKING:
    from covidcxr.evaluation.shortcuts.images import ImageFeatures

__all__ = [
    "MARGIN",
    "FeatureTest",
    "QualityAudit",
    "audit_quality",
    "detectable_auroc",
    "standard_errors_required",
    "strongest_features",
]

MARGIN = 0.1
"""How far above 0.5 an AUROC must be to raise an alarm: on many images less can be certain, but it does no harm."""

_PERMUTATIONS = 200
_QUANTILE = 0.9  # where the permuted maxima are compared with those of independent numbers
_NORMAL = NormalDist()


@dataclass(frozen=True)
class FeatureTest:
    """The feature of a probe that goes with a class most, over patients.

    Attributes:
        feature: Its column.
        auroc: Its AUROC of the class against the rest, in [0.5, 1]: whether it is higher or lower there does not count.
        p_value: Chance of such an AUROC of any of the probe's features where none goes with the label.
        features: Number of independent features that are as many as these.
        patients: Patients of the class.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts.association import FeatureTest

        assert FeatureTest(0, 0.8, 0.001, features=1.0, patients=40).to_dict()["p_value"] == 0.001
        ```
    """

    feature: int
    auroc: float
    p_value: float
    features: float
    patients: int

    def to_dict(self) -> dict[str, float]:
        """Return plain data for JSON."""
        return field_values(self)


def strongest_features(
    values: Float[np.ndarray, "images features"],
    labels: Integer[np.ndarray, " images"],
    patients: Integer[np.ndarray, " images"],
    classes: Sequence[str],
    seed: int = 0,
) -> dict[str, FeatureTest]:
    """Test whether any feature goes with a class, one number a patient.

    Each feature is compared by ranks (Mann and Whitney 1947). The most extreme one is corrected for the others by
    their effective number, which permuted labels give (Westfall and Young 1993). Patients with several labels do not
    count. The larger of the errors under chance and as measured (DeLong 1988) is used, so that a rare feature in a
    rare class does not seem certain.

    Args:
        values: The features; NaN = not stated.
        labels: Index of the class of each image.
        patients: Patient of each image.
        classes: Names of the classes.
        seed: Seeds the permutations.

    Returns:
        The strongest feature for each class that has patients; empty where no feature varies.
    """
    rows, label = _by_patient(values, labels, patients)
    columns = np.flatnonzero((rows != rows[:1]).any(0)) if len(rows) else np.zeros(0, int)
    if not len(columns):
        return {}
    ranks = _centred_ranks(rows[:, columns])
    spread = np.sqrt((ranks**2).sum(0) / (len(ranks) - 1))
    rng = np.random.default_rng(seed)
    shuffled = np.argsort(rng.random((_PERMUTATIONS, len(rows))), axis=1)
    tests = {}
    for number, name in enumerate(classes):
        member = label == number
        own, others = int(member.sum()), int((~member).sum())
        if not own or not others:
            continue
        error = spread * math.sqrt(own * others / len(rows))
        strength = np.abs(ranks.T @ member.astype(np.float32)) / error
        permuted = ranks.T @ member[shuffled].T.astype(np.float32)
        most = float(np.quantile(np.abs(permuted / error[:, None]).max(0), _QUANTILE))
        effective = math.log(_QUANTILE) / math.log1p(-min(2 * _NORMAL.cdf(-most), 1 - 1e-9))
        effective = min(max(effective, 1.0), len(columns))
        best = int(strength.argmax())
        auroc, measured = _delong(ranks[:, best], member)
        deviations = (auroc - 0.5) / max(float(error[best]) / (own * others), measured)
        orders = math.lgamma(len(rows) + 1) - math.lgamma(own + 1) - math.lgamma(others + 1)
        by_chance = max(_NORMAL.cdf(-deviations), math.exp(-orders))  # few patients have few orders
        p_value = min(1.0, effective * 2 * by_chance)
        tests[name] = FeatureTest(int(columns[best]), auroc, p_value, effective, own)
    return tests


def detectable_auroc(
    patients: int, others: int, *, tests: int, features: float = 1.0, power: float = 0.8, least: float = 0.6
) -> float:
    """Return the weakest shortcut that would raise an alarm with a stated chance.

    A shortcut that a share q of a class shows, and a share 1 - q of the others, has an AUROC of q. The error is that of
    Hanley and McNeil (1982).

    Args:
        patients: Patients of the class.
        others: Patients of the other classes.
        tests: Number of AUROCs among which an alarm must stand out.
        features: Effective number of features of a probe.
        power: Chance of the alarm, in (0, 1).
        least: AUROC below which there is no alarm.

    Returns:
        The AUROC, in [0.5, 1]; 1 where not even a perfect shortcut would be noticed so often.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts.association import detectable_auroc

        assert detectable_auroc(40, 40, tests=20) > detectable_auroc(400, 400, tests=20) > 0.6
        ```
    """
    if min(patients, others) < 1:
        return 1.0
    required = -_NORMAL.inv_cdf(0.025 / max(1, tests) / 2 / max(1.0, features))
    by_chance = math.sqrt((patients + others + 1) / (12 * patients * others))
    surplus = _NORMAL.inv_cdf(power)
    for step in range(501):
        auroc = 0.5 + step / 1000
        first, second = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
        variance = auroc * (1 - auroc) + (patients - 1) * (first - auroc**2) + (others - 1) * (second - auroc**2)
        error = math.sqrt(max(0.0, variance) / (patients * others))
        if auroc - 0.5 >= required * max(by_chance, error) + surplus * error and auroc - surplus * error >= least:
            return auroc
    return 1.0


def standard_errors_required(tests: int) -> float:
    """Return how many standard errors above chance an alarm is (one-sided 2.5 %, Bonferroni).

    Args:
        tests: Number of AUROCs that are compared with chance.

    Returns:
        The quantile of the normal distribution.
    """
    return _NORMAL.inv_cdf(1 - 0.025 / max(1, tests))


def _by_patient(
    values: np.ndarray, labels: np.ndarray, patients: np.ndarray
) -> tuple[Float[np.ndarray, "patients features"], Integer[np.ndarray, " patients"]]:
    """Return the mean of each patient of one label; what is not stated becomes the median, and a feature of its own."""
    missing = np.isnan(values)
    lacking = missing.any(0)
    if lacking.any():
        middle = np.array([np.median(c[~np.isnan(c)]) if not np.isnan(c).all() else 0.0 for c in values.T])
        values = np.hstack([np.where(missing, middle, values), missing[:, lacking]])
    _, first, owner, count = np.unique(patients, return_index=True, return_inverse=True, return_counts=True)
    sums = np.zeros((len(first), values.shape[1]))
    np.add.at(sums, owner, values)
    mixed = np.bincount(owner, labels != labels[first][owner]) > 0
    return (sums / count[:, None])[~mixed], labels[first][~mixed]


def _centred_ranks(values: Float[np.ndarray, "patients features"]) -> Float[np.ndarray, "patients features"]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=0) - (len(values) + 1) / 2, np.float32)


def _delong(values: Float[np.ndarray, " patients"], member: np.ndarray) -> tuple[float, float]:
    """Return the AUROC of a feature, in the direction that it has, and its standard error."""
    own, others = values[member], values[~member]

    def places(sorted_values: np.ndarray, among: np.ndarray) -> np.ndarray:
        below, upto = (np.searchsorted(sorted_values, among, side=side) for side in ("left", "right"))
        return np.asarray((below + upto) / 2 / len(sorted_values))

    both = places(np.sort(others), own), places(np.sort(own), others)
    variance = sum(place.var(ddof=1) / len(place) for place in both if len(place) > 1)
    auroc = float(both[0].mean())
    return max(auroc, 1 - auroc), math.sqrt(float(variance))


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
        from covidcxr.evaluation.shortcuts.association import QualityAudit

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
        results = [(score, value, test) for score, own in tests.items() for value, test in own.items()]
        clear = [
            entry for entry in results if entry[2].auroc >= 0.5 + MARGIN and entry[2].p_value * len(results) < _LEVEL
        ]
        return sorted(clear, key=lambda entry: -entry[2].auroc)

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
