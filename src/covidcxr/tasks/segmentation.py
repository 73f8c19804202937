"""Training of segmenters."""

from __future__ import annotations

from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.losses import build_segmentation_loss, known_planes
from covidcxr.models import CXRModel, SegmentationModel
from covidcxr.tasks.base import Stage, Task
from covidcxr.transforms import fit_mask
from covidcxr.types import Batch

__all__ = ["SegmentationTask"]

SCORES = ("dice", "iou", "precision", "recall")


@final
class SegmentationTask(Task):
    """Trains a `SegmentationModel` on films with masks; a mask class that is unknown for a film is left out.

    Logs `train/loss`, and for `val` and `test` the loss and `dice`, `iou`, `precision` and `recall`: the mean over
    films of each class (`val/dice_lung_field`) and the mean over classes (`val/dice`, the one to monitor).

    Args:
        model: What is trained; `task="segmentation"`.
        loss: A segmentation loss, or several added ("dice+bce+focal").
        **settings: The settings of `Task`.
    """

    model_class: ClassVar[type[CXRModel]] = SegmentationModel
    monitor: ClassVar[str] = "val/dice"
    model: SegmentationModel

    def __init__(self, model: ModelConfig, *, loss: str | nn.Module = "dice+bce", **settings: Any) -> None:
        super().__init__(model, loss=loss, **settings)
        count = len(self.model.config.classes)
        self.metrics = nn.ModuleDict({stage: FilmMeans(count) for stage in ("val", "test")})

    def configure_loss(self, loss: str | nn.Module, loss_args: dict[str, Any] | None) -> nn.Module:
        """Build the loss from the registry of segmentation losses."""
        return build_segmentation_loss(loss, loss_args)

    def check_classes(self, data: object) -> None:
        """Raise `ConfigError` if the data module gives other mask classes than the model draws."""
        theirs = getattr(data, "mask_classes", None)
        if theirs is not None and tuple(theirs) != self.model.config.classes:
            raise ConfigError(
                f"The model draws the mask classes {list(self.model.config.classes)}, but the data module gives "
                f"{list(theirs)}: set mask_classes and the model's classes alike."
            )

    def _step(self, batch: Batch, stage: Stage) -> Tensor | None:
        if "mask" not in batch:
            raise ConfigError("The batch has no masks: name mask_classes in the data module.")
        logits = self(batch["image"], self.lung_mask(batch))
        settings = self.model.config.preprocess
        target = fit_mask(batch["mask"], settings.image_size, settings.fit)
        known_logits, known_target = known_planes(logits, target)
        loss = self.loss(known_logits, known_target) if len(known_logits) else None
        if loss is not None:
            self.log(f"{stage}/loss", loss, batch_size=len(known_logits), prog_bar=stage == "train", sync_dist=True)
        if stage != "train":
            scores = mask_scores(logits.detach() / self.model.config.temperature, target, self.model.thresholds())
            cast(FilmMeans, self.metrics[stage]).update(scores)
            if self.keeps_rows:
                self._keep_rows(batch, scores)
        return loss

    def log_scores(self, stage: Stage) -> None:
        """Log the mean scores of each class, and their mean over classes; training films are not scored."""
        if stage == "train":
            return
        metric = cast(FilmMeans, self.metrics[stage])
        for score, means in metric.compute().items():
            means = means.reshape(-1)  # torchmetrics makes a scalar of a single class
            known = ~means.isnan()
            for column, name in enumerate(self.model.config.classes):
                if known[column]:
                    self.log(f"{stage}/{score}_{name}", means[column], sync_dist=True)
            if known.any():
                self.log(f"{stage}/{score}", means[known].mean(), prog_bar=score == "dice", sync_dist=True)
        metric.reset()

    def _keep_rows(self, batch: Batch, scores: dict[str, Tensor]) -> None:
        for film, image_id in enumerate(batch["image_id"]):
            row: dict[str, Any] = {"image_id": image_id}
            row |= {"patient_id": batch["patient_id"][film], "source": batch["source"][film]}
            for score, values in scores.items():
                for column, name in enumerate(self.model.config.classes):
                    row[f"{score}_{name}"] = values[film, column].item()
            self.rows.append(row)


class FilmMeans(Metric):
    """Means of mask scores over films, class by class; films whose mask is unknown (NaN) do not count.

    Args:
        classes: Number of mask classes.
    """

    total: Tensor
    count: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(len(SCORES), classes), dist_reduce_fx="sum")

    def update(self, scores: dict[str, Float[Tensor, "batch classes"]]) -> None:
        """Add the films of a batch, as `mask_scores` scored them."""
        values = torch.stack([scores[name] for name in SCORES])
        self.total += values.nansum(1)
        self.count += (~values.isnan()).sum(1)

    def compute(self) -> dict[str, Float[Tensor, " classes"]]:
        """Return the mean of each score for each class; NaN where no film counted."""
        return dict(zip(SCORES, self.total / self.count, strict=True))


def mask_scores(
    logits: Float[Tensor, "batch classes height width"],
    target: Float[Tensor, "batch classes height width"],
    thresholds: tuple[float, ...],
) -> dict[str, Float[Tensor, "batch classes"]]:
    """Compare thresholded masks with the truth, film by film and class by class.

    Returns:
        `dice`, `iou`, `precision` and `recall` in [0, 1]; NaN where the truth is unknown. Both masks empty is 1;
        precision of an empty mask and recall of an empty truth are 1.
    """
    drawn = logits.float().sigmoid() >= torch.tensor(thresholds, device=logits.device)[:, None, None]
    true = target == 1
    both = (drawn & true).sum((2, 3)).float()
    sizes, truths = drawn.sum((2, 3)).float(), true.sum((2, 3)).float()

    def ratio(part: Tensor, whole: Tensor) -> Tensor:
        values = torch.where(whole > 0, part / whole, torch.ones_like(whole))
        return values.masked_fill(target.flatten(2).isnan().any(2), torch.nan)

    return {
        "dice": ratio(2 * both, sizes + truths),
        "iou": ratio(both, sizes + truths - both),
        "precision": ratio(both, sizes),
        "recall": ratio(both, truths),
    }
