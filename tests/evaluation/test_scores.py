"""Scores against independent implementations: scikit-learn, torchmetrics, and plain loops."""

from __future__ import annotations

import math
import warnings
from inspect import unwrap

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.segmentation import hausdorff_distance

from covidcxr.errors import ConfigError
from covidcxr.evaluation import (
    bootstrap,
    classification_metrics,
    dice_score,
    finding_metrics,
    hd95,
    iou_score,
    precision_score,
    recall_score,
    segmentation_metrics,
    weighted_average_precision,
    weighted_calibration_error,
    weighted_mean,
)
from covidcxr.evaluation.metrics import bootstrap as intervals

CLASSES = ("normal", "pneumonia", "covid")


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [films, 3] with ties, labels of which one may be absent, and patients, now and then only one."""
    rng = np.random.default_rng(seed)
    images = int(rng.integers(20, 80))
    labels = rng.choice(rng.permutation(3)[: 2 + seed % 2], images)
    labels[:2] = np.unique(labels)[:2]
    logits = np.round(rng.normal(size=(images, 3)) + np.eye(3)[labels], seed % 3)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    patients = np.zeros(images, int) if seed % 5 == 0 else rng.integers(0, 15, images)
    return probabilities, labels, patients


def test_precision_of_what_is_never_predicted_is_not_defined() -> None:
    probabilities = np.tile([0.7, 0.3], (40, 1))
    scores = classification_metrics(probabilities, np.arange(40) % 2, np.arange(40), ("normal", "covid"), resamples=50)
    assert str(scores["precision_covid"]) == "not defined: nothing was predicted positive"
    assert scores["precision_covid"].to_dict()["value"] is None
    assert scores["precision_normal"].value == 0.5
    shown = np.arange(40.0)[:, None] % 2
    findings = finding_metrics(probabilities[:, 1:], shown, np.arange(40), ("covid",), resamples=50)
    assert str(findings["precision_covid"]) == str(scores["precision_covid"])


# --- average precision and calibration error over weights ---


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_weighted_average_precision_agrees_with_sklearn(digits: int) -> None:
    rng = np.random.default_rng(digits)
    scores = np.round(rng.normal(size=60), digits)
    positive = rng.random(60) < 0.3
    weights = rng.integers(0, 4, size=(20, 60)).astype(float)
    expected = [sklearn_metrics.average_precision_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_average_precision(weights, scores, positive), expected, rtol=1e-12)


def test_average_precision_leaves_out_what_is_unknown_and_needs_a_positive_image() -> None:
    scores, positive = np.array([0.9, np.nan, 0.5, 0.1]), np.array([True, False, False, True])
    weights = np.array([[1.0, 1, 1, 1], [0, 5, 1, 0]])
    np.testing.assert_allclose(weighted_average_precision(weights, scores, positive), [(1 + 2 / 3) / 2, np.nan])


def test_calibration_error_agrees_with_torchmetrics() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        probabilities, labels = rng.dirichlet((1, 1, 1), 60), rng.integers(0, 3, 60)
        weights = rng.integers(0, 3, (4, 60))
        for row, found in zip(weights, weighted_calibration_error(weights * 1.0, probabilities, labels), strict=True):
            copies = np.repeat(np.arange(60), row)
            given = torch.from_numpy(probabilities[copies]), torch.from_numpy(labels[copies])
            expected = multiclass_calibration_error(*given, 3, n_bins=15, norm="l1")
            assert found == pytest.approx(expected.item(), abs=1e-6)


# --- classifiers ---


@pytest.mark.parametrize("seed", range(30))
def test_classification_metrics_agree_with_sklearn_whatever_the_images(seed: int) -> None:
    probabilities, labels, patients = draw(seed)
    answers = probabilities.argmax(1)
    present = np.unique(labels)
    found = classification_metrics(probabilities, labels, patients, CLASSES, resamples=20)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, answers),
        "macro_f1": sklearn_metrics.f1_score(labels, answers, labels=present, average="macro", zero_division=0),
        "macro_precision": sklearn_metrics.precision_score(
            labels, answers, labels=present, average="macro", zero_division=0
        ),
        "balanced_accuracy": sklearn_metrics.recall_score(labels, answers, labels=present, average="macro"),
        "brier": np.mean([((p - np.eye(3)[label]) ** 2).sum() for p, label in zip(probabilities, labels, strict=True)]),
    }
    curves = {"auroc": sklearn_metrics.roc_auc_score, "average_precision": sklearn_metrics.average_precision_score}
    for curve, score in curves.items():
        areas = {c: score(labels == c, probabilities[:, c]) for c in present}
        expected |= {f"{curve}_{CLASSES[c]}": area for c, area in areas.items()}
        expected[f"macro_{curve}"] = np.mean(list(areas.values()))
    for c in range(3):
        if c not in present:
            assert math.isnan(found[f"average_precision_{CLASSES[c]}"].value)
        others = labels != c
        expected[f"specificity_{CLASSES[c]}"] = sklearn_metrics.recall_score(others, answers != c)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name
    known = len(np.unique(patients)) > 1
    assert all(math.isnan(one.low) != known for one in (found["accuracy"], found["brier"], found["ece"]))


def test_brier_of_two_classes_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    sick, labels = rng.random(50), rng.integers(0, 2, 50)
    found = classification_metrics(np.stack([1 - sick, sick], 1), labels, range(50), ("no", "yes"), resamples=10)
    assert found["brier"].value == pytest.approx(sklearn_metrics.brier_score_loss(labels, sick))


@pytest.mark.parametrize("seed", range(20))
def test_finding_metrics_agree_with_sklearn_on_what_is_labelled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = 60
    truths = (rng.random((images, 3)) < 0.4).astype(float)
    probabilities = np.round(np.clip(0.3 * truths + 0.7 * rng.random((images, 3)), 0, 1), 1 + seed % 2)
    truths[rng.random((images, 3)) < 0.3] = np.nan
    if seed % 4 == 0:
        truths[:, 2] = np.where(np.isnan(truths[:, 2]), np.nan, 0)  # nobody has it
    thresholds = {"normal": 0.5, "pneumonia": 0.3, "covid": 0.6}
    patients = rng.integers(0, 20, images)
    found = finding_metrics(probabilities, truths, patients, CLASSES, thresholds=thresholds, resamples=20)
    areas, precisions = [], []
    for c, name in enumerate(CLASSES):
        known = ~np.isnan(truths[:, c])
        truth, score = truths[known, c] == 1, probabilities[known, c]
        called = score >= thresholds[name]
        expected = {"brier": np.mean((score - truth) ** 2), "specificity": (~called)[~truth].mean()}
        if truth.any():
            areas.append(sklearn_metrics.roc_auc_score(truth, score))
            precisions.append(sklearn_metrics.average_precision_score(truth, score))
            expected |= {
                "auroc": areas[-1],
                "average_precision": precisions[-1],
                "sensitivity": sklearn_metrics.recall_score(truth, called),
                "precision": sklearn_metrics.precision_score(truth, called),
                "f1": sklearn_metrics.f1_score(truth, called),
            }
        else:
            assert all(math.isnan(found[f"{part}_{name}"].value) for part in ("auroc", "sensitivity", "f1"))
        for part, value in expected.items():
            assert found[f"{part}_{name}"].value == pytest.approx(value, rel=1e-9), part
        assert found[f"brier_{name}"].count == known.sum()
        assert found[f"sensitivity_{name}"].count == truth.sum()
        assert found[f"sensitivity_{name}"].patients == len(np.unique(patients[known][truth]))
    assert found["macro_auroc"].value == pytest.approx(np.mean(areas))
    assert found["macro_average_precision"].value == pytest.approx(np.mean(precisions))


def test_findings_that_cannot_be_scored_are_refused() -> None:
    halves, truths = np.full((2, 1), 0.5), np.array([[0.0], [1.0]])
    with pytest.raises(ConfigError, match=r"1 \(shown\), 0"):
        finding_metrics(halves, truths + 1, [1, 2], ["edema"])
    with pytest.raises(ConfigError, match="no threshold for edema"):
        finding_metrics(halves, truths, [1, 2], ["edema"], thresholds={"other": 0.5})
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        finding_metrics(halves * 3, truths, [1, 2], ["edema"])
    with pytest.raises(ConfigError, match="2 images but 1 patient ids"):
        finding_metrics(halves, truths, [1], ["edema"])


# --- intervals ---


def test_images_without_a_mistake_leave_doubt() -> None:
    """No resample can show one. If the share were the lower end (mid-P), all n would be right in 5 % of samples."""
    right = np.ones(20)
    assert bootstrap(weighted_mean, right, groups=range(20)).low == 1
    found = bootstrap(weighted_mean, right, groups=range(20), share=True)
    assert (found.low, found.high) == (pytest.approx(0.05 ** (1 / 20), abs=1e-6), 1)
    twice = bootstrap(weighted_mean, np.ones(40), groups=[*range(20), *range(20)], share=True)
    assert twice.low == found.low  # more images of the same patients are no more patients
    none = bootstrap(weighted_mean, 0 * right, groups=range(20), share=True)
    assert (none.low, none.high) == (0, pytest.approx(1 - found.low))


def test_interval_of_a_share_is_wilsons_where_each_patient_has_one_image() -> None:
    right = np.arange(400) < 300
    found = bootstrap(weighted_mean, right, groups=range(400), resamples=20_000, share=True)
    z, share = 1.96, 0.75
    half = z * math.sqrt(share * 0.25 / 400 + z**2 / (4 * 400**2)) / (1 + z**2 / 400)
    middle = (share + z**2 / 800) / (1 + z**2 / 400)
    assert (found.low, found.high) == (pytest.approx(middle - half, abs=0.002), pytest.approx(middle + half, abs=0.002))


def test_calibration_error_is_not_told_too_high_twice() -> None:
    """Of a calibrated classifier the error found is chance, which resampling would add once more."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((1, 1, 1), 300)
    labels = (rng.random((300, 1)) > probabilities.cumsum(1)).sum(1).clip(0, 2)
    found = classification_metrics(probabilities, labels, range(300), CLASSES)["ece"]
    assert 0 <= found.low < found.value < found.high
    assert found.low < 0.03


def test_products_are_made_by_one_thread() -> None:
    from threadpoolctl import threadpool_info

    seen: list[int] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return weights[:, 0]

    bootstrap(statistic, groups=range(5), resamples=2)
    assert set(seen[len(seen) // 2 :]) == {1}  # the first call is on all images, not a resample
    assert intervals.CHUNK * 8 < 4e6


# --- masks ---


def reach_by_loops(points: np.ndarray, others: np.ndarray, spacing: tuple[float, float]) -> float:
    """The 95th percentile of the distances to the nearest other point, each distance by itself."""
    nearest = [min(math.hypot((a - c) * spacing[0], (b - d) * spacing[1]) for c, d in others) for a, b in points]
    return float(np.quantile(nearest, 0.95))


def outline_by_loops(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape

    def inside(row: int, column: int) -> bool:
        return 0 <= row < height and 0 <= column < width and bool(mask[row, column])

    around = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return np.array(
        [(r, c) for r, c in np.argwhere(mask) if not all(inside(r + dr, c + dc) for dr, dc in around)], dtype=int
    )


@pytest.mark.parametrize("seed", range(8))
def test_hd95_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((24, 30))

    def blob() -> np.ndarray:
        middle, radius = rng.uniform(4, 24, 2), rng.uniform(3, 9)
        return (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2

    mask, target = blob() | blob(), blob() | (rng.random((24, 30)) < 0.01)
    spacing = (1.0, 1.0) if seed % 2 else (0.4, 0.7)
    first, second = outline_by_loops(mask), outline_by_loops(target)
    expected = max(reach_by_loops(first, second, spacing), reach_by_loops(second, first, spacing))
    assert hd95(mask, target, spacing) == pytest.approx(expected, rel=1e-9)
    assert hd95(target, mask, spacing) == pytest.approx(expected, rel=1e-9)
    planes = (torch.from_numpy(one)[None, None].long() for one in (mask, target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        largest = hausdorff_distance(*planes, num_classes=1, include_background=True, spacing=list(spacing))
    assert hd95(mask, target, spacing) <= largest.item() + 1e-5


def test_hd95_of_a_shift_is_the_shift() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:30] = True
    assert hd95(mask, mask) == 0
    assert hd95(mask, np.roll(mask, 5, axis=0)) == 5
    assert hd95(mask, np.roll(mask, 5, axis=0), spacing=(0.2, 1)) == pytest.approx(1)


def test_hd95_of_empty_masks_keeps_a_mean_finite_and_a_miss_counted() -> None:
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert hd95(empty, empty) == 0
    assert hd95(empty, full) == hd95(full, empty) == 5  # sides of 3 and 4 between the middles of the corner pixels
    assert hd95(empty, full, spacing=(2, 2)) == 10
    mean = segmentation_metrics({"hd95_lung": np.array([hd95(empty, full), hd95(full, full)])}, ["a", "b"])["hd95_lung"]
    assert mean.value == 2.5
    assert math.isnan(mean.low)
    assert "see its median" in mean.note
    with pytest.raises(ConfigError, match="must be bool"):
        unwrap(hd95)(full * 0.4, full)  # or the shape checker of the tests refuses it first
    with pytest.raises(ConfigError, match="above 0"):
        hd95(full, full, spacing=(0, 1))


def test_scores_of_masks_agree_with_sklearn() -> None:
    rng = np.random.default_rng(3)
    pairs = {
        dice_score: sklearn_metrics.f1_score,
        iou_score: sklearn_metrics.jaccard_score,
        precision_score: sklearn_metrics.precision_score,
        recall_score: sklearn_metrics.recall_score,
    }
    for share in (0.1, 0.5, 0.9):
        mask, target = rng.random((20, 30)) < share, rng.random((20, 30)) < 0.6
        for ours, theirs in pairs.items():
            assert ours(mask, target) == pytest.approx(theirs(target.ravel(), mask.ravel()))
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    # Metrics Reloaded: a segmenter that draws nothing is not precise, and an empty truth has no recall
    assert (precision_score(empty, full), recall_score(empty, full)) == (0, 0)
    assert precision_score(full, empty) == 0
    assert np.isnan([recall_score(full, empty), precision_score(empty, empty), recall_score(empty, empty)]).all()


def test_rows_of_a_test_hold_the_hd95_of_known_masks() -> None:
    from covidcxr.tasks.segmentation import mask_distances

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 16, 20, generator=generator)
    target = (torch.rand(2, 2, 16, 20, generator=generator) > 0.7).float()
    target[1, 0] = torch.nan
    logits[0, 1] = -9
    found = mask_distances(logits, target, (0.5, 0.9))
    drawn = logits.sigmoid().numpy() >= np.array([0.5, 0.9])[:, None, None]
    for image, plane in ((0, 0), (0, 1), (1, 1)):
        assert found[image, plane].item() == pytest.approx(hd95(drawn[image, plane], target[image, plane].numpy() == 1))
    assert found[0, 1].item() == pytest.approx(math.hypot(15, 19))
    assert found[1, 0].isnan()


@pytest.mark.parametrize("patients", range(2, 60))
def test_a_share_lies_within_its_interval_to_the_last_digit(patients: int) -> None:
    for value in (0.0, 1.0):
        one = bootstrap(weighted_mean, np.full(patients, value), groups=range(patients), resamples=10, share=True)
        assert one.low <= value <= one.high
