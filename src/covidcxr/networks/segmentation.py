"""Segmenters by segmentation_models_pytorch, by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from covidcxr.config import check_keys
from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.networks.weights import REFUSALS, weights_error

__all__ = ["smp_network"]

# With an activation the outputs would be no logits, with another upsampling they would not have the films' size.
_NOT_OFFERED = {
    *("self", "encoder_name", "encoder_weights", "in_channels", "classes", "aux_params", "activation", "upsampling"),
}


def smp_network(
    name: str,
    image_size: tuple[int, int],
    pretrained: bool | str = False,
    /,
    *,
    in_channels: int,
    num_classes: int,
    encoder: str = "resnet34",
    **network_args: Any,
) -> nn.Module:
    """Build any segmentation_models_pytorch network (https://github.com/qubvel-org/segmentation_models.pytorch).

    Args:
        name: Architecture in lower case ("fpn", "unet", "unetplusplus", "deeplabv3plus", ...).
        image_size: Height and width of the input; checked against what the encoder can halve.
        pretrained: True for the encoder's ImageNet weights, or the path of a safetensors file with the encoder's.
        in_channels: Channels of the input.
        num_classes: Number of mask classes.
        encoder: Name of the encoder; `tu-NAME` is any timm network.
        **network_args: Further arguments of the architecture ("encoder_depth", "decoder_channels", ...).

    Raises:
        UnknownNameError: If there is no such architecture or encoder.
        ConfigError: If an argument is unknown or refused, or the image size cannot be halved often enough.
        PretrainedError: If pretrained weights cannot be had.
    """
    import segmentation_models_pytorch as smp
    import timm

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if name not in architectures:
        raise UnknownNameError(f"smp has no architecture {name!r}. {did_you_mean(name, architectures)}")
    encoder = str(encoder)  # a config file may hold anything here
    universal = encoder.startswith("tu-")
    if not (timm.is_model(encoder[3:]) if universal else encoder in smp.encoders.encoders):
        if timm.is_model(encoder):
            raise UnknownNameError(f"smp has no encoder {encoder!r}, but timm has: use 'tu-{encoder}'.")
        known_encoders = [f"tu-{n}" for n in timm.list_models()] if universal else list(smp.encoders.encoders)
        raise UnknownNameError(f"smp has no encoder {encoder!r}. {did_you_mean(encoder, known_encoders)[:300]}")
    parameters = inspect.signature(architectures[name].__init__).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - _NOT_OFFERED
    check_keys(network_args, known | {"encoder"}, f"network_args of 'smp:{name}'")  # smp drops unknown ones in silence
    if universal and getattr(timm.models.get_pretrained_cfg(encoder[3:]), "fixed_input_size", False):
        network_args["img_size"] = image_size
    try:
        network: nn.Module = architectures[name](
            encoder_name=encoder,
            # smp's own default goes to the network; for universal encoders it says True.
            encoder_weights=(universal or "imagenet") if pretrained is True else None,
            in_channels=in_channels,
            classes=num_classes,
            **network_args,
        )
    except OSError as error:
        raise weights_error(f"smp:{name} with {encoder}", pretrained, error) from error
    except REFUSALS as error:
        raise ConfigError(f"smp's {name!r} with encoder {encoder!r} refused {network_args}: {error}") from error
    _check_size(network, image_size, f"smp:{name} with {encoder}")
    if isinstance(pretrained, str):
        _load_encoder(network, pretrained, f"smp:{name} with {encoder}")
    return network


def _check_size(network: nn.Module, image_size: tuple[int, int], name: str) -> None:
    stride = int(getattr(network.encoder, "output_stride", 1))
    if any(side % stride for side in image_size):
        nearest = tuple(max(stride, round(side / stride) * stride) for side in image_size)
        raise ConfigError(f"{name} halves its input to 1/{stride}: image_size {image_size} must be e.g. {nearest}.")


def _load_encoder(network: nn.Module, path: str, name: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    encoder = network.encoder
    assert isinstance(encoder, nn.Module)
    try:
        encoder.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise weights_error(name, path, error) from error
