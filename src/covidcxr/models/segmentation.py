"""Film in, masks out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from jaxtyping import Float
from torch import Tensor

from covidcxr.models.network import NetworkModel
from covidcxr.transforms import unfit_map
from covidcxr.types import TaskName

__all__ = ["SegmentationModel"]


@final
class SegmentationModel(NetworkModel):
    """Marks structures (lungs, infection) on films; one probability map a class, which may overlap.

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
        """Return a probability for each pixel and class, at the size of the films given.

        Args:
            image: Grey films in [0, 1].
            lung_mask: Needed only where the config's region is not "full".

        Raises:
            ConfigError: If the films are of the wrong shape or range.
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
        """Return the same probabilities at the network's own size, before they are brought to the films'."""
        return self.calibrated_logits(image, lung_mask).sigmoid()

    def thresholds(self) -> tuple[float, ...]:
        """Return, by class, the probability from which a pixel belongs to it (0.5 where the config says none)."""
        return tuple(self.config.thresholds.get(name, 0.5) for name in self.config.classes)
