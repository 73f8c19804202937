"""From a model config to a network.

Networks are built without torch's compiler, which takes 150 MB and a second or more, and which no prediction needs:
torchvision and timm import it for a function each, and segmentation_models_pytorch calls what imports it. That library
builds an encoder without memory first, and to draw random weights for that takes another 40 MB (sympy).
"""

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
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from covidcxr.config import ModelConfig, check_keys
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError
from covidcxr.networks.classification import timm_network, torchvision_names, torchvision_network, xrv_network
from covidcxr.networks.segmentation import smp_network
from covidcxr.networks.weights import REFUSALS, check_weights_file
from covidcxr.registry import CLASSIFICATION_NETWORKS, SEGMENTATION_NETWORKS
from covidcxr.types import TaskName

__all__ = ["build_network", "compiler_on_demand", "weights_follow"]

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

    A stand-in takes the compiler's place. Functions that the code hides from the compiler are hidden from it as soon as
    it is loaded: until then nothing is compiled. Any other use loads it. Where it is loaded already, nothing happens.

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
