"""Training of classifiers."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score, MultilabelAUROC
from torchmetrics.functional.classification import binary_auroc

from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.losses import build_classification_loss
from covidcxr.models import ClassificationModel, CXRModel
from covidcxr.tasks.base import Stage, Task
from covidcxr.types import Batch

__all__ = ["ClassificationTask"]


class _FindingAUROC(MultilabelAUROC):
    """Area of each finding over the films of which it is known (-1 = not known); NaN unless some have it, some not."""

    def __init__(self, count: int) -> None:
        super().__init__(count, average="none", ignore_index=-1)

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics's own needs this too
        """Return an area a finding; torchmetrics's own fails where no film is known."""
        probabilities, truths = _cat(self.preds), _cat(self.target)
        areas = torch.full_like(probabilities[0], torch.nan)
        for place, truth in enumerate(truths.T):
            if (truth == 1).any() and (truth == 0).any():
                areas[place] = binary_auroc(probabilities[:, place], truth, ignore_index=-1)
        return areas


@final
class ClassificationTask(Task):
    """Trains a `ClassificationModel`; films without a label are left out.

    Logs `train/loss`, and for `val` and `test` the loss, `auroc` (mean over the classes present, one against the
    rest; the one to monitor), and for exclusive classes `accuracy`, `balanced_accuracy` and `f1` (macro). The latter
    three are logged for `train` too, over the epoch's augmented films, while the model learns.

    Args:
        model: What is trained; `task="classification"`.
        loss: A classification loss; by default cross entropy for exclusive classes, else binary cross entropy.
        **settings: The settings of `Task`.
    """

    model_class: ClassVar[type[CXRModel]] = ClassificationModel
    monitor: ClassVar[str] = "val/auroc"
    model: ClassificationModel

    def __init__(self, model: ModelConfig, *, loss: str | nn.Module | None = None, **settings: Any) -> None:
        mode = model.get("mode", "multiclass") if isinstance(model, dict) else model.mode
        super().__init__(model, loss=loss or ("cross_entropy" if mode == "multiclass" else "bce"), **settings)
        self.metrics = nn.ModuleDict({f"{stage}_scores": self._metrics(stage) for stage in ("train", "val", "test")})

    def _metrics(self, stage: str) -> MetricCollection:
        count = len(self.model.config.classes)
        if self.model.config.mode == "multilabel":
            return MetricCollection({} if stage == "train" else {"auroc": _FindingAUROC(count)})
        rates: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(count, average="micro"),
            "balanced_accuracy": MulticlassAccuracy(count, average="macro"),
            "f1": MulticlassF1Score(count, average="macro"),
        }
        # The area needs every film's probabilities, which is much to keep for the training films.
        if stage != "train":
            rates["auroc"] = MulticlassAUROC(count, average="none")
        return MetricCollection(rates, compute_groups=False)

    def configure_loss(self, loss: str | nn.Module, loss_args: dict[str, Any] | None) -> nn.Module:
        """Build the loss from the registry of classification losses."""
        return build_classification_loss(loss, loss_args)

    def check_classes(self, data: object) -> None:
        """Raise `ConfigError` if the data module's labels are not the model's classes, in the same order."""
        theirs = getattr(data, "classes", None)
        if theirs and tuple(theirs) != self.model.config.classes:
            raise ConfigError(
                f"The model's classes are {list(self.model.config.classes)}, but the data module's labels are "
                f"{list(theirs)}: set both alike, in the same order."
            )

    def _step(self, batch: Batch, stage: Stage) -> Tensor | None:
        label = batch["label"]
        labelled = ~label.isnan().all(1) if label.is_floating_point() else label >= 0
        if not bool(labelled.any()):
            return None
        lung_mask = self.lung_mask(batch)
        logits = self(batch["image"][labelled], None if lung_mask is None else lung_mask[labelled])
        label = label[labelled]
        if self.model.config.mode == "multilabel" and not label.is_floating_point():
            label = one_hot(label, logits.shape[1]).float()  # a data module of exclusive classes: the others are absent
        loss = cast(Tensor, self.loss(logits, self._target(label, logits)))
        self.log(f"{stage}/loss", loss, batch_size=len(label), prog_bar=stage == "train", sync_dist=True)
        metrics = cast(MetricCollection, self.metrics[f"{stage}_scores"])
        if len(metrics):
            probabilities = self.model.probabilities(logits.detach().float() / self.model.config.temperature)
            truth = label.nan_to_num(-1).long() if label.is_floating_point() else label
            metrics.update(probabilities, truth)
            if self.keeps_rows:
                self._keep_rows(batch, labelled, label, probabilities)
        return loss

    def _target(self, label: Tensor, logits: Tensor) -> Tensor:
        """Binary mode has one output, so its target is a column of 0 and 1."""
        return label[:, None].to(logits.dtype) if self.model.config.mode == "binary" else label

    def log_scores(self, stage: Stage) -> None:
        """Log the scores; a class without films is left out of their means."""
        metrics = cast(MetricCollection, self.metrics[f"{stage}_scores"])
        if not any(metric.update_called for metric in metrics.values()):
            return
        if stage == "train":
            for name, value in metrics.compute().items():
                self.log(f"train/{name}", value, sync_dist=True)
            metrics.reset()
            return
        with warnings.catch_warnings():  # a class without films makes torchmetrics warn; it is left out below
            warnings.simplefilter("ignore", UserWarning)
            values = metrics.compute()
        truth, areas = _cat(metrics["auroc"].target), values.pop("auroc")
        present = torch.tensor([bool((truth == c).any() and (truth != c).any()) for c in range(len(areas))])
        kept = areas[~areas.isnan() if self.model.config.mode == "multilabel" else present]
        # Always logged, NaN where only one class has films: whoever monitors it must find it.
        self.log(f"{stage}/auroc", kept.mean(), prog_bar=True, sync_dist=True)
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "balanced_accuracy", sync_dist=True)
        metrics.reset()

    def _keep_rows(self, batch: Batch, labelled: Tensor, labels: Tensor, probabilities: Tensor) -> None:
        classes = self.model.config.classes
        for row, film in enumerate(labelled.nonzero()[:, 0].tolist()):
            label = labels[row]
            entry: dict[str, Any] = {"image_id": batch["image_id"][film], "patient_id": batch["patient_id"][film]}
            entry |= {"source": batch["source"][film]}
            if label.is_floating_point():
                entry |= {f"label_{name}": label[c].item() for c, name in enumerate(classes)}
            else:
                entry["label"] = classes[int(label)]
            entry |= {f"probability_{name}": probabilities[row, c].item() for c, name in enumerate(classes)}
            self.rows.append(entry)


def _cat(state: Any) -> Tensor:
    return torch.cat(list(state)) if isinstance(state, list) else cast(Tensor, state)
