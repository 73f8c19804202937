"""Training of classifiers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from covidcxr.config import ModelConfig
from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.losses import build_classification_loss
from covidcxr.models import ClassificationModel, NetworkModel
from covidcxr.networks.shallow import BoostedTrees
from covidcxr.tasks.base import SingleTask, SingleTaskSettings, read_config
from covidcxr.tasks.objective import Objective, Outcome, Stage
from covidcxr.tasks.rows import check_classes, image_rows, inputs, labelled_images
from covidcxr.tasks.steps import select_images
from covidcxr.types import Batch
from covidcxr.utils.plain import is_number
from covidcxr.utils.threads import tracked

__all__ = [
    "FRACTIONS",
    "ClassificationObjective",
    "ClassificationTask",
    "check_fraction",
    "default_loss",
    "fit_boosting",
]


class _Count(Metric):
    """Number of images; torchmetrics's own sum cannot be used in inference mode and outside it in turn."""

    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: int) -> None:
        self.images = self.images + images

    def compute(self) -> Tensor:
        return self.images


class _AUROCs(Metric):
    """Area of each class, one against the rest; NaN unless some images are known to show it, and some not to.

    Unlike torchmetrics's own, it takes images of which some classes are not known, no images at all, and processes of
    which some have none.

    Args:
        classes: Number of classes.
    """

    probabilities: list[Tensor]
    truths: list[Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("truths", [], dist_reduce_fx="cat")

    def update(self, probabilities: Float[Tensor, "images classes"], truths: Int[Tensor, "images classes"]) -> None:
        """Add images.

        Args:
            probabilities: In [0, 1].
            truths: 1, 0, or -1 = not known.
        """
        self.probabilities.append(probabilities)
        self.truths.append(truths)

    def sync(self, *given: Any, **named: Any) -> None:
        """Bring the images of all processes together; see `torchmetrics.Metric`.

        Args:
            given: For torchmetrics.
            named: For torchmetrics.
        """
        if not self.probabilities:  # processes must exchange tensors of one form
            none = torch.empty(0, self.classes, device=self.device)
            self.probabilities, self.truths = [none], [none.long()]
        super().sync(*given, **named)

    def compute(self) -> Float[Tensor, " classes"]:
        """Return an area a class."""
        areas = torch.full((self.classes,), torch.nan, device=self.device)
        if not len(self.truths):
            return areas
        probabilities, truths = dim_zero_cat(self.probabilities), dim_zero_cat(self.truths)
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
        assert list(objective.pop_scores("val")) == ["auroc"]  # NaN: there were no images
        ```
    """

    def __init__(self, config: ModelConfig, loss: str | nn.Module, loss_args: dict[str, Any] | None = None) -> None:
        super().__init__(config, loss, loss_args)
        self.loss = build_classification_loss(loss, loss_args)
        self.metrics = nn.ModuleDict({f"{stage}_scores": self._metrics(stage) for stage in ("train", "val", "test")})

    def _metrics(self, stage: str) -> MetricCollection:
        count = len(self.classes)
        metrics: dict[str, Metric | MetricCollection] = {}
        if self.mode != "multilabel":
            metrics = {
                "images": _Count(),
                "accuracy": MulticlassAccuracy(count, average="micro"),
                "balanced_accuracy": MulticlassAccuracy(count, average="macro"),
                "f1": MulticlassF1Score(count, average="macro"),
            }
        # The area needs every image's probabilities, which is much to keep for the training images.
        if stage != "train":
            metrics["auroc"] = _AUROCs(count)
        return MetricCollection(metrics, compute_groups=False)

    def check_classes(self, data: object) -> None:
        """Compare the model's classes with the labels of a data module; see `Objective`.

        Args:
            data: The data module; None is not compared.
        """
        check_classes(self.classes, data)

    def check_batch(self, batch: Batch) -> None:
        """Check the labels of a batch; see `Objective`.

        Args:
            batch: The images.

        Raises:
            ConfigError: If there are no labels, they have another form, or one is no class.
        """
        label, count = cast(dict[str, Any], batch).get("label"), len(self.classes)
        wanted = f"integers [batch] from 0 to {count - 1}, -1 = not labelled"
        if self.mode == "multilabel":
            wanted = f"numbers [batch, {count}] of 1, 0 or NaN = not known, or {wanted}"
        if not isinstance(label, Tensor):
            raise ConfigError(f'The batch has no tensor "label": a classifier of {list(self.classes)} needs {wanted}.')
        exclusive = label.ndim == 1 and not label.is_floating_point() and label.dtype != torch.bool
        findings = self.mode == "multilabel" and label.is_floating_point() and label.shape[1:] == (count,)
        known = label[~label.isnan()] if findings else label
        low, high = (0, 1) if findings else (-1, count - 1)
        inside = not known.numel() or bool((known >= low).all() and (known <= high).all())
        if not (exclusive or findings) or not inside:
            raise ConfigError(f"Labels must be {wanted}, not {label.dtype} {tuple(label.shape)}: {label[:4].tolist()}.")

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
            for name, metric in metrics.items(keep_base=True):
                if name == "auroc":
                    metric.update(probabilities, self._truths(label))
                elif name == "images":
                    metric.update(len(places))
                else:
                    metric.update(probabilities, label)
            rows = list(image_rows(batch, places, label, probabilities, self.classes)) if keep_rows else []
        return Outcome(loss, len(places), rows)

    def _truths(self, label: Tensor) -> Tensor:
        """Return [images, classes]: 1, 0, or -1 = not known."""
        return label.nan_to_num(-1).long() if label.is_floating_point() else one_hot(label, len(self.classes))

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
        with warnings.catch_warnings():  # torchmetrics warns of a class without images, and of no images
            warnings.simplefilter("ignore", UserWarning)
            scores: dict[str, Tensor] = metrics.compute()
        metrics.reset()
        if "images" in scores and not scores.pop("images"):
            scores = {name: value for name, value in scores.items() if name == "auroc"}
        if "auroc" in scores:
            areas = scores["auroc"]
            # Always there, NaN where only one class has images: whoever monitors it must find it.
            scores["auroc"] = areas[~areas.isnan()].mean()
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

    def __init__(
        self, model: ModelConfig, *, loss: str | nn.Module | None = None, **settings: Unpack[SingleTaskSettings]
    ) -> None:
        super().__init__(model, loss=loss or default_loss(read_config(model)), **settings)

    def _measure(self, batch: Batch, stage: Stage) -> Mapping[str, Outcome]:
        images = labelled(batch)
        # Without the others, which would move the statistics of batch norms.
        return super()._measure(select_images(batch, images), stage) if images else {}


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


FRACTIONS = ("learning_rate", "subsample", "max_features")
"""The settings of `fit_boosting` that must be in (0, 1]."""


def fit_boosting(
    model: ClassificationModel,
    data: CXRDataModule,
    *,
    learning_rate: float = 0.1,
    subsample: float = 1.0,
    max_features: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> ClassificationModel:
    """Grow the trees of a model whose network is "boosted", by scikit-learn's gradient boosting (Friedman 2001).

    The images are the labelled ones of the training split, each once and as it is: the data module's augmentation and
    balance, which are made for epochs, do not count.

    Args:
        model: Gets the trees; as many stages, as deep, as it has room for.
        data: The images.
        learning_rate: By how much the trees of each stage are shrunk, above 0.
        subsample: Fraction of the images that each tree sees, in (0, 1]; below 1 = stochastic gradient boosting
            (Friedman 2002).
        max_features: Fraction of the features that each split looks at, in (0, 1]. The time taken grows with it.
        seed: Same seed (and batch size of the data module), same trees.
        progress: Show progress bars on standard error.

    Returns:
        The model.

    Raises:
        ConfigError: If the model is of another kind, its classes may come together or are not those of the data, or
            a number is out of range.
        DatasetError: If a class has no training image, or an image lacks the lung mask that the region needs.
        ImageReadError: If an image cannot be read.
    """
    network = _boosted_trees(model)
    for name, value in (("learning_rate", learning_rate), ("subsample", subsample), ("max_features", max_features)):
        check_fraction(name, value)
    from sklearn.ensemble import GradientBoostingClassifier

    check_classes(model.config.classes, data)
    features, labels = _features(model, network, data, progress)
    stages = len(network.leaf)
    boosting = GradientBoostingClassifier(
        n_estimators=stages,
        max_depth=network.depth,
        learning_rate=learning_rate,
        subsample=subsample,
        max_features=float(max_features),  # 1 would mean one feature
        random_state=seed,
    )
    ticks = tracked(range(stages), stages, "stages", progress)
    next(ticks)  # shows the bar

    def count_stage(*_: object) -> bool:
        next(ticks, None)
        return False  # True would stop the training

    boosting.fit(features.numpy(), labels.numpy(), monitor=count_stage)
    network.copy_trees(boosting)
    return model


def _boosted_trees(model: ClassificationModel) -> BoostedTrees:
    """Return the network of a model that can be boosted."""
    if not isinstance(model.network, BoostedTrees) or model.config.mode == "multilabel":
        raise ConfigError(
            f'fit_boosting trains the network "boosted" with exclusive classes, not {model.config.network!r} '
            f"({model.config.mode})."
        )
    return model.network


def check_fraction(name: str, value: object) -> None:
    """Refuse what is not a number in (0, 1].

    Args:
        name: Name of the setting, for the message.
        value: What was given.

    Raises:
        ConfigError: If it is not; names it.
    """
    if not is_number(value) or not 0 < value <= 1:
        raise ConfigError(f"{name} must be in (0, 1], not {value!r}.")


def _features(
    model: ClassificationModel, network: BoostedTrees, data: CXRDataModule, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return the features of the labelled training images, and their labels."""
    images = labelled_images(data, "train", model)
    features, labels = [], []
    with torch.inference_mode():
        for batch in tracked(images, len(images), "batches", progress):
            features.append(network.features(model.preprocess(*inputs(model, batch))).float().cpu())
            labels.append(batch["label"])
    counts = torch.cat(labels).bincount(minlength=len(model.config.classes)) if labels else torch.zeros(1)
    if not bool((counts > 0).all()):
        raise DatasetError(
            f"Each class needs training images; {type(data).__name__} has of {', '.join(model.config.classes)}: "
            f"{', '.join(str(int(count)) for count in counts)}."
        )
    return torch.cat(features), torch.cat(labels)
