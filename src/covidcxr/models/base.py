"""What segmentation and classification models share: preprocessing inside, save and load."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from covidcxr import hub
from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.networks import build_network
from covidcxr.transforms import apply_region, fit_image, fit_mask, normalize
from covidcxr.types import TaskName

__all__ = ["CXRModel"]


class CXRModel(nn.Module, ABC):
    """A network with its preprocessing and its class names; abstract.

    Args:
        config: All that the model is, but for its weights.
        pretrained_backbone: True for the network library's own pretrained weights, or the path of a weights file;
            see `covidcxr.networks.build_network`.

    Raises:
        ConfigError: If the config is for another kind of model, or the network refuses it.
        PretrainedError: If pretrained weights cannot be had.
    """

    task: ClassVar[TaskName]
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, pretrained_backbone: bool | str | os.PathLike[str] = False) -> None:
        super().__init__()
        if config.task != self.task:
            raise ConfigError(f"{type(self).__name__} is for {self.task}, but the config is of a {config.task} model.")
        self.config = config
        network = build_network(config, pretrained_backbone=pretrained_backbone)
        self.network = network.to(memory_format=torch.channels_last)  # up to twice as fast on CPUs
        channels = config.preprocess.channels
        for name in ("mean", "std"):
            values = torch.tensor(getattr(config.preprocess, name), dtype=torch.float32)
            # Not persistent: config.json is the one place that says them.
            self.register_buffer(name, values.expand(channels).clone(), persistent=False)

    def preprocess(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Float[Tensor, "batch channels new_height new_width"]:
        """Turn grey films in [0, 1] of any size into what the network sees.

        Raises:
            ConfigError: If the model sees a region and the lung mask is missing, unknown or of another size.
        """
        settings = self.config.preprocess
        if lung_mask is not None and lung_mask.shape != image.shape:
            raise ConfigError(
                f"The lung masks {tuple(lung_mask.shape)} must have the films' shape {tuple(image.shape)}."
            )
        image = fit_image(image, settings.image_size, settings.fit)
        if settings.region != "full":
            lungs = None if lung_mask is None else fit_mask(lung_mask, settings.image_size, settings.fit)
            image = apply_region(image, lungs, settings.region, settings.lung_dilation)
        normal = normalize(image, self.mean, self.std).to(self.mean.dtype)  # films may come in double precision
        return normal.contiguous(memory_format=torch.channels_last)

    def forward(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Tensor:
        """Return logits: [batch, outputs], or [batch, classes, *image_size] for masks.

        Args:
            image: Grey films in [0, 1]; preprocessing happens inside.
            lung_mask: Lungs, 0 or 1, of the films' size; needed where the config's region is not "full".
        """
        return cast(Tensor, self.network(self.preprocess(image, lung_mask)))

    @abstractmethod
    def predict(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Tensor:
        """Return calibrated probabilities, without gradients and in evaluation mode."""

    def calibrated_logits(self, image: Tensor, lung_mask: Tensor | None) -> Tensor:
        """Return logits divided by the temperature, in evaluation mode and without gradients.

        Raises:
            ConfigError: If the films are not [batch, 1, H, W] in [0, 1].
        """
        if image.ndim != 4 or image.shape[1] != 1 or image.numel() == 0:
            raise ConfigError(f"Films must be grey [batch, 1, height, width], not {tuple(image.shape)}.")
        low, high = (float(value) for value in image.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also refuses NaN
            raise ConfigError(f"Films must be in [0, 1], not [{low:.4g}, {high:.4g}]: read them with read_image.")
        training = [module for module in self.modules() if module.training]  # not all: a backbone may be frozen
        if training:
            self.eval()
        try:
            with torch.no_grad():
                return cast(Tensor, self(image, lung_mask)).float() / self.config.temperature
        finally:
            for module in training:
                module.training = True

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `config.json` and `model.safetensors` into a folder, made if need be, and return it."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        sha256 = hub.save_weights(self.network, target / "model.safetensors")
        hub.write_json(target / "config.json", {**self.config.to_dict(), "weights_sha256": sha256})
        return target

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a saved model, in evaluation mode.

        Args:
            source: A folder, a bundled name or a Hub repository that holds a model, or a whole pipeline with
                exactly one model of this kind.
            revision: Branch, tag or commit of a Hub repository.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.

        Raises:
            PretrainedError: If it cannot be found, is damaged or altered, or is newer than this release.
            ConfigError: If its config has an unknown key or a wrong value, or is of another kind of model.
        """
        folder = hub.fetch(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        folder = cls._model_folder(folder)
        path = folder / "config.json"
        data = hub.read_json(path)
        sha256 = data.pop("weights_sha256", None)
        config = ModelConfig.from_dict(data, str(path))
        if not isinstance(sha256, str):
            raise ConfigError(f"The key 'weights_sha256' is missing in {path}: save the model again.")
        model = cls(config)
        hub.load_weights(model.network, folder / "model.safetensors", sha256)
        return model.eval()

    @classmethod
    def _model_folder(cls, folder: Path) -> Path:
        """Return `folder`, or the only one of a saved pipeline's models that is of this kind."""
        if not (folder / "pipeline.json").is_file():
            return folder
        parts: list[str] = hub.read_json(folder / "pipeline.json").get("components", [])
        configs = {folder / part: hub.read_json(folder / part / "config.json").get("task") for part in parts}
        fitting = [part for part, task in configs.items() if task == cls.task]
        if len(fitting) != 1:
            names = ", ".join(part.name for part in configs) or "none"
            raise PretrainedError(f"{folder} is a pipeline of several models ({names}): name the one, {folder}/NAME.")
        return fitting[0]
