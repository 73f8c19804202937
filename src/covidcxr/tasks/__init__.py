"""Tasks: the `LightningModule`s that train a model, and what they share with other ways to train and score."""

from covidcxr.tasks.base import SingleTask, Task
from covidcxr.tasks.classification import ClassificationTask, fit_boosting
from covidcxr.tasks.multitask import MultiTask
from covidcxr.tasks.rows import PredictionWriter, predict_rows
from covidcxr.tasks.segmentation import SegmentationTask

__all__ = [
    "Task",
    "SingleTask",
    "SegmentationTask",
    "ClassificationTask",
    "MultiTask",
    "PredictionWriter",
    "fit_boosting",
    "predict_rows",
]
