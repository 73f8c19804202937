"""Classifiers: one network, or an ensemble of several; class scores in, calibrated probabilities out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self, cast, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from covidcxr.config import EnsembleConfig, ModelConfig
from covidcxr.errors import ConfigError, PretrainedError, did_you_mean
from covidcxr.io import pretrained
from covidcxr.io.folders import path_inside
from covidcxr.models.base import CXRModel, calibrate_logits
from covidcxr.models.network import NetworkModel, resize_images
from covidcxr.transforms.postprocess import choose_class
from covidcxr.transforms.pyramid import ImagePyramid, Pixels, ResizedImages
from covidcxr.types import TaskName, Vote
from covidcxr.utils.plain import user_path

__all__ = ["ClassificationModel", "Classifier", "EnsembleModel"]


class Classifier(CXRModel, ABC):
    """Predicts how probable each class is, calibrated by the config's temperature; abstract.

    Example:
        ```python
        from covidcxr.models import Classifier, load_model

        model = load_model("mini")
        assert isinstance(model, Classifier)
        assert model.answer({"covid19": 0.9, "normal": 0.05, "pneumonia": 0.05}) == ("covid19", ())
        ```
    """

    task: ClassVar[TaskName] = "classification"

    @property
    @abstractmethod
    def members(self) -> tuple[ClassificationModel, ...]:
        """The models whose probabilities are combined, each with its own preprocessing."""

    @abstractmethod
    def combine(self, probabilities: Sequence[Float[Tensor, "batch classes"]]) -> Float[Tensor, "batch classes"]:
        """Combine the probabilities of the members.

        Args:
            probabilities: Of each member, in the order of `members`, in [0, 1].

        Returns:
            The classifier's own calibrated probabilities.
        """

    def predict(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Compute a probability for each class.

        Args:
            image: Grey images in [0, 1].
            lung_mask: Lungs, 0 or 1; needed where the model `needs_lungs`.

        Returns:
            Probabilities in the order of `config.classes`. Multiclass and binary ones sum to 1; multilabel ones are
            each by itself.

        Raises:
            ConfigError: If the images are of the wrong shape or range, or the lung mask is missing.
        """
        return self.probabilities(self.calibrated_logits(image, lung_mask))

    def predict_images(
        self,
        images: Sequence[Pixels | ImagePyramid],
        masks: Sequence[Mapping[str, Bool[np.ndarray, "_ _"]]],
        resized: ResizedImages | None = None,
    ) -> Float[np.ndarray, "batch classes"]:
        """Compute a probability for each class, of images of any sizes.

        Args:
            images: Grey images [height, width], 8 bits or in [0, 1].
            masks: Of each image, by mask class, at the image's size; may be empty where the model needs no lungs.
            resized: These very images as earlier calls resized them; what is new is added.

        Returns:
            Probabilities in the order of `config.classes`.

        Raises:
            ConfigError: If the lungs of an image are needed and missing.
        """
        members = [member.predict(*resize_images(member, images, masks, resized)) for member in self.members]
        return self.combine(members).cpu().numpy()

    def probabilities(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch classes"]:
        """Turn calibrated logits into probabilities, by the config's mode.

        Args:
            logits: Divided by the temperature; one column for the two classes of the mode "binary".

        Returns:
            Probabilities in [0, 1].
        """
        if self.config.mode == "multiclass":
            return logits.softmax(dim=1)
        if self.config.mode == "multilabel":
            return logits.sigmoid()
        return torch.cat((-logits, logits), dim=1).sigmoid()

    def answer(self, probabilities: dict[str, float]) -> tuple[str | None, tuple[str, ...]]:
        """Choose the one plausible class, or abstain with a reason; see `covidcxr.transforms.postprocess.choose_class`.

        Args:
            probabilities: By class name, calibrated.

        Returns:
            The class and no reasons, or None and the reasons.
        """
        return choose_class(self.config, probabilities)


@final
class ClassificationModel(NetworkModel, Classifier):
    """A classifier of one network.

    Args:
        config: What the model is; `task="classification"`.
        pretrained_backbone: Pretrained weights for the backbone; see `NetworkModel`.

    Example:
        ```python
        import torch
        from covidcxr import ClassificationModel, ModelConfig, PreprocessConfig

        settings = PreprocessConfig(image_size=(64, 64))
        config = ModelConfig("classification", "cnn19", ("covid19", "normal"), "binary", preprocess=settings)
        probabilities = ClassificationModel(config).predict(torch.rand(2, 1, 80, 70))
        assert probabilities.shape == (2, 2) and torch.allclose(probabilities.sum(1), torch.ones(2))
        ```
    """

    config: ModelConfig

    @property
    def members(self) -> tuple[ClassificationModel, ...]:
        """The model itself."""
        return (self,)

    def combine(self, probabilities: Sequence[Float[Tensor, "batch classes"]]) -> Float[Tensor, "batch classes"]:
        """Return the probabilities of the only member.

        Args:
            probabilities: A list of one.

        Returns:
            Its element.
        """
        (own,) = probabilities
        return own


_LEAST = 1e-12
"""Probabilities below are taken for this when they become logits; calibration does the same."""


@final
class EnsembleModel(Classifier):
    """Combines the calibrated probabilities of several classifiers, each with its own preprocessing.

    Args:
        members: By name, which is also that of their folder when they are saved. All have the same classes in the
            same order; their networks, sizes, regions and normalisations may differ.
        weights: By name, how much a member's vote weighs; by default all weigh the same.
        vote: "soft" = weighted mean of the probabilities. "hard" = weighted share of the members that vote for a
            class: for their most probable one, or where classes are not exclusive all from their thresholds (0.5) up.
        thresholds: By class name; see `ModelConfig`.
        temperature: Of the ensemble's own calibration; see `covidcxr.evaluation.calibrate`.

    Raises:
        ConfigError: If there is no member, their classes differ, or a setting is wrong.

    Example:
        ```python
        from covidcxr import ClassificationModel, EnsembleModel

        model = ClassificationModel.from_pretrained("mini")
        ensemble = EnsembleModel({"first": model, "second": model}, weights={"first": 2, "second": 1})
        assert ensemble.config.classes == model.config.classes
        ```
    """

    config: EnsembleConfig

    def __init__(
        self,
        members: Mapping[str, ClassificationModel],
        *,
        weights: Mapping[str, float] | None = None,
        vote: Vote = "soft",
        thresholds: Mapping[str, float] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        first = _check_alike(members)
        weights = dict.fromkeys(members, 1.0) if weights is None else weights
        for name in weights.keys() ^ members.keys():
            raise ConfigError(f"weights must name each member once; {name!r} is wrong. {did_you_mean(name, members)}")
        self.config = EnsembleConfig(
            first.classes,
            "multilabel" if first.mode == "multilabel" else "multiclass",
            {name: weights[name] for name in members},
            vote,
            dict(thresholds or {}),
            temperature,
            first.positive,
        )
        self._members = nn.ModuleList(members.values())

    @property
    def members(self) -> tuple[ClassificationModel, ...]:
        """The models that vote, in the order of `config.members`."""
        return tuple(cast(ClassificationModel, member) for member in self._members)

    @property
    def needs_lungs(self) -> bool:
        """Whether any member sees only a region of the image."""
        return any(member.needs_lungs for member in self.members)

    def forward(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Compute logits: the logarithms, or of findings the log odds, of the combined votes.

        Args:
            image: Grey images in [0, 1]; each member preprocesses them itself.
            lung_mask: Lungs, 0 or 1, of the images' size; needed where the model `needs_lungs`.

        Returns:
            Logits of the classes.
        """
        probabilities = []
        for member in self.members:
            logits = calibrate_logits(cast(Tensor, member(image, lung_mask)), member.config.temperature)
            probabilities.append(member.probabilities(logits))
        return self._logits(probabilities)

    def combine(self, probabilities: Sequence[Float[Tensor, "batch classes"]]) -> Float[Tensor, "batch classes"]:
        """Combine the calibrated probabilities of the members.

        Args:
            probabilities: Of each member, in the order of `members`, in [0, 1].

        Returns:
            The ensemble's calibrated probabilities.
        """
        return self.probabilities(self._logits(probabilities) / self.config.temperature)

    def _logits(self, probabilities: Sequence[Tensor]) -> Tensor:
        weights = list(self.config.members.values())
        votes = probabilities if self.config.vote == "soft" else map(_hard_vote, self.members, probabilities)
        weighed = [vote * weight for vote, weight in zip(votes, weights, strict=True)]
        pooled = (torch.stack(weighed).sum(0) / sum(weights)).clamp(0, 1)  # rounding may lead out of it
        if self.config.mode == "multilabel":
            return pooled.logit(torch.finfo(pooled.dtype).eps)  # finite where all members are sure
        return pooled.clamp_min(_LEAST).log()

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: pretrained.StoredDtype = "float32") -> Path:
        """Write `config.json` and `members/NAME/`, each of which loads alone.

        Args:
            folder: Where to; made if need be.
            dtype: How weights are stored; see `CXRModel.save_pretrained`.

        Returns:
            The folder.

        Raises:
            ConfigError: If a weight is not finite, or too large for `dtype`.
        """
        target = user_path(folder)
        pretrained.check_finite(self)  # all members before one is written
        for name, member in zip(self.config.members, self.members, strict=True):
            member.save_pretrained(path_inside(target / "members", name), dtype=dtype)
        pretrained.write_json(target / "config.json", self.config.to_dict())
        return target

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save_pretrained` wrote; see `from_pretrained`.

        Args:
            folder: A local folder.

        Returns:
            The ensemble, in evaluation mode.

        Raises:
            PretrainedError: If the folder holds no ensemble, or a member is damaged or altered.
            ConfigError: If a config is wrong, or the members do not fit together.
        """
        path = folder / "config.json"
        data = pretrained.read_json(path)
        if "members" not in data:
            raise PretrainedError(f"{folder} holds no ensemble: load it with covidcxr.models.load_model.")
        config = EnsembleConfig.from_dict(data, str(path))
        for part in (folder / "members", *(folder / "members" / name for name in config.members)):
            pretrained.check_link(part)
        members = {name: ClassificationModel.load(folder / "members" / name) for name in config.members}
        model = cls(
            members,
            weights=config.members,
            vote=config.vote,
            thresholds=config.thresholds,
            temperature=config.temperature,
        )
        if (model.config.classes, model.config.mode) != (config.classes, config.mode):
            raise ConfigError(f"The members' classes {list(model.config.classes)} or mode are not those of {path}.")
        return model.eval()


def _check_alike(members: Mapping[str, ClassificationModel]) -> ModelConfig:
    """Return the config of the first member, whose classes and kind of classes all must have."""
    given: object = members
    if not isinstance(given, Mapping) or not given:
        raise ConfigError("An ensemble needs members by name: EnsembleModel({'resnet18': model, ...}).")
    for name, member in members.items():
        if not isinstance(member, ClassificationModel):
            raise ConfigError(f"The member {name!r} must be a ClassificationModel, not a {type(member).__name__}.")
    (first_name, first), *others = ((name, member.config) for name, member in members.items())
    for name, config in others:
        if config.classes != first.classes or (config.mode == "multilabel") != (first.mode == "multilabel"):
            raise ConfigError(
                f"The members of an ensemble need the same classes in the same order: {first_name!r} has "
                f"{list(first.classes)} ({first.mode}), {name!r} has {list(config.classes)} ({config.mode})."
            )
    return first


def _hard_vote(member: ClassificationModel, probabilities: Tensor) -> Tensor:
    """Return 1 for each class that a member votes for, else 0; NaN where its probabilities are."""
    if member.config.mode != "multilabel":
        vote = one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities)
    else:
        thresholds = [member.config.thresholds.get(name, 0.5) for name in member.config.classes]
        vote = (probabilities >= torch.tensor(thresholds).to(probabilities)).to(probabilities)
    return vote.where(probabilities.isfinite().all(1, keepdim=True), torch.nan)
