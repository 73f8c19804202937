"""A network small enough for the ward's computer."""

from __future__ import annotations

from torch import Tensor, nn


class WardNet(nn.Module):
    """Three convolutions and a linear layer.

    Args:
        in_channels: Channels of the input.
        num_classes: Number of outputs.
        width: Channels of the convolutions.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, width, width):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [batch, num_classes]."""
        return self.head(self.backbone(image).mean((2, 3)))
