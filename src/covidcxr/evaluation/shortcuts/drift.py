"""Do two parts differ, as training and test images or two data sets? Label shift and covariate shift, told apart.

Each thing that is known of the images is compared over patients: source, view, sex, age, size, quality. A difference
that is left among images of one label is covariate shift; where the labels themselves are mixed otherwise it is label
shift (Moreno-Torres et al. 2012). Besides, a classifier that sees no lung tries to tell the parts apart (Lopez-Paz and
Oquab 2017; Rabanser et al. 2019).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Integer
from scipy.stats import rankdata

from covidcxr.data.curation.image_scores import CRITERIA
from covidcxr.data.records import Record
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.shortcuts.association import standard_errors_required
from covidcxr.evaluation.shortcuts.features import FeatureTable, shape_features
from covidcxr.evaluation.shortcuts.images import ImageFeatures
from covidcxr.evaluation.shortcuts.probes import (
    Probe,
    ProbeScore,
    cross_validate,
    stands_out,
)
from covidcxr.evaluation.shortcuts.targets import Target
from covidcxr.evaluation.shortcuts.verdict import state_drift

__all__ = ["Difference", "Drift", "find_drift"]

ALPHA = 0.05
"""Chance of any false difference among all that are compared (Holm 1979)."""

_LEAST = 10  # patients that a part must have, of all labels or within one
_PERMUTATIONS, _MOST_PERMUTED = 1999, 2000  # of more patients the normal distribution is as good
_VALUES = 12  # of a column; further values count as one
_PROBE = Probe("part", "part", "shape, border, marks and texture together", "forest")
_BLIND = ("border", "marks", "texture")


@dataclass(frozen=True)
class Difference:
    """One thing that is known of the images, compared between two parts.

    Attributes:
        name: "label", "source", "age", "brightness", ...
        kind: "share" of the images by value, or "mean" of a number.
        first: By value its share in the first part; of a number its "mean".
        second: The same of the second part.
        difference: Second minus first.
        p_value: Chance of such a difference of any value where there is none, over patients; NaN = not testable.
        p_within: The same among images of one label; NaN = not testable, or this is the label.
        differs: Whether it differs, corrected for all that was compared (Holm 1979).
        differs_within: Whether it does so among images of one label.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts.drift import Difference

        age = Difference("age", "mean", {}, {}, {}, p_value=0.001, p_within=0.2)
        assert not age.differs
        ```
    """

    name: str
    kind: Literal["share", "mean"]
    first: Mapping[str, Estimate]
    second: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    p_value: float
    p_within: float
    differs: bool = False
    differs_within: bool = False

    @property
    def largest(self) -> str:
        """The value that differs most; "mean" of a number."""
        return max(self.difference, key=lambda name: abs(np.nan_to_num(self.difference[name].value)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        parts = {name: getattr(self, name) for name in ("first", "second", "difference")}
        tables = {name: {value: e.to_dict() for value, e in own.items()} for name, own in parts.items()}
        flags = {name: getattr(self, name) for name in ("p_value", "p_within", "differs", "differs_within")}
        return {"name": self.name, "kind": self.kind, **tables, **flags}


@dataclass(frozen=True)
class Drift:
    """How two parts differ.

    Attributes:
        names: Names of the parts.
        images: Images of each.
        patients: Patients of each; an image whose patient is not known counts as one.
        label: The labels; None = fewer than two.
        covariates: What else is known of the images.
        classifier: How well a classifier that sees no lung tells the parts apart; None = no images were opened.
        within: The same among the images of one label.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts.drift import Drift
        from covidcxr.evaluation.shortcuts.verdict import state_drift

        drift = Drift(("training", "test"), (70, 30), (70, 30), None, ())
        assert not drift.label_shift and "No difference" in state_drift(drift)
        ```
    """

    names: tuple[str, str]
    images: tuple[int, int]
    patients: tuple[int, int]
    label: Difference | None
    covariates: tuple[Difference, ...]
    classifier: ProbeScore | None = None
    within: Mapping[str, ProbeScore] = field(default_factory=dict)

    @property
    def label_shift(self) -> bool:
        """Whether the labels are mixed otherwise."""
        return self.label is not None and self.label.differs

    @property
    def covariate_shift(self) -> list[Difference]:
        """What differs among images of one label, the clearest first; without labels, what differs at all."""
        shifted = [own for own in self.covariates if (own.differs_within if self.label else own.differs)]
        return sorted(shifted, key=lambda own: own.p_within if self.label else own.p_value)

    @property
    def told_apart(self) -> dict[str, ProbeScore]:
        """By label ("" = of all images) the classifiers that tell the parts apart: they stand out as probes do."""
        scores = self.within or ({} if self.classifier is None else {"": self.classifier})
        required = standard_errors_required(len(scores))
        return {name: score for name, score in scores.items() if stands_out(score, required)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "parts": list(self.names),
            "films": list(self.images),
            "patients": list(self.patients),
            "verdict": state_drift(self),
            "label_shift": self.label_shift,
            "covariate_shift": [own.name for own in self.covariate_shift],
            "label": None if self.label is None else self.label.to_dict(),
            "covariates": [own.to_dict() for own in self.covariates],
            "classifier": None if self.classifier is None else self.classifier.to_dict(),
            "classifier_within_label": {name: score.to_dict() for name, score in self.within.items()},
        }


def find_drift(
    records: Sequence[Record],
    parts: Integer[np.ndarray, " images"],
    names: tuple[str, str],
    *,
    patients: Integer[np.ndarray, " images"],
    folds: Integer[np.ndarray, " images"],
    images: ImageFeatures | None = None,
    seed: int = 0,
) -> Drift | None:
    """Compare two parts of the images.

    Args:
        records: The images.
        parts: 0 or 1 for the part of each; -1 = it does not count.
        names: Names of the two parts.
        patients: Patient of each image.
        folds: Fold of each image, for the classifier; no patient is in two.
        images: What was read of the images; None = nothing.
        seed: Seeds intervals, permutations and classifier.

    Returns:
        The differences; None where a part has fewer than 10 patients.
    """
    count = tuple(len(np.unique(patients[parts == part])) for part in (0, 1))
    if min(count) < _LEAST:
        return None
    labels = np.unique([record.label or "" for record in records], return_inverse=True)[1]
    compared = _Comparison(parts, patients, labels, seed)
    label, covariates = None, []
    columns = {name: [getattr(record, name) for record in records] for name in ("label", "source", "view", "sex")}
    for name, values in columns.items():
        difference = compared.shares(name, values)
        if name == "label" and difference is not None:
            label = difference
        elif difference is not None:
            covariates.append(difference)
    for name, numbers in _numbers(records, images).items():
        if (difference := compared.means(name, numbers)) is not None:
            covariates.append(difference)
    classifier: ProbeScore | None = None
    within: dict[str, ProbeScore] = {}
    table = None if images is None else _blind_table(len(records), images)
    if table is not None and table.varies:
        classifier, within = _tell_apart(records, table, parts, names, patients, folds, seed)
    marked = _mark([label, *covariates] if label else covariates)
    sizes = int((parts == 0).sum()), int((parts == 1).sum())
    return Drift(
        names,
        sizes,
        (count[0], count[1]),
        marked[0] if label else None,
        tuple(marked[bool(label) :]),
        classifier,
        within,
    )


def _numbers(records: Sequence[Record], images: ImageFeatures | None) -> dict[str, Float[np.ndarray, " images"]]:
    """Return the numbers that are known of the images; NaN = not known."""
    columns = {"age": np.array([np.nan if record.age is None else record.age for record in records], float)}
    for name in dict.fromkeys(criterion.score for criterion in CRITERIA) if images is not None else ():
        assert images is not None
        scores = [images.quality.get(number, {}).get(name, np.nan) for number in range(len(records))]
        columns[name] = np.array(scores, float)
    return columns


def _blind_table(count: int, images: ImageFeatures) -> FeatureTable:
    """Return the features of the images that see no lung, side by side."""
    shape = {number: shape_features(size) for number, size in images.sizes.items()}
    tables = [FeatureTable.from_rows(count, shape)]
    tables += [FeatureTable.from_rows(count, images.pixels[name]) for name in _BLIND if images.pixels.get(name)]
    known = np.all([table.known for table in tables], axis=0) if len(tables) > 1 else np.zeros(count, bool)
    return FeatureTable(np.hstack([table.values for table in tables]), known)


def _tell_apart(
    records: Sequence[Record],
    table: FeatureTable,
    parts: np.ndarray,
    names: tuple[str, str],
    patients: np.ndarray,
    folds: np.ndarray,
    seed: int,
) -> tuple[ProbeScore | None, dict[str, ProbeScore]]:
    """Cross-validate the classifier on all images, and among those of one label."""
    target = Target("part", names, parts)
    labels = np.array([record.label or "" for record in records])
    groups = {"": np.ones(len(labels), bool)} | {name: labels == name for name in sorted({*labels.tolist()} - {""})}
    scores = {}
    for name, own in groups.items():
        chosen = target.select(own & table.known & (parts >= 0), patients, _LEAST)
        if len(chosen.classes) == 2:
            scores[name] = cross_validate(_PROBE, table, chosen, folds, patients, seed)
    whole = scores.pop("", None)
    return whole, scores


@dataclass(frozen=True)
class _Comparison:
    """Compares columns between two parts."""

    parts: Integer[np.ndarray, " images"]
    patients: Integer[np.ndarray, " images"]
    labels: Integer[np.ndarray, " images"]
    seed: int

    def shares(self, name: str, values: Sequence[str | None]) -> Difference | None:
        """Compare the shares of the values of a column of words; None where it holds one value."""
        words = np.array(["not stated" if value is None else value for value in values])
        counts = Counter(words[self.parts >= 0].tolist())
        kept = [value for value, _ in counts.most_common(_VALUES)]
        if len(counts) < 2:
            return None
        table = np.stack([words == value for value in kept], 1).astype(float)
        if len(counts) > len(kept):
            kept.append("others")
            table = np.hstack([table, 1 - table.sum(1, keepdims=True)])
        return self._compare(name, "share", kept, table)

    def means(self, name: str, numbers: Float[np.ndarray, " images"]) -> Difference | None:
        """Compare the means of numbers; None where they are not known in both parts, or the same throughout."""
        known = np.isfinite(numbers)
        inside = [known & (self.parts == part) for part in (0, 1)]
        if min(len(np.unique(self.patients[own])) for own in inside) < _LEAST or np.ptp(numbers[known]) == 0:
            return None
        return self._compare(name, "mean", ["mean"], numbers[:, None])

    def _compare(
        self,
        name: str,
        kind: Literal["share", "mean"],
        values: Sequence[str],
        table: Float[np.ndarray, "images values"],
    ) -> Difference:
        used = np.flatnonzero((self.parts >= 0) & np.isfinite(table).all(1))
        columns, parts, patients = table[used], self.parts[used], self.patients[used]
        member = np.stack([parts == 0, parts == 1], 1).astype(float)

        def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
            means: dict[str, np.ndarray] = {}
            for part, where in enumerate(("first", "second")):
                own = weights * member[:, part]
                total = own.sum(1)
                sums = own @ columns
                mean = np.divide(sums, total[:, None], out=np.full_like(sums, np.nan), where=total[:, None] > 0)
                means |= {f"{where} {number}": mean[:, number] for number in range(len(values))}
            return means

        keys = [f"{where} {number}" for where in ("first", "second") for number in range(len(values))]
        estimates = bootstrap_many(
            statistics,
            groups=patients.tolist(),
            images={key: parts == int(key.startswith("second")) for key in keys},
            shares=keys if kind == "share" else (),
            differences={f"difference {n}": (f"second {n}", f"first {n}") for n in range(len(values))},
            resamples=min(1000, max(200, 3_000_000 // len(used))),
            seed=self.seed,
        )
        first, second, difference = (
            {value: estimates[f"{where} {number}"] for number, value in enumerate(values)}
            for where in ("first", "second", "difference")
        )
        labels = self.labels[used]
        within = float("nan")
        if name != "label" and len(np.unique(labels)) > 1:
            within = _test(columns, parts, patients, labels, self.seed)
        p_value = _test(columns, parts, patients, np.zeros_like(labels), self.seed)
        return Difference(name, kind, first, second, difference, p_value, within)


def _test(
    columns: Float[np.ndarray, "images values"], parts: np.ndarray, patients: np.ndarray, labels: np.ndarray, seed: int
) -> float:
    """Test by ranks within labels whether any column differs between the parts (van Elteren 1960), over patients.

    Returns:
        The chance of the clearest difference where there is none, by permutations within labels (Westfall and Young
        1993), of many patients by the normal distribution; NaN = not testable.
    """
    rows, part, label = _by_patient(columns, parts, patients, labels)
    variance = np.zeros(rows.shape[1])
    for value in np.unique(label):
        own = label == value
        number, second = int(own.sum()), int(part[own].sum())
        rows[own] = rankdata(rows[own], axis=0) / number
        rows[own] -= rows[own].mean(0)
        variance += second * (number - second) / max(1, number * (number - 1)) * (rows[own] ** 2).sum(0)
    rows, scale = rows[:, variance > 1e-12], np.sqrt(variance[variance > 1e-12])
    if not len(scale):
        return float("nan")
    clearest = float((np.abs(part @ rows) / scale).max())
    if len(rows) > _MOST_PERMUTED:
        return min(1.0, 2 * NormalDist().cdf(-clearest) * max(1, len(scale) - 1))
    rng, as_clear = np.random.default_rng(seed), 0
    for start in range(0, _PERMUTATIONS, 100):  # all at once would take a hundred megabytes
        drawn = rng.random((min(100, _PERMUTATIONS - start), len(rows)))
        permuted = part[np.argsort(label + drawn, axis=1)]  # patients are sorted by label: each stays among its own
        as_clear += int(((np.abs(permuted @ rows) / scale).max(1) >= clearest - 1e-9).sum())
    return (1 + as_clear) / (1 + _PERMUTATIONS)


def _by_patient(
    columns: np.ndarray, parts: np.ndarray, patients: np.ndarray, labels: np.ndarray
) -> tuple[Float[np.ndarray, "patients values"], Float[np.ndarray, " patients"], Integer[np.ndarray, " patients"]]:
    """Return the mean, part and label of each patient of one part and one label, sorted by label."""
    _, first, owner, count = np.unique(patients, return_index=True, return_inverse=True, return_counts=True)
    sums = np.zeros((len(first), columns.shape[1]))
    np.add.at(sums, owner, columns)
    mixed = np.bincount(owner, (parts != parts[first][owner]) | (labels != labels[first][owner])) > 0
    kept = np.flatnonzero(~mixed)
    kept = kept[np.argsort(labels[first][kept], kind="stable")]
    return sums[kept] / count[kept, None], parts[first][kept].astype(float), labels[first][kept]


def _mark(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with what is left of them after correction."""
    labelled = any(own.name == "label" for own in differences)
    first = _holm([own.p_value for own in differences])
    within = _holm([own.p_value if own.name == "label" else own.p_within for own in differences])
    if labelled:  # the label and what differs within labels are what is concluded from: one family
        first[0] = within[0]
    return [
        replace(own, differs=bool(differs), differs_within=bool(differs_within))
        for own, differs, differs_within in zip(differences, first, within, strict=True)
    ]


def _holm(p_values: Sequence[float]) -> list[bool]:
    """Return which differences are clear, stepping down from the clearest (Holm 1979)."""
    order = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    clear = [False] * len(p_values)
    for rank, (p, place) in enumerate(order):
        if p > ALPHA / (len(order) - rank):
            break
        clear[place] = True
    return clear
