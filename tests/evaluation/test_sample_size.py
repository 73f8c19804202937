"""Sample sizes: the interval that the library prints of a study so large reaches as far as was wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from covidcxr.cli import main
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.evaluation import Estimate, StudyDesign, bootstrap, segmentation_metrics, weighted_auroc, weighted_mean
from covidcxr.evaluation.metrics.calibration import recalibration

APART = math.sqrt(2) * 1.0364
"""Between the means of two normal distributions whose AUROC is 0.85."""


def binary(rng: np.random.Generator, patients: int, rate: float, images: int = 2, icc: float = 0.5) -> Estimate:
    """Score images that correlate by `icc` within a patient: each copies its patient's with a chance of its root."""
    patient = np.repeat(np.arange(patients), images)
    copies = rng.random(len(patient)) < math.sqrt(icc)
    right = np.where(copies, (rng.random(patients) < rate)[patient], rng.random(len(patient)) < rate)
    return bootstrap(weighted_mean, right.astype(float), groups=patient, share=True, resamples=100)


def auroc(rng: np.random.Generator, patients: int) -> Estimate:
    positive = np.arange(patients) < 0.3 * patients
    score = APART * positive + rng.normal(size=patients)
    return bootstrap(weighted_auroc, score, positive, groups=range(patients), share=True, resamples=100)


def dice(rng: np.random.Generator, patients: int, failures: float) -> Estimate:
    values = np.where(rng.random(patients) < failures, 0.0, rng.normal(0.9, 0.04, patients).clip(0.5, 1))
    return segmentation_metrics({"dice_lung": values}, range(patients), resamples=1)["dice_lung"]


def slope(rng: np.random.Generator, patients: int, which: int) -> Estimate:
    positive = rng.random(patients) < 0.3
    logits = math.log(0.3 / 0.7) + np.where(positive, 1, -1) * APART**2 / 2 + APART * rng.normal(size=patients)
    return recalibration(1 / (1 + np.exp(-logits)), positive, np.arange(patients), 0.95)[which]


@pytest.mark.parametrize(
    ("design", "score", "value", "within", "simulate"),
    [
        (
            StudyDesign(prevalence=0.3, images_per_patient=2),
            "sensitivity", 0.9, 0.05, lambda rng, n: binary(rng, round(0.3 * n), 0.9),
        ),
        (
            StudyDesign(prevalence=0.3, images_per_patient=3, icc=0.2),
            "specificity", 0.8, 0.06, lambda rng, n: binary(rng, round(0.7 * n), 0.8, 3, 0.2),
        ),
        (StudyDesign(), "accuracy", 0.97, 0.03, lambda rng, n: binary(rng, n, 0.97, 1)),
        (StudyDesign(prevalence=0.3), "auroc", 0.85, 0.05, auroc),
        (StudyDesign(sd=0.04), "dice", 0.9, 0.02, lambda rng, n: dice(rng, n, 0.0)),
        (StudyDesign(sd=0.04, failures=0.05), "dice", 0.855, 0.04, lambda rng, n: dice(rng, n, 0.05)),
        (StudyDesign(prevalence=0.3, auroc=0.85), "slope", 1.0, 0.2, lambda rng, n: slope(rng, n, 1)),
        (StudyDesign(prevalence=0.3, auroc=0.85), "intercept", 0.0, 0.2, lambda rng, n: slope(rng, n, 0)),
    ],
)  # fmt: skip
def test_the_intervals_of_a_study_so_large_reach_as_far_as_wanted(
    design: StudyDesign,
    score: str,
    value: float,
    within: float,
    simulate: Callable[[np.random.Generator, int], Estimate],
) -> None:
    size = design.patients_for(score, value, within)
    rng = np.random.default_rng(0)
    found = [simulate(rng, size.patients) for _ in range(20)]
    reach = np.median([max(e.value - e.low, e.high - e.value) for e in found])
    # Hanley and McNeil take distributions that are wider than normal ones.
    assert (0.8 if score == "auroc" else 0.92) * within < reach < 1.08 * within
    assert np.mean([e.low <= value <= e.high for e in found]) >= 0.85
    assert design.expect(score, value, size.patients).within <= within
    assert design.expect(score, value, size.patients - 1).within > within


def test_images_that_are_alike_unequal_or_without_an_answer_need_more_patients() -> None:
    def needed(**more: float) -> int:
        design = StudyDesign(prevalence=0.2, **more)  # type: ignore[arg-type]
        return design.patients_for("sensitivity", 0.9, 0.05).patients

    plain = needed()
    assert needed(images_per_patient=2, icc=1) == plain
    assert needed(images_per_patient=2, icc=0) == pytest.approx(plain / 2, rel=0.02)
    assert plain / 2 < needed(images_per_patient=2) < plain
    assert needed(images_per_patient=2, spread=1) > needed(images_per_patient=2)
    assert needed(abstention=0.2) == pytest.approx(plain / 0.8, abs=2)
    assert plain > 139 / 0.2  # by the normal approximation, which is too narrow near 1 (Buderer 1996)


def test_it_says_what_is_missing_or_wrong() -> None:
    with pytest.raises(ConfigError, match="prevalence of the class: say it"):
        StudyDesign().patients_for("sensitivity", 0.9, 0.05)
    with pytest.raises(ConfigError, match="sd"):
        StudyDesign().patients_for("dice", 0.9, 0.05)
    with pytest.raises(ConfigError, match="AUROC"):
        StudyDesign(prevalence=0.2).patients_for("slope", 1, 0.2)
    with pytest.raises(ConfigError, match="10,000,000 patients"):
        StudyDesign().patients_for("accuracy", 0.5, 1e-5)
    with pytest.raises(ConfigError, match=r"icc of a study must be in \[0, 1\], not 2"):
        StudyDesign(icc=2)
    with pytest.raises(ConfigError, match=r"in \(0, 1\)"):
        StudyDesign().patients_for("accuracy", 1.0, 0.1)
    with pytest.raises(UnknownNameError, match="sensitivity"):
        StudyDesign().patients_for("sensitivty", 0.9, 0.1)
    few = StudyDesign(prevalence=0.2, auroc=0.8).expect("slope", 1, 10)
    assert few.to_dict()["low"] is None
    assert "fewer than 24" in few.note


def test_the_command_plans_and_expects(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--auroc", "0.85", "--sensitivity", "0.9", "--prevalence", "0.2"]
    assert main(["plan", *words, "--within", "0.05", "--within-slope", "0.3", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["patients"] == max(size["patients"] for size in plan["scores"]) == 930
    assert [size["score"] for size in plan["scores"]] == ["sensitivity", "auroc", "slope"]
    assert plan["design"]["prevalence"] == 0.2
    assert main(["plan", *words, "--patients", "20", "--images-per-patient", "2"]) == 0
    text = capsys.readouterr().out
    assert "No interval of slope: fewer than 24" in text
    assert "Plan" not in text
    assert main(["plan", *words, "--within", "0.05", "--abstention", "0.1"]) == 0
    assert "Plan 1,033 patients, 10% of whom get no answer." in capsys.readouterr().out
    for wrong in ([], ["--prevalence", "0.2", "--sensitivity", "0.9"]):
        assert main(["plan", *wrong]) == 2
        assert "Say " in capsys.readouterr().err
