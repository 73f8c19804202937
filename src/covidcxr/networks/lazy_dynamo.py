"""Networks built without torch's compiler, which takes 150 MB and a second or more, and which no image needs.

torchvision and timm import it for a function each, and segmentation_models_pytorch calls what imports it: it builds an
encoder without memory first, and to draw random weights for that takes another 40 MB (sympy).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from inspect import isfunction
from types import ModuleType
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["compiler_on_demand"]

_NAMES = ("torch._dynamo", "torch._dynamo.utils")


@contextmanager
def compiler_on_demand() -> Iterator[None]:
    """Let what runs meanwhile load torch's compiler only where it asks it for something.

    A stand-in takes the compiler's place. Functions that are hidden from the compiler meanwhile are hidden from it as
    soon as it is there: until then nothing is compiled. To ask for anything else loads it. Where it is loaded already,
    nothing happens.
    """
    if any(name in sys.modules for name in _NAMES):
        yield
        return
    sys.modules.update({name: _StandIn(name) for name in _NAMES})
    try:
        with _NothingDrawnOnMeta():
            yield
    finally:
        _step_aside()


class _NothingDrawnOnMeta(TorchFunctionMode):
    """Leaves out `torch.nn.init` on tensors that have a shape and no numbers."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if getattr(tensor, "is_meta", False):
                return tensor
        return function(*args, **kwargs)


class _StandIn(ModuleType):
    """`torch._dynamo`, or its `utils`, until something of it is wanted."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package, whose modules the import system looks up by itself

    def __getattr__(self, name: str) -> Any:
        if name in _ON_DEMAND:
            return _ON_DEMAND[name]
        if name.startswith("__"):  # the import system's own questions
            raise AttributeError(name)
        return getattr(_load(self.__name__), name)


def _load(name: str) -> Any:
    _step_aside()
    return import_module(name)


def _step_aside() -> None:
    for name in _NAMES:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _disable(function: Callable[..., Any] | None = None, *settings: Any, **options: Any) -> Callable[..., Any]:
    """Stand for `torch._dynamo.disable`, which hides a function from the compiler."""
    if function is None:
        return lambda decorated: _disable(decorated, *settings, **options)
    plain = function
    if not isfunction(plain):  # a module or a class comes back as what it is, which only the true one can do
        found: Callable[..., Any] = _load("torch._dynamo").disable(plain, *settings, **options)
        return found

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
