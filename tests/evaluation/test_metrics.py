"""Scores against scikit-learn, intervals against simulation, calibration against its definitions."""

from __future__ import annotations

import json
import math

import jaxtyping
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from benchmarks.coverage import STUDIES, run
from covidcxr.errors import ConfigError
from covidcxr.evaluation import (
    Estimate,
    bootstrap,
    bootstrap_many,
    classification_metrics,
    conformal_threshold,
    conformal_thresholds,
    dice_score,
    expected_calibration_error,
    fit_temperature,
    iou_score,
    segmentation_metrics,
    weighted_auroc,
    weighted_confusion,
    weighted_mean,
)
from covidcxr.evaluation.metrics import bootstrap as intervals

CHECKED = hasattr(dice_score, "__wrapped__")
"""Whether these tests run under jaxtyping's import hook, which refuses wrong shapes before our own words do."""

CLASSES = ("normal", "pneumonia", "covid")
MAY_DIFFER = 4.0
"""Standard errors that a simulated share may lie from its expectation: one false alarm in 16,000 runs of a test."""


def refuses(message: str) -> pytest.RaisesExc:
    return pytest.raises((ConfigError, jaxtyping.TypeCheckError), match=None if CHECKED else message)


def draw_predictions(images: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [films, 3] that know something, labels, and patients with about three images each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    logits = rng.normal(size=(images, 3)) + 1.5 * np.eye(3)[labels]
    if ties:
        logits = np.round(logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels, rng.integers(0, max(2, images // 3), images)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


# --- statistics over weights ---


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_auroc_agrees_with_sklearn(ties: bool) -> None:
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=60), 0 if ties else 9)
    positive = rng.random(60) < 0.4
    weights = rng.integers(0, 4, size=(20, 60)).astype(float)
    expected = [sklearn_metrics.roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_auroc(weights, scores, positive), expected, rtol=1e-12)


def test_weighted_auroc_without_one_kind_is_nan() -> None:
    scores, positive = np.array([0.1, 0.5, 0.9]), np.array([False, False, True])
    weights = np.array([[1.0, 1, 1], [1, 1, 0], [0, 0, 2]])
    np.testing.assert_array_equal(weighted_auroc(weights, scores, positive), [1, np.nan, np.nan])
    assert np.isnan(weighted_auroc(weights, scores, np.zeros(3, bool))).all()


def test_unknown_values_do_not_count() -> None:
    weights = np.array([[1.0, 2, 3], [0, 5, 0]])
    np.testing.assert_array_equal(weighted_mean(weights, np.array([1.0, np.nan, 5])), [4, np.nan])
    scores, positive = np.array([0.2, np.nan, 0.1, 0.3]), np.array([True, True, False, False])
    np.testing.assert_array_equal(weighted_auroc(np.ones((1, 4)), scores, positive), [0.5])


def test_weighted_confusion_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(2)
    labels, answers = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    weights = rng.integers(0, 4, size=(5, 50)).astype(float)
    expected = [sklearn_metrics.confusion_matrix(labels, answers, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_confusion(weights, labels, answers, 3), expected)


# --- classification ---


@pytest.mark.parametrize("ties", [False, True])
def test_classification_metrics_agree_with_sklearn(ties: bool) -> None:
    probabilities, labels, patients = draw_predictions(300, ties=ties)
    answers = probabilities.argmax(1)
    found = classification_metrics(probabilities, labels, patients, CLASSES, resamples=10)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(labels, answers)
    areas = [sklearn_metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)]
    precisions = [sklearn_metrics.average_precision_score(labels == c, probabilities[:, c]) for c in range(3)]
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, answers),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, answers),
        "macro_specificity": np.mean([sklearn_metrics.recall_score(labels != c, answers != c) for c in range(3)]),
        "macro_f1": f1.mean(),
        "macro_precision": precision.mean(),
        "macro_auroc": sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "macro_average_precision": np.mean(precisions),
        "brier": ((probabilities - np.eye(3)[labels]) ** 2).sum(1).mean(),
        "ece": expected_calibration_error(probabilities, labels),
    }
    for c, name in enumerate(CLASSES):
        specificity = sklearn_metrics.recall_score(labels != c, answers != c)
        rates = zip(
            ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision"),
            (recall[c], specificity, precision[c], f1[c], areas[c], precisions[c]),
            strict=True,
        )
        expected |= {f"{rate}_{name}": value for rate, value in rates}
        assert found[f"sensitivity_{name}"].count == support[c]
        assert found[f"sensitivity_{name}"].patients == len(np.unique(patients[labels == c]))
        assert found[f"specificity_{name}"].count == 300 - support[c]
        assert found[f"precision_{name}"].count == (answers == c).sum()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name
        assert found[name].low <= found[name].high
    assert found["accuracy"].count == 300


def test_an_absent_class_is_nan_and_never_counts_as_zero() -> None:
    probabilities, labels, patients = draw_predictions(300)
    kept = labels != 1
    probabilities, labels = probabilities[kept], labels[kept]
    found = classification_metrics(probabilities, labels, patients[kept], CLASSES, resamples=50)
    for rate in ("sensitivity", "f1", "auroc"):
        absent = found[f"{rate}_pneumonia"]
        assert math.isnan(absent.value)
        assert math.isnan(absent.low)
        assert absent.count == absent.patients == 0
    assert found["precision_pneumonia"].value == 0
    assert found["specificity_pneumonia"].value < 1
    areas = [sklearn_metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in (0, 2)]
    assert found["macro_auroc"].value == pytest.approx(np.mean(areas))
    recalls = [(probabilities.argmax(1)[labels == c] == c).mean() for c in (0, 2)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))


def test_a_class_with_a_single_patient_has_no_interval() -> None:
    probabilities, labels, patients = draw_predictions(60)
    patients = np.where(labels == 2, 999, patients)
    found = classification_metrics(probabilities, labels, patients, CLASSES, resamples=50)
    assert found["sensitivity_covid"].patients == 1
    assert math.isnan(found["sensitivity_covid"].low)
    assert found["sensitivity_normal"].low < found["sensitivity_normal"].high


@pytest.mark.parametrize(
    ("probabilities", "labels", "patients", "classes", "message"),
    [
        (np.full((2, 3), 0.3), np.array([0, 3]), [1, 2], CLASSES, "from 0 to 2"),
        (np.full((2, 3), 0.3), np.array([0, -1]), [1, 2], CLASSES, "leave unlabelled images out"),
        (np.full((2, 3), 1.3), np.array([0, 1]), [1, 2], CLASSES, r"in \[0, 1\]"),
        (np.full((2, 3), np.nan), np.array([0, 1]), [1, 2], CLASSES, "without NaN"),
        (np.full((2, 3), 0.3), np.array([0, 1]), [1], CLASSES, "2 images but 1 patient ids"),
        (np.full((2, 3), 0.3), np.array([0, 1]), [1, 2], CLASSES[:2], "3 columns"),
        (np.full((2, 1), 0.3), np.array([0, 1]), [1, 2], ("covid",), "two or more"),
        (np.full((0, 3), 0.3), np.zeros(0, int), [], CLASSES, "one image or more"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    probabilities: np.ndarray, labels: np.ndarray, patients: list, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        classification_metrics(probabilities, labels, patients, classes)


# --- masks ---


def test_dice_and_iou_agree_with_sklearn() -> None:
    rng = np.random.default_rng(3)
    mask, target = rng.random((20, 30)) < 0.4, rng.random((20, 30)) < 0.6
    assert dice_score(mask, target) == pytest.approx(sklearn_metrics.f1_score(target.ravel(), mask.ravel()))
    assert iou_score(mask, target) == pytest.approx(sklearn_metrics.jaccard_score(target.ravel(), mask.ravel()))


def test_dice_and_iou_of_empty_masks() -> None:
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    for score in (dice_score, iou_score):
        assert (score(empty, empty), score(full, full)) == (1, 1)
        assert (score(empty, full), score(full, empty)) == (0, 0)


def test_masks_that_would_be_scored_wrongly_are_refused() -> None:
    mask = np.ones((4, 5), bool)
    for score in (dice_score, iou_score):
        with refuses(r"float64 \(4, 5\)"):
            score(mask * 0.7, mask)
        with refuses(r"bool \(5, 4\)"):
            score(mask, mask.T)


def test_segmentation_metrics_leave_unknown_images_out() -> None:
    scores = {"dice_lung": np.array([0.9, 0.8, np.nan, 1.0]), "iou_infection": np.full(4, np.nan)}
    found = segmentation_metrics(scores, ["a", "a", "b", "c"], resamples=100)
    assert found["dice_lung"].value == pytest.approx(0.9)
    assert (found["dice_lung"].count, found["dice_lung"].patients) == (3, 2)
    assert 0 <= found["dice_lung"].low < 0.5  # two patients leave it open that more than half of all images fail
    assert found["dice_lung"].high == 1
    assert math.isnan(found["iou_infection"].value)
    with pytest.raises(ConfigError, match="4 images but 3 patient ids"):
        segmentation_metrics(scores, ["a", "a", "b"])


# --- intervals ---


def test_bootstrap_resamples_whole_patients() -> None:
    """With two patients there are three outcomes: one of them twice, or both."""
    seen: set[tuple[float, ...]] = set()

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.update(map(tuple, weights))
        return weights[:, 0]

    bootstrap(statistic, groups=["a", "b", "a"], resamples=100)
    assert seen == {(1, 1, 1), (2, 0, 2), (0, 2, 0)}


def test_percentile_interval_against_a_loop_that_copies_images() -> None:
    rng = np.random.default_rng(4)
    values, patients = rng.normal(size=200), rng.integers(0, 50, 200)
    names = np.unique(patients)
    means = []
    for _ in range(4000):
        drawn = rng.choice(names, len(names))
        means.append(np.concatenate([values[patients == name] for name in drawn]).mean())
    found = bootstrap(weighted_mean, values, groups=patients, resamples=4000)
    # A quantile's standard error: sqrt(p (1 - p) / R) / density; two independent sets of resamples.
    error = np.std(means) * math.sqrt(2 * 0.025 * 0.975 / 4000) / 0.058
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=MAY_DIFFER * error)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=MAY_DIFFER * error)


def test_identical_images_of_a_patient_add_no_certainty() -> None:
    rng = np.random.default_rng(5)
    per_patient = rng.normal(size=60)
    values, patients = np.repeat(per_patient, 5), np.repeat(np.arange(60), 5)
    once = bootstrap(weighted_mean, per_patient, groups=range(60))
    clustered = bootstrap(weighted_mean, values, groups=patients)
    naive = bootstrap(weighted_mean, values, groups=range(300))
    assert (clustered.low, clustered.high) == (pytest.approx(once.low), pytest.approx(once.high))
    width, naive_width = clustered.high - clustered.low, naive.high - naive.low
    assert width / naive_width == pytest.approx(math.sqrt(5), rel=0.15)
    assert (clustered.count, clustered.patients) == (300, 60)


def check_coverage(study: str, sizes: str, patients: int, simulations: int) -> None:
    """Nominal 95 %, of which 92 % must be kept, give or take what so many simulations leave open."""
    for number, (held, given, _) in run(study, sizes, patients, simulations).items():
        chance = MAY_DIFFER * math.sqrt(0.92 * 0.08 / max(1, given))
        assert held >= (0.92 - chance) * given, (number, sizes, patients, held, given)


@pytest.mark.parametrize(("study", "sizes", "patients"), [("mean", "pareto", 30), ("share", "equal", 10)])
def test_coverage_of_the_interval_by_simulation(study: str, sizes: str, patients: int) -> None:
    check_coverage(study, sizes, patients, simulations=100)


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_coverage_of_every_number_by_simulation(study: str) -> None:
    check_coverage(study, "pareto", 30, simulations=50)


def test_images_resampled_one_by_one_would_cover_far_less() -> None:
    """Images of one patient are alike: that is what clustering is for."""
    rng, simulations = np.random.default_rng(6), 400
    ids = np.repeat(np.arange(60), 3)
    held = 0
    for seed in range(simulations):
        values = rng.normal(size=60)[ids] + rng.normal(size=180)
        found = bootstrap(weighted_mean, values, groups=range(180), resamples=300, seed=seed)
        held += found.low <= 0 <= found.high
    assert held / simulations < 0.95 - MAY_DIFFER * math.sqrt(0.95 * 0.05 / simulations) - 0.01


def test_bootstrap_is_decided_by_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels, patients = draw_predictions(90)
    first = classification_metrics(probabilities, labels, patients, CLASSES, resamples=101)
    assert classification_metrics(probabilities, labels, patients, CLASSES, resamples=101) == first
    monkeypatch.setattr(intervals, "CHUNK", 500)  # five resamples at a time
    again = classification_metrics(probabilities, labels, patients, CLASSES, resamples=101)
    assert {name: (e.low, e.high) for name, e in again.items()} == {
        name: (pytest.approx(e.low), pytest.approx(e.high)) for name, e in first.items()
    }
    other = classification_metrics(probabilities, labels, patients, CLASSES, resamples=101, seed=1)
    assert other["accuracy"].value == first["accuracy"].value
    assert other["accuracy"].low != first["accuracy"].low


def test_one_patient_has_a_value_but_no_interval() -> None:
    found = bootstrap(weighted_mean, np.array([0.0, 1.0]), groups=["a", "a"])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert (found.count, found.patients) == (2, 1)


def test_images_without_a_patient_are_patients_of_their_own() -> None:
    values = np.arange(4.0)
    assert bootstrap(weighted_mean, values, groups=[None, None, math.nan, math.nan]).patients == 4
    assert bootstrap(weighted_mean, values, groups=["a", "a", None, "b"]).patients == 3


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(7)
    first = rng.normal(size=100)
    second = first + 0.1 + 0.01 * rng.normal(size=100)
    found = bootstrap(weighted_mean, second - first, groups=range(100))
    assert 0.09 < found.low < 0.1 < found.high < 0.11
    apart = bootstrap(weighted_mean, first, groups=range(100))
    assert apart.high - apart.low > 0.2


def test_wider_confidence_gives_a_wider_interval() -> None:
    values = np.random.default_rng(8).normal(size=100)
    narrow, wide = (bootstrap(weighted_mean, values, groups=range(100), confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": []}, "3 images but 0 patient ids"),
        ({"groups": range(3), "resamples": 0}, "resamples above 0"),
        ({"groups": range(3), "confidence": 95}, r"confidence must be in \(0, 1\)"),
    ],
)
def test_bootstrap_refuses_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bootstrap(weighted_mean, np.zeros(3), **settings)


def test_no_images_at_all() -> None:
    with pytest.raises(ConfigError, match="no images"):
        bootstrap_many(lambda weights: {}, groups=[])


def test_estimate_reads_well_and_is_json() -> None:
    assert str(Estimate(0.95312, 0.9414, 0.9621, 120, 80)) == "0.953 [0.941, 0.962]"
    missing = Estimate(math.nan, math.nan, math.nan, 0, 0)
    written = json.loads(json.dumps(missing.to_dict(), allow_nan=False))
    assert written == {"value": None, "low": None, "high": None, "count": 0, "patients": 0}
    assert Estimate(0.5, 0.4, 0.6, 3, 2).to_dict() == {"value": 0.5, "low": 0.4, "high": 0.6, "count": 3, "patients": 2}


# --- calibration ---


def draw_calibrated(images: int, outputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from exactly the probabilities that these logits claim."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(images, outputs))
    claimed = softmax(logits if outputs > 1 else np.concatenate([np.zeros((images, 1)), logits], axis=1))
    return logits, (rng.random((images, 1)) > claimed.cumsum(1)).sum(1)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_temperature_undoes_overconfidence(outputs: int, scale: float) -> None:
    logits, labels = draw_calibrated(20_000, outputs, seed=9)
    temperature = fit_temperature(scale * logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)


def test_temperature_is_where_the_likelihood_is_flat() -> None:
    """The derivative of the mean NLL by 1/T vanishes: mean true logit = mean expected logit."""
    logits, labels = draw_calibrated(500, 3, seed=10)
    temperature = fit_temperature(2 * logits, labels)
    probabilities = softmax(2 * logits / temperature)
    expected = (probabilities * 2 * logits).sum(1).mean()
    assert (2 * logits)[np.arange(500), labels].mean() == pytest.approx(expected, abs=1e-4)
    nll = [sklearn_metrics.log_loss(labels, softmax(2 * logits / t)) for t in temperature * np.array([1, 0.98, 1.02])]
    assert nll[0] < min(nll[1:])


def test_temperature_lowers_the_calibration_error() -> None:
    logits, labels = draw_calibrated(5_000, 3, seed=11)
    before = expected_calibration_error(softmax(3 * logits), labels)
    after = expected_calibration_error(softmax(3 * logits / fit_temperature(3 * logits, labels)), labels)
    assert before > 0.1
    assert after < 0.03


def test_temperature_of_a_faultless_classifier_stays_finite() -> None:
    logits = 5 * np.eye(3)[[0, 1, 2]]
    assert 0.05 <= fit_temperature(logits, np.arange(3)) < 0.2  # all probabilities are 1 there
    assert fit_temperature(logits, np.array([1, 2, 0])) == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize(("classes", "bins"), [(3, 15), (3, 4), (1, 10)])
def test_calibration_error_against_a_loop(classes: int, bins: int) -> None:
    rng = np.random.default_rng(12)
    labels = rng.integers(0, max(2, classes), 400)
    probabilities = rng.random((400, 1)) if classes == 1 else rng.dirichlet([1] * classes, 400)
    both = np.hstack([1 - probabilities, probabilities]) if classes == 1 else probabilities
    confidence, correct = both.max(1), both.argmax(1) == labels
    expected = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probabilities, labels, bins=bins) == pytest.approx(expected)


def test_calibration_error_at_the_ends() -> None:
    sure = np.eye(2)[[0, 1, 0, 1]]
    assert expected_calibration_error(sure, np.array([0, 1, 0, 1])) == 0
    assert expected_calibration_error(sure, np.array([1, 0, 1, 0])) == 1
    edge = np.array([[0.5, 0.5], [0.25, 0.75]])  # 0.5 belongs to the lower of two bins: the gaps do not cancel
    assert expected_calibration_error(edge, np.array([1, 1]), bins=2) == 0.375


@pytest.mark.parametrize(("images", "coverage"), [(9, 0.9), (50, 0.9), (200, 0.8), (999, 0.95)])
def test_conformal_threshold_against_numpy(images: int, coverage: float) -> None:
    rng = np.random.default_rng(13)
    probabilities, labels = rng.dirichlet([1, 1, 1], images), rng.integers(0, 3, images)
    scores = 1 - probabilities[np.arange(images), labels]
    level = min(1.0, np.ceil((images + 1) * coverage) / images)
    expected = 1 - np.quantile(scores, level, method="inverted_cdf")
    assert conformal_threshold(probabilities, labels, coverage) == pytest.approx(expected)


def test_too_few_images_promise_nothing() -> None:
    probabilities, labels = np.full((8, 2), 0.5), np.zeros(8, int)
    assert conformal_threshold(probabilities, labels, coverage=0.9) == 0
    assert conformal_threshold(probabilities, labels, coverage=0.8) == 0.5


@pytest.mark.parametrize("outputs", [1, 3])
def test_conformal_sets_hold_the_truth_as_often_as_wanted(outputs: int) -> None:
    """Coverage over fresh calibration sets is at least 90 %, and at most 1 / (n + 1) more (Vovk 2005)."""
    simulations, calibration, fresh = 400, 99, 50
    logits, labels = draw_calibrated(simulations * (calibration + fresh), outputs, seed=14)
    logits = 3 * logits  # overconfident, which conformal sets do not mind
    both = softmax(logits if outputs > 1 else np.concatenate([0 * logits, logits], axis=1))
    given = both if outputs > 1 else both[:, 1:]
    held = []
    for images in np.split(np.arange(len(labels)), simulations):
        known, new = images[:calibration], images[calibration:]
        threshold = conformal_threshold(given[known], labels[known], coverage=0.9)
        held.append((both[new, labels[new]] >= threshold).mean())
    error = MAY_DIFFER * np.std(held) / math.sqrt(simulations)
    assert 0.9 - error < np.mean(held) < 0.9 + 1 / (calibration + 1) + error


def skewed(patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw probabilities of two classes, the second rare and hard, of patients with 1 to 8 images alike."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 9, patients)
    person = np.repeat(np.arange(patients), images)
    label = (rng.random(patients) < 0.4).astype(int)
    source = np.where(rng.random(patients) < 0.5, "east", "west")
    logit = rng.normal(np.where(label == 1, np.where(source == "east", 0.8, -0.8), -2.5), 1.0)[person]
    second = 1 / (1 + np.exp(-(logit + 0.2 * rng.normal(size=len(person)))))
    return np.stack([1 - second, second], 1), label[person], person, source[person]


def test_coverage_holds_for_each_class_and_source_that_it_is_promised() -> None:
    """One threshold for all leaves the rare, hard class behind; patients with many images count once."""
    kept: dict[tuple[str, str], list[float]] = {}
    fresh = skewed(20000, seed=1)
    first = np.unique(fresh[2], return_index=True)[1]  # one image a patient
    probabilities, labels, _, sources = (values[first] for values in fresh)
    for seed in range(60):
        given, known, person, where = skewed(250, seed + 2)
        people = [str(number) for number in person]
        for by in ("all", "class", "source"):
            thresholds = conformal_thresholds(given, known, 0.9, by=by, patients=people, sources=where.tolist())
            held = (probabilities >= thresholds)[np.arange(len(labels)), labels]
            kept.setdefault((by, "hard"), []).append(held[labels == 1].mean())
            kept.setdefault((by, "west"), []).append(held[(labels == 1) & (sources == "west")].mean())
    means = {key: float(np.mean(values)) for key, values in kept.items()}
    assert means["all", "hard"] < 0.8
    assert 0.89 < means["class", "hard"] < 0.93
    assert means["class", "west"] < 0.85
    assert means["source", "west"] > 0.89


def test_thresholds_by_class_say_what_they_cannot_promise() -> None:
    probabilities = np.array([[0.9, 0.1]] * 20 + [[0.6, 0.4]] * 5)
    labels = np.repeat([0, 1], [20, 5])
    assert conformal_thresholds(probabilities, labels).tolist() == [0.9, 0.0]
    assert conformal_thresholds(probabilities, labels, patients=["p"] * 25).tolist() == [0, 0]  # one patient
    with refuses("not by 'site'"):
        conformal_thresholds(probabilities, labels, by="site")  # type: ignore[arg-type]
    with refuses("needs the source"):
        conformal_thresholds(probabilities, labels, by="source")
    with refuses("patients of 3"):
        conformal_thresholds(probabilities, labels, patients=["p"] * 3)


def test_calibration_refuses_what_it_cannot_use() -> None:
    two = np.full((2, 2), 0.5)
    with refuses("one label each"):
        fit_temperature(two, np.array([0]))
    with refuses("must be finite"):
        fit_temperature(two * np.inf, np.array([0, 1]))
    with refuses("from 0 to 1"):
        fit_temperature(two, np.array([0, 2]))
    with refuses("bins must be above 0"):
        expected_calibration_error(two, np.array([0, 1]), bins=0)
    with refuses(r"coverage must be in \(0, 1\)"):
        conformal_threshold(two, np.array([0, 1]), coverage=1)
    with refuses("apply softmax or sigmoid"):
        conformal_threshold(two - 3, np.array([0, 1]))


def test_calibrate_fits_temperature_and_conformal_thresholds_on_rows() -> None:
    from covidcxr.config import ModelConfig
    from covidcxr.evaluation import calibrate

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    truth = np.array([rng.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    sure = np.exp(logits * 2.5)  # two and a half times too sure
    sure /= sure.sum(1, keepdims=True)
    names = ("a", "b", "c")
    rows = [
        {"label": names[t], **{f"probability_{n}": p for n, p in zip(names, row, strict=True)}}
        for t, row in zip(truth, sure, strict=True)
    ]
    config = calibrate(ModelConfig("classification", "timm:resnet18", names), rows, coverage=0.9)
    assert config.temperature == pytest.approx(2.5, rel=0.1)
    assert (config.coverage, config.coverage_by) == (0.9, "class")
    calibrated = np.exp(np.log(sure) / config.temperature)
    calibrated /= calibrated.sum(1, keepdims=True)
    of_truth = calibrated[np.arange(len(truth)), truth]
    for number, name in enumerate(names):
        assert (of_truth[truth == number] >= config.thresholds[name]).mean() == pytest.approx(0.9, abs=0.005)
    together = calibrate(config, rows, coverage=0.9, by="all")
    assert len(set(together.thresholds.values())) == 1
    assert together.coverage_by == "all"
    assert (of_truth >= together.thresholds["a"]).mean() == pytest.approx(0.9, abs=0.005)
    free = calibrate(config, rows)
    assert (free.thresholds, free.coverage, free.coverage_by) == ({}, None, None)
    assert "coverage" not in free.to_dict()  # so that earlier releases can read it
    with pytest.raises(ConfigError, match="exclusive"):
        calibrate(ModelConfig("classification", "timm:resnet18", names, "multilabel"), rows)
