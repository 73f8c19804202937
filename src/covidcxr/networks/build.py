"""From a model config to a network."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import nn

from covidcxr.config import ModelConfig, check_keys
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError
from covidcxr.networks.lazy_dynamo import compiler_on_demand
from covidcxr.networks.smp import smp_network
from covidcxr.networks.timm import timm_network
from covidcxr.networks.torchvision import torchvision_names, torchvision_network
from covidcxr.networks.weights import check_weights_file
from covidcxr.networks.xrv import xrv_network
from covidcxr.registry import CLASSIFICATION_NETWORKS, SEGMENTATION_NETWORKS
from covidcxr.types import TaskName

__all__ = ["build_network"]

_LIBRARIES: dict[TaskName, dict[str, Callable[..., nn.Module]]] = {
    "classification": {"timm": timm_network, "torchvision": torchvision_network, "xrv": xrv_network},
    "segmentation": {"smp": smp_network},
}
# Set by build_network or by whoever trains, never by a saved file: some of them would go to the network or read a path.
_RESERVED = {
    *("in_channels", "in_chans", "num_classes", "classes", "img_size"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("encoder_weights", "weights", "features_only", "aux_params"),
}


def build_network(config: ModelConfig, *, pretrained_backbone: bool | str | os.PathLike[str] = False) -> nn.Module:
    """Build the network that a config names, with fresh weights.

    Args:
        config: Names the network, its arguments, its input channels and its number of outputs.
        pretrained_backbone: True fetches the library's own pretrained (usually ImageNet) weights; a path reads
            them from a file of tensors (safetensors, or by `torch.save`) or a saved model's folder. Never part of a
            saved config.

    Raises:
        UnknownNameError: If there is no such network or encoder.
        ConfigError: If an argument is unknown, reserved or refused by the network.
        PretrainedError: If pretrained weights were asked for and cannot be had.
    """
    for key in sorted(_RESERVED & config.network_args.keys()):
        raise ConfigError(
            f"network_args may not hold {key!r}: channels, classes and size follow from the config, and pretrained "
            f"weights are asked for with pretrained_backbone=... when training."
        )
    pretrained = pretrained_backbone if isinstance(pretrained_backbone, bool) else os.fspath(pretrained_backbone)
    if isinstance(pretrained, str):
        check_weights_file(pretrained)
    library, _, name = config.network.rpartition(":")
    arguments = {"in_channels": config.preprocess.channels, "num_classes": config.outputs, **config.network_args}
    libraries = _LIBRARIES[config.task]
    if library in libraries:
        with compiler_on_demand():
            return libraries[library](name, config.preprocess, pretrained, **arguments)
    registry = CLASSIFICATION_NETWORKS if config.task == "classification" else SEGMENTATION_NETWORKS
    if library:
        names = ", ".join([*(f"{own}:NAME" for own in libraries), *registry])
        near = get_close_matches(library, libraries, n=1)
        meant = f" Did you mean '{near[0]}:{name}'?" if near else ""
        raise ConfigError(f"{config.network!r} is no {registry.kind}: use {names}.{meant}")
    known = next((own for own in libraries if _is_known(own, name)), None) if name not in registry else None
    if known:
        raise UnknownNameError(f"There is no {registry.kind} {name!r}. Did you mean '{known}:{name}'?")
    return _call(registry.get(config.network), config, arguments, pretrained)


def _is_known(library: str, name: str) -> bool:
    if library == "timm":
        import timm

        return bool(timm.is_model(name))
    if library == "torchvision":
        return name in torchvision_names()
    if library == "smp":
        import segmentation_models_pytorch as smp

        return name in smp.MODEL_ARCHITECTURES_MAPPING
    return False  # xrv's names are all timm's


def _call(
    factory: Callable[..., Any], config: ModelConfig, arguments: dict[str, Any], pretrained: bool | str
) -> nn.Module:
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = set(config.network_args) if takes_any else set(parameters)
    ours = {"in_channels", "num_classes", "image_size", "pretrained"}
    check_keys(config.network_args, known - ours, f"network_args of {config.network!r}")
    if "image_size" in parameters:
        arguments["image_size"] = config.preprocess.image_size
    if pretrained:
        if "pretrained" not in parameters:
            raise ConfigError(
                f"The network {config.network!r} has no pretrained weights: set pretrained_backbone=False."
            )
        arguments["pretrained"] = pretrained
    try:
        network = factory(**arguments)
    except CovidCXRError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The network {config.network!r} refused its arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"The network {config.network!r} built a {type(network).__name__}, not a torch module.")
    return network
