"""A model that has learnt nothing, or has collapsed, is called so; one that has learnt is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from covidcxr.evaluation.metrics.reliability import find_warning_signs, loss_signs, temperature_signs
from covidcxr.evaluation.report import evaluate_rows

CLASSES = ("covid19", "normal", "pneumonia")


def rows_of(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "image_id": f"i{number}",
            "patient_id": f"p{number}",
            "source": "ward",
            "label": CLASSES[label],
            **{f"probability_{name}": float(value) for name, value in zip(CLASSES, chances, strict=True)},
        }
        for number, (chances, label) in enumerate(zip(probabilities, labels, strict=True))
    ]


def answers(seed: int, skill: float, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated answers: logits that hold the truth by as much as `skill`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    logits = rng.normal(size=(count, 3)) * np.sqrt(skill) + skill * np.eye(3)[labels]
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True), labels


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("skill", [1.0, 3.0])
def test_a_model_that_has_learnt_gets_no_warning(seed: int, skill: float) -> None:
    assert find_warning_signs(rows_of(*answers(seed, skill))) == []


def test_one_answer_for_all() -> None:
    _, labels = answers(0, 1.0)
    same = np.tile([0.2, 0.5, 0.3], (len(labels), 1))
    signs = find_warning_signs(rows_of(same, labels))
    assert len(signs) == 2
    assert "All 90 images get the same answer, normal" in signs[0]
    assert "no more than the shares of the classes" in signs[1]
    one_class = rows_of(same, np.ones(90, int))
    assert find_warning_signs(one_class) == [], "images of one class only are answered rightly"


def test_answers_by_chance_say_no_more_than_the_shares() -> None:
    probabilities, _ = answers(0, 3.0)
    (sign,) = find_warning_signs(rows_of(probabilities, np.random.default_rng(1).integers(3, size=90)))
    assert "log loss" in sign


def test_what_is_still_to_be_calibrated_is() -> None:
    """Far too sure, but right mostly: only before calibration do the probabilities say less than the shares."""
    probabilities, labels = answers(0, 2.0)
    sure = probabilities**8 / (probabilities**8).sum(1, keepdims=True)
    assert "log loss" in find_warning_signs(rows_of(sure, labels))[0]
    assert find_warning_signs(rows_of(sure, labels), temperature=8.0) == []


def test_findings_and_masks() -> None:
    rows = [
        {"image_id": str(n), "label_covid19": n % 2, "label_normal": n % 2, "probability_covid19": 0.3,
         "probability_normal": 0.1 * n, "dice_lung": 0.0, "dice_infection": 0.1 * n}
        for n in range(8)
    ]  # fmt: skip
    signs = find_warning_signs(rows)
    assert len(signs) == 2
    assert "No mask of lung" in signs[0]
    assert "same probability of covid19" in signs[1]


@pytest.mark.parametrize(
    ("temperature", "warned"),
    [(20.0, True), (19.999, True), (0.05, True), (0.06, False), (1.0, False), (15.0, False)],
)
def test_a_temperature_at_the_bound_of_its_search(temperature: float, warned: bool) -> None:
    assert bool(temperature_signs(temperature)) == warned


def test_a_loss_that_is_no_number() -> None:
    good, bad = {"epoch": 0, "train/loss": 0.7}, {"epoch": 1, "train/loss": float("nan")}
    assert loss_signs([good]) == []
    assert "epoch 1 is not finite" in loss_signs([good, bad])[0]


def test_the_report_warns() -> None:
    _, labels = answers(0, 1.0)
    same = rows_of(np.tile([0.2, 0.5, 0.3], (len(labels), 1)), labels)
    evaluation = evaluate_rows(same, temperature=20.0, resamples=20)
    warnings = [note for note in evaluation.to_dict()["notes"] if note.startswith("Warning: ")]
    assert len(warnings) == 3
    assert "20.000 is the bound" in warnings[0]
    honest = evaluate_rows(rows_of(*answers(0, 3.0)), temperature=1.2, resamples=20)
    assert not any(note.startswith("Warning") for note in honest.notes)
