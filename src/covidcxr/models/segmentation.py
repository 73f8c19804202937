"""Image in, masks out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from jaxtyping import Float
from torch import Tensor

from covidcxr.models.base import check_images, inference
from covidcxr.models.network import NetworkModel
from covidcxr.networks.shared_encoder import forward_segmenters, merge_encoders
from covidcxr.transforms.geometry import unfit_map
from covidcxr.types import TaskName

__all__ = ["SegmentationModel"]


@final
class SegmentationModel(NetworkModel):
    """Marks structures (lungs, infection) on images; one probability map a class, which may overlap.

    Args:
        config: What the model is; `task="segmentation"`.
        pretrained_backbone: Pretrained weights for the encoder; see `NetworkModel`.
    """

    task: ClassVar[TaskName] = "segmentation"

    def predict(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch classes height width"]:
        """Return a probability for each pixel and class, at the size of the images given.

        Args:
            image: Grey images in [0, 1].
            lung_mask: Needed only where the config's region is not "full".

        Raises:
            ConfigError: If the images are of the wrong shape or range.
        """
        return unfit_map(
            self.predict_fitted(image, lung_mask),
            cast(tuple[int, int], tuple(image.shape[-2:])),
            self.config.preprocess.fit,
        )

    def predict_fitted(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch classes new_height new_width"]:
        """Return the same probabilities at the network's own size, before they are brought to the images'."""
        return self.calibrated_logits(image, lung_mask).sigmoid()

    def predict_fitted_with(
        self, other: SegmentationModel, image: Float[Tensor, "batch 1 height width"]
    ) -> tuple[Float[Tensor, "batch classes _ _"], Float[Tensor, "batch other_classes _ _"]]:
        """Return what `predict_fitted` of this model and of another returns; an encoder that both use is computed once.

        Args:
            other: A model that `shares_encoder`.
            image: Grey images in [0, 1].
        """
        check_images(image)
        with inference(self, other):
            both = forward_segmenters(self.network, other.network, self.preprocess(image))
        a, b = (
            (logits.float() / model.config.temperature).sigmoid()
            for logits, model in zip(both, (self, other), strict=True)
        )
        return a, b

    def merge_encoder(self, other: SegmentationModel) -> bool:
        """Let another model use the encoder of this one, where both see images alike and the two encoders are equal.

        From then on to train one of them is to train the encoder of both.

        Returns:
            Whether they have one encoder now.
        """
        settings = self.config.preprocess
        if settings != other.config.preprocess or settings.region != "full":
            return False
        with inference(self, other):
            return merge_encoders(self.network, other.network, (settings.channels, *settings.image_size))

    def shares_encoder(self, other: SegmentationModel) -> bool:
        """Whether the two models use one encoder, on the same of an image, by `merge_encoder`."""
        ours, theirs = (getattr(model.network, "encoder", None) for model in (self, other))
        alike = self.config.preprocess == other.config.preprocess
        return self is not other and ours is not None and ours is theirs and alike

    def thresholds(self) -> tuple[float, ...]:
        """Return, by class, the probability from which a pixel belongs to it (0.5 where the config says none)."""
        return tuple(self.config.thresholds.get(name, 0.5) for name in self.config.classes)
