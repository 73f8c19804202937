"""Pictures of scores show the numbers that they should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from covidcxr.errors import ConfigError
from covidcxr.evaluation import Estimate
from covidcxr.evaluation.plots import (
    draw_comparison,
    draw_run,
    plot_confusion,
    plot_curves,
    plot_history,
    plot_panels,
    plot_precision_recall,
    plot_roc,
)
from covidcxr.evaluation.predictions import PredictionTable

ROWS = [
    {"label": label, "probability_ill": ill, "probability_well": 1 - ill}
    for label, ill in (("ill", 0.9), ("ill", 0.4), ("well", 0.6), ("well", 0.2), ("well", 0.2))
]


def test_the_roc_curve_goes_through_the_rates_of_every_threshold() -> None:
    chance, curve = plot_roc(ROWS).axes[0].lines
    assert chance.get_xydata().tolist() == [[0, 0], [1, 1]]
    # "well" against the rest, from the highest down: 2 of 3 found, then one of 2 false alarms, then the third.
    assert curve.get_xydata() == pytest.approx(np.array([[0, 0], [0, 2 / 3], [0.5, 2 / 3], [0.5, 1], [1, 1]]))
    assert curve.get_label() == "well"


def test_the_precision_recall_curve_has_no_point_that_no_threshold_gives() -> None:
    curve, guessing = plot_precision_recall(ROWS).axes[0].lines
    expected = {(1.0, 0.6), (1.0, 0.75), (2 / 3, 2 / 3), (2 / 3, 1.0)}
    assert {tuple(np.round(point, 6)) for point in curve.get_xydata()} == {tuple(np.round(p, 6)) for p in expected}
    assert set(guessing.get_ydata()) == {0.6}


def test_rows_and_a_table_read_before_give_the_same_confusion_matrix() -> None:
    for rows in (ROWS, PredictionTable.read(ROWS)):
        texts = [text.get_text() for text in plot_confusion(rows).axes[0].texts]
        assert texts == ["50%\n1", "50%\n1", "33%\n1", "67%\n2"]


def test_one_probability_column_is_enough() -> None:
    rows = [{"label": row["label"], "probability_ill": row["probability_ill"]} for row in ROWS]
    (curve,) = plot_roc(rows).axes[0].lines[1:]
    assert curve.get_label() == "ill"


@pytest.mark.parametrize("draw", [plot_confusion, plot_roc, plot_precision_recall])
def test_findings_have_no_picture_of_exclusive_classes(draw: object) -> None:
    with pytest.raises(ConfigError, match="label"):
        draw([{"label_ill": 1, "probability_ill": 0.9}])  # type: ignore[operator]


def test_a_class_without_images_has_no_curve() -> None:
    table = PredictionTable.read([{**row, "label": "ill"} for row in ROWS])
    assert plot_curves(table, [0, 1]) is None


def test_the_operating_point_is_marked() -> None:
    figure = plot_curves(PredictionTable.read(ROWS), [0], (0.5, 0.8, 0.7))
    assert figure is not None
    left, right = figure.axes
    assert left.lines[-1].get_xydata().tolist() == [[0.5, 0.8]]
    assert right.lines[-1].get_xydata().tolist() == [[0.8, 0.7]]


def test_learning_curves_leave_out_what_was_not_logged() -> None:
    epochs = [{"epoch": 0, "train/loss": 0.9, "val/loss": 1.0, "lr": 0.1}, {"epoch": 1, "train/loss": 0.5}]
    (axis,) = plot_history(epochs).axes
    drawn = [line.get_xydata().tolist() for line in axis.lines if len(line.get_xdata())]
    assert drawn == [[[1, 0.9], [2, 0.5]], [[1, 1.0]]]
    with pytest.raises(ConfigError, match="no epoch"):
        plot_history([])


def test_panels_draw_what_is_defined_from_the_top() -> None:
    scores = {"first": {"dice": Estimate(0.7, 0.6, 0.8, 9, 9)}, "second": {"dice": Estimate(float("nan"), 0, 1, 0, 0)}}
    (axis,) = plot_panels(scores, {"dice": "Dice"}).axes
    interval, value = axis.lines
    assert interval.get_xydata().tolist() == [[0.6, 0], [0.8, 0]]
    assert value.get_xydata().tolist() == [[0.7, 0]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]


def test_a_run_without_classes_has_learning_curves_only(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "history.json").write_text(json.dumps([{"epoch": 0, "val/dice": 0.5}]))
    (tmp_path / "predictions.csv").write_text("image_id,dice_lung\n1,0.9\n")
    draw_run(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["learning_curves.png"]


def test_compared_runs_without_an_interval_are_drawn(tmp_path: Path) -> None:
    one_patient = Estimate(0.7, float("nan"), float("nan"), 1, 1).to_dict()
    draw_comparison({"run": {"dice_lung": one_patient}}, ["dice_lung"], tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    assert str(Estimate.from_dict(one_patient)) == "0.700 (no interval)"
