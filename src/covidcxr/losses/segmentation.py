"""Losses on masks: logits [batch, classes, height, width] against 0 or 1, every class a problem of its own.

Classes may overlap (a lung holds its infection), so nothing here is a softmax. Overlap losses are means over
image and class: segmentation_models_pytorch takes one overlap over the whole batch and gives 0 for an empty
target whatever was predicted, which is why they are written here.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from covidcxr.errors import ConfigError
from covidcxr.registry import SEGMENTATION_LOSSES
from covidcxr.utils.plain import is_number

__all__ = [
    "known_planes",
    "PixelBCELoss",
    "PixelFocalLoss",
    "TverskyLoss",
    "DiceLoss",
    "JaccardLoss",
    "FocalTverskyLoss",
    "LovaszLoss",
    "check_number",
    "focal_term",
]


Maps: TypeAlias = Float[Tensor, "batch classes height width"]
"""Logits of any float type, or masks of 0 and 1."""


def known_planes(
    logits: Maps, target: Maps
) -> tuple[Float[Tensor, "planes 1 height width"], Float[Tensor, "planes 1 height width"]]:
    """Keep the planes (one class of one image) whose target is known, so that no loss ever sees NaN.

    Args:
        logits: What the network says, any float type.
        target: 0 or 1; a plane with NaN in it is unknown for its image.

    Returns:
        Logits (float32) and target of the known planes, in the order image by image. There may be none (a batch
        of images without any mask): most losses are NaN on nothing, so the caller must skip the loss then.

    Raises:
        ConfigError: If the two shapes differ.
    """
    logits, target = _same_shape(logits, target)
    known = ~target.flatten(2).isnan().any(2)
    return logits[known].unsqueeze(1), target[known].unsqueeze(1)


@SEGMENTATION_LOSSES.register("bce")
class PixelBCELoss(nn.Module):
    """Binary cross entropy, mean over pixels (torch's).

    Args:
        pos_weight: How many times a pixel inside the mask counts against one outside; from 0 up.

    Example:
        ```python
        import torch

        from covidcxr.losses import PixelBCELoss

        loss = PixelBCELoss()(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        assert abs(float(loss) - 0.6931) < 1e-4  # log 2
        ```
    """

    pos_weight: Tensor

    def __init__(self, *, pos_weight: float = 1.0) -> None:
        super().__init__()
        weight = torch.tensor(check_number("pos_weight", pos_weight))
        self.register_buffer("pos_weight", weight, persistent=False)

    def forward(self, logits: Maps, target: Maps) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: [batch, classes, height, width].
            target: Masks of 0 and 1, same shape.

        Returns:
            A scalar, from 0 up.
        """
        logits, target = _same_shape(logits, target)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.pos_weight)


@SEGMENTATION_LOSSES.register("focal")
class PixelFocalLoss(nn.Module):
    """Focal loss, computed pixel by pixel, mean over pixels (Lin 2017, "Focal loss for dense object detection").

    Args:
        alpha: Weight of pixels inside the mask, `1 - alpha` outside, in [0, 1]; None = no weighting.
        gamma: How strongly easy pixels are played down; 0 is plain cross entropy.

    Example:
        ```python
        import torch

        from covidcxr.losses import PixelBCELoss, PixelFocalLoss

        logits, target = torch.full((1, 1, 4, 4), 3.0), torch.ones(1, 1, 4, 4)
        assert PixelFocalLoss(gamma=2)(logits, target) < PixelBCELoss()(logits, target)
        ```
    """

    def __init__(self, *, alpha: float | None = None, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha = None if alpha is None else check_number("alpha", alpha, high=1.0)
        self.gamma = check_number("gamma", gamma)

    def forward(self, logits: Maps, target: Maps) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: [batch, classes, height, width].
            target: Masks of 0 and 1, same shape.

        Returns:
            A scalar, from 0 up.
        """
        logits, target = _same_shape(logits, target)
        loss = focal_term(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), self.gamma)
        if self.alpha is not None:
            loss = loss * (self.alpha * target + (1 - self.alpha) * (1 - target))
        return loss.mean()


@SEGMENTATION_LOSSES.register("tversky")
class TverskyLoss(nn.Module):
    """One minus the Tversky index of each plane, mean over planes (Salehi 2017).

    Args:
        alpha: Weight of false positives.
        beta: Weight of false negatives; above `alpha` it favours sensitivity.
        smooth: Pixels added above and below the fraction line: an empty target costs about 0 when nothing is
            predicted, and more the more is predicted; above 0.

    Example:
        ```python
        import torch

        from covidcxr.losses import TverskyLoss

        target = torch.zeros(1, 1, 8, 8)
        target[..., 2:6] = 1
        assert TverskyLoss()(20 * (2 * target - 1), target) < 0.001  # perfect
        assert TverskyLoss()(20 * (1 - 2 * target), target) > 0.9  # the opposite
        ```
    """

    def __init__(self, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha)
        self.beta = check_number("beta", beta)
        self.smooth = check_number("smooth", smooth)
        if self.smooth == 0:
            raise ConfigError("smooth must be above 0: without it an empty target divides by zero.")

    def forward(self, logits: Maps, target: Maps) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: [batch, classes, height, width].
            target: Masks of 0 and 1, same shape.

        Returns:
            A scalar in [0, 1).
        """
        return self.per_plane(*_same_shape(logits, target)).mean()

    def per_plane(self, logits: Maps, target: Maps) -> Float[Tensor, "batch classes"]:
        """Compute the loss of every class of every image.

        Args:
            logits: [batch, classes, height, width], float32.
            target: Masks of 0 and 1, same shape.

        Returns:
            [batch, classes], in [0, 1).
        """
        inside = logits.sigmoid()
        hits = (inside * target).sum((2, 3))
        false_positives = (inside * (1 - target)).sum((2, 3))
        false_negatives = ((1 - inside) * target).sum((2, 3))
        # 1 - (hits + smooth) / (hits + errors + smooth), without the cancellation near a perfect prediction
        errors = self.alpha * false_positives + self.beta * false_negatives
        return errors / (hits + errors + self.smooth)


@SEGMENTATION_LOSSES.register("dice")
class DiceLoss(TverskyLoss):
    """One minus the soft Dice of each plane, mean over planes (Milletari 2016).

    Args:
        smooth: As for `TverskyLoss`.

    Example:
        ```python
        import torch

        from covidcxr.losses import DiceLoss

        target = torch.ones(1, 1, 8, 8)
        assert DiceLoss()(torch.full((1, 1, 8, 8), 20.0), target) < 0.001
        ```
    """

    def __init__(self, *, smooth: float = 1.0) -> None:
        super().__init__(alpha=0.5, beta=0.5, smooth=smooth)


@SEGMENTATION_LOSSES.register("jaccard")
class JaccardLoss(TverskyLoss):
    """One minus the soft intersection over union of each plane, mean over planes (Rahman and Wang 2016).

    Args:
        smooth: As for `TverskyLoss`.

    Example:
        ```python
        import torch

        from covidcxr.losses import DiceLoss, JaccardLoss

        logits, target = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
        assert JaccardLoss()(logits, target) > DiceLoss()(logits, target)
        ```
    """

    def __init__(self, *, smooth: float = 1.0) -> None:
        super().__init__(alpha=1.0, beta=1.0, smooth=smooth)


@SEGMENTATION_LOSSES.register("focal_tversky")
class FocalTverskyLoss(TverskyLoss):
    """Tversky loss of each plane to the power of `1 / gamma`, mean over planes (Abraham and Khan 2019).

    Args:
        alpha: Weight of false positives (the paper calls it beta).
        beta: Weight of false negatives (the paper calls it alpha).
        gamma: Above 1 keeps the pressure on planes that are nearly right; the paper takes 4/3. At least 0.1.
        smooth: As for `TverskyLoss`.

    Example:
        ```python
        import torch

        from covidcxr.losses import FocalTverskyLoss, TverskyLoss

        logits, target = torch.full((1, 1, 8, 8), 4.0), torch.ones(1, 1, 8, 8)
        assert FocalTverskyLoss()(logits, target) > TverskyLoss()(logits, target)
        ```
    """

    def __init__(self, *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 4 / 3, smooth: float = 1.0) -> None:
        super().__init__(alpha=alpha, beta=beta, smooth=smooth)
        self.gamma = check_number("gamma", gamma, low=0.1)

    def per_plane(self, logits: Maps, target: Maps) -> Float[Tensor, "batch classes"]:
        """Compute the loss of every class of every image.

        Args:
            logits: [batch, classes, height, width], float32.
            target: Masks of 0 and 1, same shape.

        Returns:
            [batch, classes], in [0, 1).
        """
        tiny = torch.finfo(torch.float32).eps  # the root's slope is infinite at 0
        return super().per_plane(logits, target).clamp_min(tiny).pow(1 / self.gamma)


@SEGMENTATION_LOSSES.register("lovasz")
class LovaszLoss(nn.Module):
    """Lovász hinge of each plane, mean over planes (Berman 2018); smp's. A hinge: it may exceed 1.

    Example:
        ```python
        import torch

        from covidcxr.losses import LovaszLoss

        target = torch.ones(1, 1, 8, 8)
        assert LovaszLoss()(20 * target, target) == 0
        ```
    """

    def __init__(self) -> None:
        super().__init__()
        from segmentation_models_pytorch.losses import LovaszLoss as Hinge  # seconds to import: only on demand

        self.hinge = Hinge(mode="binary", per_image=True)

    def forward(self, logits: Maps, target: Maps) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: [batch, classes, height, width].
            target: Masks of 0 and 1, same shape.

        Returns:
            A scalar, from 0 up.
        """
        logits, target = _same_shape(logits, target)
        loss: Tensor = self.hinge(logits.flatten(0, 1), target.flatten(0, 1))  # planes as images: one hinge each
        return loss


def focal_term(cross_entropy: Float[Tensor, "*shape"], gamma: float) -> Float[Tensor, "*shape"]:
    """Play down what is predicted well already: `(1 - p) ** gamma * cross_entropy`, p = probability of the truth.

    Args:
        cross_entropy: `-log(p)`, one value a pixel or image.
        gamma: 0 returns the cross entropy.

    Returns:
        Weighted cross entropy, same shape. Unlike smp's and torchvision's its gradient stays finite at p = 1
        for a gamma below 1.
    """
    miss = -torch.expm1(-cross_entropy)
    return miss.clamp_min(1e-12).pow(gamma) * cross_entropy


def check_number(name: str, value: object, *, low: float = 0.0, high: float = math.inf) -> float:
    """Check a setting of a loss.

    Args:
        name: Name of the setting, for the message.
        value: What was given.
        low: Smallest valid value.
        high: Largest valid value.

    Returns:
        The value as a float.

    Raises:
        ConfigError: If it is no finite number in [low, high].
    """
    if not is_number(value) or not low <= value <= high or value == math.inf:
        limits = f"from {low:g} up" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ConfigError(f"{name} must be a number {limits}, not {value!r}.")
    return float(value)


def _same_shape(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    # A mask [B, 1, H, W] against logits [B, H, W] broadcasts to [B, B, H, W] and is wrong in silence.
    if logits.ndim != 4 or logits.shape != target.shape:
        raise ConfigError(
            f"Logits of shape {tuple(logits.shape)} and a target of shape {tuple(target.shape)} do not fit: "
            f"both must be [batch, classes, height, width]."
        )
    return logits.float(), target.float()
