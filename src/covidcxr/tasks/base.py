"""What all training tasks share: the optimiser, the steps, exact resume."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypedDict, Unpack, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from covidcxr.config import ModelConfig
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.models import CXRModel, NetworkModel, load_model
from covidcxr.networks import backbone_of
from covidcxr.tasks.objective import (
    Objective,
    OptimizerName,
    Outcome,
    ScheduleName,
    Stage,
    build_optimizer,
    build_schedule,
    loss_name,
)
from covidcxr.tasks.steps import Steps
from covidcxr.types import GEOMETRY, Batch

__all__ = ["Task", "TaskSettings", "read_config", "start_from", "SingleTask", "SingleTaskSettings", "with_network"]


def with_network(saved: CXRModel) -> NetworkModel:
    """Return a saved model that a training can start from.

    Args:
        saved: The model.

    Returns:
        The same model.

    Raises:
        ConfigError: If it is an ensemble.
    """
    if not isinstance(saved, NetworkModel):
        raise ConfigError("init_from names an ensemble: start from one of its members, FOLDER/members/NAME.")
    return saved


def start_from(model: NetworkModel, saved: CXRModel) -> None:
    """Copy a saved model's weights into a new one.

    From the same network all tensors are copied, except an output layer of another shape (other classes). From a
    segmenter with the encoder `tu-NAME`, a classifier `timm:NAME` gets the encoder.

    Args:
        model: Gets the weights.
        saved: Has the weights.

    Raises:
        ConfigError: If the networks do not fit.
    """
    saved = with_network(saved)
    own, given = model.network.state_dict(), saved.network.state_dict()
    encoder = f"tu-{model.config.network.removeprefix('timm:')}"
    from_encoder = saved.task != model.task and saved.config.network_args.get("encoder") == encoder
    if from_encoder:
        prefix = "encoder.model."
        spelt = {name.replace(".", "_"): name for name in own}  # timm's encoders write stages_0 for stages.0
        given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        given = {spelt.get(name.replace(".", "_"), name): value for name, value in given.items()}
    fresh = {name for name in own if name not in given or own[name].shape != given[name].shape}
    if saved.task == model.task and saved.config.classes != model.config.classes:
        fresh |= _answer_tensors(model.network)  # the same shape may well mean other classes, or another order
    if saved.task != model.task:
        fits = from_encoder and all(name in own and name not in fresh for name in given)
    else:
        fits = given.keys() == own.keys() and not fresh & _backbone_tensors(model.network)
    if not fits:
        raise ConfigError(
            f"init_from needs a saved model of the same network, or a segmenter whose encoder is the classifier's "
            f"network: it has {saved.config.network!r} with {saved.config.network_args}, this one "
            f"{model.config.network!r} with {model.config.network_args}."
        )
    # An answer that starts near equal probabilities: timm's may make losses of 5 of three classes.
    small = {name: 0.02 * own[name] for name in fresh if own[name].ndim == 2}
    known = {name: value for name, value in given.items() if name not in fresh}
    model.network.load_state_dict({**own, **small, **known})
    if fresh:
        rank_zero_info(f"Started from {saved.config.network}; these tensors are fresh: {', '.join(sorted(fresh))}.")


def _same_network(saved: CXRModel, model: NetworkModel) -> bool:
    return not isinstance(saved, NetworkModel) or saved.config.network == model.config.network


def _answer_tensors(network: nn.Module) -> set[str]:
    """Name the tensors that make the answer: smp's last layer, else all beside the backbone."""
    outside = set(network.state_dict()) - _backbone_tensors(network)
    return {name for name in outside if name.startswith("segmentation_head.")} or outside


def _backbone_tensors(network: nn.Module) -> set[str]:
    inside = {id(tensor) for part in backbone_of(network) for tensor in (*part.parameters(), *part.buffers())}
    named = (*network.named_parameters(), *network.named_buffers())
    return {name for name, tensor in named if id(tensor) in inside}


_ENDLESS = (
    "schedule={schedule!r} with warmup={warmup} must know when the training ends, but the Trainer has no end: set "
    "max_epochs or max_steps (beside max_time, if you like), or schedule='constant' or 'plateau' without warmup."
)


class TaskSettings(TypedDict, total=False):
    """The keyword arguments of `Task`, so that a type checker finds a misspelt one in a task's `**settings`.

    Example:
        ```python
        from covidcxr.tasks.base import TaskSettings

        settings: TaskSettings = {"lr": 1e-4, "schedule": "cosine", "warmup": 0.1}
        ```
    """

    optimizer: OptimizerName
    lr: float
    weight_decay: float
    optimizer_args: dict[str, Any] | None
    schedule: ScheduleName
    warmup: float
    init_from: str | os.PathLike[str] | None
    freeze_backbone: bool
    pretrained_backbone: bool | str
    channels_last: bool
    compile: bool
    seed: int


class Task(Steps, ABC):
    """Trains models with Lightning's own `Trainer`; abstract.

    Args:
        optimizer: "adamw", "adam", "sgd" (Nesterov momentum 0.9 unless `optimizer_args` says otherwise) or "rmsprop".
        lr: Learning rate at its highest.
        weight_decay: Weight decay of the weights; biases and norms get none.
        optimizer_args: Further arguments of torch's optimiser.
        schedule: "constant", "cosine" (to zero at the end), "step" (a tenth after each third) or "plateau" (a tenth
            when `val/loss` stands still for 5 epochs).
        warmup: Fraction of all steps over which the learning rate rises from 0, in [0, 1).
        init_from: A saved model (folder or Hub repository) whose weights the training starts from. It must have the
            same network, of which an answering layer for other classes starts fresh; or, for a classifier
            `timm:NAME`, be a segmenter with the encoder `tu-NAME`. Of a pipeline the model of the same task is
            taken, and for a classifier, if that has another network, the segmenter.
        freeze_backbone: Train only what makes the answer; the backbone's batch norms keep their statistics too.
        pretrained_backbone: True for the network library's own (ImageNet) weights, or the path of a weights file.
        channels_last: Train with the channels of a pixel side by side in memory: many GPUs then compute convolutions
            faster; CPUs gain nothing. Sums may round otherwise.
        compile: Train with networks compiled by `torch.compile`: the first steps take minutes, the others less time.
        seed: Seeds dropout and the like, by step, so that a resumed training continues with the same bits.

    Raises:
        ConfigError: If a setting is wrong.
        PretrainedError: If weights to start from cannot be had.

    Example:
        ```python
        from covidcxr import ClassificationTask, ModelConfig
        from covidcxr.tasks import Task

        model = ModelConfig("classification", "cnn19", ("normal", "covid19"), preprocess={"image_size": (64, 64)})
        task = ClassificationTask(model, optimizer="sgd", lr=0.01)
        assert isinstance(task, Task) and task.monitor == "val/auroc"
        ```
    """

    monitor: ClassVar[str]
    """Name of the logged score by which the best weights are chosen; higher is better."""

    def __init__(
        self,
        *,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        optimizer_args: dict[str, Any] | None = None,
        schedule: ScheduleName = "cosine",
        warmup: float = 0.0,
        init_from: str | os.PathLike[str] | None = None,
        freeze_backbone: bool = False,
        pretrained_backbone: bool | str = False,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 (its name in torch and in other Lightning libraries)
        seed: int = 0,
    ) -> None:
        super().__init__()
        # Plain values only, or load_from_checkpoint refuses them. The two sources of first weights are left out:
        # a checkpoint has its own weights, and loading it must not go to the network.
        settings: dict[str, Any] = {
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "optimizer_args": optimizer_args,
        }
        settings |= {"schedule": schedule, "warmup": warmup, "freeze_backbone": freeze_backbone, "seed": seed}
        settings |= {"channels_last": channels_last, "compile": compile}
        self.save_hyperparameters(settings)
        self._init_from = init_from
        self._pretrained_backbone = pretrained_backbone
        self._frozen: list[nn.Module] = []

    def _prepare(self) -> None:
        """Bring the models to where training starts; every constructor ends with this."""
        if self._init_from is not None:
            self._start_from(self._init_from)
        if self.hparams["freeze_backbone"]:
            self._frozen = [part for model in self.models.values() for part in backbone_of(model.network)]
        for part in self._frozen:
            part.requires_grad_(False)
        self._build_optimizer()  # a wrong setting fails now

    def _start_from(self, source: str | os.PathLike[str]) -> None:
        for model in self.models.values():
            try:
                saved = load_model(source, prefer=model.task)
                if saved.task == model.task == "classification" and not _same_network(saved, model):
                    saved = load_model(source, prefer="segmentation")
                start_from(model, saved)
            except (ConfigError, PretrainedError) as error:
                raise type(error)(f"init_from: {error}") from error

    def _build_optimizer(self) -> Optimizer:
        settings = self.hparams
        return build_optimizer(
            nn.ModuleList(self.models.values()),
            settings["optimizer"],
            settings["lr"],
            settings["weight_decay"],
            settings["optimizer_args"],
        )

    def set_normalization(self, mean: float, std: float) -> None:
        """Set the mean and the standard deviation of all models; see `NetworkModel.set_normalization`.

        Args:
            mean: Mean of the training images, in [0, 1].
            std: Their standard deviation, above 0.
        """
        for name, model in self.models.items():
            model.set_normalization(mean, std)
            self.hparams[name] = model.config.to_dict()  # what a checkpoint is loaded with

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimiser and schedule from the settings.

        Returns:
            What Lightning takes.

        Raises:
            ConfigError: If the schedule or its warmup needs to know when the training ends, and the Trainer has no end.
        """
        trainer = self._trainer
        endless = trainer is not None and trainer.max_epochs == -1 and trainer.max_steps == -1
        if endless and (self.hparams["schedule"] in ("cosine", "step") or self.hparams["warmup"]):
            self._count_steps()
        return build_schedule(
            self._build_optimizer(), self.hparams["schedule"], self.hparams["warmup"], self._count_steps
        )

    def _count_steps(self) -> int:
        """Return the number of optimiser steps of the whole training."""
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total) or total < 0:  # below 0: the length of the data is not known
            raise ConfigError(_ENDLESS.format(schedule=self.hparams["schedule"], warmup=self.hparams["warmup"]))
        return int(total)

    def setup(self, stage: str) -> None:
        """Compare the models with the data before training starts, and forget earlier rows; see `check_data`.

        Args:
            stage: Lightning's name of the stage.
        """
        super().setup(stage)
        self.check_data(getattr(self.trainer, "datamodule", None))
        for model in self.models.values() if stage == "fit" else ():
            if self.hparams["channels_last"]:
                model.network.to(memory_format=torch.channels_last)
            if self.hparams["compile"]:
                model.network.compile()

    def check_data(self, data: object) -> None:
        """Compare the models with a data module, and give it the geometry of the models.

        Args:
            data: The data module; None = plain data loaders.

        Raises:
            ConfigError: If both name classes and these differ, or the sizes of their images do.
        """
        for objective in self.objectives.values():
            objective.check_classes(data)
        if isinstance(data, CXRDataModule):
            data.use_geometry(self.preprocess)
        theirs = getattr(data, "geometry", None)
        for name in GEOMETRY if theirs is not None else ():
            if getattr(theirs, name) != (ours := getattr(self.preprocess, name)):
                raise ConfigError(
                    f"The model's preprocess.{name} is {ours}, but the data module's is {getattr(theirs, name)}: "
                    f"leave the latter out, or set it alike."
                )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by epoch and batch, so that a resumed training draws the same numbers.

        Args:
            batch: The images.
            batch_idx: Number of the batch in its epoch.
        """
        step = f"{self.hparams['seed']}/{self.global_rank}/{self.current_epoch}/{batch_idx}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(step.encode()).digest()[:7], "big"))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take a checkpoint whose loss was another: weights of a loss are settings, not results.

        Args:
            checkpoint: What Lightning has read.
        """
        own, saved = self.state_dict(), checkpoint["state_dict"]
        for name in [name for name in own.keys() ^ saved.keys() if ".loss." in name]:
            if name in saved:
                del saved[name]
            else:
                saved[name] = own[name]

    def on_train_epoch_start(self) -> None:
        """Keep a frozen backbone in evaluation mode, so that its batch norms keep their statistics."""
        for part in self._frozen:
            part.eval()

    @abstractmethod
    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Save what was trained, without optimiser or checkpoint.

        Args:
            folder: Where to; made if it is not there.

        Returns:
            The folder, which `from_pretrained` reads.
        """


def read_config(model: ModelConfig | Mapping[str, Any]) -> ModelConfig:
    """Return the config of a model.

    Args:
        model: A config, or the plain data that a checkpoint holds.

    Returns:
        The config.
    """
    return ModelConfig.from_dict(model) if isinstance(model, Mapping) else model


class SingleTaskSettings(TaskSettings, total=False):
    """The keyword arguments of `SingleTask` besides model and loss.

    Example:
        ```python
        from covidcxr.tasks.base import SingleTaskSettings

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
