"""Classifiers by timm, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.networks.weights import REFUSALS, weights_error

__all__ = ["timm_network"]


def timm_network(
    name: str,
    image_size: tuple[int, int],
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
        image_size: Height and width of the input; transformers are built for exactly this size.
        pretrained: True for timm's own pretrained weights, or the path of a weights file.
        in_channels: Channels of the input; the first convolution of pretrained weights is adapted to it.
        num_classes: Number of outputs.
        **network_args: Further arguments of timm's `create_model`.

    Raises:
        UnknownNameError: If timm has no such network.
        ConfigError: If the network refuses an argument.
        PretrainedError: If pretrained weights cannot be had.
    """
    import timm
    from safetensors import SafetensorError

    config = _timm_config(name)
    if config is not None and config.fixed_input_size:
        network_args.setdefault("img_size", image_size)
    if isinstance(pretrained, str):
        network_args["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=bool(pretrained), in_chans=in_channels, num_classes=num_classes, **network_args
        )
    except (OSError, SafetensorError) as error:  # no file, no network: the Hub's and urllib's errors are all OSError
        raise weights_error(name, pretrained, error) from error
    except REFUSALS as error:
        if pretrained and isinstance(error, RuntimeError):
            raise weights_error(name, pretrained, error) from error
        raise ConfigError(f"timm's {name!r} refused its arguments {network_args}: {error}") from error
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
