"""Training of segmenters."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, cast, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.losses import build_segmentation_loss, known_planes
from covidcxr.models import NetworkModel, SegmentationModel
from covidcxr.tasks.base import SingleTask, SingleTaskSettings
from covidcxr.tasks.objective import Objective, Outcome, Stage
from covidcxr.transforms.geometry import hd95, resize_mask
from covidcxr.types import Batch

__all__ = ["SegmentationObjective", "SegmentationTask"]

SCORES = ("dice", "iou", "precision", "recall")

_UNIT = 2**30
"""Scores are added up in whole numbers of this fraction."""


class SegmentationObjective(Objective):
    """Loss and scores of masks; those that are unknown for an image are left out. See `Objective`.

    Args:
        config: Config of the model.
        loss: Name of a registered loss, or a module.
        loss_args: Arguments of a loss given by name.

    Example:
        ```python
        from covidcxr import ModelConfig
        from covidcxr.tasks.segmentation import SegmentationObjective

        config = ModelConfig("segmentation", "residual_unet", ("lung",), mode="multilabel")
        assert SegmentationObjective(config, "dice+bce").pop_scores("train") == {}
        ```
    """

    def __init__(self, config: ModelConfig, loss: str | nn.Module, loss_args: dict[str, Any] | None = None) -> None:
        super().__init__(config, loss, loss_args)
        self.loss = build_segmentation_loss(loss, loss_args)
        self.metrics = nn.ModuleDict({stage: ImageMeans(len(self.classes)) for stage in ("val", "test")})

    def check_classes(self, data: object) -> None:
        """Compare the model's classes with the mask classes of a data module; see `Objective`.

        Args:
            data: The data module; None is not compared.

        Raises:
            ConfigError: If both name mask classes and these differ.
        """
        theirs = getattr(data, "mask_classes", None)
        if theirs is not None and tuple(theirs) != self.classes:
            raise ConfigError(
                f"The model draws the mask classes {list(self.classes)}, but the data module gives {list(theirs)}: "
                f"set mask_classes and the model's classes alike."
            )

    def check_batch(self, batch: Batch) -> None:
        """Check the masks of a batch; see `Objective`.

        Args:
            batch: The images.

        Raises:
            ConfigError: If it has no masks, or they have another form.
        """
        mask, size = batch.get("mask"), batch["image"].shape[2:]
        if not isinstance(mask, Tensor):
            raise ConfigError(
                'The batch has no masks ("mask"): name mask_classes in the data module, or give planes of 0 and 1 for '
                f"the classes {list(self.classes)}, NaN = not known."
            )
        if mask.shape != (len(batch["image"]), len(self.classes), *size) or not mask.is_floating_point():
            raise ConfigError(
                f"Masks must be floating-point tensors {(len(batch['image']), len(self.classes), *size)}, a plane for "
                f"each of {list(self.classes)}, not {mask.dtype} {tuple(mask.shape)}."
            )

    def measure(self, model: SegmentationModel, logits: Tensor, batch: Batch, stage: Stage, keep_rows: bool) -> Outcome:
        """Compare the masks of a batch with those that are known; see `Objective`.

        Args:
            model: Gave the logits; its temperature and thresholds count.
            logits: [batch, classes, height, width].
            batch: The images.
            stage: Stage to whose scores the batch adds.
            keep_rows: Whether to return rows.

        Returns:
            The loss, and the rows.
        """
        settings = model.config.preprocess
        target = resize_mask(batch["mask"], settings.image_size, settings.fit)
        known_logits, known_target = known_planes(logits, target)
        loss = self.loss(known_logits, known_target) if len(known_logits) else None
        rows: list[dict[str, Any]] = []
        if stage != "train":
            asked = logits.detach() / model.config.temperature, target, model.thresholds()
            scores = mask_scores(*asked)
            cast(ImageMeans, self.metrics[stage]).update(scores)
            if stage == "test" and keep_rows:
                scores["hd95"] = mask_distances(*asked)
            rows = self._rows(batch, scores) if keep_rows else []
        return Outcome(loss, len(known_logits), rows)

    def pop_scores(self, stage: Stage) -> dict[str, Tensor]:
        """Return the mean scores of each class, and their mean over classes; training images are not scored.

        Args:
            stage: "train", "val" or "test".

        Returns:
            From name to value: `dice_CLASS`, `dice`, ...
        """
        if stage == "train":
            return {}
        metric = cast(ImageMeans, self.metrics[stage])
        scores: dict[str, Tensor] = {}
        for score, means in metric.compute().items():
            means = means.reshape(-1)  # torchmetrics makes a scalar of a single class
            known = ~means.isnan()
            scores |= {f"{score}_{name}": means[place] for place, name in enumerate(self.classes) if known[place]}
            if known.any():
                scores[score] = means[known].mean()
        metric.reset()
        return scores

    def _rows(self, batch: Batch, scores: dict[str, Tensor]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for image, image_id in enumerate(batch["image_id"]):
            if bool(scores["dice"][image].isnan().all()):
                continue  # no mask of it is known: there is nothing to score
            row: dict[str, Any] = {"image_id": image_id}
            row |= {"patient_id": batch["patient_id"][image], "source": batch["source"][image]}
            for score, values in scores.items():
                row |= {
                    f"{score}_{name}": value.item() for name, value in zip(self.classes, values[image], strict=True)
                }
            rows.append(row)
        return rows


@final
class SegmentationTask(SingleTask):
    """Trains a `SegmentationModel` on images with masks; a mask class that is unknown for an image is left out.

    Logs `train/loss`, and for `val` and `test` the loss and `dice`, `iou`, `precision` and `recall`: the mean over
    images of each class (`val/dice_lung_field`) and the mean over classes (`val/dice`, the one to monitor).

    Args:
        model: What is trained; `task="segmentation"`.
        loss: A segmentation loss, or several added ("dice+bce+focal").
        **settings: The settings of `SingleTask`.

    Example:
        ```python
        import torch

        from covidcxr import ModelConfig, SegmentationTask

        preprocess = {"image_size": (64, 64)}
        model = ModelConfig("segmentation", "residual_unet", ("lung",), mode="multilabel", preprocess=preprocess)
        assert SegmentationTask(model)(torch.rand(1, 1, 64, 64)).shape == (1, 1, 64, 64)
        ```
    """

    model_class: ClassVar[type[NetworkModel]] = SegmentationModel
    objective_class: ClassVar[type[Objective]] = SegmentationObjective
    monitor: ClassVar[str] = "val/dice"
    model: SegmentationModel

    def __init__(
        self, model: ModelConfig, *, loss: str | nn.Module = "dice+bce", **settings: Unpack[SingleTaskSettings]
    ) -> None:
        super().__init__(model, loss=loss, **settings)


class ImageMeans(Metric):
    """Means of mask scores over images, class by class; images whose mask is unknown (NaN) do not count.

    Args:
        classes: Number of mask classes.

    Example:
        ```python
        import torch

        from covidcxr.tasks.segmentation import SCORES, ImageMeans

        means = ImageMeans(1)
        means.update(dict.fromkeys(SCORES, torch.tensor([[0.5], [1.0], [torch.nan]])))
        assert means.compute()["dice"].item() == 0.75
        ```
    """

    total: Tensor
    count: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("total", "count"):
            # Whole numbers: their sum is the same in any order, so that two processes score as one does.
            self.add_state(name, torch.zeros(len(SCORES), classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: dict[str, Float[Tensor, "batch classes"]]) -> None:
        """Add the images of a batch.

        Args:
            scores: As `mask_scores` scored them: [batch, classes] in [0, 1], NaN = unknown.
        """
        values = torch.stack([scores[name] for name in SCORES])
        # Not in place: a state that was made in inference mode could not be changed outside it.
        self.total = self.total + (values.nan_to_num(0.0) * _UNIT).round().long().sum(1)
        self.count = self.count + (~values.isnan()).sum(1)

    def compute(self) -> dict[str, Float[Tensor, " classes"]]:
        """Return the mean of each score for each class; NaN where no image counted."""
        return dict(zip(SCORES, self.total / _UNIT / self.count, strict=True))


def mask_scores(
    logits: Float[Tensor, "batch classes height width"],
    target: Float[Tensor, "batch classes height width"],
    thresholds: tuple[float, ...],
) -> dict[str, Float[Tensor, "batch classes"]]:
    """Compare thresholded masks with the truth, image by image and class by class.

    Args:
        logits: [batch, classes, height, width].
        target: Masks of 0 and 1, same shape; a plane with NaN is unknown.
        thresholds: Probability from which a pixel belongs to the class, one a class.

    Returns:
        `dice`, `iou`, `precision` and `recall` in [0, 1]; NaN where the truth is unknown. Dice and IoU of two empty
        masks are 1. Precision is 0 if only the mask is empty; it is NaN if both are, as is recall of an empty truth.
    """
    drawn = logits.float().sigmoid() >= torch.tensor(thresholds, device=logits.device)[:, None, None]
    true = target == 1
    both = (drawn & true).sum((2, 3)).float()
    sizes, truths = drawn.sum((2, 3)).float(), true.sum((2, 3)).float()

    def ratio(part: Tensor, whole: Tensor, otherwise: float | Tensor = 1.0) -> Tensor:
        values = torch.where(whole > 0, part / whole, otherwise)
        return values.masked_fill(target.flatten(2).isnan().any(2), torch.nan)

    return {
        "dice": ratio(2 * both, sizes + truths),
        "iou": ratio(both, sizes + truths - both),
        "precision": ratio(both, sizes, torch.where(truths > 0, 0.0, torch.nan)),
        "recall": ratio(both, truths, torch.nan),
    }


def mask_distances(
    logits: Float[Tensor, "batch classes height width"],
    target: Float[Tensor, "batch classes height width"],
    thresholds: tuple[float, ...],
) -> Float[Tensor, "batch classes"]:
    """Compute the 95 % Hausdorff distance of thresholded masks; see `covidcxr.transforms.geometry.hd95`.

    Args:
        logits: [batch, classes, height, width].
        target: Masks of 0 and 1, same shape; a plane with NaN is unknown.
        thresholds: Probability from which a pixel belongs to the class, one a class.

    Returns:
        [batch, classes], in pixels of these maps; NaN where the truth is unknown.
    """
    drawn = (logits.float().sigmoid() >= torch.tensor(thresholds, device=logits.device)[:, None, None]).cpu().numpy()
    truths = target.float().cpu().numpy()
    distances = torch.full(truths.shape[:2], torch.nan)
    for place in np.ndindex(*distances.shape):
        if not np.isnan(truths[place]).any():
            distances[place] = hd95(drawn[place], truths[place] == 1)
    return distances
