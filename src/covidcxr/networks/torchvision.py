"""Classifiers by torchvision, by name: for those that timm has not (AlexNet, SqueezeNet)."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from covidcxr.config import PreprocessConfig
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError, did_you_mean, nearest_argument
from covidcxr.networks.weights import (
    REFUSALS,
    answer_tensors,
    check_download,
    copy_backbone,
    read_weights,
    weights_error,
)

__all__ = [
    "TorchvisionNetwork",
    "fetch_weights",
    "load_backbone",
    "sum_first_convolution",
    "torchvision_names",
    "torchvision_network",
]

_TWO_ANSWERS = ("googlenet", "inception_v3")
_SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
"""Names of these beginnings are built for one image size, under this argument."""


class TorchvisionNetwork(nn.Module):
    """A torchvision classifier that says which layer makes the answer.

    Args:
        network: What torchvision built.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        self._classifier = layers[-1]

    def get_classifier(self) -> nn.Module:
        """Return the layer that makes the answer, as timm's networks do."""
        return self.network.get_submodule(self._classifier)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [batch, outputs]."""
        return cast(Tensor, self.network(image))


def torchvision_network(
    name: str,
    preprocess: PreprocessConfig,
    pretrained: bool | str = False,
    /,
    *,
    in_channels: int,
    num_classes: int,
    **network_args: Any,
) -> nn.Module:
    """Build any torchvision classifier (https://docs.pytorch.org/vision/stable/models.html) with one answer.

    Args:
        name: A torchvision name ("alexnet", "squeezenet1_1", ...).
        preprocess: Its image size counts: transformers are built for exactly this size.
        pretrained: True for torchvision's own best weights, or the path of a weights file.
        in_channels: Channels of the input; the first convolution is summed over RGB for one channel.
        num_classes: Number of outputs.
        **network_args: Further arguments of the network ("dropout", ...).

    Raises:
        UnknownNameError: If torchvision has no such classifier.
        ConfigError: If the network refuses an argument or the image size.
        PretrainedError: If pretrained weights cannot be had.
    """
    from torchvision.models import get_model

    if name not in torchvision_names():
        raise UnknownNameError(f"torchvision has no network {name!r}. {did_you_mean(name, torchvision_names())[:300]}")
    if name in _TWO_ANSWERS:
        raise ConfigError(f"torchvision's {name!r} gives two answers while it trains: use timm:inception_v3.")
    arguments = {"num_classes": num_classes, **_size_argument(name, preprocess.image_size), **network_args}
    try:
        network = get_model(name, weights=None, **arguments)
    except REFUSALS as error:
        with torch.device("meta"):
            near = nearest_argument(error, inspect.signature(type(get_model(name, weights=None))).parameters)
        raise ConfigError(f"torchvision's {name!r} refused its arguments {network_args}: {error}.{near}") from error
    sum_first_convolution(network, in_channels)
    network = TorchvisionNetwork(network)
    if pretrained:
        tensors = read_weights(name, pretrained) if isinstance(pretrained, str) else fetch_weights(name)
        load_backbone(network, tensors, name, pretrained)
    return network


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


def fetch_weights(name: str) -> dict[str, Tensor]:
    """Return torchvision's own best weights of a network, from its cache or the network.

    Raises:
        PretrainedError: If they cannot be had.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    try:
        check_download(weights.url)
        return dict(weights.get_state_dict(check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise weights_error(name, True, error, f"Fetch {weights.url} where there is a network.") from error


def sum_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Make the first convolution of a network for colour read grey images as it would three copies of them."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if in_channels == 1:
        first.in_channels = 1
        first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))


def load_backbone(
    network: TorchvisionNetwork, tensors: dict[str, Tensor], name: str, pretrained: bool | str, *surplus: str
) -> None:
    """Copy weights into all but the answering layer.

    Raises:
        PretrainedError: If they do not fit.
    """
    fresh = {key.removeprefix("network.") for key in answer_tensors(network)}
    try:
        copy_backbone(network.network, tensors, fresh=fresh, surplus=surplus)
    except CovidCXRError as error:
        raise weights_error(name, pretrained, error) from error


def _size_argument(name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    height, width = image_size
    for beginning, argument in _SIZED.items():
        if name.startswith(beginning):
            if argument == "image_size" and height != width:
                raise ConfigError(f"torchvision's {name!r} reads square images only: image_size is {image_size}.")
            return {argument: height if argument == "image_size" else image_size}
    return {}
