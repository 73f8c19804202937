"""Classifiers by timm, by name."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from covidcxr.config import PreprocessConfig
from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean, nearest_argument
from covidcxr.networks.weights import (
    REFUSALS,
    adapt_channels,
    check_download,
    head_tensors,
    hub_or_cache,
    read_weights,
    weights_error,
)

__all__ = ["timm_network"]


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
    if isinstance(pretrained, str):
        return _from_file(name, pretrained, build, network, in_channels, config)
    return _from_timm(name, build, config) if pretrained else network


def _from_timm(name: str, build: partial[nn.Module], config: Any) -> nn.Module:
    import timm

    if config is None or not config.has_weights:
        others = ", ".join(timm.list_pretrained(f"*{name}*")[:5])
        raise weights_error(name, True, "timm has none", f"It has those of {others}." if others else "")
    cure = f"Fetch {config.url} where there is a network."
    if config.hf_hub_id:
        cure = f"Where there is a network: hf download {config.hf_hub_id} (a file model.safetensors)."
    try:
        if not config.hf_hub_id:
            check_download(config.url)
        with hub_or_cache():
            return build(pretrained=True)
    except (OSError, RuntimeError) as error:  # no network: the Hub's and urllib's errors are all OSError
        raise weights_error(name, True, error, cure) from error


def _from_file(
    name: str, path: str, build: partial[nn.Module], network: nn.Module, in_channels: int, config: Any
) -> nn.Module:
    """Build the network again, with weights: timm converts older names and other image sizes.

    With the new last layer among the weights timm reads them strictly; else it passes over what is missing.
    """
    tensors, own = read_weights(name, path), network.state_dict()
    overlay: dict[str, Any] = {"num_classes": network.num_classes, "label_offset": 0}
    first = f"{getattr(config, 'first_conv', None)}.weight"
    if first in tensors and first in own:
        tensors |= adapt_channels({first: tensors[first]}, own)
        overlay["input_size"] = (in_channels, *config.input_size[1:])
    overlay["state_dict"] = {**tensors, **{key: own[key] for key in head_tensors(network)}}
    try:
        network = build(pretrained=True, pretrained_cfg_overlay=overlay)
    except REFUSALS as error:
        raise weights_error(name, path, error) from error
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
