"""Image in, masks out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias, cast, final

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from covidcxr.models.base import calibrate_logits, check_images, inference
from covidcxr.models.network import NetworkModel, resize_images, run_apart
from covidcxr.networks.segmentation import forward_segmenters, merge_encoders
from covidcxr.transforms.geometry import restore_map
from covidcxr.transforms.postprocess import cut_masks, thresholds_of
from covidcxr.transforms.pyramid import ImagePyramid, Pixels, ResizedImages
from covidcxr.types import TaskName

__all__ = ["SegmentationModel"]

Mask: TypeAlias = Bool[np.ndarray, "height width"]


@final
class SegmentationModel(NetworkModel):
    """Predicts masks (lungs, infection) of images: one probability map a class, which may overlap.

    Args:
        config: What the model is; `task="segmentation"`.
        pretrained_backbone: Pretrained weights for the encoder; see `NetworkModel`.

    Example:
        ```python
        import torch
        from covidcxr import ModelConfig, PreprocessConfig, SegmentationModel

        settings = PreprocessConfig(image_size=(32, 32))
        config = ModelConfig(
            "segmentation", "residual_unet", ("infection", "effusion"), "multilabel", {"depth": 2}, settings
        )
        model = SegmentationModel(config)
        assert model.predict(torch.rand(1, 1, 40, 50)).shape == (1, 2, 40, 50)
        ```
    """

    task: ClassVar[TaskName] = "segmentation"

    def predict(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch classes height width"]:
        """Compute a probability for each pixel and class.

        Args:
            image: Grey images in [0, 1].
            lung_mask: Lungs, 0 or 1; needed only where the config's region is not "full".

        Returns:
            Probabilities at the size of the images given, classes in the order of `config.classes`.

        Raises:
            ConfigError: If the images are of the wrong shape or range.
        """
        return restore_map(
            self.predict_resized(image, lung_mask),
            cast(tuple[int, int], tuple(image.shape[-2:])),
            self.config.preprocess.fit,
        )

    def predict_resized(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch classes new_height new_width"]:
        """Compute the same probabilities at the network's own size, before they are brought to the images'.

        Args:
            image: Grey images in [0, 1].
            lung_mask: Lungs, 0 or 1; needed only where the config's region is not "full".

        Returns:
            Probabilities in [0, 1].
        """
        return self.calibrated_logits(image, lung_mask).sigmoid()

    def predict_resized_with(
        self, other: SegmentationModel, image: Float[Tensor, "batch 1 height width"]
    ) -> tuple[Float[Tensor, "batch classes _ _"], Float[Tensor, "batch other_classes _ _"]]:
        """Run `predict_resized` of this model and of another, and compute the encoder that both use once.

        Args:
            other: A model that `shares_encoder`.
            image: Grey images in [0, 1].

        Returns:
            The probabilities of this model, and those of the other.
        """
        check_images(image)
        with inference(self, other):
            networks = self.fast_network(), other.fast_network()
            both = run_apart(lambda images: forward_segmenters(*networks, images), self.preprocess(image))
        a, b = (
            calibrate_logits(logits, model.config.temperature).sigmoid()
            for logits, model in zip(both, (self, other), strict=True)
        )
        return a, b

    def predict_images(
        self,
        images: Sequence[Pixels | ImagePyramid],
        masks: Sequence[Mapping[str, Mask]],
        resized: ResizedImages | None = None,
    ) -> Float[np.ndarray, "batch classes new_height new_width"]:
        """Run `predict_resized` on images of any sizes.

        Args:
            images: Grey images [height, width], 8 bits or in [0, 1].
            masks: Of each image, by mask class, at the image's size; may be empty where the region is "full".
            resized: These very images as earlier calls resized them; what is new is added.

        Returns:
            Probabilities at the network's size.

        Raises:
            ConfigError: If the lungs of an image are needed and missing.
        """
        return self.predict_resized(*resize_images(self, images, masks, resized)).cpu().numpy()

    def predict_images_with(
        self, other: SegmentationModel, images: Sequence[Pixels | ImagePyramid], resized: ResizedImages | None = None
    ) -> tuple[Float[np.ndarray, "batch classes _ _"], Float[np.ndarray, "batch other_classes _ _"]]:
        """Run `predict_resized_with` on images of any sizes.

        Args:
            other: A model that `shares_encoder`.
            images: Grey images [height, width], 8 bits or in [0, 1].
            resized: These very images as earlier calls resized them; what is new is added.

        Returns:
            The probabilities of this model, and those of the other.
        """
        own, others = self.predict_resized_with(other, resize_images(self, images, (), resized)[0])
        return own.cpu().numpy(), others.cpu().numpy()

    def masks_of(
        self,
        maps: Float[Tensor, "batch classes new_height new_width"],
        sizes: Sequence[tuple[int, ...]],
        clean: Callable[[Mask], Mask] | None = None,
    ) -> list[dict[str, Mask]]:
        """Return masks at the images' own sizes: the pixels whose probability reaches the threshold of their class.

        Args:
            maps: What `predict_resized` returned; changed in place where masks are cleaned.
            sizes: Height and width of each image.
            clean: Clean-up of lung masks, at the network's size.

        Returns:
            The masks of each image, by class.
        """
        return cut_masks(self.config, maps.cpu().numpy(), sizes, clean)

    def merge_encoder(self, other: SegmentationModel) -> bool:
        """Let another model use the encoder of this one, where both see images alike and the two encoders are equal.

        From then on, training one of them trains the encoder of both.

        Args:
            other: The other model.

        Returns:
            Whether they have one encoder now.
        """
        settings = self.config.preprocess
        if settings != other.config.preprocess or settings.region != "full":
            return False
        with inference(self, other):
            return merge_encoders(self.network, other.network, (settings.channels, *settings.image_size))

    def shares_encoder(self, other: SegmentationModel) -> bool:
        """Say whether the two models use one encoder, on the same of an image, by `merge_encoder`.

        Args:
            other: The other model.

        Returns:
            Whether they do.
        """
        ours, theirs = (getattr(model.network, "encoder", None) for model in (self, other))
        alike = self.config.preprocess == other.config.preprocess
        return self is not other and ours is not None and ours is theirs and alike

    def thresholds(self) -> tuple[float, ...]:
        """Return, by class, the probability from which a pixel belongs to it (0.5 where the config says none)."""
        return thresholds_of(self.config)
