"""Training of boosted trees on deep features."""

from __future__ import annotations

import torch
from torch import Tensor

from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.models import ClassificationModel
from covidcxr.networks.shallow import BoostedTrees
from covidcxr.tasks.rows import check_classes, inputs, labelled_images
from covidcxr.utils.plain import is_number
from covidcxr.utils.threads import tracked

__all__ = ["FRACTIONS", "check_fraction", "fit_boosting"]

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
