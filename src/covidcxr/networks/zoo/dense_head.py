"""Networks whose features are flattened, not averaged: built for one image size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from covidcxr.errors import ConfigError

__all__ = ["DenseHeadNetwork"]


class DenseHeadNetwork(nn.Module):
    """A backbone, its features flattened, and dense layers with ReLU between them.

    Args:
        backbone: Films to features [batch, channels, rows, columns].
        features: Channels, rows and columns of the features.
        hidden: Outputs of the dense layers before the answering one.
        num_classes: Number of outputs.
        image_size: Height and width of the films that give these features.

    Raises:
        ConfigError: If nothing is left of films of this size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: tuple[int, int, int],
        hidden: Sequence[int],
        num_classes: int,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        channels, rows, columns = features
        if not (rows and columns):
            raise ConfigError(f"Nothing is left of films of {image_size} after all strides: use a larger image_size.")
        self.image_size = tuple(image_size)
        self.backbone = backbone
        self.head = nn.Sequential(nn.Flatten())
        for given, made in pairwise((channels * rows * columns, *hidden)):
            self.head.extend((nn.Linear(given, made), nn.ReLU()))
        self.head.append(nn.Linear(hidden[-1], num_classes))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [batch, outputs].

        Raises:
            ConfigError: If the films do not have the size that the network was built for.
        """
        if (size := tuple(image.shape[-2:])) != self.image_size:
            raise ConfigError(
                f"This network was built for films of {self.image_size}, not {size}: build it with that image_size."
            )
        return cast(Tensor, self.head(self.backbone(image)))
