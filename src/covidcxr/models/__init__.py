"""Models: a network with its preprocessing, its class names and a saved format. Pure PyTorch, no Lightning."""

from __future__ import annotations

import os

from covidcxr.io import pretrained
from covidcxr.models.base import CXRModel, model_folder
from covidcxr.models.classification import ClassificationModel, Classifier, EnsembleModel
from covidcxr.models.network import NetworkModel
from covidcxr.models.segmentation import SegmentationModel
from covidcxr.types import TaskName

__all__ = [
    "CXRModel",
    "NetworkModel",
    "Classifier",
    "SegmentationModel",
    "ClassificationModel",
    "EnsembleModel",
    "load_model",
]


def load_model(
    source: str | os.PathLike[str], *, prefer: TaskName = "classification"
) -> SegmentationModel | ClassificationModel | EnsembleModel:
    """Load a saved model of any kind; see `CXRModel.from_pretrained`.

    Args:
        source: A folder, bundled name or Hub repository that holds one model, or a pipeline.
        prefer: The kind to take out of a pipeline.

    Returns:
        The model, in evaluation mode.

    Raises:
        PretrainedError: If it cannot be found, is damaged or altered, or is newer than this release.
        ConfigError: If its config has an unknown key or a wrong value.
    """
    folder = model_folder(pretrained.fetch(source), prefer)
    config = pretrained.read_json(folder / "config.json")
    if config.get("task") == SegmentationModel.task:
        return SegmentationModel.from_pretrained(folder)
    return (EnsembleModel if "members" in config else ClassificationModel).from_pretrained(folder)
