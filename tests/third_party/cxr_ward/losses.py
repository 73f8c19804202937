"""Losses that square the error."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import one_hot


class Brier(nn.Module):
    """Squared error of the probabilities (Brier 1950).

    Args:
        scale: What the error is multiplied by.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over images and classes."""
        truth = one_hot(target, logits.shape[1])
        return self.scale * (logits.float().softmax(1) - truth).square().mean()


class Squared(nn.Module):
    """Squared error of each pixel."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over all pixels."""
        return (logits.float().sigmoid() - target).square().mean()
