"""A plain network of 19 layers."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from covidcxr.errors import ConfigError
from covidcxr.registry import CLASSIFICATION_NETWORKS

__all__ = ["CNN19"]


@CLASSIFICATION_NETWORKS.register("cnn19")
class CNN19(nn.Module):
    """A plain convolutional network of 19 layers: 18 convolutions and one dense layer, for any image size from 32 up.

    Song 2023 ("A design of Convolutional Neural Network model for the Diagnosis of the COVID-19") compares "a 19-layer
    CNN" with VGG19 and others. Of that text only the number of layers is known here, so the
    layers are ours: counted as VGG19's, those with weights; 3x3 convolutions with batch norm and ReLU in six stages of
    three, max pooling between the stages, and the mean over the last features before the dense layer.

    Args:
        in_channels: Channels of the input.
        num_classes: Number of outputs.
        width: Channels of the first stage; they double until the fifth.
        dropout: Fraction of features dropped before the dense layer, in [0, 1].

    Raises:
        ConfigError: If the width is below 1.

    Example:
        ```python
        import torch
        from covidcxr.networks.zoo.cnn19 import CNN19

        network = CNN19(in_channels=1, num_classes=3, width=2).eval()
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, 3)
        ```
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 16, dropout: float = 0.25) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"cnn19 needs a width of 1 or more, not {width}.")
        self.backbone = nn.Sequential()
        channels = in_channels
        for stage in range(6):
            if stage:
                self.backbone.append(nn.MaxPool2d(2))
            for _ in range(3):
                made = width * 2 ** min(stage, 4)
                self.backbone.extend(_convolution(channels, made))
                channels = made
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute logits.

        Args:
            image: Normalised images of 32 pixels a side or more.

        Returns:
            Logits of the classes.
        """
        return cast(Tensor, self.head(self.backbone(image).mean((2, 3))))


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
