"""What a model is trained towards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean, nearest_argument
from covidcxr.types import Batch

__all__ = [
    "Objective",
    "Outcome",
    "Stage",
    "loss_name",
    "OptimizerName",
    "ScheduleName",
    "build_optimizer",
    "build_schedule",
]

Stage = Literal["train", "val", "test"]


class Outcome(NamedTuple):
    """The result of a batch.

    Attributes:
        loss: The mean over what is known; None if nothing is known.
        known: Number of images, or masks of images, that it is the mean of.
        rows: One row an image that was scored; empty unless rows are kept.

    Example:
        ```python
        import torch

        from covidcxr.tasks.objective import Outcome

        loss, known, rows = Outcome(torch.tensor(0.7), known=2, rows=[])
        assert known == 2
        ```
    """

    loss: Tensor | None
    known: int
    rows: list[dict[str, Any]]


class Objective(nn.Module, ABC):
    """The loss of a model, the scores of a stage and the rows of its images; abstract.

    Args:
        config: Of the model.
        loss: Name of a registered loss, or a module.
        loss_args: Arguments of a loss given by name.

    Raises:
        ConfigError: If there is no such loss, or it refuses an argument.

    Example:
        ```python
        import torch

        from covidcxr import ModelConfig
        from covidcxr.models import ClassificationModel
        from covidcxr.tasks.classification import ClassificationObjective

        config = ModelConfig("classification", "cnn19", ("normal", "covid19"), preprocess={"image_size": (64, 64)})
        model = ClassificationModel(config)
        objective = ClassificationObjective(config, "cross_entropy")
        names = {"image_id": ["a", "b"], "patient_id": ["p", "q"], "source": ["ward", "ward"]}
        batch = {"image": torch.rand(2, 1, 64, 64), "label": torch.tensor([0, -1]), **names}
        outcome = objective.measure(model, torch.zeros(2, 2), batch, "val", keep_rows=True)
        assert outcome.known == 1 and outcome.rows[0]["image_id"] == "a"
        ```
    """

    @abstractmethod
    def __init__(self, config: ModelConfig, loss: str | nn.Module, loss_args: dict[str, Any] | None) -> None:
        super().__init__()
        self.classes = config.classes
        self.mode = config.mode
        self.loss: nn.Module

    @abstractmethod
    def check_classes(self, data: object) -> None:
        """Compare the model's classes with those of a data module.

        Args:
            data: The data module; None is not compared.

        Raises:
            ConfigError: If both name classes and these differ.
        """

    def check_batch(self, batch: Batch) -> None:
        """Check that a batch holds what is trained towards, before the first step; by default nothing is asked.

        Args:
            batch: The images.
        """

    @abstractmethod
    def measure(self, model: Any, logits: Tensor, batch: Batch, stage: Stage, keep_rows: bool) -> Outcome:
        """Compare the logits of a batch with what is known of it, and add to the scores.

        Args:
            model: Gave the logits; its temperature and thresholds count.
            logits: Of all images of the batch.
            batch: The images.
            stage: Stage to whose scores the batch adds.
            keep_rows: Whether to return rows.

        Returns:
            The loss, and the rows.
        """

    @abstractmethod
    def pop_scores(self, stage: Stage) -> dict[str, Tensor]:
        """Return the scores of the images of a stage, and forget them.

        Args:
            stage: "train", "val" or "test".

        Returns:
            From name to value.
        """


def loss_name(loss: str | nn.Module) -> str:
    """Return the text by which a checkpoint names a loss.

    Args:
        loss: A name, or a module.

    Returns:
        The name; for a module a text that asks for it.

    Raises:
        UnknownNameError: If it is such a text: a checkpoint is loaded whose loss was given as a module.
    """
    if isinstance(loss, str) and loss.startswith("<"):
        raise UnknownNameError(
            f"The checkpoint was trained with a loss that was given as a module, which it does not hold: {loss}. To go "
            f"on training pass the module to load_from_checkpoint, to use the model any name, loss='bce' say."
        )
    return loss if isinstance(loss, str) else f"<{type(loss).__name__} instance: give loss=... again>"


OptimizerName: TypeAlias = Literal["adamw", "adam", "sgd", "rmsprop"]

ScheduleName: TypeAlias = Literal["constant", "cosine", "step", "plateau"]

_OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {}),
}

# From the fraction of the training that is done to the fraction of the learning rate that is left.
_DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** min(2, math.floor(3 * done)),
}


def build_optimizer(
    module: nn.Module, name: str, lr: float, weight_decay: float, arguments: dict[str, Any] | None
) -> Optimizer:
    """Build an optimiser over the parameters that are not frozen; biases and norms get no weight decay.

    Args:
        module: Whose parameters are trained.
        name: "adamw", "adam", "sgd" or "rmsprop".
        lr: Learning rate, above 0.
        weight_decay: From 0 up.
        arguments: Further arguments of torch's optimiser.

    Returns:
        The optimiser.

    Raises:
        UnknownNameError: If there is no such optimiser.
        ConfigError: If nothing is left to train, or an argument is refused.
    """
    if name not in _OPTIMIZERS:
        raise UnknownNameError(f"There is no optimizer {name!r}. {did_you_mean(name, _OPTIMIZERS)}")
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(
            "Nothing is left to train: every parameter is frozen. (covidcxr.tasks.fit_boosting grows boosted trees.)"
        )
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer, defaults = _OPTIMIZERS[name]
    try:
        return optimizer([group for group in groups if group["params"]], lr=lr, **{**defaults, **(arguments or {})})
    except (TypeError, ValueError) as error:
        near = nearest_argument(error, signature(optimizer).parameters)
        raise ConfigError(f"The optimizer {name!r} refused lr={lr}, {arguments}: {error}.{near}") from error


def build_schedule(optimizer: Optimizer, name: str, warmup: float, steps: Callable[[], int]) -> OptimizerLRScheduler:
    """Build a learning-rate schedule, in the form that Lightning takes.

    Args:
        optimizer: Its learning rate changes.
        name: "constant", "cosine", "step" or "plateau".
        warmup: Fraction of all steps over which the rate rises from 0, in [0, 1).
        steps: Returns the number of all optimiser steps. It is called after the first step only: earlier, Lightning
            would load the training images before it has restored a checkpoint's place in them.

    Returns:
        The optimiser and its schedule.

    Raises:
        UnknownNameError: If there is no such schedule.
        ConfigError: If `warmup` is not in [0, 1).
    """
    if name not in get_args(ScheduleName):
        raise UnknownNameError(f"There is no schedule {name!r}. {did_you_mean(name, get_args(ScheduleName))}")
    if not 0 <= warmup < 1:
        raise ConfigError(f"warmup must be in [0, 1), not {warmup}.")
    if name == "plateau":
        if warmup:
            raise ConfigError('schedule="plateau" goes without warmup: set warmup to 0.')
        plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}

    factor = partial(_factor, name, warmup, steps)  # no closure: a process is sent the schedule by pickling it
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def _factor(name: str, warmup: float, steps: Callable[[], int], step: int) -> float:
    """Return the fraction of the learning rate at a step."""
    if step == 0:
        return 0.0 if warmup else 1.0
    if name == "constant" and not warmup:
        return 1.0
    total = steps()
    rising = warmup * total
    return step / rising if step < rising else _DECAYS[name](min(1.0, (step - rising) / (total - rising)))
