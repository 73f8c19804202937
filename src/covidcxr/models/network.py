"""A model of one network."""

from __future__ import annotations

import os
import sys
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.io import pretrained
from covidcxr.models.base import CXRModel, calibrate_logits, check_images, inference
from covidcxr.networks import build_network
from covidcxr.networks.build import FusedNetwork, weights_follow
from covidcxr.transforms.geometry import apply_region, normalize, resize_image, resize_mask
from covidcxr.transforms.preprocess import Preprocess
from covidcxr.transforms.pyramid import ImagePyramid, Pixels, ResizedImages, fit_images, lungs_of
from covidcxr.utils.plain import user_path

__all__ = ["NetworkModel", "ResizedImages", "lungs_of", "resize_images", "run_apart"]

_SPARE = 200_000_000
"""Numbers that a network may need beside its weights: some are built with a head that is left out again (VGG's)."""


class NetworkModel(CXRModel, ABC):
    """A network with its preprocessing and its class names; abstract.

    Args:
        config: All that the model is, but for its weights.
        pretrained_backbone: True for the network library's own pretrained weights, or the path of a weights file;
            see `covidcxr.networks.build_network`.

    Raises:
        ConfigError: If the config is for another kind of model, or the network or a preprocessing step refuses it.
        PretrainedError: If pretrained weights cannot be had.

    Example:
        ```python
        import torch
        from covidcxr import ClassificationModel
        from covidcxr.models import NetworkModel

        model: NetworkModel = ClassificationModel.from_pretrained("mini")
        seen = model.preprocess(torch.rand(1, 1, 80, 70), torch.ones(1, 1, 80, 70))
        assert seen.shape[2:] == model.config.preprocess.image_size
        ```
    """

    config: ModelConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, pretrained_backbone: bool | str | os.PathLike[str] = False) -> None:
        super().__init__()
        if config.task != self.task:
            raise ConfigError(f"{type(self).__name__} is for {self.task}, but the config is of a {config.task} model.")
        self.config = config
        self._steps = Preprocess(config.preprocess.steps)
        if self._steps.moving and self.task != "classification":
            raise ConfigError(
                f"The preprocessing step {self._steps.moving[0]!r} moves pixels, so masks would not fit the image: "
                f"only classifiers may have it."
            )
        network = build_network(config, pretrained_backbone=pretrained_backbone)
        # In single precision whatever torch's default is now; channels last is up to twice as fast on CPUs.
        self.network = network.float().to(memory_format=torch.channels_last)
        self._fused = FusedNetwork()
        for name in ("mean", "std"):
            # Not persistent: config.json is the one place that says them.
            self.register_buffer(name, self._by_channel(name), persistent=False)

    def _by_channel(self, name: str) -> Float[Tensor, " channels"]:
        settings = self.config.preprocess
        return torch.tensor(getattr(settings, name), dtype=torch.float32).expand(settings.channels).clone()

    def set_normalization(self, mean: float, std: float) -> None:
        """Normalise by another mean and standard deviation, in the config as well.

        Args:
            mean: Of images in [0, 1], as `covidcxr.data.compute_mean_std` returns it.
            std: The same; above 0.

        Raises:
            ConfigError: If a value is out of range.
        """
        self.config = replace(self.config, preprocess=replace(self.config.preprocess, mean=(mean,), std=(std,)))
        for name in ("mean", "std"):
            buffer: Tensor = getattr(self, name)
            buffer.copy_(self._by_channel(name))

    @property
    def needs_lungs(self) -> bool:
        """Whether the config's region is not "full"."""
        return self.config.preprocess.region != "full"

    def preprocess(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch channels new_height new_width"]:
        """Turn grey images of any size into what the network sees.

        Args:
            image: Grey images in [0, 1].
            lung_mask: Lungs, 0 or 1; needed where the config's region is not "full".

        Returns:
            Normalised images at the config's size.

        Raises:
            ConfigError: If the model sees a region and the lung mask is missing, unknown or of another size.
        """
        settings = self.config.preprocess
        if lung_mask is not None and lung_mask.shape != image.shape:
            raise ConfigError(
                f"The lung masks {tuple(lung_mask.shape)} must have the images' shape {tuple(image.shape)}."
            )
        image = resize_image(image, settings.image_size, settings.fit)
        if settings.region != "full":
            lungs = None if lung_mask is None else resize_mask(lung_mask, settings.image_size, settings.fit)
            image = apply_region(image, lungs, settings.region, settings.lung_dilation)
        # After the region: a data module cuts it, too, and the steps must see the same image in training and in use.
        image = self._steps(image)
        normal = normalize(image, self.mean, self.std).to(self.mean.dtype)  # images may come in double precision
        return normal.contiguous(memory_format=torch.channels_last)

    def forward(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Tensor:
        """Compute logits.

        Args:
            image: Grey images in [0, 1]; preprocessing happens inside.
            lung_mask: Lungs, 0 or 1, of the images' size; needed where the config's region is not "full".

        Returns:
            Logits [batch, outputs], or [batch, classes, *image_size] for masks.
        """
        return cast(Tensor, self.network(self.preprocess(image, lung_mask)))

    def calibrated_logits(self, image: Tensor, lung_mask: Tensor | None) -> Tensor:
        """Compute logits divided by the temperature, without gradients; see `CXRModel.calibrated_logits`.

        Args:
            image: Grey images [batch, 1, height, width] in [0, 1].
            lung_mask: Lungs, 0 or 1, of the same shape; needed where the model `needs_lungs`.

        Returns:
            Logits in float32; NaN where they are infinite.

        Raises:
            ConfigError: If the images are not [batch, 1, H, W] in [0, 1].
        """
        check_images(image)
        with inference(self):
            network = self.fast_network()
            (logits,) = run_apart(lambda images: (network(images),), self.preprocess(image, lung_mask))
        return calibrate_logits(logits, self.config.temperature)

    def fast_network(self) -> nn.Module:
        """Return the network, or the copy of it that computes the same faster; call it in evaluation mode only."""
        settings = self.config.preprocess
        return self._fused.of(self.network, (settings.channels, *settings.image_size))

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: pretrained.StoredDtype = "float32") -> Path:
        """Write `config.json` and `model.safetensors`.

        Args:
            folder: Where to; made if need be.
            dtype: How weights are stored; see `CXRModel.save_pretrained`.

        Returns:
            The folder.
        """
        target = user_path(folder)
        target.mkdir(parents=True, exist_ok=True)
        sha256 = pretrained.save_weights(self.network, target / "model.safetensors", dtype)
        stored = {"weights_sha256": sha256} | ({} if dtype == "float32" else {"weights_dtype": dtype})
        pretrained.write_json(target / "config.json", {**self.config.to_dict(), **stored})
        return target

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save_pretrained` wrote; see `from_pretrained`.

        Args:
            folder: A local folder.

        Returns:
            The model, in evaluation mode.

        Raises:
            PretrainedError: If a file is missing, damaged or altered.
            ConfigError: If the config is wrong, or is that of an ensemble.
        """
        path = folder / "config.json"
        data = pretrained.read_json(path)
        if "members" in data:
            raise ConfigError(f"{folder} holds an ensemble: load it with EnsembleModel.from_pretrained.")
        sha256 = data.pop("weights_sha256", None)
        data.pop("weights_dtype", None)  # for people; each tensor says it itself
        config = ModelConfig.from_dict(data, str(path))
        if not isinstance(sha256, str):
            raise ConfigError(f"The key 'weights_sha256' is missing in {path}: save the model again.")
        weights = folder / "model.safetensors"
        pretrained.check_file(weights, sys.maxsize)
        with weights_follow(weights.stat().st_size + _SPARE):
            model = cls(config)
        pretrained.load_weights(model.network, weights, sha256)
        return model.eval()


def run_apart(run: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
    """Run networks on a batch; on a CPU image by image, so that no image's result depends on the others of its batch.

    There a convolution sums in another order for a batch of another size, and a batch is hardly faster. So a run that
    was stopped and goes on, a server and another batch size give the same bits.

    Args:
        run: From images [batch, channels, height, width] to results [batch, ...].
        images: What the networks see.

    Returns:
        The results of the batch.
    """
    if images.device.type != "cpu" or images.shape[0] < 2:
        return run(images)
    return tuple(torch.cat(parts) for parts in zip(*map(run, torch.split(images, 1)), strict=True))


def resize_images(
    model: NetworkModel,
    images: Sequence[Pixels | ImagePyramid],
    masks: Sequence[Mapping[str, Bool[np.ndarray, "_ _"]]],
    resized: ResizedImages | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Bring images, and the lungs where the model needs them, to the model's size and device; see `fit_images`.

    Args:
        model: Its preprocessing says size, fit and region.
        images: Grey images [height, width], 8 bits or in [0, 1].
        masks: Of each image, by mask class, at the image's size; may be empty where the region is "full".
        resized: These very images as earlier calls resized them; what is new is added.

    Returns:
        Images [batch, 1, *image_size] and lungs, 0 or 1, of the same shape, or None.

    Raises:
        ConfigError: If the lungs of an image are needed and missing.
    """
    batch, lungs = (
        None if planes is None else torch.from_numpy(planes).to(model.mean.device)
        for planes in fit_images(model.config.preprocess, images, masks, resized)
    )
    return cast(Tensor, batch), lungs
