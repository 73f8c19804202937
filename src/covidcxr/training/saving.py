"""What is left of a training: the best weights, calibrated, the history, and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.reliability import (
    calibrate,
    find_warning_signs,
    loss_signs,
    temperature_signs,
    threshold_signs,
)
from covidcxr.evaluation.predictions.table import answered_rows
from covidcxr.io.pretrained import write_json
from covidcxr.models import ClassificationModel
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.tasks import MultiTask, Task
from covidcxr.tasks.processes import Handover
from covidcxr.training.recipe import write_yaml
from covidcxr.types import CoverageBy
from covidcxr.utils.console import print_line

__all__ = ["ConfigRecord", "History", "print_warnings", "save_best", "save_models"]


class ConfigRecord(Callback):
    """Writes the config of a training, as it ran, into `config.yaml` of the trainer's log folder.

    Args:
        config: Plain data.

    Example:
        ```python
        from covidcxr.training.saving import ConfigRecord

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
        from covidcxr.training.saving import History

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


def save_models(task: Task, folder: Path) -> Path:
    """Save what was trained: the two models of a `MultiTask` as a pipeline, if they make one.

    Args:
        task: The trained task.
        folder: Output folder.

    Returns:
        The folder.
    """
    if isinstance(task, MultiTask):
        for part in ("lung_segmenter", "infection_segmenter"):
            parts: dict[str, Any] = {part: task.segmenter, "classifier": task.classifier}
            try:
                pipeline = Pipeline(**parts)
            except ConfigError:  # the pipeline checks the mask classes of its parts
                continue
            return pipeline.save_pretrained(folder)
    return task.save_pretrained(folder)


def save_best(
    trainer: Trainer,
    task: Task,
    data: LightningDataModule,
    history: History,
    output: Path,
    coverage: float | None,
    coverage_by: CoverageBy = "class",
) -> None:
    """Save the best model, without its optimiser; a classifier of exclusive classes is calibrated first.

    Every process takes part, as in the training: the validation images are shared among them.

    Args:
        trainer: Has trained.
        task: What was trained.
        data: What it was trained on.
        history: The scores of each epoch.
        output: Gets the model, `history.json`, and `warnings.json` if anything is to be warned of.
        coverage: Coverage of the sets of plausible classes, in (0, 1); None = no sets.
        coverage_by: Whom it is promised; see `covidcxr.evaluation.calibrate`.

    Raises:
        ConfigError: If the weights are not finite.
    """
    keeper = trainer.checkpoint_callback
    best = keeper.best_model_path if isinstance(keeper, ModelCheckpoint) else ""
    if best:
        weights = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(weights)
    _check_finite(task)
    rows = _validation_rows(trainer, task, data)
    signs, temperature = loss_signs(history.epochs), 1.0
    for model in task.models.values():
        if isinstance(model, ClassificationModel) and model.config.mode != "multilabel":
            before = model.config.temperature  # the rows have it already
            _calibrate(model, answered_rows(rows), coverage, coverage_by, trainer.is_global_zero)
            signs += threshold_signs(model.config)
            signs += temperature_signs(model.config.temperature)
            temperature = model.config.temperature / before
    if rows:
        signs += find_warning_signs(rows, temperature=temperature)
    if trainer.is_global_zero:
        print_line(f"Saved {save_models(task, output)} (weights of {Path(best).name or 'the last epoch'}).")
        print_warnings(signs)
        if signs:
            write_json(output / "warnings.json", signs)
        write_json(output / "history.json", history.epochs)  # written last: a run with this file is trained


def _check_finite(task: Task) -> None:
    for name, tensor in task.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ConfigError(
                f"The training diverged: {name} is not finite, so nothing is saved. Lower the learning rate "
                f"(--model.lr), or clip gradients (--trainer.gradient_clip_val 1)."
            )


def _calibrate(
    model: ClassificationModel, rows: Sequence[Mapping[str, Any]], coverage: float | None, by: CoverageBy, first: bool
) -> None:
    if rows:
        model.config = calibrate(model.config, rows, coverage, by)
    if first:
        print_line(
            f"Temperature {model.config.temperature:.3f}, fitted on {len(rows)} validation images."
            if rows
            else "There are no labelled validation images: the model is saved without calibration."
        )


def _validation_rows(trainer: Trainer, task: Task, data: LightningDataModule) -> list[dict[str, Any]]:
    """Return the answers to the validation images, of the weights that are saved."""
    empty = isinstance(data, CXRDataModule) and not len(data.val_dataset)
    if empty or not is_overridden("val_dataloader", data, LightningDataModule):
        return []
    trainer.validate(task, data, verbose=False)
    return task.rows


def print_warnings(signs: Sequence[str]) -> None:
    """Print what is to be warned of.

    Args:
        signs: Sentences.
    """
    for sign in signs:
        print_line(f"Warning: {sign}")
