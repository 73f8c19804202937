"""Callbacks that record a training: its config and the scores of each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from covidcxr.tasks.processes import Handover
from covidcxr.training.yaml_files import write_yaml

__all__ = ["ConfigRecord", "History"]


class ConfigRecord(Callback):
    """Writes the config of a training, as it ran, into `config.yaml` of the trainer's log folder.

    Args:
        config: Plain data.

    Example:
        ```python
        from covidcxr.training.history import ConfigRecord

        assert ConfigRecord({"seed_everything": 0}).config == {"seed_everything": 0}
        ```
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file.

        Args:
            trainer: Names the folder.
            pl_module: The task.
            stage: "fit", "validate" or "test".
        """
        folder = trainer.log_dir or trainer.default_root_dir  # read on every rank: loggers broadcast it
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            write_yaml(Path(folder) / "config.yaml", self.config)


class History(Callback):
    """Keeps the logged values of each epoch, also in the checkpoint, so that a resumed training has the whole curve.

    Attributes:
        epochs: An entry for each epoch, from name ("train/loss", "val/auroc", ...) to value, with the number of the
            epoch, from 0, as "epoch". `train/loss`, and its parts if it has several, are means over the batches.

    Example:
        ```python
        from covidcxr.training.history import History

        history = History()
        history.load_state_dict({"epochs": [{"epoch": 0, "val/auroc": 0.7}]})
        assert history.epochs[0]["val/auroc"] == 0.7
        ```
    """

    def __init__(self) -> None:
        self._epochs: list[dict[str, float]] = []
        self._handover = Handover()
        self._losses: list[dict[str, Tensor]] = []

    @property
    def epochs(self) -> list[dict[str, float]]:
        """An entry for each epoch."""
        if (sent := self._handover.take()) is not None:
            self._epochs = sent
        return self._epochs

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the epochs to the process that started this one, if any.

        Args:
            trainer: Runs the training.
            pl_module: The task.
            stage: "fit", "validate" or "test".
        """
        if trainer.state.fn == TrainerFn.FITTING:
            self._handover.send(trainer, self._epochs)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the losses of the previous epoch.

        Args:
            trainer: Runs the training.
            pl_module: The task.
        """
        self._losses = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss of a batch and its parts, unless the batch has neither labels nor masks.

        Args:
            trainer: Runs the training.
            pl_module: The task.
            outputs: From name of a loss to its value; None = no image of the batch has a label or mask.
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        if outputs:
            self._losses.append({name: value.detach() for name, value in outputs.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch; the checkpoint that keeps it is written after this.

        Args:
            trainer: Runs the training, and has the logged values.
            pl_module: The task.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        means = {"train/loss": math.nan}
        for name in dict.fromkeys(name for losses in self._losses for name in losses):
            means[f"train/{name}"] = (
                torch.stack([losses[name] for losses in self._losses if name in losses]).mean().item()
            )
        entry: dict[str, float] = {**logged, **means, "epoch": trainer.current_epoch}
        self._epochs = [*(old for old in self._epochs if old["epoch"] < trainer.current_epoch), entry]

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps."""
        return {"epochs": self._epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint.

        Args:
            state_dict: State from the checkpoint.
        """
        self._epochs = state_dict["epochs"]
