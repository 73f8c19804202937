"""Models: a network with its preprocessing, its class names and a saved format. Pure PyTorch, no Lightning."""

from __future__ import annotations

import os

from covidcxr import hub
from covidcxr.models.base import CXRModel
from covidcxr.models.classification import ClassificationModel
from covidcxr.models.segmentation import SegmentationModel
from covidcxr.types import TaskName

__all__ = ["CXRModel", "SegmentationModel", "ClassificationModel", "load_model"]


def load_model(
    source: str | os.PathLike[str], *, prefer: TaskName = "classification"
) -> SegmentationModel | ClassificationModel:
    """Load a saved model of either kind; see `CXRModel.from_pretrained`.

    Args:
        source: A folder, bundled name or Hub repository that holds one model, or a pipeline.
        prefer: The kind to take out of a pipeline.

    Raises:
        PretrainedError: If it cannot be found, is damaged or altered, or is newer than this release.
        ConfigError: If its config has an unknown key or a wrong value.
    """
    folder = hub.fetch(source)
    single = not (folder / "pipeline.json").is_file()
    task = hub.read_json(folder / "config.json").get("task") if single else prefer
    kind = SegmentationModel if task == SegmentationModel.task else ClassificationModel
    return kind.from_pretrained(folder)
