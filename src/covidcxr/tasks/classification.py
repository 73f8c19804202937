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
from covidcxr.losses import build_classification_loss
from covidcxr.models import ClassificationModel, NetworkModel
from covidcxr.tasks.base import read_config
from covidcxr.tasks.objective import Objective, Outcome, Stage
from covidcxr.tasks.rows import check_classes, image_rows
from covidcxr.tasks.single import SingleTask
from covidcxr.types import Batch

__all__ = ["ClassificationObjective", "ClassificationTask", "default_loss"]


class _FindingAUROC(MultilabelAUROC):
    """Area of each finding over the images of which it is known (-1 = not known); NaN unless some have it, some not."""

    def __init__(self, count: int) -> None:
        super().__init__(count, average="none", ignore_index=-1)

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics's own needs this too
        """Return an area a finding; torchmetrics's own fails where no image is known."""
        probabilities, truths = _cat(self.preds), _cat(self.target)
        areas = torch.full_like(probabilities[0], torch.nan)
        for place, truth in enumerate(truths.T):
            if (truth == 1).any() and (truth == 0).any():
                areas[place] = binary_auroc(probabilities[:, place], truth, ignore_index=-1)
        return areas


class ClassificationObjective(Objective):
    """Loss and scores of labels; images without one are left out. See `Objective`.

    Args:
        config: Config of the model.
        loss: Name of a registered loss, or a module.
        loss_args: Arguments of a loss given by name.

    Example:
        ```python
        from covidcxr import ModelConfig
        from covidcxr.tasks.classification import ClassificationObjective

        objective = ClassificationObjective(ModelConfig("classification", "cnn19", ("normal", "covid19")), "focal")
        assert objective.pop_scores("val") == {}
        ```
    """

    def __init__(self, config: ModelConfig, loss: str | nn.Module, loss_args: dict[str, Any] | None = None) -> None:
        super().__init__(config, loss, loss_args)
        self.loss = build_classification_loss(loss, loss_args)
        self.metrics = nn.ModuleDict({f"{stage}_scores": self._metrics(stage) for stage in ("train", "val", "test")})

    def _metrics(self, stage: str) -> MetricCollection:
        count = len(self.classes)
        if self.mode == "multilabel":
            return MetricCollection({} if stage == "train" else {"auroc": _FindingAUROC(count)})
        rates: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(count, average="micro"),
            "balanced_accuracy": MulticlassAccuracy(count, average="macro"),
            "f1": MulticlassF1Score(count, average="macro"),
        }
        # The area needs every image's probabilities, which is much to keep for the training images.
        if stage != "train":
            rates["auroc"] = MulticlassAUROC(count, average="none")
        return MetricCollection(rates, compute_groups=False)

    def check_classes(self, data: object) -> None:
        """Compare the model's classes with the labels of a data module; see `Objective`.

        Args:
            data: The data module; None is not compared.
        """
        check_classes(self.classes, data)

    def measure(
        self, model: ClassificationModel, logits: Tensor, batch: Batch, stage: Stage, keep_rows: bool
    ) -> Outcome:
        """Compare the logits of the labelled images with their labels; see `Objective`.

        Args:
            model: Gave the logits; its temperature counts.
            logits: [batch, outputs].
            batch: The images.
            stage: Stage to whose scores the batch adds.
            keep_rows: Whether to return rows.

        Returns:
            The loss, and the rows.
        """
        places = labelled(batch)
        if not places:
            return Outcome(None, 0, [])
        logits, label = logits[places], batch["label"][places]
        if self.mode == "multilabel" and not label.is_floating_point():
            label = one_hot(label, logits.shape[1]).float()  # a data module of exclusive classes: the others are absent
        loss = self.loss(logits, self._target(label, logits))
        metrics = cast(MetricCollection, self.metrics[f"{stage}_scores"])
        rows: list[dict[str, Any]] = []
        if len(metrics):
            probabilities = model.probabilities(logits.detach().float() / model.config.temperature)
            truth = label.nan_to_num(-1).long() if label.is_floating_point() else label
            metrics.update(probabilities, truth)
            rows = list(image_rows(batch, places, label, probabilities, self.classes)) if keep_rows else []
        return Outcome(loss, len(places), rows)

    def _target(self, label: Tensor, logits: Tensor) -> Tensor:
        """Binary mode has one output, so its target is a column of 0 and 1."""
        return label[:, None].to(logits.dtype) if self.mode == "binary" else label

    def pop_scores(self, stage: Stage) -> dict[str, Tensor]:
        """Return the scores; a class without images is left out of their means.

        Args:
            stage: "train", "val" or "test".

        Returns:
            From name to value.
        """
        metrics = cast(MetricCollection, self.metrics[f"{stage}_scores"])
        if not any(metric.update_called for metric in metrics.values()):
            return {}
        with warnings.catch_warnings():  # a class without images makes torchmetrics warn; it is left out below
            warnings.simplefilter("ignore", UserWarning)
            scores: dict[str, Tensor] = metrics.compute()
        if stage != "train":
            truth, areas = _cat(metrics["auroc"].target), scores["auroc"]
            present = torch.tensor([bool((truth == c).any() and (truth != c).any()) for c in range(len(areas))])
            # Always there, NaN where only one class has images: whoever monitors it must find it.
            scores["auroc"] = areas[~areas.isnan() if self.mode == "multilabel" else present].mean()
        metrics.reset()
        return scores


@final
class ClassificationTask(SingleTask):
    """Trains a `ClassificationModel`; images without a label are left out.

    Logs `train/loss`, and for `val` and `test` the loss, `auroc` (mean over the classes present, one against the
    rest; the one to monitor), and for exclusive classes `accuracy`, `balanced_accuracy` and `f1` (macro). The latter
    three are logged for `train` too, over the epoch's augmented images, while the model learns.

    Args:
        model: What is trained; `task="classification"`.
        loss: A classification loss; by default cross entropy for exclusive classes, else binary cross entropy.
        **settings: The settings of `SingleTask`.

    Example:
        ```python
        import torch

        from covidcxr import ClassificationTask, ModelConfig

        model = ModelConfig("classification", "cnn19", ("normal", "covid19"), preprocess={"image_size": (64, 64)})
        task = ClassificationTask(model, loss="focal", loss_args={"gamma": 1.0})
        assert task(torch.rand(2, 1, 64, 64)).shape == (2, 2)
        ```
    """

    model_class: ClassVar[type[NetworkModel]] = ClassificationModel
    objective_class: ClassVar[type[Objective]] = ClassificationObjective
    monitor: ClassVar[str] = "val/auroc"
    model: ClassificationModel

    def __init__(self, model: ModelConfig, *, loss: str | nn.Module | None = None, **settings: Any) -> None:
        super().__init__(model, loss=loss or default_loss(read_config(model)), **settings)

    def _step(self, batch: Batch, stage: Stage) -> dict[str, Tensor]:
        images = labelled(batch)
        if not images:
            return {}
        values: dict[str, Any] = {key: value for key, value in batch.items() if key in Batch.__annotations__}
        # Without the others, which would move the statistics of batch norms.
        kept = {k: v[images] if isinstance(v, Tensor) else [v[image] for image in images] for k, v in values.items()}
        return super()._step(cast(Batch, kept), stage)


def default_loss(config: ModelConfig) -> str:
    """Choose the loss that suits a classifier.

    Args:
        config: Its config.

    Returns:
        "cross_entropy" for exclusive classes, else "bce".
    """
    return "cross_entropy" if config.mode == "multiclass" else "bce"


def labelled(batch: Batch) -> list[int]:
    """Find the images in a batch that have a label.

    Args:
        batch: The images.

    Returns:
        Their places in the batch.
    """
    label = batch["label"]
    known = ~label.isnan().all(1) if label.is_floating_point() else label >= 0
    places: list[int] = known.nonzero()[:, 0].tolist()
    return places


def _cat(state: Any) -> Tensor:
    return torch.cat(list(state)) if isinstance(state, list) else cast(Tensor, state)
