"""Segmenters by segmentation_models_pytorch, by name, and one encoder for two networks, computed once.

The two are a segmenter and a classifier, whose tensors are then the same objects, or two segmenters, which then share
one module.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from covidcxr.config import PreprocessConfig, check_keys
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError, did_you_mean
from covidcxr.networks.weights import (
    REFUSALS,
    copy_backbone,
    hub_or_cache,
    installed_weights,
    package_cure,
    read_weights,
    weights_error,
)

__all__ = ["smp_network", "forward_segmenters", "forward_shared", "merge_encoders", "share_encoder"]

# With an activation the outputs would be no logits, with another upsampling they would not have the images' size.
_NOT_OFFERED = {
    *("self", "encoder_name", "encoder_weights", "in_channels", "classes", "aux_params", "activation", "upsampling"),
}
_HEADS = ("classifier.", "fc.", "_fc.", "head.", "last_linear.", "linear.")
"""How the libraries whose encoders smp took call their classifiers."""


def smp_network(
    name: str,
    preprocess: PreprocessConfig,
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
        preprocess: Its image size is checked against what the encoder can halve.
        pretrained: True for the encoder's ImageNet weights, or the path of a file with the encoder's weights, or
            those of the classifier that the encoder was.
        in_channels: Channels of the input.
        num_classes: Number of mask classes.
        encoder: Name of the encoder; `tu-NAME` is any timm network.
        **network_args: Further arguments of the architecture ("encoder_depth", "decoder_channels", ...).

    Returns:
        The network: images [batch, in_channels, height, width] to logits [batch, num_classes, height, width].

    Raises:
        UnknownNameError: If there is no such architecture or encoder.
        ConfigError: If an argument is unknown or refused, or the image size cannot be halved often enough.
        PretrainedError: If pretrained weights cannot be had.
    """
    import segmentation_models_pytorch as smp
    import timm

    encoder = str(encoder)  # a config file may hold anything here
    _check_names(name, encoder)
    architecture = smp.MODEL_ARCHITECTURES_MAPPING[name]
    universal = encoder.startswith("tu-")
    parameters = inspect.signature(architecture.__init__).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - _NOT_OFFERED
    check_keys(network_args, known | {"encoder"}, f"network_args of 'smp:{name}'")  # smp drops unknown ones in silence
    if universal and getattr(timm.models.get_pretrained_cfg(encoder[3:]), "fixed_input_size", False):
        network_args["img_size"] = preprocess.image_size
    build = partial(architecture, encoder_name=encoder, in_channels=in_channels, classes=num_classes, **network_args)
    full_name = f"smp:{name} with {encoder}"
    try:
        # smp's own default goes to the network.
        network: nn.Module = build(encoder_weights=None)
    except REFUSALS as error:
        raise ConfigError(f"smp's {name!r} with encoder {encoder!r} refused {network_args}: {error}") from error
    _check_size(network, preprocess.image_size, full_name)
    installed = installed_weights(encoder[3:]) if universal and pretrained is True else None
    if isinstance(pretrained, str) or installed is not None:
        _load_encoder(network, encoder, pretrained, installed, full_name)
        return network
    return _from_smp(build, encoder, full_name) if pretrained else network


def _check_names(name: str, encoder: str) -> None:
    import segmentation_models_pytorch as smp
    import timm

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if name not in architectures:
        raise UnknownNameError(f"smp has no architecture {name!r}. {did_you_mean(name, architectures)}")
    universal = encoder.startswith("tu-")
    if not (timm.is_model(encoder[3:]) if universal else encoder in smp.encoders.encoders):
        if timm.is_model(encoder):
            raise UnknownNameError(f"smp has no encoder {encoder!r}, but timm has: use 'tu-{encoder}'.")
        known_encoders = [f"tu-{n}" for n in timm.list_models()] if universal else list(smp.encoders.encoders)
        raise UnknownNameError(f"smp has no encoder {encoder!r}. {did_you_mean(encoder, known_encoders)[:300]}")


def _from_smp(build: partial[nn.Module], encoder: str, name: str) -> nn.Module:
    import segmentation_models_pytorch as smp
    import timm

    settings = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {}).get("imagenet", {})
    repository = settings.get("repo_id")
    if encoder.startswith("tu-"):
        repository = getattr(timm.models.get_pretrained_cfg(encoder[3:]), "hf_hub_id", None)
    cure = f"Where there is a network: hf download {repository} (a file model.safetensors)." if repository else ""
    cure = package_cure(encoder.removeprefix("tu-")) + cure
    try:
        with hub_or_cache():
            return build(encoder_weights="imagenet" if encoder in smp.encoders.encoders else True)
    except (OSError, *REFUSALS) as error:
        raise weights_error(name, True, error, cure) from error


def _check_size(network: nn.Module, image_size: tuple[int, int], name: str) -> None:
    stride = int(getattr(network.encoder, "output_stride", 1))
    if any(side % stride for side in image_size):
        nearest = tuple(max(stride, round(side / stride) * stride) for side in image_size)
        raise ConfigError(f"{name} halves its input to 1/{stride}: image_size {image_size} must be e.g. {nearest}.")


def _load_encoder(
    network: nn.Module, name: str, pretrained: bool | str, installed: dict[str, Tensor] | None, full_name: str
) -> None:
    import timm

    tensors = read_weights(full_name, str(pretrained)) if installed is None else installed
    encoder, surplus = cast(nn.Module, network.encoder), list(_HEADS)
    if name.startswith("tu-"):  # a part of a timm classifier, under the classifier's names
        with torch.device("meta"):
            surplus = list(timm.create_model(name[3:]).state_dict())
        encoder = cast(nn.Module, encoder.model)
    try:
        copy_backbone(encoder, tensors, surplus=surplus)
    except CovidCXRError as error:
        raise weights_error(full_name, pretrained, error) from error


_TOLERANCE = 1e-4
"""By how much outputs of one network may differ, as a fraction of the largest; another network is far away."""


def share_encoder(segmenter: nn.Module, classifier: nn.Module, shape: tuple[int, int, int]) -> None:
    """Give the encoder of a segmenter the weights of a classifier: not a copy, but the very tensors.

    Each of the two keeps its layers and their names, and is saved and loaded by itself.

    Args:
        segmenter: A network by smp with the encoder `tu-NAME`.
        classifier: The network `NAME` by timm.
        shape: Channels, height and width of the input.

    Raises:
        ConfigError: If the encoder is not, layer by layer, a part of the classifier.
    """
    encoder: nn.Module = cast(Any, segmenter).encoder.model
    before = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    layers = {name.replace(".", "_"): layer for name, layer in classifier.named_modules()}  # timm writes stages_0
    try:
        for name, layer in encoder.named_modules():
            if layer._parameters or layer._buffers:
                theirs = layers[name.replace(".", "_")]
                # The tables, not what is in them: a move to another device puts new buffers there.
                layer._parameters, layer._buffers = theirs._parameters, theirs._buffers
        same = before == {name: tensor.shape for name, tensor in encoder.state_dict().items()}
        same = same and _agree(segmenter, classifier, shape)
    except REFUSALS as error:
        raise _refusal(f"{type(error).__name__}: {error}") from error
    if not same:
        raise _refusal("the same image gives other features")


def forward_shared(segmenter: nn.Module, classifier: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the shared encoder once, and the outputs of both networks from it.

    Args:
        segmenter: As `share_encoder` left it.
        classifier: The same.
        image: What the networks see, [batch, channels, height, width].

    Returns:
        Logits of the masks [batch, classes, height, width], and of the classes [batch, outputs].
    """
    masks, classes = cast(Any, segmenter), cast(Any, classifier)
    last, maps = classes.forward_intermediates(image, indices=list(masks.encoder.model.feature_info.out_indices))
    # smp's decoders want maps from the image's own scale down, in halves; where timm has none, the image or nothing.
    height, width = image.shape[2] // 2, image.shape[3] // 2
    above = [image, image.new_empty(len(image), 0, height, width)][: len(masks.encoder.out_channels) - len(maps)]
    return masks.segmentation_head(masks.decoder([*above, *maps])), classes.forward_head(last)


def merge_encoders(first: nn.Module, second: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Let the second of two networks by smp use the encoder of the first, if the two are equal to the last bit.

    Args:
        first: A segmenter, in evaluation mode.
        second: Another one, too.
        shape: Channels, height and width of the input.

    Returns:
        Whether they have one encoder now. If not, nothing has changed.
    """
    ours, theirs = (getattr(network, "encoder", None) for network in (first, second))
    heads = all(hasattr(network, part) for network in (first, second) for part in ("decoder", "segmentation_head"))
    if not (heads and isinstance(ours, nn.Module) and isinstance(theirs, nn.Module)):
        return False
    weights, others = ours.state_dict(), theirs.state_dict()
    if weights.keys() != others.keys() or not all(torch.equal(weights[name], others[name]) for name in weights):
        return False
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).to(next(ours.parameters())) - 0.5
    maps, other_maps = ours(image), theirs(image)  # equal weights may be used otherwise: at another stride, say
    if len(maps) != len(other_maps) or not all(torch.equal(a, b) for a, b in zip(maps, other_maps, strict=True)):
        return False
    cast(Any, second).encoder = ours
    return True


def forward_segmenters(first: nn.Module, second: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the encoder that two networks have by `merge_encoders` once, and the outputs of both from it.

    Args:
        first: A segmenter.
        second: The other.
        image: What the networks see, [batch, channels, height, width].

    Returns:
        Logits of the masks of each, [batch, classes, height, width].
    """
    maps = cast(Any, first).encoder(image)
    a, b = (network.segmentation_head(network.decoder(maps)) for network in (cast(Any, first), cast(Any, second)))
    return a, b


@torch.no_grad()
def _agree(segmenter: nn.Module, classifier: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Show an image to both networks, each alone and together."""
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    training = [module for network in (segmenter, classifier) for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        alone, together = (segmenter(image), classifier(image)), forward_shared(segmenter, classifier, image)
    finally:
        for module in training:
            module.training = True
    return all(bool((a - b).abs().max() <= _TOLERANCE * a.abs().max()) for a, b in zip(alone, together, strict=True))


def _refusal(reason: str) -> ConfigError:
    return ConfigError(
        f"These two networks cannot share an encoder ({' '.join(reason.split())[:200]}). Take another encoder or "
        f"architecture, or leave out the settings that change the encoder of one of them."
    )
