"""Decision curves: net benefit by hand, at stated prevalences, and how often its intervals hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from covidcxr.cli import main
from covidcxr.errors import ConfigError
from covidcxr.evaluation import decision_curve
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.predictions.run_pipeline import write_rows
from covidcxr.evaluation.report.decisions import plot_decision_curves, score_decisions
from covidcxr.page import sections_of

BY_HAND = [
    {"image_id": str(n), "label": label, "probability_ill": ill}
    for n, (label, ill) in enumerate(
        [("ill", 0.9), ("ill", 0.7), ("ill", 0.3), ("ill", 0.2), ("well", 0.8), ("well", 0.3), *[("well", 0.1)] * 4]
    )
]
"""4 ill and 6 well: from 0.25 up 3 ill and 2 well are treated, from 0.75 up 1 ill and 1 well."""


def draw_rows(rng: np.random.Generator, patients: int, images: int, share: float = 0.3) -> list[dict[str, Any]]:
    """Patients of one label each, whose images are alike."""
    ill = rng.random(patients) < share
    own = rng.normal(size=patients)
    return [
        {
            "image_id": f"{p}-{n}",
            "patient_id": str(p),
            "label": "ill" if ill[p] else "well",
            "probability_ill": 1 / (1 + math.exp(-(1.5 * ill[p] - 1.3 + 0.7 * own[p] + 0.7 * rng.normal()))),
        }
        for p in range(patients)
        for n in range(images)
    ]


def test_net_benefit_is_what_a_hand_computes() -> None:
    curve = decision_curve(BY_HAND, "ill", thresholds=[0.75, 0.25])
    assert curve.thresholds == (0.25, 0.75)
    assert curve.prevalence == 0.4
    assert not curve.stated
    assert [e.value for e in curve.net_benefit] == pytest.approx([(3 - 2 / 3) / 10, (1 - 3 * 1) / 10])
    assert [e.value for e in curve.treat_all] == pytest.approx([(4 - 6 / 3) / 10, (4 - 3 * 6) / 10])
    assert [e.value for e in curve.gain] == pytest.approx([(4 / 3 - 1) / 10, (3 * 5 - 3) / 10])


def test_at_a_stated_prevalence_it_follows_from_sensitivity_and_specificity() -> None:
    curve = decision_curve(BY_HAND, "ill", thresholds=[0.25], prevalence=0.05)
    assert curve.net_benefit[0].value == pytest.approx(3 / 4 * 0.05 - 2 / 6 * 0.95 / 3)
    assert curve.treat_all[0].value == pytest.approx(0.05 - 0.95 / 3)
    assert math.isnan(curve.treat_all[0].low)
    assert "stated" in curve.treat_all[0].note
    assert curve.gain[0].value == pytest.approx(curve.net_benefit[0].value - curve.treat_all[0].value)
    same = decision_curve(BY_HAND, "ill", thresholds=[0.25], prevalence=0.4)
    assert same.net_benefit[0].value == pytest.approx(
        decision_curve(BY_HAND, "ill", thresholds=[0.25]).net_benefit[0].value
    )


def test_adjusted_probabilities_treat_those_whose_odds_are_high_enough_there() -> None:
    # Odds of 0.3 / 0.7 at a prevalence of 0.4 are 0.3 / 0.7 * (1 / 9) * (6 / 4) = 1 / 14 at one of 0.1.
    at = [1 / 15 - 0.001, 1 / 15 + 0.001]
    curve = decision_curve(BY_HAND, "ill", thresholds=at, prevalence=0.1, adjust=True)
    expected = [3 / 4 * 0.1 - 2 / 6 * 0.9 * at[0] / (1 - at[0]), 2 / 4 * 0.1 - 1 / 6 * 0.9 * at[1] / (1 - at[1])]
    assert [e.value for e in curve.net_benefit] == pytest.approx(expected)


def test_intervals_hold_the_truth() -> None:
    at, share, held = [0.2, 0.5], 0.3, []
    sensitivity, false_alarms = (
        [1 - NormalDist(mean, math.sqrt(0.98)).cdf(math.log(t / (1 - t))) for t in at] for mean in (0.2, -1.3)
    )
    for seed in range(80):
        table = PredictionTable.read(draw_rows(np.random.default_rng(seed), 40, 2, share))
        held.append([])
        for stated, p in ((None, share), (0.1, 0.1)):
            curve = decision_curve(table, "ill", thresholds=at, prevalence=stated)
            for place, t in enumerate(at):
                benefit = sensitivity[place] * p - false_alarms[place] * (1 - p) * t / (1 - t)
                truths = {curve.net_benefit[place]: benefit, curve.gain[place]: benefit - p + (1 - p) * t / (1 - t)}
                held[-1] += [found.low <= truth <= found.high for found, truth in truths.items()]
    assert np.mean(held, axis=0).min() >= 0.91
    assert 0.94 <= np.mean(held) < 0.99


def test_a_curve_says_where_the_model_helps_and_where_it_harms() -> None:
    rng = np.random.default_rng(1)
    good = decision_curve(draw_rows(rng, 300, 1), "ill", thresholds=[0.02, 0.2, 0.3, 0.4])
    assert good.useful[-1] == (0.3, 0.4) or good.useful[-1] == (0.2, 0.4)
    assert good.harmful == []
    wrong = [row | {"probability_ill": 1 - row["probability_ill"]} for row in draw_rows(rng, 300, 1)]
    bad = decision_curve(wrong, "ill", thresholds=[0.02, 0.5, 0.7])
    assert bad.useful == []
    assert bad.harmful == [(0.5, 0.7)]


def test_where_nobody_is_treated_in_vain_the_interval_has_a_width() -> None:
    curve = decision_curve(BY_HAND, "ill", thresholds=[0.85])
    assert curve.net_benefit[0].value == pytest.approx(0.1)
    assert curve.net_benefit[0].low < 0 < curve.net_benefit[0].high


def test_a_class_that_no_image_shows_has_no_curve_at_another_prevalence() -> None:
    rows = [row | {"label": "well", "probability_well": 1 - row["probability_ill"]} for row in BY_HAND]
    (estimate,) = decision_curve(rows, "ill", thresholds=[0.5], prevalence=0.2).net_benefit
    assert math.isnan(estimate.value)
    assert estimate.note == "no image is of the class"


@pytest.mark.parametrize("wrong", [{"thresholds": [0, 0.5]}, {"thresholds": []}, {"prevalence": 1.0}])
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\)"):
        decision_curve(BY_HAND, "ill", **wrong)


def test_every_class_has_a_curve_and_the_positive_one_those_of_stated_prevalences() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"image_id": str(n), "label": "abc"[n % 3], **{f"probability_{c}": v for c, v in zip("abc", p, strict=True)}}
        for n, p in enumerate(rng.dirichlet([1, 1, 1], 90))
    ]
    part = score_decisions(PredictionTable.read(rows), positive=1, prevalences=[0.02, 0.5])
    assert part is not None
    assert [(c.class_name, c.stated) for c in part.curves] == [
        ("b", False), ("b", True), ("b", True), ("a", False), ("c", False)
    ]  # fmt: skip
    (section,) = sections_of(part)
    assert section.title == "Decision curves"
    assert "prevalence 2.0%" in section.blocks[1].text  # type: ignore[union-attr]
    figure = plot_decision_curves(part.curves)
    assert len(figure.axes) == 5
    drawn = figure.axes[1].lines[0].get_xydata()
    assert drawn[9].tolist() == [0.1, part.curves[1].net_benefit[9].value]


def test_the_command_takes_several_prevalences_and_writes_every_number(tmp_path: Path) -> None:
    write_rows(draw_rows(np.random.default_rng(0), 60, 1), tmp_path / "rows.csv")
    words = [str(tmp_path / "rows.csv"), "--positive", "ill", "--prevalence", "0.1", "--prevalence", "0.2"]
    assert main(["evaluate", *words, "--resamples", "20", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["point"]["prevalence"] == 0.1
    curves = report["decisions"]["curves"]
    assert [curve["prevalence"] for curve in curves[1:]] == [0.1, 0.2]
    assert len(curves[0]["thresholds"]) == len(curves[0]["net_benefit"]) == 99
    assert set(curves[0]["net_benefit"][0]) == {"value", "low", "high", "count", "patients"}
