"""Losses by name (`"dice"`, `"dice+bce+focal"`), each checked against an independent reference.

A loss of one's own is three lines: a module whose `forward(logits, target)` returns a scalar.

    @SEGMENTATION_LOSSES.register("squared")
    class Squared(torch.nn.Module):
        def forward(self, logits, target): return (logits.sigmoid() - target).square().mean()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from covidcxr.config import check_keys
from covidcxr.errors import ConfigError
from covidcxr.losses.classification import BCELoss, CrossEntropyLoss, FocalLoss, LabelSmoothingLoss
from covidcxr.losses.segmentation import (
    DiceLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszLoss,
    PixelBCELoss,
    PixelFocalLoss,
    TverskyLoss,
    check_number,
    known_planes,
)
from covidcxr.registry import CLASSIFICATION_LOSSES, SEGMENTATION_LOSSES, Registry

__all__ = [
    "CLASSIFICATION_LOSSES",
    "SEGMENTATION_LOSSES",
    "BCELoss",
    "CombinedLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "JaccardLoss",
    "LabelSmoothingLoss",
    "LovaszLoss",
    "PixelBCELoss",
    "PixelFocalLoss",
    "TverskyLoss",
    "build_classification_loss",
    "build_loss",
    "build_segmentation_loss",
    "known_planes",
]


class CombinedLoss(nn.Module):
    """Weighted sum of losses.

    Args:
        losses: The losses by name.
        weights: One number from 0 up a loss, in the order of `losses`; None = all 1.

    Raises:
        ConfigError: If there are more or fewer weights than losses, or one is no number from 0 up.

    Example:
        ```python
        import torch

        from covidcxr.losses import CombinedLoss, DiceLoss, PixelBCELoss

        loss = CombinedLoss({"dice": DiceLoss(), "bce": PixelBCELoss()}, weights=[1, 0.5])
        parts = loss.parts(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        assert list(parts) == ["dice", "bce"]
        ```
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.names = tuple(losses)
        self.losses = nn.ModuleList(losses.values())  # a ModuleDict would refuse names such as "values"
        weights = [1.0] * len(losses) if weights is None else weights
        if not isinstance(weights, list | tuple) or len(weights) != len(losses):
            raise ConfigError(
                f"weights must be a list of {len(losses)} numbers, one each for {', '.join(losses)}, not {weights!r}."
            )
        self.weights = tuple(check_number("Each of the weights", weight) for weight in weights)

    def parts(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute each loss, unweighted, for instance to log it beside the sum.

        Args:
            logits: As the losses take them.
            target: As the losses take them.

        Returns:
            From the name of a loss to its value, a scalar.
        """
        return {name: loss(logits, target) for name, loss in zip(self.names, self.losses, strict=True)}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the weighted sum of the losses.

        Args:
            logits: As the losses take them.
            target: As the losses take them.

        Returns:
            A scalar.
        """
        parts = self.parts(logits, target).values()
        return torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()

    def extra_repr(self) -> str:
        """Return the sum in words, as `print` shows it."""
        return " + ".join(f"{weight:g} * {name}" for weight, name in zip(self.weights, self.names, strict=True))


def build_segmentation_loss(loss: str | nn.Module, loss_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a loss on masks: `build_segmentation_loss("dice+bce", {"weights": [1, 0.5]})`.

    Args:
        loss: See `build_loss`.
        loss_args: See `build_loss`.

    Returns:
        The loss.
    """
    return build_loss(SEGMENTATION_LOSSES, loss, loss_args)


def build_classification_loss(loss: str | nn.Module, loss_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a loss on labels: `build_classification_loss("focal", {"gamma": 1})`.

    Args:
        loss: See `build_loss`.
        loss_args: See `build_loss`.

    Returns:
        The loss.
    """
    return build_loss(CLASSIFICATION_LOSSES, loss, loss_args)


def build_loss(registry: Registry, loss: str | nn.Module, loss_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a loss from its name, or several from their names joined by `+`.

    Args:
        registry: Where the names are looked up.
        loss: A name, names joined by `+` (spaces do not matter), or a module, which is returned as it is.
        loss_args: For one loss its keyword arguments. For a sum: `weights` (a list in the order of the names, all
            1 by default) and one table of keyword arguments a loss, under its name.

    Returns:
        The loss: `forward(logits, target)` gives a scalar. A sum is a `CombinedLoss`.

    Raises:
        UnknownNameError: If there is no such loss.
        ConfigError: If an argument is unknown or wrong, or the number of weights is.
    """
    loss_args = {} if loss_args is None else loss_args
    if isinstance(loss, nn.Module):
        if loss_args:
            raise ConfigError(f"loss_args belong to a loss given by name; {type(loss).__name__} is built already.")
        return loss
    _check_table(loss_args, "loss_args")
    names = _split(registry, loss)
    if len(names) == 1:
        return _build_one(registry, names[0], loss_args)
    check_keys(loss_args, {"weights", *names}, f"loss_args of {loss!r}")
    losses = {name: _build_one(registry, name, loss_args.get(name, {})) for name in names}
    return CombinedLoss(losses, loss_args.get("weights"))


def _split(registry: Registry, loss: object) -> list[str]:
    if not isinstance(loss, str):
        raise ConfigError(f"A {registry.kind} is a name or an instance of torch.nn.Module, not {loss!r}.")
    names = [name.strip() for name in loss.split("+")]
    if "" in names or len(set(names)) != len(names):
        raise ConfigError(f"A sum of losses names each once, as in 'dice+bce', not {loss!r}.")
    return names


def _build_one(registry: Registry, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    entry = registry.get(name)
    where = f"the arguments of the {registry.kind} {name!r}"
    _check_table(arguments, where)
    known = _argument_names(entry)
    if known is not None:
        check_keys(arguments, known, where)
    try:
        module = entry(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The {registry.kind} {name!r} cannot be built: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"The {registry.kind} {name!r} builds a {type(module).__name__}, not a torch.nn.Module.")
    return module


def _argument_names(entry: Callable[..., Any]) -> set[str] | None:
    """Return the keyword arguments that `entry` takes; None = it takes any."""
    # torch.nn.Module itself takes **kwargs, only to refuse them: a loss without a constructor has no arguments.
    if isinstance(entry, type) and getattr(entry, "__init__", None) is nn.Module.__init__:
        return set()
    parameters = inspect.signature(entry).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in named}


def _check_table(arguments: object, where: str) -> None:
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{where} must be a table of keys and values, not {arguments!r}.")
