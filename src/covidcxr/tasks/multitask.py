"""Training of a segmenter and a classifier on one encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast, final

import torch
from torch import Tensor, nn

from covidcxr.config import ModelConfig, check_keys
from covidcxr.errors import ConfigError
from covidcxr.io.pretrained import check_finite
from covidcxr.losses.segmentation import check_number
from covidcxr.models import ClassificationModel, NetworkModel, SegmentationModel, load_model
from covidcxr.networks.segmentation import forward_shared, share_encoder
from covidcxr.tasks.base import Task, TaskSettings, read_config, start_from
from covidcxr.tasks.classification import ClassificationObjective, default_loss
from covidcxr.tasks.objective import Objective, Outcome, Stage, loss_name
from covidcxr.tasks.segmentation import SegmentationObjective
from covidcxr.types import Batch
from covidcxr.utils.plain import user_path

__all__ = ["MultiTask"]

_PARTS = ("segmentation", "classification")


@final
class MultiTask(Task):
    """Trains one encoder with two answers, a `SegmentationModel` and a `ClassificationModel`.

    Every image teaches what is known of it, its masks, its label or both; the encoder is computed once. Logs the scores
    of `SegmentationTask` and `ClassificationTask`, `loss_segmentation`, `loss_classification` and their weighted sum
    `loss`, and `val/score`, the mean of `val/dice` and `val/auroc`, which is the one to monitor.

    Args:
        segmentation: The network `smp:...` with the encoder `tu-NAME`.
        classification: The network `timm:NAME`; same preprocessing. Its arguments (`drop_path_rate`, ...) are those of
            the encoder.
        losses: From "segmentation" and "classification" to a loss; by default those of the two tasks.
        loss_args: By the same names, the arguments of a loss given by name.
        weights: By the same names, how much the loss counts, from 0 up; 1 by default.
        **settings: The settings of `Task`. `init_from` may be what a `MultiTask` saved, or one of its two models.

    Example:
        ```python
        import torch

        from covidcxr import ModelConfig, MultiTask

        encoder = {"encoder": "tu-resnet10t"}
        preprocess = {"image_size": (64, 64)}
        masks = ModelConfig("segmentation", "smp:unet", ("lung",), "multilabel", encoder, preprocess)
        labels = ModelConfig("classification", "timm:resnet10t", ("normal", "covid19"), preprocess=preprocess)
        logits = MultiTask(masks, labels).eval()(torch.rand(1, 1, 64, 64))
        assert logits["classification"].shape == (1, 2)
        ```
    """

    monitor: ClassVar[str] = "val/score"
    segmenter: SegmentationModel
    classifier: ClassificationModel

    def __init__(
        self,
        segmentation: ModelConfig,
        classification: ModelConfig,
        *,
        losses: dict[str, str | nn.Module] | None = None,
        loss_args: dict[str, dict[str, Any]] | None = None,
        weights: dict[str, float] | None = None,
        **settings: Unpack[TaskSettings],
    ) -> None:
        super().__init__(**settings)
        masks, labels = read_config(segmentation), read_config(classification)
        _check_pair(masks, labels)
        for name, table in (("losses", losses), ("loss_args", loss_args), ("weights", weights)):
            check_keys(table or {}, set(_PARTS), name)
        chosen = {"segmentation": "dice+bce", "classification": default_loss(labels), **(losses or {})}
        counts = dict.fromkeys(_PARTS, 1.0) | (weights or {})
        self.weights = {name: check_number(f"The weight of {name}", weight) for name, weight in counts.items()}
        plain = {name: loss_name(loss) for name, loss in chosen.items()}
        self.save_hyperparameters({"segmentation": masks.to_dict(), "classification": labels.to_dict()})
        self.save_hyperparameters({"losses": plain, "loss_args": loss_args, "weights": self.weights})
        self.classifier = ClassificationModel(labels, pretrained_backbone=self._pretrained_backbone)
        self.segmenter = SegmentationModel(masks)
        shape = (masks.preprocess.channels, *masks.preprocess.image_size)
        share_encoder(self.segmenter.network, self.classifier.network, shape)
        arguments = loss_args or {}
        self._objectives = nn.ModuleDict(
            {
                "segmentation": SegmentationObjective(masks, chosen["segmentation"], arguments.get("segmentation")),
                "classification": ClassificationObjective(
                    labels, chosen["classification"], arguments.get("classification")
                ),
            }
        )
        self._prepare()

    @property
    def models(self) -> Mapping[str, NetworkModel]:
        """The segmenter and the classifier, under the names of their arguments."""
        return {"segmentation": self.segmenter, "classification": self.classifier}

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """What each of them is trained towards."""
        return cast(Mapping[str, Objective], self._objectives)

    def forward(self, image: Tensor, lung_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the logits of masks and classes; see `CXRModel.forward`.

        Args:
            image: Grey images [batch, 1, height, width], in [0, 1].
            lung_mask: Lungs, same shape, 0 or 1; None = the region does not need them.

        Returns:
            Logits under "segmentation" and "classification".
        """
        seen = self.segmenter.preprocess(image, lung_mask)
        return dict(zip(_PARTS, forward_shared(self.segmenter.network, self.classifier.network, seen), strict=True))

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """By how much the losses of masks and labels count."""
        return self.weights

    def _measure(self, batch: Batch, stage: Stage) -> Mapping[str, Outcome]:
        logits = self(batch["image"], self.lung_mask(batch))
        return {
            name: objective.measure(self.models[name], logits[name], batch, stage, self.keeps_rows)
            for name, objective in self.objectives.items()
        }

    def log_scores(self, stage: Stage) -> dict[str, Tensor]:
        """Log the scores of both models and, except for training images, the mean of Dice and AUROC.

        Args:
            stage: "train", "val" or "test".

        Returns:
            From name to value, as logged, without the stage and that mean.
        """
        scores = super().log_scores(stage)
        if stage != "train":
            chief = [scores[name] for name in ("dice", "auroc") if name in scores and not scores[name].isnan()]
            # Always there, NaN where no image told anything: whoever monitors it must find it.
            mean = torch.stack(chief or [torch.tensor(torch.nan, device=self.device)]).mean()
            self.log(f"{stage}/score", mean, prog_bar=True, sync_dist=True, reduce_fx="max")
        return scores

    def _start_from(self, source: str | os.PathLike[str]) -> None:
        given = {name: load_model(source, prefer=model.task) for name, model in self.models.items()}
        for name, model in self.models.items():
            if given[name].task == model.task:  # else it is one of the two only
                start_from(model, given[name])
        own, saved = self.segmenter.network.state_dict(), given["segmentation"]
        if isinstance(saved, SegmentationModel):
            theirs = saved.network.state_dict()
            if not all(torch.equal(own[name], theirs[name]) for name in theirs if name.startswith("encoder.")):
                raise ConfigError(f"The models in {source} have an encoder each: start from one of them, FOLDER/NAME.")

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Save the two models, each of which loads alone.

        Args:
            folder: Gets the folders `segmenter` and `classifier`.

        Returns:
            The folder.

        Raises:
            ConfigError: If a weight is not finite.
        """
        check_finite(self)  # both before one is written
        target = user_path(folder)
        self.segmenter.save_pretrained(target / "segmenter")
        self.classifier.save_pretrained(target / "classifier")
        return target


def _check_pair(masks: ModelConfig, labels: ModelConfig) -> None:
    """Refuse two configs that cannot be of one encoder."""
    library, _, name = labels.network.partition(":")
    if library != "timm" or not masks.network.startswith("smp:") or masks.network_args.get("encoder") != f"tu-{name}":
        raise ConfigError(
            f"One encoder needs the segmentation network smp:... with the encoder tu-NAME, and the classification "
            f"network timm:NAME, not {masks.network!r} with {masks.network_args} and {labels.network!r}."
        )
    ours, theirs = masks.to_dict()["preprocess"], labels.to_dict()["preprocess"]
    for key in ours:
        if ours[key] != theirs[key]:
            raise ConfigError(
                f"One encoder sees one image, but preprocess.{key} is {ours[key]} for segmentation and {theirs[key]} "
                f"for classification: set both alike."
            )
    for shared in set(masks.classes) & set(labels.classes):
        raise ConfigError(f"{shared!r} names a mask and a label, whose scores could not be told apart: rename one.")
