"""Scores with patient-clustered confidence intervals, calibration, audits of data and models, and reports."""

from __future__ import annotations

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap, bootstrap_many
from covidcxr.evaluation.metrics.classification import classification_metrics, finding_metrics
from covidcxr.evaluation.metrics.comparison import compare_rows, unpaired_difference
from covidcxr.evaluation.metrics.conformal import conformal_threshold, conformal_thresholds, score_sets
from covidcxr.evaluation.metrics.operating_point import (
    DecisionCurve,
    OperatingPoint,
    choose_point,
    choose_threshold,
    decision_curve,
    predictive_values,
    score_at,
)
from covidcxr.evaluation.metrics.reliability import (
    Reliability,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    measure_reliability,
)
from covidcxr.evaluation.metrics.sample_size import SampleSize, StudyDesign
from covidcxr.evaluation.metrics.segmentation import (
    dice_score,
    iou_score,
    precision_score,
    recall_score,
    segmentation_metrics,
)
from covidcxr.evaluation.metrics.weighted import (
    weighted_auroc,
    weighted_average_precision,
    weighted_calibration_error,
    weighted_confusion,
    weighted_mean,
)
from covidcxr.evaluation.predictions.table import read_rows, score_rows
from covidcxr.transforms.geometry import hd95

__all__ = [
    "Estimate",
    "bootstrap",
    "bootstrap_many",
    "weighted_mean",
    "weighted_auroc",
    "weighted_average_precision",
    "weighted_calibration_error",
    "weighted_confusion",
    "classification_metrics",
    "finding_metrics",
    "segmentation_metrics",
    "score_rows",
    "read_rows",
    "compare_rows",
    "unpaired_difference",
    "OperatingPoint",
    "choose_point",
    "choose_threshold",
    "score_at",
    "predictive_values",
    "DecisionCurve",
    "decision_curve",
    "StudyDesign",
    "SampleSize",
    "dice_score",
    "iou_score",
    "precision_score",
    "recall_score",
    "hd95",
    "calibrate",
    "fit_temperature",
    "expected_calibration_error",
    "conformal_threshold",
    "conformal_thresholds",
    "score_sets",
    "Reliability",
    "measure_reliability",
]
