"""From a model config to a network, and from a network to its faster copy for use alone."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from difflib import get_close_matches
from functools import cache, wraps
from importlib import import_module
from operator import is_
from types import ModuleType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from covidcxr.config import ModelConfig, check_keys
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError
from covidcxr.networks.classification import timm_network, torchvision_names, torchvision_network, xrv_network
from covidcxr.networks.segmentation import smp_network
from covidcxr.networks.weights import REFUSALS, check_weights_file
from covidcxr.registry import CLASSIFICATION_NETWORKS, SEGMENTATION_NETWORKS
from covidcxr.types import TaskName

__all__ = ["FusedNetwork", "build_network", "compiler_on_demand", "weights_follow"]

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
_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def build_network(config: ModelConfig, *, pretrained_backbone: bool | str | os.PathLike[str] = False) -> nn.Module:
    """Build the network that a config names, with fresh weights.

    Args:
        config: Names the network, its arguments, its input channels and its number of outputs.
        pretrained_backbone: True fetches the library's own pretrained (usually ImageNet) weights; a path reads
            them from a file of tensors (safetensors, or by `torch.save`) or a saved model's folder. Never part of a
            saved config.

    Returns:
        The network: images [batch, channels, height, width] to logits, [batch, outputs] or [batch, classes, height,
        width] for masks.

    Raises:
        UnknownNameError: If there is no such network or encoder.
        ConfigError: If an argument is unknown, reserved or refused by the network.
        PretrainedError: If pretrained weights are wanted and cannot be had.
    """
    for key in sorted(_RESERVED & config.network_args.keys()):
        raise ConfigError(
            f"network_args may not hold {key!r}: channels, classes and size follow from the config, and pretrained "
            f"weights are chosen with pretrained_backbone=... when training."
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
    with compiler_on_demand():
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
    except (*REFUSALS, MemoryError) as error:
        raise ConfigError(f"The network {config.network!r} refused its arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"The network {config.network!r} built a {type(network).__name__}, not a torch module.")
    return network


@contextmanager
def compiler_on_demand() -> Iterator[None]:
    """Load torch's compiler only if the code of the `with` block uses it.

    Loading it takes 150 MB and a second or more, and no prediction needs it; torchvision, timm and smp import it for a
    function each. A stand-in takes its place. Functions that the code hides from the compiler are hidden from it as
    soon as it is loaded: until then nothing is compiled. Any other use loads it.

    Yields:
        Nothing.
    """
    if any(name in sys.modules for name in _COMPILER):
        yield
        return
    sys.modules.update({name: _StandIn(name) for name in _COMPILER})
    try:
        with nullcontext() if _WEIGHTS_FOLLOW.get() else _NothingDrawn():
            yield
    finally:
        _step_aside()


@contextmanager
def weights_follow(numbers: int) -> Iterator[None]:
    """Build networks in the `with` block whose weights are read from a file afterwards, all of them.

    No random weights are drawn for them. A config can name a network of any size: one that is larger than the weights
    beside it is not built to its end.

    Args:
        numbers: How many numbers its tensors may have in all.

    Yields:
        Nothing.

    Raises:
        ConfigError: If there are more.
    """
    token = _WEIGHTS_FOLLOW.set(True)
    try:
        with _Counted(numbers):
            yield
    finally:
        _WEIGHTS_FOLLOW.reset(token)


_WEIGHTS_FOLLOW: ContextVar[bool] = ContextVar("_WEIGHTS_FOLLOW", default=False)


class _NothingDrawn(TorchFunctionMode):
    """Leaves out `torch.nn.init` on tensors that have a shape and no numbers."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if self.leaves_out(tensor):
                return tensor
        return self.call(function, args, kwargs)

    def leaves_out(self, tensor: Any) -> bool:
        return bool(getattr(tensor, "is_meta", False))

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)


class _Counted(_NothingDrawn):
    """Also leaves out parameters, and counts numbers of new tensors; memory that is not written to is not taken yet."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def leaves_out(self, tensor: Any) -> bool:
        return isinstance(tensor, nn.Parameter) or super().leaves_out(tensor)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        if function in _MAKERS and not result.is_meta:
            self.left -= result.numel()
            if self.left < 0:
                raise ConfigError("the network is larger than the weights that are saved with it")
        return result


_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace}


class _StandIn(ModuleType):
    """`torch._dynamo`, or its `utils`, until something of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package, whose modules the import system looks up by itself

    def __getattr__(self, name: str) -> Any:
        if name in _ON_DEMAND:
            return _ON_DEMAND[name]
        if name.startswith("__"):  # the import system looks these up
            raise AttributeError(name)
        return getattr(_load(self.__name__), name)


def _load(name: str) -> Any:
    _step_aside()
    return import_module(name)


def _step_aside() -> None:
    for name in _COMPILER:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _disable(function: Callable[..., Any] | None = None, *settings: Any, **options: Any) -> Callable[..., Any]:
    """Stand for `torch._dynamo.disable`, which hides a function from the compiler."""
    if function is None:
        return lambda decorated: _disable(decorated, *settings, **options)
    plain = function
    if not inspect.isfunction(plain):  # a module or a class comes back as what it is, which only the true one can do
        result: Callable[..., Any] = _load("torch._dynamo").disable(plain, *settings, **options)
        return result

    @cache
    def hidden() -> Callable[..., Any]:
        disabled: Callable[..., Any] = import_module("torch._dynamo").disable(plain, *settings, **options)
        return disabled

    @wraps(plain)
    def call(*values: Any, **named: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        loaded = compiler is not None and not isinstance(compiler, _StandIn) and hasattr(compiler, "disable")
        return (hidden() if loaded else plain)(*values, **named)

    return call


def _is_compile_supported(device_type: str) -> bool:
    """Stand for `torch._dynamo.utils.is_compile_supported`."""
    return bool(_load("torch._dynamo.utils").is_compile_supported(device_type))


_ON_DEMAND: dict[str, Callable[..., Any]] = {"disable": _disable, "is_compile_supported": _is_compile_supported}


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

        from covidcxr.networks.build import FusedNetwork

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
