"""Classifiers by timm and torchvision, by name; torchvision has those that timm lacks (AlexNet, SqueezeNet).

The networks of torchxrayvision are copies of those of torchvision for grey images, so they are built here too; its
weights, trained on chest radiographs (CheXNet-style), come as a file.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from covidcxr.config import PreprocessConfig, check_keys
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError, did_you_mean, nearest_argument
from covidcxr.networks.weights import (
    REFUSALS,
    adapt_channels,
    check_download,
    copy_backbone,
    head_tensors,
    hub_or_cache,
    installed_weights,
    package_cure,
    read_weights,
    weights_error,
)

__all__ = [
    "timm_network",
    "fetch_weights",
    "sum_first_convolution",
    "torchvision_names",
    "torchvision_network",
    "xrv_network",
]


def timm_network(
    name: str,
    preprocess: PreprocessConfig,
    pretrained: bool | str = False,
    /,
    *,
    in_channels: int,
    num_classes: int,
    **network_args: Any,
) -> nn.Module:
    """Build any timm classifier (https://github.com/huggingface/pytorch-image-models).

    Args:
        name: A timm name ("resnet50", "vit_tiny_patch16_224", ...); no Hub address, which would need the network.
        preprocess: Its image size counts: transformers are built for exactly this size.
        pretrained: True for timm's own pretrained weights, or the path of a weights file.
        in_channels: Channels of the input; the first convolution of pretrained weights is adapted to it.
        num_classes: Number of outputs.
        **network_args: Further arguments of timm's `create_model`.

    Returns:
        The network: images [batch, in_channels, height, width] to logits [batch, num_classes].

    Raises:
        UnknownNameError: If timm has no such network.
        ConfigError: If the network refuses an argument.
        PretrainedError: If pretrained weights cannot be had.
    """
    import timm

    config = _timm_config(name)
    if config is not None and config.fixed_input_size:
        network_args.setdefault("img_size", preprocess.image_size)
    build = partial(timm.create_model, name, in_chans=in_channels, num_classes=num_classes, **network_args)
    try:
        network: nn.Module = build()
    except REFUSALS as error:
        with torch.device("meta"):
            near = nearest_argument(error, inspect.signature(type(timm.create_model(name))).parameters)
        raise ConfigError(f"timm's {name!r} refused its arguments {network_args}: {error}.{near}") from error
    if pretrained is True and (installed := installed_weights(name)) is not None:
        return _with_tensors(name, True, installed, build, network, in_channels, config)
    if isinstance(pretrained, str):
        return _with_tensors(name, pretrained, read_weights(name, pretrained), build, network, in_channels, config)
    return _from_timm(name, build, config) if pretrained else network


def _from_timm(name: str, build: partial[nn.Module], config: Any) -> nn.Module:
    import timm

    if config is None or not config.has_weights:
        others = ", ".join(timm.list_pretrained(f"*{name}*")[:5])
        raise weights_error(name, True, "timm has none", f"It has those of {others}." if others else "")
    cure = f"Fetch {config.url} where there is a network."
    if config.hf_hub_id:
        cure = (
            f"{package_cure(name)}Where there is a network: hf download {config.hf_hub_id} (a file model.safetensors)."
        )
    try:
        if not config.hf_hub_id:
            check_download(config.url)
        with hub_or_cache():
            return build(pretrained=True)
    except (OSError, RuntimeError) as error:  # no network: the Hub's and urllib's errors are all OSError
        raise weights_error(name, True, error, cure) from error


def _with_tensors(
    name: str,
    pretrained: bool | str,
    tensors: dict[str, Tensor],
    build: partial[nn.Module],
    network: nn.Module,
    in_channels: int,
    config: Any,
) -> nn.Module:
    """Build the network again, with weights: timm converts older names and other image sizes.

    With the new last layer among the weights timm reads them strictly; else it passes over what is missing.
    """
    own = network.state_dict()
    overlay: dict[str, Any] = {"num_classes": network.num_classes, "label_offset": 0}
    first = f"{getattr(config, 'first_conv', None)}.weight"
    if first in tensors and first in own:
        tensors |= adapt_channels({first: tensors[first]}, own)
        overlay["input_size"] = (in_channels, *config.input_size[1:])
    overlay["state_dict"] = {**tensors, **{key: own[key] for key in head_tensors(network)}}
    try:
        network = build(pretrained=True, pretrained_cfg_overlay=overlay)
    except REFUSALS as error:
        raise weights_error(name, pretrained, error) from error
    cast(dict[str, Any], network.pretrained_cfg).pop("state_dict")  # else every copy of the network holds them twice
    return network


def _timm_config(name: str) -> Any:
    """Return what timm knows of a network's input; also refuses unknown names and tags."""
    import timm

    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no network {name!r}. {did_you_mean(name, timm.list_models())[:300]}")
    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UnknownNameError(f"timm has no network {name!r}: {error}") from error


_TWO_OUTPUTS = ("googlenet", "inception_v3")
_XRV_CLASSES = {"densenet121": ("DenseNet", "densenet121-res224-all"), "resnet50": ("ResNet", "resnet50-res512-all")}
"""Name -> torchxrayvision's class, and its weights that were trained on most images."""
_SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
"""Names of these beginnings are built for one image size, under this argument."""


class _TorchvisionNetwork(nn.Module):
    """A torchvision classifier that says which layer is its last, the head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        self._classifier = layers[-1]

    def get_classifier(self) -> nn.Module:
        """Return the last layer, as timm's networks do."""
        return self.network.get_submodule(self._classifier)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [batch, outputs]."""
        return cast(Tensor, self.network(image))


class _XRayVisionNetwork(_TorchvisionNetwork):
    """A classifier that sees images as torchxrayvision scales them, from -1024 (black) to 1024 (white).

    Args:
        network: What torchvision built, for grey images.
        mean: The mean that preprocessing subtracted from images in [0, 1]; it is undone here.
        std: The standard deviation that it divided by.
    """

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__(network)
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [batch, outputs] of normalised images [batch, 1, height, width]."""
        grey = image * self.std + self.mean
        return super().forward((2 * grey - 1) * 1024)


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
    """Build any torchvision classifier (https://docs.pytorch.org/vision/stable/models.html) with one output.

    Args:
        name: A torchvision name ("alexnet", "squeezenet1_1", ...).
        preprocess: Its image size counts: transformers are built for exactly this size.
        pretrained: True for torchvision's own best weights, or the path of a weights file.
        in_channels: Channels of the input; the first convolution is summed over RGB for one channel.
        num_classes: Number of outputs.
        **network_args: Further arguments of the network ("dropout", ...).

    Returns:
        The network: images [batch, in_channels, height, width] to logits [batch, num_classes].

    Raises:
        UnknownNameError: If torchvision has no such classifier.
        ConfigError: If the network refuses an argument or the image size.
        PretrainedError: If pretrained weights cannot be had.
    """
    from torchvision.models import get_model

    if name not in torchvision_names():
        raise UnknownNameError(f"torchvision has no network {name!r}. {did_you_mean(name, torchvision_names())[:300]}")
    if name in _TWO_OUTPUTS:
        raise ConfigError(f"torchvision's {name!r} gives two outputs while it trains: use timm:inception_v3.")
    arguments = {"num_classes": num_classes, **_size_argument(name, preprocess.image_size), **network_args}
    try:
        network = get_model(name, weights=None, **arguments)
    except REFUSALS as error:
        with torch.device("meta"):
            near = nearest_argument(error, inspect.signature(type(get_model(name, weights=None))).parameters)
        raise ConfigError(f"torchvision's {name!r} refused its arguments {network_args}: {error}.{near}") from error
    sum_first_convolution(network, in_channels)
    network = _TorchvisionNetwork(network)
    if pretrained:
        tensors = read_weights(name, pretrained) if isinstance(pretrained, str) else fetch_weights(name)
        _load_backbone(network, tensors, name, pretrained)
    return network


def xrv_network(
    name: str,
    preprocess: PreprocessConfig,
    pretrained: bool | str = False,
    /,
    *,
    in_channels: int,
    num_classes: int,
    **network_args: Any,
) -> nn.Module:
    """Build a network that takes torchxrayvision's weights (Cohen 2022, https://arxiv.org/abs/2111.00595).

    Its scaling of images, [-1024, 1024], happens inside, whatever mean and std preprocessing has. Its 18 findings
    give way to a new last layer.

    Args:
        name: "densenet121" (weights made at 224 x 224) or "resnet50" (512 x 512); any image size runs.
        preprocess: Its mean and std count.
        pretrained: The path of a weights file. True raises an error that says how to make one: what
            torchxrayvision publishes are pickles, which this library never reads.
        in_channels: 1.
        num_classes: Number of outputs.
        **network_args: None.

    Returns:
        The network: images [batch, 1, height, width] to logits [batch, num_classes].

    Raises:
        UnknownNameError: If torchxrayvision has no such network.
        ConfigError: If the images are not grey, or an argument is given.
        PretrainedError: If pretrained weights cannot be had.
    """
    from torchvision.models import get_model

    if name not in _XRV_CLASSES:
        raise UnknownNameError(f"torchxrayvision has no network {name!r}. {did_you_mean(name, _XRV_CLASSES)}")
    check_keys(network_args, set(), f"network_args of 'xrv:{name}'")
    if in_channels != 1:
        raise ConfigError(f"xrv:{name} reads grey images: set preprocess.channels to 1, not {in_channels}.")
    network = get_model(name, weights=None, num_classes=num_classes)
    sum_first_convolution(network, in_channels)
    network = _XRayVisionNetwork(network, preprocess.mean[0], preprocess.std[0])
    if pretrained:
        _load_backbone(
            network, _read_xrv(name, pretrained), f"xrv:{name}", pretrained, "classifier.", "fc.", "op_threshs"
        )
    return network


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


def fetch_weights(name: str) -> dict[str, Tensor]:
    """Return torchvision's own best weights of a network, from its cache or by a download.

    Args:
        name: A torchvision name.

    Returns:
        Tensors by name.

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
    """Make the first convolution of a network for colour read grey images as it would three copies of them.

    Args:
        network: Is changed, where `in_channels` is 1.
        in_channels: Channels of the images, 1 or 3.
    """
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if in_channels == 1:
        first.in_channels = 1
        first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))


def _load_backbone(
    network: _TorchvisionNetwork, tensors: dict[str, Tensor], name: str, pretrained: bool | str, *surplus: str
) -> None:
    """Copy weights into all but the last layer."""
    fresh = {key.removeprefix("network.") for key in head_tensors(network)}
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


def _read_xrv(name: str, pretrained: bool | str) -> dict[str, Tensor]:
    kind, weights = _XRV_CLASSES[name]
    cure = (
        f"Make a file of tensors once, where torchxrayvision may load its own: "
        f'python -c "import torchxrayvision as xrv; from safetensors.torch import save_file; '
        f"save_file(xrv.models.{kind}(weights='{weights}').state_dict(), 'xrv.safetensors')\"."
    )
    if isinstance(pretrained, str):
        return read_weights(f"xrv:{name}", pretrained, cure)
    raise weights_error(f"xrv:{name}", pretrained, "they are published as pickles, which may run code", cure)
