"""Models that are small enough to be built for every test: networks of our own, at 32 pixels."""

from __future__ import annotations

from typing import Any

import torch

from covidcxr import ClassificationModel, ModelConfig, Pipeline, PreprocessConfig, SegmentationModel
from covidcxr.transforms.pyramid import NOT_A_FRONTAL_IMAGE, UPRIGHT

CLASSES = ("covid19", "normal", "pneumonia")
VIEWS = (UPRIGHT.name, "turned-90", NOT_A_FRONTAL_IMAGE)


def tiny_segmenter(*classes: str, **preprocess: Any) -> SegmentationModel:
    """A segmenter that predicts half of an image or so."""
    torch.manual_seed(len(classes))
    settings = PreprocessConfig(image_size=(32, 32), **preprocess)
    arguments = {"depth": 2, "width": 8}
    return SegmentationModel(
        ModelConfig("segmentation", "residual_unet", classes, "multilabel", arguments, settings)
    ).eval()


def tiny_classifier(classes: tuple[str, ...] = CLASSES, **preprocess: Any) -> ClassificationModel:
    """A linear classifier on gradient histograms."""
    torch.manual_seed(1)
    settings = PreprocessConfig(image_size=(32, 32), **preprocess)
    arguments = {"cell": 8, "side": 32, "thumbnail": 4}
    return ClassificationModel(ModelConfig("classification", "hog", classes, "multiclass", arguments, settings)).eval()


def tiny_gate() -> ClassificationModel:
    """A view check that accepts every image as upright."""
    gate = tiny_classifier(VIEWS)
    with torch.no_grad():
        gate.network.head[1].bias += torch.tensor([100.0, 0.0, 0.0])
    return gate


def tiny_pipeline(**parts: Any) -> Pipeline:
    """A pipeline of all four parts; each can be given, or left out by None."""
    made = {
        "gate": tiny_gate(),
        "lung_segmenter": tiny_segmenter("lung_field", "lung"),
        "infection_segmenter": tiny_segmenter("infection"),
        "classifier": tiny_classifier(region="lungs"),
        "min_lung_area": 0.0,
    }
    return Pipeline(**{**made, **parts})
