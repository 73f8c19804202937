"""What all training tasks share: the model, the optimiser, the steps, exact resume."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.models import CXRModel, load_model
from covidcxr.networks import backbone_of
from covidcxr.tasks.optim import OptimizerName, ScheduleName, build_optimizer, build_schedule
from covidcxr.types import Batch

__all__ = ["Task"]

Stage = Literal["train", "val", "test"]


class Task(LightningModule, ABC):
    """Trains a model with Lightning's own `Trainer`; abstract.

    Args:
        model: What is trained.
        loss: Name of a registered loss ("dice+bce" adds them), or a module.
        loss_args: Arguments of a loss given by name.
        optimizer: "adamw", "adam", "sgd" (Nesterov momentum 0.9 unless `optimizer_args` says otherwise) or "rmsprop".
        lr: Learning rate at its highest.
        weight_decay: Weight decay of the weights; biases and norms get none.
        optimizer_args: Further arguments of torch's optimiser.
        schedule: "constant", "cosine" (to zero at the end), "step" (a tenth after each third) or "plateau" (a tenth
            when `val/loss` stands still for 5 epochs).
        warmup: Fraction of all steps over which the learning rate rises from 0, in [0, 1).
        init_from: A saved model (folder or Hub repository) whose weights the training starts from. It must have the
            same network, of which an answering layer for other classes starts fresh; or, for a classifier
            `timm:NAME`, be a segmenter with the encoder `tu-NAME`.
        freeze_backbone: Train only what makes the answer; the backbone's batch norms keep their statistics too.
        pretrained_backbone: True for the network library's own (ImageNet) weights, or the path of a weights file.
        seed: Seeds dropout and the like, by step, so that a resumed training continues with the same bits.

    Raises:
        ConfigError: If a setting is wrong.
        PretrainedError: If weights to start from cannot be had.
    """

    model_class: ClassVar[type[CXRModel]]
    monitor: ClassVar[str]
    """Name of the logged score by which the best weights are chosen; higher is better."""
    model: CXRModel

    def __init__(
        self,
        model: ModelConfig,
        *,
        loss: str | nn.Module,
        loss_args: dict[str, Any] | None = None,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        optimizer_args: dict[str, Any] | None = None,
        schedule: ScheduleName = "cosine",
        warmup: float = 0.0,
        init_from: str | os.PathLike[str] | None = None,
        freeze_backbone: bool = False,
        pretrained_backbone: bool | str = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config = ModelConfig.from_dict(model) if isinstance(model, Mapping) else model
        # Plain values only, or load_from_checkpoint refuses them. The two sources of first weights are left out:
        # a checkpoint has its own weights, and loading it must not go to the network.
        settings: dict[str, Any] = {
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "optimizer_args": optimizer_args,
        }
        settings |= {"schedule": schedule, "warmup": warmup, "freeze_backbone": freeze_backbone, "seed": seed}
        loss_name = loss if isinstance(loss, str) else f"<{type(loss).__name__} instance: give loss=... again>"
        self.save_hyperparameters({"model": config.to_dict(), "loss": loss_name, "loss_args": loss_args, **settings})
        self.model = self.model_class(config, pretrained_backbone=pretrained_backbone)
        if init_from is not None:
            start_from(self.model, load_model(init_from, prefer=self.model.task))
        self._frozen = list(backbone_of(self.model.network)) if freeze_backbone else []
        for part in self._frozen:
            part.requires_grad_(False)
        build_optimizer(self.model, optimizer, lr, weight_decay, optimizer_args)  # a wrong setting fails now
        self.loss = self.configure_loss(loss, loss_args)
        self.rows: list[dict[str, Any]] = []
        """One row a film, filled by `Trainer.test` and `Trainer.validate`: image_id, patient_id, source, scores."""

    @abstractmethod
    def configure_loss(self, loss: str | nn.Module, loss_args: dict[str, Any] | None) -> nn.Module:
        """Build the loss, from its name or as given."""

    @abstractmethod
    def _step(self, batch: Batch, stage: Stage) -> Tensor | None:
        """Run one batch of any stage: model, loss, metrics. None where nothing in it can be learnt from."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of a training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a validation batch, and score it."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log scores of a test batch and keep a row a film in `rows`."""
        self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the probabilities of a batch."""
        return self.model.predict(batch["image"], self.lung_mask(batch))

    def forward(self, image: Tensor, lung_mask: Tensor | None = None) -> Tensor:
        """Return logits; see `CXRModel.forward`."""
        return cast(Tensor, self.model(image, lung_mask))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimiser and schedule from the settings."""
        settings = self.hparams
        optimizer = build_optimizer(
            self.model, settings["optimizer"], settings["lr"], settings["weight_decay"], settings["optimizer_args"]
        )
        return build_schedule(
            optimizer,
            settings["schedule"],
            settings["warmup"],
            lambda: int(self.trainer.estimated_stepping_batches),
        )

    def setup(self, stage: str) -> None:
        """Compare the model with the data before anything is trained; see `check_data`."""
        self.check_data(getattr(self.trainer, "datamodule", None))

    def check_data(self, data: object) -> None:
        """Compare the model with a data module (or None).

        Raises:
            ConfigError: If both name classes and these differ, or the sizes of their films do.
        """
        self.check_classes(data)
        theirs = getattr(data, "geometry", None)
        for name in ("image_size", "fit", "region", "lung_dilation") if theirs is not None else ():
            if getattr(theirs, name) != (ours := getattr(self.model.config.preprocess, name)):
                raise ConfigError(
                    f"The model's preprocess.{name} is {ours}, but the data module's is {getattr(theirs, name)}: "
                    f"set both alike."
                )

    @abstractmethod
    def check_classes(self, data: object) -> None:
        """Raise `ConfigError` if the model's classes are not those of the data module (which may be None)."""

    def lung_mask(self, batch: Batch) -> Tensor | None:
        """Return the lungs of a batch [B, 1, H, W] where the model's region needs them.

        The data module has blackened its films already where its own `region` says so; doing it twice changes
        nothing, and a model trained on somebody else's data module still gets its region.
        """
        return None if self.model.config.preprocess.region == "full" else batch.get("lung_mask")

    def on_train_epoch_start(self) -> None:
        """Keep a frozen backbone in evaluation mode, so that its batch norms keep their statistics."""
        for part in self._frozen:
            part.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by epoch and batch: a resumed training draws the same numbers."""
        step = f"{self.hparams['seed']}/{self.global_rank}/{self.current_epoch}/{batch_idx}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(step.encode()).digest()[:7], "big"))

    @abstractmethod
    def log_scores(self, stage: Stage) -> None:
        """Log the scores of the films of a stage, and forget them."""

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of an earlier run."""
        self.rows = []

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation films; bring the rows of all processes together."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.log_scores("train")  # here, so that they stand beside those of validation
        self.log_scores("val")
        self._gather_rows()

    def on_test_epoch_start(self) -> None:
        """Forget the rows of an earlier run."""
        self.rows = []

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test films; bring the rows of all processes together."""
        self.log_scores("test")
        self._gather_rows()

    @property
    def keeps_rows(self) -> bool:
        """Whether films are being scored for their own sake, not between two epochs of training."""
        return self.trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING)

    def _gather_rows(self) -> None:
        if self.keeps_rows and self.trainer.world_size > 1:
            parts: list[list[dict[str, Any]]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, self.rows)
            unique = {row["image_id"]: row for part in parts for row in part}  # samplers repeat films to fill up
            self.rows = list(unique.values())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model alone (no optimiser, no checkpoint) into a folder that `from_pretrained` reads."""
        return self.model.save_pretrained(folder)


def start_from(model: CXRModel, saved: CXRModel) -> None:
    """Copy a saved model's weights into a new one.

    From the same network all is copied, but for an answering layer of another shape (other classes). From a
    segmenter with the encoder `tu-NAME`, a classifier `timm:NAME` gets the encoder.

    Raises:
        ConfigError: If the networks do not fit.
    """
    own, given = model.network.state_dict(), saved.network.state_dict()
    encoder = f"tu-{model.config.network.removeprefix('timm:')}"
    from_encoder = saved.task != model.task and saved.config.network_args.get("encoder") == encoder
    if from_encoder:
        prefix = "encoder.model."
        given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
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
    model.network.load_state_dict({**own, **{name: value for name, value in given.items() if name not in fresh}})
    if fresh:
        rank_zero_info(f"Started from {saved.config.network}; these tensors are fresh: {', '.join(sorted(fresh))}.")


def _answer_tensors(network: nn.Module) -> set[str]:
    """Name the tensors that make the answer: smp's last layer, else all beside the backbone."""
    outside = set(network.state_dict()) - _backbone_tensors(network)
    return {name for name in outside if name.startswith("segmentation_head.")} or outside


def _backbone_tensors(network: nn.Module) -> set[str]:
    inside = {id(tensor) for part in backbone_of(network) for tensor in (*part.parameters(), *part.buffers())}
    named = (*network.named_parameters(), *network.named_buffers())
    return {name for name, tensor in named if id(tensor) in inside}
