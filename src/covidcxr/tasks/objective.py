"""What a model is trained towards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from covidcxr.config import ModelConfig
from covidcxr.types import Batch

__all__ = ["Objective", "Outcome", "Stage", "loss_name"]

Stage = Literal["train", "val", "test"]


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        loss: The mean over what is known; None if nothing is.
        known: Over how many films, or masks of films, it is the mean.
        rows: A row a film that was scored, if rows were asked for.
    """

    loss: Tensor | None
    known: int
    rows: list[dict[str, Any]]


class Objective(nn.Module, ABC):
    """The loss of a model, the scores of a stage and the rows of its films; abstract.

    Args:
        config: Of the model.
        loss: Name of a registered loss, or a module.
        loss_args: Arguments of a loss given by name.

    Raises:
        ConfigError: If there is no such loss, or it refuses an argument.
    """

    @abstractmethod
    def __init__(self, config: ModelConfig, loss: str | nn.Module, loss_args: dict[str, Any] | None) -> None:
        super().__init__()
        self.classes = config.classes
        self.mode = config.mode
        self.loss: nn.Module

    @abstractmethod
    def check_classes(self, data: object) -> None:
        """Raise `ConfigError` if the model's classes are not those of a data module (which may be None)."""

    @abstractmethod
    def measure(self, model: Any, logits: Tensor, batch: Batch, stage: Stage, keep_rows: bool) -> Outcome:
        """Compare the logits of a batch with what is known of it, and remember the scores.

        Args:
            model: Which gave the logits; its temperature and thresholds count.
            logits: Of all films of the batch.
            batch: The films.
            stage: Where the scores belong.
            keep_rows: Whether rows are wanted.
        """

    @abstractmethod
    def pop_scores(self, stage: Stage) -> dict[str, Tensor]:
        """Return the scores of the films of a stage, by name, and forget them."""


def loss_name(loss: str | nn.Module) -> str:
    """Return what a checkpoint holds of a loss."""
    return loss if isinstance(loss, str) else f"<{type(loss).__name__} instance: give loss=... again>"
