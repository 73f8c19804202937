"""Chains of named steps: plain data in a saved model or pipeline, checked functions in use."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias

from covidcxr.config import check_keys
from covidcxr.config.checks import MOST_STEPS, short
from covidcxr.errors import ConfigError
from covidcxr.registry import Registry
from covidcxr.utils.plain import plain

__all__ = ["StepChain", "StepConfig"]

StepConfig: TypeAlias = str | Mapping[str, Any]
"""A step's name, or a table with the key "name" and the step's parameters."""


class StepChain(ABC):
    """Registered steps in an order; abstract. A step is a function from a thing and parameters to such a thing.

    Args:
        steps: In order: names, or tables with the key "name" and the step's parameters.

    Raises:
        UnknownNameError: If there is no such step.
        ConfigError: If a step has no such parameter, or its value is out of range.

    Example:
        ```python
        from covidcxr.transforms.postprocess import PostProcess
        from covidcxr.transforms.step_chain import StepChain

        chain: StepChain = PostProcess(["fill_holes", {"name": "largest_components", "count": 2}])
        assert PostProcess.from_config(chain.to_config()) == chain
        ```
    """

    registry: ClassVar[Registry]

    def __init__(self, steps: Sequence[StepConfig]) -> None:
        if isinstance(steps, str) or not isinstance(steps, Sequence):
            raise ConfigError(f"{self._kind()}s must be a list of names or tables, not {short(steps)}.")
        if len(steps) > MOST_STEPS:
            raise ConfigError(f"There can be {MOST_STEPS} {self.registry.kind}s at most, not {len(steps)}.")
        self._steps = tuple(self._read_step(step, number) for number, step in enumerate(steps, 1))

    @staticmethod
    @abstractmethod
    def _example() -> Any:
        """Return something small to try a step's parameters on."""

    def _run(self, value: Any) -> Any:
        """Return what the steps make of a value, one after the other."""
        for _, function, parameters in self._steps:
            value = function(value, **parameters)
        return value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_config()})"

    def to_config(self) -> list[str | dict[str, Any]]:
        """Return plain data (for JSON) that `from_config` reads back."""
        return [{"name": name, **parameters} if parameters else name for name, _, parameters in self._steps]

    @classmethod
    def from_config(cls, config: Sequence[StepConfig]) -> Self:
        """Build from what `to_config` returned.

        Args:
            config: Steps as plain data.

        Returns:
            The chain.

        Raises:
            UnknownNameError: If there is no such step.
            ConfigError: If a step has no such parameter, or its value is out of range.
        """
        return cls(config)

    @classmethod
    def _kind(cls) -> str:
        return cls.registry.kind.capitalize()

    @classmethod
    def _read_step(cls, step: StepConfig, number: int) -> tuple[str, Callable[..., Any], dict[str, Any]]:
        """Check one entry of a chain; return the step's name, function and parameters."""
        table: object = {"name": step} if isinstance(step, str) else step
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise ConfigError(f'{cls._kind()} {number} must be a name or a table with "name", not {short(step)}.')
        name, parameters = table["name"], {key: plain(value) for key, value in table.items() if key != "name"}
        function: Callable[..., Any] = cls.registry.get(name)
        known = list(inspect.signature(function).parameters.values())[1:]
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known)
        if not open_ended:
            check_keys(parameters, {parameter.name for parameter in known}, f"{cls.registry.kind} {name!r}")
        for parameter in known:
            if parameter.default is parameter.empty and parameter.name not in parameters and not open_ended:
                raise ConfigError(f"{cls._kind()} {name!r} needs a value for {parameter.name!r}.")
        try:
            function(cls._example(), **parameters)  # a wrong value shall be an error now, not at the first image
        except ConfigError as error:
            raise ConfigError(f"{cls._kind()} {name!r}: {error}") from error
        return name, function, parameters
