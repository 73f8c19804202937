"""The steps of all tasks: a batch becomes losses, scores and rows, the same in one process and in several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from covidcxr.config import PreprocessConfig
from covidcxr.errors import ConfigError
from covidcxr.models import NetworkModel
from covidcxr.tasks.objective import Objective, Outcome, Stage
from covidcxr.tasks.processes import Handover, Placed, Places, gather_rows, share_losses
from covidcxr.types import Batch

__all__ = ["Steps", "check_images", "select_images"]

_SHOWN = ("dice", "auroc", "balanced_accuracy", "score")
"""Scores that the progress bar shows."""


class Steps(LightningModule, ABC):
    """Runs models on batches, and keeps losses, scores and rows; abstract. `Task` adds how they are trained.

    Example:
        ```python
        from covidcxr import ClassificationTask
        from covidcxr.tasks.steps import Steps

        assert issubclass(ClassificationTask, Steps)
        ```
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[Placed] = []
        self._losses: dict[str, Tensor] = {}  # by name: sum, and number of what is known
        self._handover = Handover()
        self._places = Places(None, None)

    @property
    @abstractmethod
    def models(self) -> Mapping[str, NetworkModel]:
        """What is trained, each model by the name of the constructor's argument that configures it."""

    @property
    @abstractmethod
    def objectives(self) -> Mapping[str, Objective]:
        """What each of the models is trained towards."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row an image, filled by `Trainer.test` and `Trainer.validate`: image_id, patient_id, source, scores.

        They stand in the order of the data set, whatever the number of processes.
        """
        if (sent := self._handover.take()) is not None:
            self._rows = list(enumerate(sent))
        return [row for _, row in self._rows]

    @property
    def preprocess(self) -> PreprocessConfig:
        """How images become the input of the models, which is the same for all of them."""
        return next(iter(self.models.values())).config.preprocess

    def setup(self, stage: str) -> None:
        """Forget the rows of an earlier stage.

        Args:
            stage: Lightning's name of the stage.
        """
        self._rows = []
        self._places = Places(None, None)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """By how much the loss of each objective counts."""
        return dict.fromkeys(self.objectives, 1.0)

    @abstractmethod
    def _measure(self, batch: Batch, stage: Stage) -> Mapping[str, Outcome]:
        """Run the models on a batch that is not empty.

        Returns:
            What each objective says of it; none where nothing is known.
        """

    def _check(self, batch: Batch, batch_idx: int) -> None:
        """Check the first batch of a loader, whoever made it."""
        if batch_idx == 0:
            check_images(batch)
            for objective in self.objectives.values():
                objective.check_batch(batch)

    def _read(self, batch: Batch) -> tuple[Batch, list[int]]:
        """Name the images of a batch and leave out those that another process has; return their places too."""
        places = self._places.take(len(batch["image"]))
        kept = [number for number, place in enumerate(places) if not self._places.is_repeat(place)]
        return select_images(_name_images(batch, places), kept), [places[number] for number in kept]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        """Run a training batch.

        Args:
            batch: The images.
            batch_idx: Number of the batch in its epoch.

        Returns:
            "loss", and its parts as "loss_NAME" where it has several; None if nothing of the batch is known.
        """
        self._check(batch, batch_idx)
        outcomes = self._measure(batch, "train")
        pairs = {name: (outcome.loss, outcome.known) for name, outcome in outcomes.items()}
        pairs = {name: pairs.get(name, (None, 0)) for name in self.objectives}
        processes = 1 if self._trainer is None else self.trainer.world_size
        if processes > 1:
            losses = share_losses(pairs, self.parameters(), processes, self._add_up)
        else:
            losses = {name: loss for name, (loss, _) in pairs.items() if loss is not None}
        if not losses:
            return None
        total = self._total(losses)
        self.log("train/loss", total, batch_size=len(batch["image"]), prog_bar=True)
        parts = {f"loss_{name}": loss.detach() for name, loss in losses.items() if len(pairs) > 1}
        for name, loss in parts.items():
            self.log(f"train/{name}", loss, batch_size=len(batch["image"]))
        return {"loss": total, **parts}

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()

    def _add_up(self, values: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _score(self, batch: Batch, batch_idx: int, stage: Stage) -> None:
        """Log the loss of a batch, add to the scores, and keep its rows."""
        self._check(batch, batch_idx)
        images, places = self._read(batch)
        outcomes = self._measure(images, stage) if places else {}
        several = len(self.objectives) > 1
        losses = {name: outcome.loss for name, outcome in outcomes.items() if outcome.loss is not None}
        for name, outcome in outcomes.items() if several else ():
            self._add_loss(f"loss_{name}", losses.get(name), outcome.known)
        known = len(places) if several else sum(outcome.known for outcome in outcomes.values())
        self._add_loss("loss", self._total(losses) if losses else None, known)
        rows = [row for outcome in outcomes.values() for row in outcome.rows]
        if several:  # an image has a row of each
            merged: dict[str, dict[str, Any]] = {}
            for row in rows:
                merged.setdefault(row["image_id"], {}).update(row)
            rows = list(merged.values())
        place_of = dict(zip(images["image_id"], places, strict=True))
        self._rows += [(place_of[row["image_id"]], row) for row in rows]

    def _add_loss(self, name: str, loss: Tensor | None, known: int) -> None:
        if loss is not None:
            pair = torch.stack([loss.detach().float() * known, torch.full_like(loss, known, dtype=torch.float)])
            self._losses[name] = self._losses[name] + pair if name in self._losses else pair

    def _log_losses(self, stage: Stage) -> None:
        # NaN where nothing was known. Lightning's own means round the number of images of all processes (2.6.6).
        names = ["loss", *(f"loss_{name}" for name in self.objectives if len(self.objectives) > 1)]
        pairs = torch.stack([self._losses.get(name, torch.zeros(2, device=self.device)) for name in names])
        if self.trainer.world_size > 1:
            pairs = self._add_up(pairs)
        for name, (total, count) in zip(names, pairs, strict=True):
            self.log(f"{stage}/{name}", total / count, sync_dist=True, reduce_fx="max")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a validation batch, and add to its scores.

        Args:
            batch: The images.
            batch_idx: Number of the batch.
        """
        self._score(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a test batch to the scores, and one row an image to `rows`.

        Args:
            batch: The images.
            batch_idx: Number of the batch.
        """
        self._score(batch, batch_idx, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Predict a batch.

        Args:
            batch: The images.
            batch_idx: Number of the batch.

        Returns:
            A row an image: image_id, patient_id, source, and `probability_CLASS` of each class: a number for a label,
            a map [height, width] at the model's size for a mask.
        """
        if batch_idx == 0:
            check_images(batch)
        images, places = self._read(batch)
        names = zip(images["image_id"], images["patient_id"], images["source"], strict=True)
        rows = [dict(zip(("image_id", "patient_id", "source"), three, strict=True)) for three in names]
        for model in self.models.values() if places else ():
            answers = model.predict(images["image"], self.lung_mask(images)).cpu()
            for row, answer in zip(rows, answers, strict=True):
                for name, value in zip(model.config.classes, answer, strict=True):
                    row[f"probability_{name}"] = value if value.ndim else value.item()
        return rows

    def lung_mask(self, batch: Batch) -> Tensor | None:
        """Return the lungs of a batch where the model's region needs them.

        The data module has cut its images already where its own `region` says so. Cutting twice changes nothing, and a
        model trained on another kind of data module still gets its region.

        Args:
            batch: The images.

        Returns:
            [batch, 1, height, width], 0 or 1; None for the region "full".
        """
        return None if self.preprocess.region == "full" else batch.get("lung_mask")

    def log_scores(self, stage: Stage) -> dict[str, Tensor]:
        """Log the scores of the images of a stage, and forget them.

        Args:
            stage: "train", "val" or "test".

        Returns:
            From name to value, as logged, without the stage.
        """
        scores = {name: value for part in self.objectives.values() for name, value in part.pop_scores(stage).items()}
        for name, value in scores.items():
            shown = stage != "train" and name in _SHOWN
            # All processes have the same value already, of which the largest is taken: a mean would be rounded.
            self.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True, reduce_fx="max")
        return scores

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of an earlier run."""
        self._start(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        """Forget the rows of an earlier run."""
        self._start(self.trainer.test_dataloaders)

    def on_predict_epoch_start(self) -> None:
        """Number the images from the first one on."""
        self._start(self.trainer.predict_dataloaders)

    def _start(self, loaders: object) -> None:
        self._rows, self._losses = [], {}
        loader = loaders[0] if isinstance(loaders, Sequence) else loaders
        self._places = Places(self.trainer, loader)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation images; bring the rows of all processes together."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.log_scores("train")  # here, so that they stand beside those of validation
        self._log_losses("val")
        self.log_scores("val")
        self._gather_rows()

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test images; bring the rows of all processes together."""
        self._log_losses("test")
        self.log_scores("test")
        self._gather_rows()

    def teardown(self, stage: str) -> None:
        """Hand the rows to the process that started this one, if any.

        Args:
            stage: Lightning's name of the stage.
        """
        if self.keeps_rows:
            self._handover.send(self.trainer, self.rows)

    @property
    def keeps_rows(self) -> bool:
        """Whether images are being scored for their own sake, not between two epochs of training."""
        return self.trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING)

    def _gather_rows(self) -> None:
        if self.keeps_rows:
            self._rows = gather_rows(self._rows, self.trainer.world_size, unique=not self._places.known)


_NAMES = ("image_id", "patient_id", "source")


def check_images(batch: object) -> None:
    """Check that a batch holds grey images, and say what it must hold.

    Args:
        batch: What a loader gave.

    Raises:
        ConfigError: If it is no mapping, has no images, or they are no grey images in [0, 1].
    """
    if not isinstance(batch, dict):
        raise ConfigError(
            f"The loader gives batches of type {type(batch).__name__}, but a task needs mappings, as `Sample` and "
            f'`Batch` of covidcxr.types say: {{"image": ..., "label": ...}} for a classifier, {{"image": ..., '
            f'"mask": ...}} for a segmenter. Let the data set return dicts.'
        )
    image = batch.get("image")
    if not isinstance(image, Tensor):
        raise ConfigError(f'The batch has no tensor "image"; its keys are {sorted(map(str, batch))}.')
    if image.ndim != 4 or image.shape[1] != 1 or not image.is_floating_point():
        raise ConfigError(
            f"Images must be floating-point tensors [batch, 1, height, width], not {image.dtype} {tuple(image.shape)}."
        )
    low, high = (image.amin().item(), image.amax().item()) if image.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ConfigError(
            f"Images must be grey values in [0, 1], not [{low:.3g}, {high:.3g}]: divide by the largest possible value, "
            f"and leave normalisation to the model."
        )


def _name_images(batch: Batch, places: Sequence[int]) -> Batch:
    """Give names to images whose loader gives none."""
    named = cast(dict[str, Any], dict(batch))
    made = [f"image-{place}" for place in places]
    ids = _names(named, "image_id", made)
    named["image_id"] = ids
    named["patient_id"] = _names(named, "patient_id", ids)
    named["source"] = _names(named, "source", ["unknown"] * len(made))
    return cast(Batch, named)


def _names(batch: dict[str, Any], key: str, made: list[str]) -> list[str]:
    names = batch.get(key)
    if names is None:
        return made
    names = names.tolist() if isinstance(names, Tensor) else list(names)
    if len(names) != len(made):
        raise ConfigError(f"The batch has {len(made)} images, but {len(names)} entries of {key!r}.")
    return [str(name) for name in names]


def select_images(batch: Batch, places: Sequence[int]) -> Batch:
    """Return some images of a batch.

    Args:
        batch: The images.
        places: Which, by their places in the batch.

    Returns:
        What `Batch` says of them; other keys are left out.
    """
    if list(places) == list(range(len(batch["image"]))):
        return batch
    values = {key: value for key, value in batch.items() if key in Batch.__annotations__}
    picked = {
        key: value[torch.tensor(places, dtype=torch.long, device=value.device)]
        if isinstance(value, Tensor)
        else [cast(Sequence[str], value)[place] for place in places]
        for key, value in values.items()
    }
    return cast(Batch, picked)
