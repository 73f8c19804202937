"""Losses by name (`"dice"`, `"dice+bce+focal"`), each checked against an independent reference.

A loss of one's own is three lines: a module whose `forward(logits, target)` returns a scalar.

    @SEGMENTATION_LOSSES.register("squared")
    class Squared(torch.nn.Module):
        def forward(self, logits, target): return (logits.sigmoid() - target).square().mean()
"""

from __future__ import annotations

from covidcxr.losses.classification import BCELoss, CrossEntropyLoss, FocalLoss, LabelSmoothingLoss
from covidcxr.losses.combine import CombinedLoss, build_classification_loss, build_loss, build_segmentation_loss
from covidcxr.losses.segmentation import (
    DiceLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszLoss,
    PixelBCELoss,
    PixelFocalLoss,
    TverskyLoss,
    known_planes,
)
from covidcxr.registry import CLASSIFICATION_LOSSES, SEGMENTATION_LOSSES

__all__ = [
    "SEGMENTATION_LOSSES",
    "CLASSIFICATION_LOSSES",
    "build_loss",
    "build_segmentation_loss",
    "build_classification_loss",
    "CombinedLoss",
    "known_planes",
    "PixelBCELoss",
    "PixelFocalLoss",
    "TverskyLoss",
    "DiceLoss",
    "JaccardLoss",
    "FocalTverskyLoss",
    "LovaszLoss",
    "BCELoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "LabelSmoothingLoss",
]
