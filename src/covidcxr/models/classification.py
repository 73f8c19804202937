"""Image in, one probability a class out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from covidcxr.config import ModelConfig
from covidcxr.models.base import CXRModel
from covidcxr.models.network import NetworkModel, resize_images
from covidcxr.transforms.postprocess import choose_class
from covidcxr.transforms.pyramid import ImagePyramid, Pixels, ResizedImages
from covidcxr.types import TaskName

__all__ = ["Classifier", "ClassificationModel"]


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
