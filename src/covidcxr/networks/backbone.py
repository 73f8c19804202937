"""Which part of a network is its backbone, and which makes the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from torch import nn

from covidcxr.errors import ConfigError

__all__ = ["answer_tensors", "backbone_of"]


def backbone_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a network that are its backbone: all but the part that makes the answer.

    That is smp's `encoder`, a `backbone` where a network of ours or of a third party has one, else what is left of
    a timm, torchvision or xrv network without its last layer. Parameters that belong to no such part (a
    transformer's position embedding) come last, as a list.

    Raises:
        ConfigError: If the network does not say what its backbone is.
    """
    for attribute in ("encoder", "backbone"):
        part = getattr(network, attribute, None)
        if isinstance(part, nn.Module):
            yield part
            return
    head = {module for classifier in _classifiers(network) for module in classifier.modules()}
    above = [module for module in network.modules() if module not in head and head & set(module.modules())]
    yield from (module for module in network.modules() if module not in head and module not in above)
    yield nn.ParameterList(parameter for module in above for parameter in module.parameters(recurse=False))


def answer_tensors(network: nn.Module) -> set[str]:
    """Name the tensors of the last layer of a timm, torchvision or xrv network."""
    inside = {id(tensor) for part in _classifiers(network) for tensor in (*part.parameters(), *part.buffers())}
    named = (*network.named_parameters(), *network.named_buffers())
    return {name for name, tensor in named if id(tensor) in inside}


def _classifiers(network: nn.Module) -> tuple[nn.Module, ...]:
    if not hasattr(network, "get_classifier"):
        raise ConfigError(
            f"{type(network).__name__} does not say what its backbone is. Give it an attribute `backbone`, or do not "
            f"freeze it."
        )
    classifiers = cast(Callable[[], nn.Module | tuple[nn.Module, ...]], network.get_classifier)()
    return classifiers if isinstance(classifiers, tuple) else (classifiers,)  # distilled ones have two
