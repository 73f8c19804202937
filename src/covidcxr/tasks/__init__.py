"""Tasks: the `LightningModule`s that train a model."""

from covidcxr.tasks.base import Task
from covidcxr.tasks.classification import ClassificationTask
from covidcxr.tasks.segmentation import SegmentationTask

__all__ = ["Task", "SegmentationTask", "ClassificationTask"]
