"""Networks for use alone: batch normalisation becomes part of the convolution before it, which saves a pass each."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["FusedNetwork"]

_TOLERANCE = 1e-4
"""By how much outputs of the two networks may differ, as a fraction of the largest."""


class FusedNetwork:
    """The faster copy of a network, made when it is first wanted and again when a weight has changed.

    The network itself, which is trained, explained and saved, stays as it is. It is used without a copy on a graphics
    card, while somebody has hooks in it, and where a copy would compute anything else.

    Example:
        ```python
        import torch
        from torch import nn

        from covidcxr.networks.fused import FusedNetwork

        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        with torch.no_grad():
            fused = FusedNetwork().of(network, (1, 16, 16))
        assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
        ```
    """

    def __init__(self) -> None:
        self._state: tuple[list[Tensor], list[int]] = ([], [])
        self._copy: nn.Module | None = None

    def __reduce__(self) -> tuple[type[FusedNetwork], tuple[()]]:
        """Leave the copy behind: a copied or pickled model makes its own."""
        return FusedNetwork, ()

    def of(self, network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
        """Return what computes the same as a network in evaluation mode, faster where that is possible.

        Args:
            network: In evaluation mode; gradients are off.
            shape: Channels, height and width of its input.

        Returns:
            The copy, or the network itself.
        """
        state = _state_of(network)
        if state is None:
            return network
        known = self._state
        if state[1] != known[1] or any(a is not b for a, b in zip(state[0], known[0], strict=True)):
            self._state, self._copy = state, _fuse(network, shape)
        return network if self._copy is None else self._copy


def _state_of(network: nn.Module) -> tuple[list[Tensor], list[int]] | None:
    """Return all weights, and what tells whether one has changed; None where no copy is to be made."""
    known_tensors: list[Tensor | None] = []
    modules: list[nn.Module] = [network]
    for module in modules:  # grows as it goes, and looks no name up: this is done for every image
        known = module.__dict__
        if known["_forward_hooks"] or known["_forward_pre_hooks"]:
            return None
        known_tensors += [*known["_parameters"].values(), *known["_buffers"].values()]
        modules += known["_modules"].values()
    tensors = [tensor for tensor in known_tensors if tensor is not None]
    if not tensors or tensors[0].device.type != "cpu" or tensors[0].is_inference():
        return None
    return tensors, [tensor._version for tensor in tensors] + [tensors[0].data_ptr()]


def _fuse(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module | None:
    try:
        if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            return None
        weight = next(network.parameters())
        image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).to(weight) - 0.5
        image = image.contiguous(memory_format=torch.channels_last)
        fused = deepcopy(network)
        pairs = _pairs(fused, image)
        names = {module: name for name, module in fused.named_modules()}
        for convolution, norm in pairs:
            made = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = made.weight, made.bias
            parent, _, name = names[norm].rpartition(".")
            setattr(fused.get_submodule(parent), name, _activation(norm))
        fused = fused.to(memory_format=torch.channels_last)
        plain, faster = network(image), fused(image)
        same = bool(pairs) and bool((plain - faster).abs().max() <= _TOLERANCE * plain.abs().max())
    except Exception:  # whatever a foreign network does not like: it is used as it is
        return None
    return fused if same else None


def _pairs(network: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Show an image to a network and see which batch normalisation gets what which convolution made."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors too, or their ids would be used again
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def look(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)
        elif given and id(given[0]) in made:
            pairs.append((made[id(given[0])][0], cast(nn.BatchNorm2d, module)))

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [module.register_forward_hook(look) for module in network.modules() if isinstance(module, kinds)]
    network(image)
    for hook in hooks:
        hook.remove()
    used = [id(module) for pair in pairs for module in pair]
    return [pair for pair in pairs if all(used.count(id(module)) == 1 for module in pair)]


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what a batch normalisation does besides: timm's has the activation inside."""
    parts = (getattr(norm, name, None) for name in ("drop", "act"))
    return nn.Sequential(*(part for part in parts if isinstance(part, nn.Module)))
