"""The small network of 422,177 parameters."""

from __future__ import annotations

from torch import nn

from covidcxr.networks.zoo.dense_head import DenseHeadNetwork
from covidcxr.registry import CLASSIFICATION_NETWORKS

__all__ = ["covidcnn2021"]


@CLASSIFICATION_NETWORKS.register("covidcnn2021")
def covidcnn2021(
    in_channels: int, num_classes: int, *, image_size: tuple[int, int], dropout: float = 0.25
) -> nn.Module:
    """Build two convolutions of stride 3 and two dense layers, for one image size.

    For films of 256x256 in three channels and one output these are the 422,177 parameters of the student project
    "Covid-19 detection with X-Ray images" (2021). It tells the layers, their sizes and strides; the activation (ReLU
    here) and the rate of its two dropouts it does not.

    Args:
        in_channels: Channels of the input; 3 in the original.
        num_classes: Number of outputs; 1 in the original.
        image_size: Height and width of the input; (256, 256) in the original.
        dropout: Fraction of the features dropped after each pooling, in [0, 1].

    Raises:
        ConfigError: If nothing is left of films of this size.
    """
    backbone = nn.Sequential(
        *(nn.Conv2d(in_channels, 64, 3, stride=3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)),
        *(nn.Conv2d(64, 32, 3, stride=3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)),
    )
    rows, columns = (side // 3 // 2 // 3 // 2 for side in image_size)
    return DenseHeadNetwork(backbone, (32, rows, columns), (256,), num_classes, image_size)
