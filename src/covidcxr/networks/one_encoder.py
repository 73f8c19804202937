"""One encoder for two networks, computed once: a segmenter and a classifier, or two segmenters.

In the first case its tensors are the same objects in both, in the second it is one module.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from covidcxr.errors import ConfigError
from covidcxr.networks.weights import REFUSALS

__all__ = ["forward_segmenters", "forward_shared", "merge_encoders", "share_encoder"]

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
