"""A U-Net of residual blocks."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from covidcxr.errors import ConfigError
from covidcxr.registry import SEGMENTATION_NETWORKS

__all__ = ["ResidualUNet"]


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a 1x1 shortcut (He 2016, arXiv:1603.05027)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *(nn.BatchNorm2d(in_channels), nn.ReLU(), _convolution(in_channels, out_channels)),
            *(nn.BatchNorm2d(out_channels), nn.ReLU(), _convolution(out_channels, out_channels)),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features [batch, out_channels, height, width]."""
        return cast(Tensor, self.shortcut(features) + self.residual(features))


class _Encoder(nn.Module):
    """Returns the features of every level, the finest first."""

    def __init__(self, in_channels: int, widths: list[int]) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, widths[0])
        self.levels = nn.ModuleList(map(_ResidualBlock, [widths[0], *widths], widths))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.levels[0](self.stem(image))]
        for level in self.levels[1:]:
            # Pooled, not by strides: oneDNN writes past its memory where a 1x1 convolution with strides has fewer
            # than 16 channels (oneDNN issue 6035).
            features.append(level(F.max_pool2d(features[-1], 2)))
        return features


_DEEPEST = 12
"""An image of the largest size is one pixel then."""


@SEGMENTATION_NETWORKS.register("residual_unet")
class ResidualUNet(nn.Module):
    """U-Net (Ronneberger 2015) of residual blocks (Zhang 2018, arXiv:1711.10684), for any image size.

    Images are padded at the right and at the bottom, by repeating their edge, to a size that can be halved often
    enough, and the logits are cropped again.

    Args:
        in_channels: Channels of the input.
        num_classes: Number of mask classes.
        width: Channels at full size; they double at every halving. Zhang's network has 64.
        depth: How often the size is halved, in [1, 12]. Zhang's network has 3.

    Raises:
        ConfigError: If width or depth is out of range.

    Example:
        ```python
        import torch
        from covidcxr.networks.zoo.residual_unet import ResidualUNet

        network = ResidualUNet(in_channels=1, num_classes=2, width=2, depth=2)
        assert network(torch.rand(1, 1, 33, 30)).shape == (1, 2, 33, 30)
        ```
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 8, depth: int = 5) -> None:
        super().__init__()
        if width < 1 or not 1 <= depth <= _DEEPEST:
            raise ConfigError(
                f"residual_unet needs a width of 1 or more and a depth of 1 to {_DEEPEST}, not {width} and {depth}."
            )
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = _Encoder(in_channels, widths)
        self.decoder = nn.ModuleList(_ResidualBlock(3 * made, made) for made in reversed(widths[:-1]))
        self.segmentation_head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1))
        self.stride = 2**depth

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        """Compute logits.

        Args:
            image: Normalised images of any size.

        Returns:
            Logits of the masks, at the size of the images.
        """
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        *finer, features = self.encoder(padded)
        for block, skipped in zip(self.decoder, reversed(finer), strict=True):
            features = block(torch.cat([F.interpolate(features, scale_factor=2.0), skipped], dim=1))
        return cast(Tensor, self.segmentation_head(features)[..., :height, :width])


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
