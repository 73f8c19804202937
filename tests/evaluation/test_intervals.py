"""Intervals at their edges: few patients, no variance, failures, empty masks, calibrated models, shuffled rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from covidcxr.errors import ConfigError
from covidcxr.evaluation import (
    Estimate,
    bootstrap,
    bootstrap_many,
    classification_metrics,
    compare_rows,
    measure_reliability,
    precision_score,
    recall_score,
    score_at,
    score_rows,
    segmentation_metrics,
    weighted_mean,
)
from covidcxr.evaluation.metrics.agreement import limits_of_agreement
from covidcxr.evaluation.metrics.calibration import error_intervals
from covidcxr.evaluation.metrics.comparison import delong_test, mcnemar_test, significance
from covidcxr.evaluation.metrics.intervals import (
    Clusters,
    difference_interval,
    quantile_interval,
    ratio_interval,
    share_interval,
    two_part_interval,
    widen,
)
from covidcxr.evaluation.metrics.segmentation import lesion_scores
from covidcxr.evaluation.metrics.weighted import weighted_quantile
from covidcxr.transforms.geometry import nsd

FEW = {"resamples": 100}


def draw_rows(images: int = 40, each: int = 2, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    probability = rng.uniform(size=images)
    truth = rng.uniform(size=images) < probability
    return [
        {"image_id": f"i{n}", "patient_id": f"p{n // each}", "label": "ab"[int(truth[n])]}
        | {"probability_a": 1 - p, "probability_b": p}
        for n, p in enumerate(probability)
    ]


def row_of(image: str, answer: float, label: str = "a") -> dict:
    return {
        "image_id": image,
        "patient_id": image,
        "label": label,
        "probability_a": answer,
        "probability_b": 1 - answer,
    }


# --- shares, AUROC, differences ---


@pytest.mark.parametrize(("hits", "images"), [(0, 12), (3, 12), (12, 12), (40, 50)])
def test_a_share_of_independent_images_has_the_mid_p_interval(hits: int, images: int) -> None:
    clusters = Clusters(1.0, 1e6, images, images)
    share = hits / images
    found = share_interval(share, share * (1 - share) / images, clusters, 0.95)
    half = binom.pmf(hits, images, [found.low, found.high]) / 2
    if found.low > 0:
        assert binom.sf(hits, images, found.low) + half[0] == pytest.approx(0.025, abs=1e-5)
    if found.high < 1:
        assert binom.cdf(hits - 1, images, found.high) + half[1] == pytest.approx(0.025, abs=1e-5)


@pytest.mark.parametrize("images", [2, 12])
def test_a_collapsed_model_has_no_certain_score(images: int) -> None:
    """One answer for all: every resample has the same balanced accuracy and AUROC."""
    labels = np.arange(images) % 2
    probabilities = np.tile([0.7, 0.3], (images, 1))
    found = classification_metrics(probabilities, labels, range(images), "ab", **FEW)
    for name in ("balanced_accuracy", "macro_auroc", "accuracy", "auroc_a"):
        assert found[name].value == 0.5
        assert math.isnan(found[name].low) if images == 2 and name != "accuracy" else found[name].low < 0.3
    if images == 12:
        assert found["ece"].high > 0.2


def test_two_perfect_models_of_five_patients_may_differ() -> None:
    rows = [row_of(f"i{n}", 0.9 if n % 2 else 0.1, "ab"[n % 2 == 0]) for n in range(5)]
    found = compare_rows(rows, rows, **FEW)["accuracy"]
    assert found.value == 0
    assert found.low < -0.3
    assert found.high > 0.3


def test_differences_are_those_of_newcombe() -> None:
    """Newcombe 1998, Statistics in Medicine 17: 56 of 70 less 48 of 80, method 10 with Wilson's intervals."""
    first = Estimate(56 / 70, 0.6918, 0.8769, 70, 70)
    second = Estimate(48 / 80, 0.4904, 0.7004, 80, 80)
    found = difference_interval(first, second, 0.0)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=2e-4), pytest.approx(0.3339, abs=2e-4))


def test_a_ratio_with_nothing_in_it_has_an_upper_end() -> None:
    none, half = Estimate(0.0, 0.0, 0.2, 20, 20), Estimate(0.5, 0.4, 0.6, 20, 20)
    found = ratio_interval(none, half)
    assert found.low == 0
    assert 0.4 <= found.high <= 0.5
    assert ratio_interval(half, none).high == math.inf


def test_predictive_values_follow_from_both_rates() -> None:
    rows = [row_of(f"i{n}", 0.2 if n < 20 else 0.8, "b" if n < 20 else "a") for n in range(40)]
    found = score_at(rows, "b", 0.5, prevalence=0.05, **FEW)
    assert found["ppv"].value == found["npv"].value == 1
    assert found["ppv"].low < 0.4  # 20 negative patients leave a specificity of 0.86 open
    assert 0.99 < found["npv"].low < 1


def test_the_interval_does_not_depend_on_the_order_of_rows() -> None:
    rows = [{**row, "dice_lung": 0.5 + number / 100} for number, row in enumerate(draw_rows())]
    for row in rows[:7]:
        row["patient_id"] = ""  # unknown patients have no id of their own, but their images have
    first = score_rows(rows, **FEW)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        assert score_rows([rows[place] for place in order], **FEW) == first


def test_patients_of_unequal_size_count_for_less() -> None:
    everyone = [np.ones(30, bool)]
    equal = Clusters.count(np.arange(30) // 3, everyone)
    assert (equal.freedom, equal.correction) == (pytest.approx(9), pytest.approx(10 / 9))
    one_large = Clusters.count(np.minimum(np.arange(30), 9), everyone)
    assert one_large.freedom < 4
    assert one_large.correction > 1.5
    assert Clusters.count(np.zeros(30, int), everyone).freedom == 0


def test_one_patient_says_why_there_is_no_interval() -> None:
    found = bootstrap(weighted_mean, np.array([0.0, 1.0]), groups=["a", "a"])
    assert "fewer than two patients" in found.note
    assert found.to_dict()["note"] == found.note
    assert Estimate.from_dict(found.to_dict()).note == found.note
    assert "note" not in Estimate(0.5, 0.4, 0.6, 9, 9).to_dict()


def test_a_difference_needs_no_resample_that_moves() -> None:
    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"a": np.ones(len(weights)), "b": np.zeros(len(weights))}

    found = bootstrap_many(table, groups=range(9), shares="ab", differences={"gap": ("a", "b")}, **FEW)["gap"]
    assert (found.value, found.high) == (1, 1)
    assert 0.4 < found.low < 0.8


def test_widened_intervals_keep_their_value() -> None:
    found = widen(Estimate(0.5, 0.4, 0.7, 9, 9), 1.5, 0, 1)
    assert (found.low, found.value, found.high) == (pytest.approx(0.35), 0.5, pytest.approx(0.8))


# --- the tests beside them ---


def test_mcnemar_of_single_images_is_exact() -> None:
    first = np.array([True] * 10 + [False] * 2 + [True] * 5)
    second = np.array([False] * 10 + [True] * 2 + [True] * 5)
    assert mcnemar_test(first, second, range(17)) == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert mcnemar_test(first, first, range(17)) == 1
    assert mcnemar_test(first, second, [0] * 10 + list(range(1, 8))) > 0.3  # ten of the images are of one patient


def test_delong_agrees_with_its_formula() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(60) % 3 == 0
    scores = [rng.normal(size=60) + gap * positive for gap in (1.5, 0.5)]
    wins = [(s[positive][:, None] > s[~positive]).astype(float) for s in scores]
    gap = wins[0] - wins[1]
    variance = np.var(gap.mean(1), ddof=1) / positive.sum() + np.var(gap.mean(0), ddof=1) / (~positive).sum()
    expected = math.erfc(abs(gap.mean()) / math.sqrt(2 * variance))
    # With one image a patient there is nothing between the kinds but what chance puts there
    assert delong_test(*scores, positive, range(60)) == pytest.approx(expected, rel=1e-9)
    assert delong_test(scores[0], scores[0], positive, range(60)) == 1
    rows = draw_rows()
    assert set(significance(rows, rows)) == {"accuracy", "auroc_a", "auroc_b"}


# --- masks ---


def test_dice_of_ten_patients_without_a_failure_leaves_failures_open() -> None:
    dice = np.linspace(0.93, 0.97, 10)
    found = segmentation_metrics({"dice_lung": dice, "hd95_lung": dice}, range(10), failures=True, **FEW)
    assert found["dice_lung"].low < 0.8
    assert found["rest_lung"].low > 0.92
    assert (found["failed_lung"].value, found["failed_lung"].high) == (0, pytest.approx(0.2589, abs=1e-3))
    assert dice[0] <= found["median_lung"].low < found["median_lung"].high <= dice[-1]
    assert math.isnan(found["hd95_lung"].low)
    assert "median" in found["hd95_lung"].note
    assert not math.isnan(found["median_hd95_lung"].low)


def test_parts_of_a_mean_that_move_together_make_it_less_certain() -> None:
    """Half of the patients are hard: an image in four fails there, and the others are worse too."""
    patient, image = np.repeat(np.arange(40), 4), np.tile(np.arange(4), 40)
    hard = patient % 2 == 0
    failed = hard & (image == 0)
    better = np.where(hard, 0.95, 0.8)

    def width(rest: np.ndarray) -> float:
        noise = 0.001 * np.sin(np.arange(160))
        found = two_part_interval(np.where(failed, 0.1, rest) + noise, failed, patient, 0.95)
        return found.high - found.low

    apart = np.where(patient // 2 % 2 == 0, 0.95, 0.8)  # as far apart, but not with the failures
    assert width(1.75 - better) > 1.15 * width(apart)
    assert width(better) >= 0.97 * width(apart)  # parts that make up for each other narrow nothing


def test_no_interval_is_the_range_of_two_numbers() -> None:
    found = segmentation_metrics({"dice_lung": np.array([0.8, 0.9])}, "ab", failures=True, **FEW)
    assert "fewer than 6 patients" in found["median_lung"].note
    assert found["dice_lung"].low < 0.5


def test_failures_are_counted_apart() -> None:
    dice = np.array([0.1, 0.3, *np.full(18, 0.95)])
    found = segmentation_metrics({"dice_lung": dice, "iou_lung": dice / 2}, range(20), failures=True, **FEW)
    assert (found["failed_lung"].value, found["failed_lung"].count) == (pytest.approx(0.1), 20)
    assert (found["rest_lung"].value, found["rest_lung"].count) == (pytest.approx(0.95), 18)
    assert found["median_lung"].value == 0.95
    assert "failed_lung" not in segmentation_metrics({"dice_lung": dice}, range(20), **FEW)


def test_empty_masks_as_metrics_reloaded_has_them() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert math.isnan(precision_score(empty, empty))
    assert precision_score(empty, full) == precision_score(full, empty) == 0
    assert math.isnan(recall_score(full, empty))
    assert recall_score(empty, full) == 0


def test_a_segmenter_that_draws_nothing_scores_nothing() -> None:
    rows = [
        {"image_id": f"{n}", "dice_infection": 0.0 if n < 10 else 1.0, "precision_infection": 0.0 if n < 10 else ""}
        | {"recall_infection": 0.0 if n < 10 else "", "hd95_infection": 99.0 if n < 10 else 0.0}
        for n in range(20)
    ]
    found = score_rows(rows, **FEW)
    for name in ("dice", "precision", "recall"):
        assert (found[f"{name}_infection"].value, found[f"{name}_infection"].count) == (0, 10)
    assert (found["false_alarm_infection"].value, found["false_alarm_infection"].count) == (0, 10)
    assert found["hd95_infection"].value == 99
    rows[-1]["dice_infection"] = 0.0  # something is drawn where nothing is
    assert score_rows(rows, **FEW)["false_alarm_infection"].value == 0.1


def test_lesions_are_found_or_false() -> None:
    target, mask = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    target[2:6, 2:6] = target[12:16, 12:16] = True
    mask[3:6, 3:6] = mask[2:4, 14:18] = True
    assert lesion_scores(mask, target) == (0.5, 1)
    assert lesion_scores(target, target) == (1.0, 0)
    sensitivity, false = lesion_scores(mask, np.zeros_like(mask))
    assert math.isnan(sensitivity)
    assert false == 2


def test_surface_distance_within_a_tolerance() -> None:
    target, mask = np.zeros((50, 50), bool), np.zeros((50, 50), bool)
    target[10:30, 10:30] = True
    mask[10:30, 12:32] = True  # two pixels to the right
    assert nsd(mask, target, tolerance=2) == 1
    assert nsd(target, target) == 1
    assert 0.3 < nsd(mask, target, tolerance=1) < 0.7
    assert (nsd(mask, ~mask & mask), nsd(mask & ~mask, mask & ~mask)) == (0, 1)
    with pytest.raises(ConfigError, match="tolerance must be above 0"):
        nsd(mask, target, tolerance=0)


def test_quantiles_that_images_cannot_bound_have_no_interval() -> None:
    values, patient = np.arange(40.0), np.arange(40)
    assert "too few" in quantile_interval(values, patient, 0.975, 0.95).note
    found = quantile_interval(np.arange(400.0), np.arange(400), 0.975, 0.95)
    assert found.low < 390 <= found.high < 399
    assert weighted_quantile(np.array([[1.0, 1, 1], [0, 0, 2]]), np.array([3.0, 1, 2]), 0.5).tolist() == [2, 2]


# --- calibration ---


def test_the_error_of_a_calibrated_model_is_not_above_chance() -> None:
    found = measure_reliability(draw_rows(400), **FEW)
    assert found.ece.value > 0.02
    assert found.ece.low == 0
    assert found.debiased.value < found.ece.value
    assert found.calibrated.low < found.ece.value < found.calibrated.high
    assert set(found.by_class) == {"a", "b"}
    assert found.to_dict()["calibrated"]["value"] == found.calibrated.value


def test_a_calibration_error_is_as_uncertain_as_patients_differ() -> None:
    """Three of four patients are right in all of their images, one in none, at a probability of 0.9."""
    patient = np.repeat(np.arange(40), 5)
    right = patient % 4 > 0
    gaps = np.eye(15)[np.full(200, 13)] * (right - 0.9)[:, None]
    alike, alone = (error_intervals(gaps, ids, 0.95)["measured"] for ids in (patient, np.arange(200)))
    assert alike.value == alone.value == pytest.approx(0.15)
    assert (alike.high - alike.low) > 1.8 * (alone.high - alone.low)
    assert alone.low > 0.08


def test_slope_and_intercept_of_probabilities_that_are_too_extreme() -> None:
    rows = draw_rows(2000, each=1)
    calibrated = measure_reliability(rows, "b", **FEW)
    assert calibrated.slope.low < 1 < calibrated.slope.high
    assert calibrated.intercept.low < 0 < calibrated.intercept.high
    for row in rows:
        odds = (row["probability_b"] / row["probability_a"]) ** 3
        row["probability_b"], row["probability_a"] = odds / (1 + odds), 1 / (1 + odds)
    extreme = measure_reliability(rows, "b", **FEW)
    assert extreme.slope.value == pytest.approx(calibrated.slope.value / 3, rel=0.1)  # but for those clipped
    assert extreme.slope.high < 0.5
    assert extreme.ece.low > 0.03
    assert extreme.skill.value < calibrated.skill.value


def test_few_patients_have_no_slope() -> None:
    assert "fewer than 24" in measure_reliability(draw_rows(20), "b", **FEW).slope.note
    apart = [row_of(f"i{n}", 0.9 if n % 2 else 0.1, "ab"[n % 2 == 0]) for n in range(40)]
    assert "apart" in measure_reliability(apart, "b", **FEW).slope.note


# --- agreement ---


def test_limits_of_few_patients_and_of_skewed_differences_have_no_interval() -> None:
    rng = np.random.default_rng(0)
    few = limits_of_agreement(rng.normal(size=10), np.zeros(10), range(10))
    assert "fewer than 20" in few.upper.note
    assert few.expected[1] > few.upper.value  # small-sample limits lie farther out
    many = limits_of_agreement(rng.normal(size=300), np.zeros(300), range(300))
    assert many.upper.low < 1.96 < many.upper.high
    assert many.upper_quantile.low < 1.96 < many.upper_quantile.high
    skewed = limits_of_agreement(rng.exponential(size=300), np.zeros(300), range(300))
    assert skewed.skewed
    assert "skewed" in skewed.lower.note
    assert skewed.upper_quantile.low < -math.log(0.025) < skewed.upper_quantile.high


# --- what cannot be scored ---


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row_of("i1", 0.4) | {"probability_b": 0.9}], "image i1 sum to 1.300"),
        ([row_of("i1", 0.4), row_of("i1", 0.6)], "image i1 stands in the rows more than once"),
        ([{"image_id": "i1", "dice_lung": 1.7}], r"dice_lung of the image i1 is 1.7"),
    ],
)
def test_rows_are_refused_as_the_command_line_refuses_them(rows: list[dict], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_rows(rows)
