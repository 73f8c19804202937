"""Networks for use alone: what follows a convolution becomes part of it, which saves a pass over its maps each."""

from __future__ import annotations

from operator import is_
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["FusedNetwork"]

_TOLERANCE = 1e-4
"""By how much outputs of the two networks may differ, as a fraction of the largest."""

_Pair: TypeAlias = tuple[nn.Conv2d, nn.Module, torch.Size, torch.Size]
"""A convolution, what comes after it, and the shapes of what the convolution was given and made."""


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
        if state[1] != known[1] or not all(map(is_, state[0], known[0])):
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
        if weights := known["_parameters"]:
            known_tensors += weights.values()
        if buffers := known["_buffers"]:
            known_tensors += buffers.values()
        if children := known["_modules"]:
            modules += [child for child in children.values() if child is not None]
    tensors = [tensor for tensor in known_tensors if tensor is not None]
    if not tensors or tensors[0].device.type != "cpu" or tensors[0].is_inference():
        return None
    return tensors, [tensor._version for tensor in tensors] + [tensors[0].data_ptr()]


def _fuse(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module | None:
    """Return the fastest copy that computes the same; None where there is none."""
    fastest = None
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return None
    try:
        image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).to(next(network.parameters())) - 0.5
        image = image.contiguous(memory_format=torch.channels_last)
        without_norms = _copy(network)
        wanted, pairs = _pairs(without_norms, image, nn.BatchNorm2d)
        if not pairs:
            return None
        _fold_norms(without_norms, pairs)
        without_cuts = _copy(without_norms)
        outputs, pairs = _pairs(without_cuts, image, nn.ReLU6)
        if not _is_near(outputs, wanted):
            return None
        fastest = without_norms
        if pairs:
            _fold_activations(without_cuts, pairs)
            fastest = without_cuts if _is_near(without_cuts(image), wanted) else fastest
    except Exception:  # whatever a foreign network or another release of torch does not like: what is there is used
        pass
    return fastest


def _is_near(outputs: Tensor, wanted: Tensor) -> bool:
    return bool((wanted - outputs).abs().max() <= _TOLERANCE * wanted.abs().max())


def _copy(network: nn.Module) -> nn.Module:
    """Return a copy whose modules are new, and whose tensors are those of the network.

    `deepcopy` took most of the time of a first answer. What a module holds besides, in a list of its own say, is not
    copied here: a copy that misses something computes something else, which is noticed, or is not faster.
    """
    made: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        copy = made[id(module)] = type(module).__new__(type(module))
        copy.__dict__.update(
            {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}
        )
        for name, weight in module._parameters.items():  # another object, which may get another memory format
            if weight is not None:
                copy._parameters[name] = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        for name, child in module._modules.items():
            if child is not None:
                copy._modules[name] = copied(child)
        return copy

    return copied(network)


def _fold_norms(network: nn.Module, pairs: list[_Pair]) -> None:
    """Let convolutions do what batch normalisation did after them."""
    replaced = {}
    for convolution, module, _, _ in pairs:
        norm = cast(nn.BatchNorm2d, module)
        statistics = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, *statistics, norm.eps, norm.weight, norm.bias
        )
        replaced[id(norm)] = _activation(norm)
    _replace(network, replaced)
    network.to(memory_format=torch.channels_last)


def _fold_activations(network: nn.Module, pairs: list[_Pair]) -> None:
    """Let convolutions cut their outputs to [0, 6] as they write them, and pad as they read."""
    replaced: dict[int, nn.Module] = {}
    for convolution, activation, size, new_size in pairs:
        replaced[id(convolution)] = _CutConvolution(convolution, size, new_size)
        replaced[id(activation)] = nn.Identity()
    _replace(network, replaced)


class _CutConvolution(nn.Module):
    """A convolution and the ReLU6 after it as one operation of oneDNN, its weights in the order that this wants."""

    def __init__(self, convolution: nn.Conv2d, size: torch.Size, new_size: torch.Size) -> None:
        super().__init__()
        weight, padding = convolution.weight.detach(), list(cast(tuple[int, int], convolution.padding))
        for axis, stride in enumerate(convolution.stride):
            span = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1) + 1
            reach = (new_size[2 + axis] - 1) * stride + span - size[2 + axis]
            if reach > 2 * padding[axis]:  # TensorFlow pads more behind; weights of 0 in front make both sides equal
                padding[axis] = (reach + 1) // 2
                zeros = (0, 0, reach % 2, 0) if axis == 0 else (reach % 2, 0)
                weight = nn.functional.pad(weight, zeros)
        groups = convolution.groups
        self.settings = padding, list(convolution.stride), list(convolution.dilation), groups
        self.bias = None if convolution.bias is None else convolution.bias.detach()
        ordered = weight.contiguous(memory_format=torch.channels_last).to_mkldnn()
        self.weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(ordered, *self.settings, list(size))

    def forward(self, image: Tensor) -> Tensor:
        """Return the outputs, in [0, 6]."""
        cut: Tensor = torch.ops.mkldnn._convolution_pointwise(
            image, self.weight, self.bias, *self.settings, "hardtanh", [0.0, 6.0], ""
        )
        return cut


def _replace(network: nn.Module, replaced: dict[int, nn.Module]) -> None:
    """Put modules in the place of others, whose `id` is given, wherever these stand."""
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if id(child) in replaced:
                module._modules[name] = replaced[id(child)]


def _pairs(network: nn.Module, image: Tensor, kind: type[nn.Module]) -> tuple[Tensor, list[_Pair]]:
    """Show an image to a network and see which module of a kind gets what which convolution made.

    Returns:
        What the network makes of the image, and the pairs.
    """
    made: dict[int, tuple[nn.Conv2d, torch.Size, Tensor]] = {}  # the tensors too, or their ids would be used again
    pairs: list[_Pair] = []

    def look(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, given[0].shape, output)
        elif given and id(given[0]) in made:
            convolution, size, maps = made[id(given[0])]
            pairs.append((convolution, module, size, maps.shape))

    hooks = [
        module.register_forward_hook(look) for module in network.modules() if isinstance(module, (nn.Conv2d, kind))
    ]
    outputs = network(image)
    for hook in hooks:
        hook.remove()
    used = [id(module) for pair in pairs for module in pair[:2]]
    return outputs, [pair for pair in pairs if all(used.count(id(module)) == 1 for module in pair[:2])]


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what a batch normalisation does besides: timm's has the activation inside."""
    parts = (getattr(norm, name, None) for name in ("drop", "act"))
    return nn.Sequential(*(part for part in parts if isinstance(part, nn.Module)))
