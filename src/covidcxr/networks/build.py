"""From a model config to a network."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import nn

from covidcxr.config import ModelConfig, check_keys
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError
from covidcxr.networks.classification import timm_network
from covidcxr.networks.segmentation import smp_network
from covidcxr.networks.weights import check_weights_file
from covidcxr.registry import CLASSIFICATION_NETWORKS, SEGMENTATION_NETWORKS

__all__ = ["build_network", "backbone_of"]

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
            them from a safetensors file. Never part of a saved config.

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
    if library == "timm" and config.task == "classification":
        return timm_network(name, config.preprocess.image_size, pretrained, **arguments)
    if library == "smp" and config.task == "segmentation":
        return smp_network(name, config.preprocess.image_size, pretrained, **arguments)
    registry = CLASSIFICATION_NETWORKS if config.task == "classification" else SEGMENTATION_NETWORKS
    own = "timm" if config.task == "classification" else "smp"
    if library:
        registered = f" or one of {', '.join(registry)}" if len(registry) else ""
        raise ConfigError(f"{config.network!r} is no {registry.kind}: use {own}:NAME{registered}.")
    if name not in registry and _is_known(own, name):
        raise UnknownNameError(f"There is no {registry.kind} {name!r}. Did you mean '{own}:{name}'?")
    return _call(registry.get(config.network), config, arguments, pretrained)


def backbone_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a network that are its backbone: all but the part that makes the answer.

    That is smp's `encoder`, a `backbone` where a network of ours or of a third party has one, else what is left of
    a timm network without its classifier. Parameters that belong to no such part (a transformer's position
    embedding) come last, as a list.

    Raises:
        ConfigError: If the network does not say what its backbone is.
    """
    for attribute in ("encoder", "backbone"):
        part = getattr(network, attribute, None)
        if isinstance(part, nn.Module):
            yield part
            return
    if not hasattr(network, "get_classifier"):
        raise ConfigError(
            f"{type(network).__name__} does not say what its backbone is. Give it an attribute `backbone`, or do not "
            f"freeze it."
        )
    classifiers = cast(Callable[[], nn.Module | tuple[nn.Module, ...]], network.get_classifier)()
    classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)  # distilled ones have two
    head = {module for classifier in classifiers for module in classifier.modules()}
    above = [module for module in network.modules() if module not in head and head & set(module.modules())]
    yield from (module for module in network.modules() if module not in head and module not in above)
    yield nn.ParameterList(parameter for module in above for parameter in module.parameters(recurse=False))


def _is_known(library: str, name: str) -> bool:
    if library == "timm":
        import timm

        return bool(timm.is_model(name))
    import segmentation_models_pytorch as smp

    return name in smp.MODEL_ARCHITECTURES_MAPPING


def _call(
    factory: Callable[..., Any], config: ModelConfig, arguments: dict[str, Any], pretrained: bool | str
) -> nn.Module:
    parameters = inspect.signature(factory).parameters
    if pretrained:
        if "pretrained" not in parameters:
            raise ConfigError(
                f"The network {config.network!r} has no pretrained weights: set pretrained_backbone=False."
            )
        arguments["pretrained"] = pretrained
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = set(parameters) - {"pretrained", "in_channels", "num_classes"}
        check_keys(config.network_args, known, f"network_args of {config.network!r}")
    try:
        network = factory(**arguments)
    except CovidCXRError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The network {config.network!r} refused its arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"The network {config.network!r} built a {type(network).__name__}, not a torch module.")
    return network
