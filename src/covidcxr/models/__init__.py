"""Models: a network with its preprocessing, its class names and a saved format. Pure PyTorch, no Lightning."""

from covidcxr.models.base import CXRModel
from covidcxr.models.classification import ClassificationModel
from covidcxr.models.segmentation import SegmentationModel

__all__ = ["CXRModel", "SegmentationModel", "ClassificationModel"]
