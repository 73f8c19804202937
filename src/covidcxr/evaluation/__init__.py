"""Scores with their doubt: every number carries a patient-clustered interval, and probabilities are calibrated."""

from __future__ import annotations

from covidcxr.evaluation.calibration import conformal_threshold, expected_calibration_error, fit_temperature
from covidcxr.evaluation.intervals import Estimate, bootstrap, bootstrap_many
from covidcxr.evaluation.metrics import (
    classification_metrics,
    dice_score,
    iou_score,
    segmentation_metrics,
    weighted_auroc,
    weighted_confusion,
    weighted_mean,
)
from covidcxr.evaluation.rows import calibrate, score_rows

__all__ = [
    "Estimate",
    "bootstrap",
    "bootstrap_many",
    "weighted_mean",
    "weighted_auroc",
    "weighted_confusion",
    "classification_metrics",
    "segmentation_metrics",
    "score_rows",
    "dice_score",
    "iou_score",
    "calibrate",
    "fit_temperature",
    "expected_calibration_error",
    "conformal_threshold",
]
