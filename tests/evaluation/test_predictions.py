"""Rows of predictions: read, scored, compared; operating points, reliability and sets of answers."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from covidcxr.errors import ConfigError, DatasetError
from covidcxr.evaluation import (
    bootstrap,
    choose_point,
    choose_threshold,
    classification_metrics,
    compare_rows,
    expected_calibration_error,
    finding_metrics,
    measure_reliability,
    predictive_values,
    read_rows,
    score_at,
    score_rows,
    score_sets,
    unpaired_difference,
    weighted_mean,
)
from covidcxr.evaluation.plots import plot_reliability
from covidcxr.evaluation.report import evaluate_rows  # noqa: F401 - the report registers how results are drawn
from covidcxr.page import Page, sections_of, write_html

CLASSES = ("normal", "pneumonia", "covid")


def draw_rows(images: int = 120, seed: int = 0, noise: float = 0.0) -> list[dict[str, Any]]:
    """Rows of a model that knows something; other noise = another model on the same images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    logits = rng.normal(size=(images, 3)) + 1.5 * np.eye(3)[labels]
    logits += noise * np.random.default_rng(99).normal(size=logits.shape)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return [
        {
            "image_id": f"film-{image}",
            "patient_id": f"p{image // 2}",
            "source": "a",
            "label": CLASSES[label],
            **{f"probability_{name}": float(p) for name, p in zip(CLASSES, chances, strict=True)},
            "dice_lung": math.nan if image % 7 == 0 else 0.9 + 0.001 * image / images - 0.1 * noise,
            "hd95_lung": math.nan if image % 7 == 0 else 4 + 3 * noise,
        }
        for image, (label, chances) in enumerate(zip(labels, probabilities, strict=True))
    ]


def arrays(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    probabilities = np.array([[row[f"probability_{name}"] for name in CLASSES] for row in rows])
    return probabilities, np.array([CLASSES.index(row["label"]) for row in rows]), [row["patient_id"] for row in rows]


def write(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


# --- rows are scored ---


def test_rows_of_a_test_and_of_its_csv_score_alike(tmp_path: Path) -> None:
    rows = draw_rows()
    scores = score_rows(rows, resamples=50)
    assert scores["macro_auroc"] == classification_metrics(*arrays(rows), CLASSES, resamples=50)["macro_auroc"]
    assert scores["hd95_lung"].value == 4
    assert scores["dice_lung"].count == sum(not math.isnan(row["dice_lung"]) for row in rows)
    path = write(tmp_path / "predictions.csv", rows)
    with path.open(newline="") as file:
        texts = list(csv.DictReader(file))
    for again in (score_rows(texts, resamples=50), score_rows(read_rows(path), resamples=50)):
        assert str(again) == str(scores)  # NaN, as an end of an interval, is equal to nothing


def test_rows_of_findings_are_scored_on_what_is_labelled() -> None:
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 2, (40, 2)).astype(float)
    truths[::3, 1] = np.nan
    chances = rng.random((40, 2))
    rows = [
        {"image_id": f"{image:02}", "patient_id": "", "label_edema": t[0], "label_mass": "" if np.isnan(t[1]) else t[1]}
        | {"probability_edema": str(p[0]), "probability_mass": p[1]}
        for image, (t, p) in enumerate(zip(truths, chances, strict=True))
    ]
    expected = finding_metrics(chances, truths, [None] * 40, ("edema", "mass"), resamples=30)
    found = score_rows(rows, resamples=30)
    assert found.keys() == expected.keys()
    assert all(str(found[name]) == str(expected[name]) for name in expected)


def test_what_is_empty_is_not_known() -> None:
    rows = draw_rows(30)
    extra = [{**rows[0], "image_id": "x", "label": ""}, {**rows[0], "image_id": "y", "probability_covid": ""}]
    assert score_rows(rows + extra, resamples=20)["accuracy"] == score_rows(rows, resamples=20)["accuracy"]
    with pytest.raises(ConfigError, match="no images"):
        score_rows([])
    with pytest.raises(ConfigError, match="nothing to score"):
        score_rows([{"image_id": "x"}])


# --- tables made elsewhere ---


def test_a_table_with_label_and_probabilities_is_enough_and_lacking_patients_are_told(tmp_path: Path) -> None:
    rows = [{"label": "covid", "probability_covid": 0.9}, {"label": "other", "probability_covid": 0.2}]
    path = write(tmp_path / "theirs.csv", rows)
    with pytest.warns(UserWarning, match="has no patient_id"):
        found = read_rows(path)
    assert found == rows
    scores = score_rows(found, resamples=10)
    assert (scores["accuracy"].value, scores["accuracy"].patients) == (1, 2)
    assert {"sensitivity_covid", "sensitivity_other"} <= scores.keys()


GOOD = {"image_id": "a", "patient_id": "p", "label": "covid", "probability_covid": 0.7, "probability_normal": 0.3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability_covid": 1.7}, r"line 3: probability_covid is 1.7, which is not in \[0, 1\]"),
        ({"probability_covid": "high"}, "line 3: probability_covid is 'high', which is no number"),
        ({"probability_covid": 0.9}, "line 3: the probabilities sum to 1.200, not 1"),
        ({"label": "covd"}, "line 3: there is no probability for the label 'covd'. Did you mean 'covid'"),
        ({"image_id": "a"}, "line 3: the image a stands in line 2 already"),
        ({"dice_lung": 1.2}, "line 3: dice_lung is 1.2"),
    ],
)
def test_wrong_values_are_told_with_their_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows = [GOOD, {**GOOD, "image_id": "b", **changes}, {**GOOD, "image_id": "c"}]
    with pytest.raises(ConfigError, match=message):
        read_rows(write(tmp_path / "predictions.csv", rows))


def test_all_lines_with_faults_are_counted(tmp_path: Path) -> None:
    rows = [{**GOOD, "image_id": str(n), "label": "flu"} for n in range(4)]
    with pytest.raises(ConfigError, match="Besides, 3 other lines have faults"):
        read_rows(write(tmp_path / "predictions.csv", rows))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["image_id", "covid"], "holds no predictions: it needs a column probability_CLASS"),
        (["probability_covid", "probability_normal"], "lacks label"),
        (["probability_covid", "probability_edema", "label_edema"], "lacks label_covid"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, columns: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_rows(write(tmp_path / "predictions.csv", [dict.fromkeys(columns, 1)]))
    with pytest.raises(DatasetError, match="no table"):
        read_rows(tmp_path / "none.csv")


def test_rounded_probabilities_and_findings_are_taken(tmp_path: Path) -> None:
    rounded = {**GOOD, "probability_covid": 0.69}
    findings = {
        "patient_id": "p",
        "label_edema": 1,
        "label_mass": "",
        "probability_edema": 0.9,
        "probability_mass": 0.8,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_rows(write(tmp_path / "one.csv", [rounded]))[0]["probability_covid"] == 0.69
        found = read_rows(write(tmp_path / "two.csv", [findings]))[0]
    assert (found["label_edema"], math.isnan(found["label_mass"])) == (1, True)


# --- two models ---


def test_paired_differences_are_those_of_the_scores_and_narrower() -> None:
    rows, others = draw_rows(200), draw_rows(200, noise=0.4)
    first, second = score_rows(rows, resamples=200), score_rows(others, resamples=200)
    found = compare_rows(rows, others[::-1], resamples=200)
    assert found.keys() == first.keys()
    for name, difference in found.items():
        assert difference.value == pytest.approx(first[name].value - second[name].value, abs=1e-12), name
    width = found["macro_auroc"].high - found["macro_auroc"].low
    assert width < 0.8 * math.hypot(*(one["macro_auroc"].high - one["macro_auroc"].low for one in (first, second)))
    assert found["macro_auroc"].low > 0
    assert found["dice_lung"].value == pytest.approx(0.04)
    assert found["accuracy"].patients == 100
    same = compare_rows(rows, rows, resamples=200)["accuracy"]
    assert same.value == 0
    assert -0.02 < same.low < 0 < same.high < 0.02  # images without a difference do not show that there is none at all


def test_paired_difference_of_accuracy_is_that_of_single_images() -> None:
    rows, others = draw_rows(100), draw_rows(100, noise=1.0)
    (one, labels, patients), (other, _, _) = arrays(rows), arrays(others)
    gaps = (one.argmax(1) == labels) * 1.0 - (other.argmax(1) == labels)
    expected = bootstrap(weighted_mean, gaps, groups=patients, resamples=100)
    found = compare_rows(rows, others, resamples=100)["accuracy"]
    assert found.value == pytest.approx(expected.value)
    # Made from the intervals of both accuracies and their correlation: far from 0 and 1 nearly that of the gaps.
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert expected.high - expected.low > 0.2


def test_images_of_one_model_only_are_an_error_that_counts_them() -> None:
    rows, others = draw_rows(30), draw_rows(30, noise=0.5)
    with pytest.raises(ConfigError, match=r"5 images .* first model only, 3 of the second only.* 22 common"):
        compare_rows(rows[3:], others[:25], resamples=10)
    found = compare_rows(rows[3:], others[:25], common=True, resamples=10)
    assert found["accuracy"] == compare_rows(rows[3:25], others[3:25], resamples=10)["accuracy"]
    with pytest.raises(ConfigError, match="different images"):
        compare_rows(rows[:10], others[10:], common=True)
    with pytest.raises(ConfigError, match="The image film-0 stands in the rows more than once"):
        compare_rows([*rows, rows[0]], others)
    changed = {**others[0], "label": "covid" if others[0]["label"] != "covid" else "normal"}
    with pytest.raises(ConfigError, match="1 images have another truth"):
        compare_rows(rows, [changed, *others[1:]])
    with pytest.raises(ConfigError, match="different classes"):
        compare_rows(rows, [{"image_id": r["image_id"], "label": "x", "probability_x": 1} for r in rows])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare_rows([{"image_id": "a", "dice_lung": 1}], [{"image_id": "a", "label": "x", "probability_x": 1}])


def test_unpaired_difference_of_two_hospitals() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 300), rng.normal(0, 2, 400)
    ids = [f"a{n}" for n in range(300)], [f"b{n}" for n in range(400)]
    found = unpaired_difference(weighted_mean, [first], [second], groups=ids, resamples=2000)
    assert found.value == pytest.approx(first.mean() - second.mean())
    error = math.sqrt(first.var() / 300 + second.var() / 400)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert (found.count, found.patients) == (700, 700)
    same = unpaired_difference(weighted_mean, [first], [first], groups=(ids[0], ids[0]), resamples=50)
    assert (same.value, same.patients) == (0, 300)
    # The same patients on both sides are drawn together; they do not show that there is no difference at all.
    assert -0.02 < same.low < 0 < same.high < 0.02
    with pytest.raises(ConfigError, match="300 images but 400"):
        unpaired_difference(weighted_mean, [first], [second], groups=(ids[1], ids[1]))


# --- operating points ---


@pytest.mark.parametrize("digits", [1, 6])
@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95, 1.0])
def test_threshold_is_the_best_of_all_that_reach_what_is_wanted(digits: int, wanted: float) -> None:
    rng = np.random.default_rng(digits)
    positive = rng.random(80) < 0.4
    probability = np.round(np.clip(rng.random(80) * 0.7 + 0.3 * positive, 0, 1), digits)
    candidates = [*np.unique(probability), 1.1]
    found = choose_threshold(probability, positive, sensitivity=wanted)
    assert found == max(t for t in candidates if (probability[positive] >= t).mean() >= wanted - 1e-12)
    found = choose_threshold(probability, positive, specificity=wanted)
    best = min(t for t in candidates if (probability[~positive] < t).mean() >= wanted - 1e-12)
    np.testing.assert_array_equal(probability >= found, probability >= best)


def test_thresholds_at_the_ends() -> None:
    probability, positive = np.array([0.2, 0.4, 1.0]), np.array([True, True, False])
    assert choose_threshold(probability, positive, sensitivity=1) == 0.2
    assert choose_threshold(probability, positive, specificity=1) > 1  # a negative image has the highest
    assert choose_threshold(np.full(10, 0.5), np.arange(10) < 5, sensitivity=0.1) == 0.5
    for wrong in ({}, {"sensitivity": 0.9, "specificity": 0.9}, {"sensitivity": 0}, {"specificity": 1.1}):
        with pytest.raises(ConfigError, match="Say one of sensitivity and specificity"):
            choose_threshold(probability, positive, **wrong)
    with pytest.raises(ConfigError, match="no positive images"):
        choose_threshold(probability, np.zeros(3, bool), sensitivity=0.9)


def test_predictive_values_follow_bayes() -> None:
    assert predictive_values(0.9, 0.8, 0.1) == pytest.approx((0.09 / 0.27, 0.72 / 0.73))
    rng = np.random.default_rng(0)
    sick, called = rng.random(1000) < 0.3, rng.random(1000) < 0.5
    ppv, npv = predictive_values(called[sick].mean(), (~called)[~sick].mean(), sick.mean())
    assert (ppv, npv) == pytest.approx((sick[called].mean(), (~sick)[~called].mean()))
    found = predictive_values(np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([0.1, 0.1]))
    np.testing.assert_array_equal(found[0], [np.nan, 1])  # nobody is called: there is no answer to be right


def test_an_operating_point_is_chosen_on_validation_and_scored_on_test() -> None:
    point = choose_point(draw_rows(300, seed=1), "covid", sensitivity=0.9)
    assert (point.wanted, point.least, point.images, point.patients) == ("sensitivity", 0.9, 300, 150)
    assert "sensitivity of 90%" in str(point)
    assert point.to_dict()["threshold"] == point.threshold
    rows = draw_rows(300)
    probabilities, labels, _ = arrays(rows)
    sick, called = labels == 2, probabilities[:, 2] >= point.threshold
    found = score_at(rows, "covid", point)
    assert found["sensitivity"].value == pytest.approx(called[sick].mean())
    assert found["specificity"].value == pytest.approx((~called)[~sick].mean())
    assert found["ppv"].value == pytest.approx(sick[called].mean())
    assert found["npv"].value == pytest.approx((~sick)[~called].mean())
    assert found["prevalence"].value == pytest.approx(sick.mean())
    assert (found["ppv"].count, found["npv"].count) == (called.sum(), (~called).sum())
    rare = score_at(rows, "covid", point.threshold, prevalence=0.01)
    assert rare["ppv"].value < 0.2 < found["ppv"].value
    assert rare["ppv"].low < rare["ppv"].value < rare["ppv"].high
    assert rare["sensitivity"] == found["sensitivity"]
    expected = predictive_values(found["sensitivity"].value, found["specificity"].value, 0.01)
    assert (rare["ppv"].value, rare["npv"].value) == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"no class 'covd'\. Did you mean 'covid'"):
        score_at(rows, "covd", 0.5)
    with pytest.raises(ConfigError, match="prevalence"):
        score_at(rows, "covid", 0.5, prevalence=1)


def test_predictive_values_of_a_faultless_test_set_carry_its_doubt() -> None:
    rows = [{"label": name, "probability_yes": chance} for name, chance in [("yes", 0.9)] * 20 + [("no", 0.1)] * 30]
    found = score_at(rows, "yes", 0.5, prevalence=0.05)
    assert (found["ppv"].value, found["ppv"].high) == (1, 1)
    # By MOVER-R the lower end l of the one that counts as right enters as sqrt(l (2 - l)), next to 1.
    sensitive, specific = (math.sqrt(one.low * (2 - one.low)) for one in (found["sensitivity"], found["specificity"]))
    assert found["ppv"].low == pytest.approx(predictive_values(sensitive, found["specificity"].low, 0.05)[0])
    assert found["ppv"].low < 0.5  # thirty healthy images cannot exclude one false alarm in ten
    assert found["npv"].low == pytest.approx(predictive_values(found["sensitivity"].low, specific, 0.05)[1])


# --- reliability and sets of answers ---


def test_reliability_bins_add_up_to_the_calibration_error(tmp_path: Path) -> None:
    rows = draw_rows(400)
    probabilities, labels, _ = arrays(rows)
    found = measure_reliability(rows, resamples=50)
    assert found.ece.value == pytest.approx(expected_calibration_error(probabilities, labels))
    assert str(found.ece) == str(score_rows(rows, resamples=50)["ece"])
    assert found.brier.value == pytest.approx(score_rows(rows, resamples=5)["brier"].value)
    assert sum(one.share.count for one in found.bins) == 400
    gap = sum(one.share.count * abs(one.share.value - one.confidence) for one in found.bins) / 400
    assert gap == pytest.approx(found.ece.value)
    assert all(one.low < one.confidence <= one.high and one.share.low <= one.share.high for one in found.bins)
    assert found.to_dict()["bins"][0].keys() == {"low", "high", "confidence", "share"}
    text = write_html(Page("x", sections=sections_of(found)), tmp_path / "page.html").read_text()
    assert "data:image/png" in text
    (axis,) = plot_reliability(rows).axes
    assert f"ECE {measure_reliability(rows).ece}" in axis.texts[0].get_text()


def test_reliability_of_one_class_and_of_findings() -> None:
    rows = draw_rows(200)
    probabilities, labels, _ = arrays(rows)
    found = measure_reliability(rows, "covid", bins=5, resamples=10)
    assert found.brier.value == pytest.approx(np.mean((probabilities[:, 2] - (labels == 2)) ** 2))
    inside = (probabilities[:, 2] > 0.2) & (probabilities[:, 2] <= 0.4)
    (second,) = (one for one in found.bins if one.low == pytest.approx(0.2))
    assert second.share.value == pytest.approx((labels[inside] == 2).mean())
    findings = [{"label_edema": image % 2, "probability_edema": 0.3} for image in range(10)]
    assert measure_reliability(findings, "edema", resamples=10).ece.value == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="give class_name, of edema"):
        measure_reliability(findings)


def test_sets_of_answers_are_scored() -> None:
    rows = draw_rows(300)
    probabilities, labels, _ = arrays(rows)
    thresholds = {"normal": 0.2, "pneumonia": 0.3, "covid": 0.4}
    plausible = probabilities >= np.array(list(thresholds.values()))
    held, one = plausible[np.arange(300), labels], plausible.sum(1) == 1
    found = score_sets(rows, thresholds, resamples=50)
    expected = {"coverage": held.mean(), "answered": one.mean(), "right_if_answered": held[one].mean()}
    expected |= {f"coverage_{name}": held[labels == c].mean() for c, name in enumerate(CLASSES)}
    expected["coverage_source_a"] = held.mean()  # all images are of one source
    expected["set_size"] = plausible.sum(1).mean()
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected)
    assert found["right_if_answered"].count == one.sum()
    assert all(one.low < one.value < one.high for one in found.values())
    with pytest.raises(ConfigError, match="no threshold for covid"):
        score_sets(rows, {"normal": 0.2, "pneumonia": 0.3})
    with pytest.raises(ConfigError, match="exclusive classes"):
        score_sets([{"label_edema": 1, "probability_edema": 0.3}], {"edema": 0.5})
