"""The training of one model."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

from torch import Tensor, nn

from covidcxr.config import ModelConfig
from covidcxr.models import NetworkModel
from covidcxr.tasks.base import Task, TaskSettings, read_config
from covidcxr.tasks.objective import Objective, Outcome, Stage, loss_name
from covidcxr.types import Batch

__all__ = ["SingleTask", "SingleTaskSettings"]


class SingleTaskSettings(TaskSettings, total=False):
    """The keyword arguments of `SingleTask` besides model and loss.

    Example:
        ```python
        from covidcxr.tasks.single import SingleTaskSettings

        settings: SingleTaskSettings = {"lr": 1e-4, "loss_args": {"gamma": 1.0}}
        ```
    """

    loss_args: dict[str, Any] | None


class SingleTask(Task, ABC):
    """Trains one model; abstract.

    Args:
        model: What is trained.
        loss: Name of a registered loss ("dice+bce" adds them), or a module.
        loss_args: Arguments of a loss given by name.
        **settings: The settings of `Task`.

    Example:
        ```python
        from covidcxr import ModelConfig, SegmentationTask
        from covidcxr.tasks import SingleTask

        config = ModelConfig("segmentation", "residual_unet", ("lung",), mode="multilabel")
        task = SegmentationTask(config, loss="dice", lr=0.001)
        assert isinstance(task, SingleTask) and task.model.config == config
        ```
    """

    model_class: ClassVar[type[NetworkModel]]
    objective_class: ClassVar[type[Objective]]
    model: NetworkModel

    def __init__(
        self,
        model: ModelConfig,
        *,
        loss: str | nn.Module,
        loss_args: dict[str, Any] | None = None,
        **settings: Unpack[TaskSettings],
    ) -> None:
        super().__init__(**settings)
        config = read_config(model)
        self.save_hyperparameters({"model": config.to_dict(), "loss": loss_name(loss), "loss_args": loss_args})
        self.model = self.model_class(config, pretrained_backbone=self._pretrained_backbone)
        self.objective = self.objective_class(config, loss, loss_args)
        self._prepare()

    @property
    def models(self) -> Mapping[str, NetworkModel]:
        """The model, under its argument's name."""
        return {"model": self.model}

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """What the model is trained towards."""
        return {"model": self.objective}

    @property
    def loss(self) -> nn.Module:
        """The loss."""
        return self.objective.loss

    def _measure(self, batch: Batch, stage: Stage) -> Mapping[str, Outcome]:
        logits = self(batch["image"], self.lung_mask(batch))
        return {"model": self.objective.measure(self.model, logits, batch, stage, self.keeps_rows)}

    def forward(self, image: Tensor, lung_mask: Tensor | None = None) -> Tensor:
        """Compute logits; see `CXRModel.forward`.

        Args:
            image: Grey images [batch, 1, height, width], in [0, 1].
            lung_mask: Lungs, same shape, 0 or 1; None = the region does not need them.

        Returns:
            Logits [batch, classes], or [batch, classes, height, width].
        """
        return cast(Tensor, self.model(image, lung_mask))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Save the model alone, without optimiser or checkpoint.

        Args:
            folder: Where to; made if it is not there.

        Returns:
            The folder, which `from_pretrained` reads.
        """
        return self.model.save_pretrained(folder)
