"""Losses on labels: logits [batch, outputs] against class indices, or against findings that are 0, 1 or NaN.

Integer targets say which one class is true (-1 = not labelled). Float targets say for every output whether it
is true (NaN = not labelled); they are for independent findings and for binary mode with its one output.
What is not labelled costs nothing; a batch without any label gives 0, with a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from covidcxr.errors import ConfigError
from covidcxr.losses.segmentation import check_number, focal_term
from covidcxr.registry import CLASSIFICATION_LOSSES
from covidcxr.utils.plain import is_number

__all__ = ["BCELoss", "CrossEntropyLoss", "FocalLoss", "LabelSmoothingLoss"]


@CLASSIFICATION_LOSSES.register("bce")
class BCELoss(nn.Module):
    """Binary cross entropy of every output, mean over what is labelled.

    Args:
        pos_weight: How many times a true output counts against a false one; one number, or one an output.

    Example:
        ```python
        import torch

        from covidcxr.losses import BCELoss

        loss = BCELoss()(torch.zeros(2, 3), torch.tensor([[1, 0, torch.nan], [0, 1, 1]]))
        assert abs(float(loss) - 0.6931) < 1e-4  # log 2
        ```
    """

    pos_weight: Tensor | None

    def __init__(self, *, pos_weight: float | Sequence[float] | None = None) -> None:
        super().__init__()
        single = is_number(pos_weight)
        self.single = single
        self.register_buffer("pos_weight", _weights("pos_weight", [pos_weight] if single else pos_weight), False)

    def forward(
        self, logits: Float[Tensor, "batch outputs"], target: Int[Tensor, " batch"] | Float[Tensor, "batch outputs"]
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: [batch, outputs].
            target: Class indices [batch], -1 = not labelled; or findings [batch, outputs] of 0, 1 and NaN = not
                labelled.

        Returns:
            A scalar, from 0 up.
        """
        logits, target = logits.float(), _as_findings(logits, target)
        if not self.single:
            _check_length("pos_weight", self.pos_weight, logits)
        loss = F.binary_cross_entropy_with_logits(
            logits, target.nan_to_num(), pos_weight=self.pos_weight, reduction="none"
        )
        return _mean(loss, (~target.isnan()).float())


@CLASSIFICATION_LOSSES.register("cross_entropy")
class CrossEntropyLoss(nn.Module):
    """Softmax cross entropy, weighted mean over images (torch's).

    Args:
        class_weights: One number above 0 a class.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        ```python
        import torch

        from covidcxr.losses import CrossEntropyLoss

        loss = CrossEntropyLoss()(torch.zeros(3, 2), torch.tensor([0, 1, -1]))
        assert abs(float(loss) - 0.6931) < 1e-4  # log 2
        ```
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_number("label_smoothing", label_smoothing, high=1.0)
        self.register_buffer("class_weights", _weights("class_weights", class_weights), False)

    def forward(self, logits: Float[Tensor, "batch outputs"], target: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: [batch, classes], two classes or more.
            target: Class indices [batch]; -1 = not labelled.

        Returns:
            A scalar, from 0 up.
        """
        logits, target = _labelled(logits, target)
        _check_length("class_weights", self.class_weights, logits)
        if not len(target):
            return logits.sum() * 0
        return F.cross_entropy(logits, target, weight=self.class_weights, label_smoothing=self.label_smoothing)


@CLASSIFICATION_LOSSES.register("label_smoothing")
class LabelSmoothingLoss(CrossEntropyLoss):
    """Cross entropy against softened labels (Szegedy 2016); smallest at the softened label, not at certainty.

    Args:
        smoothing: Share of the target that is spread over all classes, in [0, 1].
        class_weights: One number above 0 a class.

    Example:
        ```python
        import torch

        from covidcxr.losses import LabelSmoothingLoss

        logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
        assert LabelSmoothingLoss(smoothing=0.1)(logits, target) > LabelSmoothingLoss(smoothing=0)(logits, target)
        ```
    """

    def __init__(self, *, smoothing: float = 0.1, class_weights: Sequence[float] | None = None) -> None:
        smoothing = check_number("smoothing", smoothing, high=1.0)
        super().__init__(class_weights=class_weights, label_smoothing=smoothing)


@CLASSIFICATION_LOSSES.register("focal")
class FocalLoss(nn.Module):
    """Focal loss (Lin 2017): softmax form for class indices, sigmoid form for findings and a single output.

    With `gamma=0` it is the weighted cross entropy.

    Args:
        gamma: How strongly easy images are played down; 0 = not at all.
        alpha: Sigmoid form only: weight of true outputs, `1 - alpha` of false ones, in [0, 1]; None = no weighting.
        class_weights: One number above 0 an output; the loss is a mean with these weights.

    Example:
        ```python
        import torch

        from covidcxr.losses import CrossEntropyLoss, FocalLoss

        logits, target = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
        assert FocalLoss(gamma=2)(logits, target) < CrossEntropyLoss()(logits, target)
        ```
    """

    class_weights: Tensor | None

    def __init__(
        self, *, gamma: float = 2.0, alpha: float | None = None, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.gamma = check_number("gamma", gamma)
        self.alpha = None if alpha is None else check_number("alpha", alpha, high=1.0)
        self.register_buffer("class_weights", _weights("class_weights", class_weights), False)

    def forward(
        self, logits: Float[Tensor, "batch outputs"], target: Int[Tensor, " batch"] | Float[Tensor, "batch outputs"]
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: [batch, outputs].
            target: Class indices [batch], -1 = not labelled; or findings [batch, outputs] of 0, 1 and NaN = not
                labelled.

        Returns:
            A scalar, from 0 up.

        Raises:
            ConfigError: If `alpha` is given in the softmax form, or the shapes do not fit.
        """
        _check_length("class_weights", self.class_weights, logits)
        weights = torch.ones_like(logits[0]).float() if self.class_weights is None else self.class_weights
        if target.is_floating_point() or logits.shape[1] == 1:
            return self._sigmoid_form(logits, target, weights)
        if self.alpha is not None:
            raise ConfigError("alpha weighs findings that are true or false; for class indices use class_weights.")
        logits, target = _labelled(logits, target)
        loss = focal_term(F.cross_entropy(logits, target, reduction="none"), self.gamma)
        return _mean(loss, weights[target])

    def _sigmoid_form(self, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        logits, target = logits.float(), _as_findings(logits, target)
        truth = target.nan_to_num()
        loss = focal_term(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), self.gamma)
        if self.alpha is not None:
            loss = loss * (self.alpha * truth + (1 - self.alpha) * (1 - truth))
        return _mean(loss, weights * ~target.isnan())


def _mean(loss: Tensor, weights: Tensor) -> Tensor:
    return (loss * weights).sum() / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)


def _as_findings(logits: Tensor, target: Tensor) -> Tensor:
    """Return the target as float [batch, outputs]: 0, 1, or NaN where nothing is known."""
    if target.is_floating_point():
        if logits.shape != target.shape:
            raise ConfigError(
                f"Logits of shape {tuple(logits.shape)} and a float target of shape {tuple(target.shape)} do not "
                f"fit: both must be [batch, outputs]."
            )
        return target.float()
    _check_indices(logits, target)
    outputs = logits.shape[1]
    findings = target[:, None] if outputs == 1 else F.one_hot(target.long().clamp_min(0), outputs)
    return findings.float().masked_fill((target < 0)[:, None], torch.nan)


def _labelled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (float32) and class indices (int64) of the images that have a label."""
    if target.is_floating_point() or logits.shape[1] == 1:
        raise ConfigError(
            f"A softmax loss needs class indices and two outputs or more, not a target of type {target.dtype} and "
            f"logits of shape {tuple(logits.shape)}. Use bce or focal for findings and for a single output."
        )
    _check_indices(logits, target)
    known = target >= 0
    return logits[known].float(), target[known].long()


def _check_indices(logits: Tensor, target: Tensor) -> None:
    if target.shape != logits.shape[:1]:
        raise ConfigError(
            f"Logits of shape {tuple(logits.shape)} and class indices of shape {tuple(target.shape)} do not fit: "
            f"they must be [batch, outputs] and [batch]."
        )
    classes = max(logits.shape[1], 2)
    # Checked here because a GPU answers an index out of range by aborting the process.
    if target.numel() and int(target.max()) >= classes:
        raise ConfigError(f"The label {int(target.max())} is out of range: the classes are 0 to {classes - 1}.")


def _weights(name: str, values: object) -> Tensor | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"{name} must be a list of numbers, not {values!r}.")
    numbers = [check_number(name, value) for value in values]
    if min(numbers) == 0:
        raise ConfigError(f"{name} must hold numbers above 0, not {values!r}.")
    return torch.tensor(numbers)


def _check_length(name: str, weights: Tensor | None, logits: Tensor) -> None:
    if weights is not None and len(weights) != logits.shape[1]:
        raise ConfigError(f"{name} has {len(weights)} value(s), but the network has {logits.shape[1]} output(s).")
