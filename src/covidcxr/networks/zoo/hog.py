"""Linear models: of histograms of oriented gradients and a thumbnail, and of what a pretrained backbone sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError, did_you_mean
from covidcxr.networks.weights import (
    REFUSALS,
    copy_backbone,
    installed_weights,
    package_cure,
    read_weights,
    weights_error,
)
from covidcxr.registry import CLASSIFICATION_NETWORKS

__all__ = ["HOG", "StagePool"]

_CLIP = 0.2
"""Where Lowe 2004 and Dalal 2005 cut off a normalised histogram, so that one strong edge does not silence the rest."""


@CLASSIFICATION_NETWORKS.register("hog")
class HOG(nn.Module):
    """A linear model of histograms of oriented gradients (Dalal and Triggs 2005) and of a thumbnail of the image.

    With its few thousand weights it cannot learn what a convolutional network learns of a scanner, so it is the
    baseline that a network must beat on images of a source that it has not seen. It wants strong weight decay.

    Args:
        in_channels: Channels of the input; their mean is taken.
        num_classes: Number of outputs.
        side: Height and width to which the input is averaged first, in pixels; a multiple of `cell`.
        cell: Side of the square whose gradients make one histogram, in pixels.
        orientations: Bins of a histogram, over half a turn.
        thumbnail: Height and width of the thumbnail, in pixels, a multiple of `side // cell`; 0 = none.

    Raises:
        ConfigError: If a number is out of range.

    Example:
        ```python
        import torch
        from covidcxr.networks.zoo.hog import HOG

        network = HOG(in_channels=1, num_classes=3, side=32, cell=8, thumbnail=8).eval()
        assert network(torch.rand(2, 1, 64, 48)).shape == (2, 3)
        ```
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        side: int = 128,
        cell: int = 16,
        orientations: int = 9,
        thumbnail: int = 32,
    ) -> None:
        super().__init__()
        cells = cell > 1 and side // cell
        if not cells or side % cell or cells < 2 or orientations < 1 or thumbnail < 0 or thumbnail % cells:
            raise ConfigError(
                f"hog needs a cell of 2 or more, a side that is two cells or more and a multiple of it, orientations "
                f"of 1 or more and a thumbnail of 0 or a multiple of the number of cells in a row; not cell={cell}, "
                f"side={side}, orientations={orientations}, thumbnail={thumbnail}."
            )
        self.side, self.thumbnail = side, thumbnail
        self.backbone = _Histograms(cell, orientations)
        features = 4 * orientations * (cells - 1) ** 2 + thumbnail**2
        self.head = nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, num_classes))
        self.evidence = _Evidence(cells, thumbnail)

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute logits.

        Args:
            image: Images of any size.

        Returns:
            Logits of the classes.
        """
        grey = image.mean(1, keepdim=True)
        features = [_normalized_blocks(self.backbone(F.adaptive_avg_pool2d(grey, self.side)))]
        if self.thumbnail:
            features.append(F.adaptive_avg_pool2d(grey, self.thumbnail).flatten(1))
        norm, linear = self.head
        evidence: Tensor = self.evidence(norm(torch.cat(features, 1)), linear.weight)
        return evidence.sum((2, 3)) + cast(Tensor, linear.bias)


class _Histograms(nn.Module):
    """Of each square cell, how strong the gradients are in each direction."""

    def __init__(self, cell: int, orientations: int) -> None:
        super().__init__()
        self.cell, self.orientations = cell, orientations

    def forward(self, image: Float[Tensor, "batch 1 side side"]) -> Float[Tensor, "batch orientations rows columns"]:
        """Return the histograms."""
        wide = F.pad(image, (1, 1, 1, 1), mode="replicate")
        down = wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
        right = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]
        strength = (down**2 + right**2).clamp_min(1e-12).sqrt()
        turn = torch.atan2(down.detach(), right.detach()) / math.pi % 1.0
        direction = (turn * self.orientations).long() % self.orientations
        planes = [F.avg_pool2d(strength * (direction == place), self.cell) for place in range(self.orientations)]
        return torch.cat(planes, 1)


class _Evidence(nn.Module):
    """How much each place adds to each class: the terms of the linear model, summed cell by cell.

    A module of its own, with a map as its output, so that Grad-CAM has a layer whose sum over places gives the logits.
    """

    def __init__(self, cells: int, thumbnail: int) -> None:
        super().__init__()
        self.cells, self.thumbnail = cells, thumbnail

    def forward(
        self, features: Float[Tensor, "batch features"], weight: Float[Tensor, "classes features"]
    ) -> Float[Tensor, "batch classes rows columns"]:
        """Return the evidence, up to the bias."""
        spans, pixels = self.cells - 1, self.thumbnail**2
        blocks, greys = torch.split(features, [features.shape[1] - pixels, pixels], 1)
        of_blocks, of_greys = torch.split(weight, [features.shape[1] - pixels, pixels], 1)
        images, classes = len(features), len(weight)
        by_block = torch.einsum(
            "bfyx,kfyx->bkyx",
            blocks.reshape(images, -1, spans, spans),
            of_blocks.reshape(classes, -1, spans, spans),
        )
        shares = F.pad(by_block, (1, 1, 1, 1)) / 4  # a block lies on four cells
        evidence = sum(shares[..., y : y + self.cells, x : x + self.cells] for y in (0, 1) for x in (0, 1))
        if pixels:
            terms = (greys[:, None] * of_greys).view(images, classes, self.thumbnail, self.thumbnail)
            side = self.thumbnail // self.cells
            evidence = evidence + F.avg_pool2d(terms, side) * side**2
        return cast(Tensor, evidence)


def _normalized_blocks(cells: Float[Tensor, "batch orientations rows columns"]) -> Float[Tensor, "batch features"]:
    """Put each two by two cells side by side, and bring every such block to length 1 (L2-Hys: clipped, then again)."""
    blocks = torch.stack([cells[..., y : y - 1 or None, x : x - 1 or None] for y in (0, 1) for x in (0, 1)], 1)
    blocks = F.normalize(blocks.flatten(1, 2), dim=1)
    return F.normalize(blocks.clamp_max(_CLIP), dim=1).flatten(1)


@CLASSIFICATION_NETWORKS.register("stage_pool")
class StagePool(nn.Module):
    """A linear model of the mean of each channel at some stages of a timm network.

    Train it with `pretrained_backbone: true` and `freeze_backbone: true`: then all that is learnt are a few hundred
    weights a class (a linear probe, Alain and Bengio 2016, https://arxiv.org/abs/1610.01644). That leaves little room
    for what marks a source, and generalises to new sources better than a network that is trained as a whole on few
    images. It wants weight decay.

    Args:
        in_channels: Channels of the input; pretrained weights for colour are summed for one.
        num_classes: Number of outputs.
        backbone: Name of a timm network.
        stages: Which of its stages count, 0 = the first, which halves the image; each one halves it again.
        side: Height and width to which the input is brought first, in pixels; null = as it is.
        pretrained: True for ImageNet weights that are installed (extra `imagenet`), or the path of a weights file.

    Raises:
        UnknownNameError: If timm has no such network.
        ConfigError: If it has no such stages, or `side` is too small.
        PretrainedError: If pretrained weights cannot be had.

    Example:
        ```python
        import torch
        from covidcxr.networks.zoo.hog import StagePool

        network = StagePool(1, 3, backbone="mobilenetv3_small_050", stages=(1, 2), side=64).eval()
        assert network(torch.rand(2, 1, 80, 80)).shape == (2, 3)
        ```
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        backbone: str = "tf_efficientnet_lite0",
        stages: Sequence[int] = (2, 3, 4),
        side: int | None = None,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        if side is not None and side < 32:
            raise ConfigError(f"stage_pool needs a side of 32 pixels or more, or null, not {side!r}.")
        self.side = side
        self.backbone = _build_backbone(backbone, in_channels, stages)
        features = sum(cast(Any, self.backbone).feature_info.channels())
        self.head = nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, num_classes))
        if pretrained:
            _load_backbone(self.backbone, backbone, pretrained)

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute logits.

        Args:
            image: Images of any size.

        Returns:
            Logits of the classes.
        """
        if self.side is not None and image.shape[-2:] != (self.side, self.side):
            image = F.interpolate(image, size=(self.side, self.side), mode="bilinear", antialias=True)
        maps: list[Tensor] = self.backbone(image)
        return cast(Tensor, self.head(torch.cat([values.mean((2, 3)) for values in maps], 1)))


def _build_backbone(name: str, in_channels: int, stages: Sequence[int]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no network {name!r}. {did_you_mean(name, timm.list_models())[:300]}")
    try:
        network: nn.Module = timm.create_model(
            name, features_only=True, out_indices=tuple(stages), in_chans=in_channels
        )
    except (*REFUSALS, AssertionError) as error:
        raise ConfigError(f"timm's {name!r} has no stages {list(stages)!r}: {error}") from error
    return network


def _load_backbone(network: nn.Module, name: str, pretrained: bool | str) -> None:
    import timm

    tensors = read_weights(name, pretrained) if isinstance(pretrained, str) else installed_weights(name)
    if tensors is None:
        raise weights_error(name, True, "they are not installed", package_cure(name))
    with torch.device("meta"):
        surplus = list(timm.create_model(name).state_dict())
    try:
        copy_backbone(network, tensors, surplus=surplus)
    except CovidCXRError as error:
        raise weights_error(name, pretrained, error) from error
