"""What a saved model's `config.json` holds: plain data, checked strictly, standard library only."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from covidcxr.errors import ConfigError, PretrainedError, did_you_mean
from covidcxr.types import Fit, Mode, Region, TaskName, Vote

__all__ = [
    "FORMAT_VERSION",
    "PreprocessConfig",
    "ModelConfig",
    "EnsembleConfig",
    "check_format_version",
    "check_keys",
]

FORMAT_VERSION = 1
"""Version of the saved format that this release writes; it reads this one and all older ones."""


def check_keys(data: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse unknown keys, which would be ignored otherwise.

    Args:
        data: The keys and values to check.
        known: All valid keys.
        where: The place of `data`, for messages.

    Raises:
        ConfigError: If `data` has a key that is not in `known`; names the key, the place and the nearest valid key.
    """
    for key in data:
        if key not in known:
            raise ConfigError(f"Unknown key {key!r} in {where}. {did_you_mean(key, known)}")


def check_format_version(version: object, where: str) -> None:
    """Refuse a file that a newer release wrote.

    Args:
        version: The value of the key `format_version`.
        where: The file, for messages.

    Raises:
        PretrainedError: If `version` is newer than `FORMAT_VERSION`.
        ConfigError: If it is no whole number from 1 up.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError(f"format_version in {where} must be a whole number from 1 up, not {version!r}.")
    if version > FORMAT_VERSION:
        raise PretrainedError(
            f"{where} has format version {version}; this release reads up to {FORMAT_VERSION}. "
            f"Upgrade with: pip install --upgrade covidcxr"
        )


@dataclass(frozen=True)
class PreprocessConfig:
    """How a grey image in [0, 1] becomes the tensor that the network sees; saved inside the model.

    Attributes:
        image_size: Height and width of the network's input, in pixels.
        channels: 1, or 3 = the grey image repeated (for networks that were made for colour).
        mean: Subtracted after scaling to [0, 1]; one value, or one a channel.
        std: Divided by; one value, or one a channel; above 0.
        fit: "letterbox" keeps the aspect ratio and pads with black, "stretch" does not.
        region: What the network sees: "full", "box" (the rectangle around the lungs), "lungs", or "background" (the
            image with the lungs removed).
        lung_dilation: By how much the lung mask is widened before `region` is cut, as a fraction of the longer
            side of `image_size`, in [0, 0.5]. Standard masks leave out 27 % of the lung's volume, behind heart
            and diaphragm.
        steps: What else happens to the image at `image_size`, before it is normalised by `mean` and `std`: names of
            preprocessing steps, or tables with the key "name" and the step's parameters; see `covidcxr.preprocess`.

    Example:
        ```python
        from covidcxr import PreprocessConfig

        config = PreprocessConfig(image_size=(224, 224), region="lungs", lung_dilation=0.05)
        assert PreprocessConfig.from_dict({"image_size": [224, 224]}).image_size == config.image_size
        ```
    """

    image_size: tuple[int, int] = (256, 256)
    channels: Literal[1, 3] = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    fit: Fit = "letterbox"
    region: Region = "full"
    lung_dilation: float = 0.0
    steps: tuple[str | dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name, kind in (("image_size", int), ("mean", float), ("std", float)):
            _set(self, name, _numbers(getattr(self, name), kind, name))
        size: tuple[int, ...] = self.image_size  # a config file may hold any number of values
        if len(size) != 2 or min(size) < 8:
            raise ConfigError(f"image_size must be two whole numbers from 8 up, not {size}.")
        if type(self.channels) is not int or self.channels not in (1, 3):  # True and 3.0 are equal to these
            raise ConfigError(f"channels must be 1 or 3, not {self.channels!r}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ConfigError(f"{name} must hold 1 or {self.channels} numbers, not {len(values)}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be above 0, not {self.std}.")
        _check_choice("fit", self.fit, get_args(Fit))
        _check_choice("region", self.region, get_args(Region))
        if not _is_number(self.lung_dilation) or not 0 <= self.lung_dilation <= 0.5:
            raise ConfigError(f"lung_dilation must be a number in [0, 0.5], not {self.lung_dilation!r}.")
        _set(self, "steps", _plain_steps(self.steps))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "the preprocess config") -> Self:
        """Build from plain data (as read from JSON).

        Args:
            data: Keys and values, named as the attributes.
            where: The place of `data`, for messages.

        Returns:
            The checked config.

        Raises:
            ConfigError: If a key is unknown or a value is wrong.
        """
        _check_mapping(data, where)
        check_keys(data, {f.name for f in dataclasses.fields(cls)}, where)
        try:
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights: what `config.json` of a saved model holds.

    Attributes:
        task: "segmentation" or "classification".
        network: Name of the network: one of the registry, `timm:NAME`, `torchvision:NAME`, `xrv:NAME` (classification)
            or `smp:NAME` (segmentation).
        classes: Names of the classes, in the order of the network's outputs.
        mode: "multiclass" (exactly one class is true), "multilabel" (each class by itself) or "binary":
            one output; in classification it is the probability of the second of two classes,
            in segmentation the probability of the only class. Masks may overlap, so segmentation knows no
            "multiclass".
        network_args: Further arguments of the network (`encoder`, `depth`, ...), JSON values only.
        preprocess: How an image becomes the network's input.
        thresholds: By class name, the calibrated probability from which a class counts: a pixel belongs to the
            class, or the class to the set of plausible answers. Segmentation and multilabel default to 0.5;
            without any, a multiclass or binary classifier predicts its most probable class.
        temperature: Logits are divided by it before they become probabilities (Guo 2017); above 0.
        positive: The class whose sensitivity and specificity count, one of `classes`; None = not set.
        format_version: Version of the saved format.

    Example:
        ```python
        from covidcxr import ModelConfig

        config = ModelConfig("classification", "timm:resnet18", ("normal", "tuberculosis"), positive="tuberculosis")
        assert ModelConfig.from_dict(config.to_dict()) == config
        ```
    """

    task: TaskName
    network: str
    classes: tuple[str, ...]
    mode: Mode = "multiclass"
    network_args: dict[str, Any] = field(default_factory=dict)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    thresholds: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    positive: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        names: object = self.classes  # YAML and JSON may have brought anything
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"classes must be a list of names, not {names!r}.")
        _set(self, "classes", tuple(self.classes))
        for key in ("network_args", "thresholds"):
            _check_mapping(getattr(self, key), key)
        try:
            _set(self, "network_args", json.loads(json.dumps(dict(self.network_args), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"network_args must hold JSON values only: {error}.") from error
        if not isinstance(self.preprocess, PreprocessConfig):
            _set(self, "preprocess", PreprocessConfig.from_dict(self.preprocess, "preprocess"))
        check_format_version(self.format_version, "this model config")
        _check_choice("task", self.task, get_args(TaskName))
        _check_choice("mode", self.mode, get_args(Mode))
        if not isinstance(self.network, str):
            raise ConfigError(f"network must be a name, not {self.network!r}.")
        _check_classes(self.task, self.mode, self.classes)
        if self.positive is not None and self.positive not in self.classes:
            raise ConfigError(
                f"positive names the class {self.positive!r}. {did_you_mean(str(self.positive), self.classes)}"
            )
        for name, threshold in self.thresholds.items():
            if name not in self.classes:
                raise ConfigError(f"thresholds names the class {name!r}. {did_you_mean(name, self.classes)}")
            if not _is_number(threshold) or not 0 <= threshold <= 1:
                raise ConfigError(f"The threshold of {name!r} must be a number in [0, 1], not {threshold!r}.")
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise ConfigError(f"temperature must be a number above 0, not {self.temperature!r}.")

    @property
    def outputs(self) -> int:
        """Number of outputs of the network: one in binary mode, else one a class."""
        return 1 if self.mode == "binary" else len(self.classes)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "the model config") -> Self:
        """Build from plain data, as read from `config.json`.

        Args:
            data: What `to_dict` returned.
            where: The file's name, for messages.

        Returns:
            The checked config.

        Raises:
            ConfigError: If a key is unknown or missing, or a value is wrong.
            PretrainedError: If a newer release wrote it.
        """
        _check_mapping(data, where)
        # The version first: a newer format may well have keys that this release does not know.
        check_format_version(data.get("format_version", FORMAT_VERSION), where)
        check_keys(data, {f.name for f in dataclasses.fields(cls)}, where)
        for key in ("task", "network", "classes"):
            if key not in data:
                raise ConfigError(f"The key {key!r} is missing in {where}.")
        preprocess = PreprocessConfig.from_dict(data.get("preprocess", {}), f"preprocess of {where}")
        try:
            return cls(**{**data, "preprocess": preprocess})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (dict, list, str, numbers) that `from_dict` reads back."""
        data = dataclasses.asdict(self)
        data["classes"] = list(self.classes)
        lists = ("image_size", "mean", "std", "steps")
        data["preprocess"] |= {name: list(data["preprocess"][name]) for name in lists}
        return _without_unset(data)


@dataclass(frozen=True)
class EnsembleConfig:
    """Everything but the members: what `config.json` of a saved ensemble holds.

    Attributes:
        classes: Names of the classes; every member has the same, in the same order.
        mode: "multiclass" (exactly one class is true) or "multilabel" (each class by itself).
        members: From a member's name to the weight of its vote, above 0.
        vote: "soft" = mean of the members' probabilities, "hard" = share of the members that answer so.
        thresholds: As in `ModelConfig`.
        temperature: As in `ModelConfig`; the members' own come before it.
        positive: As in `ModelConfig`.
        task: "classification".
        format_version: Version of the saved format.

    Example:
        ```python
        from covidcxr.config import EnsembleConfig

        config = EnsembleConfig(("normal", "covid19"), "multiclass", members={"a": 1.0, "b": 2.0})
        assert config.network == "ensemble of a, b"
        ```
    """

    classes: tuple[str, ...]
    mode: Mode
    members: dict[str, float]
    vote: Vote = "soft"
    thresholds: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    positive: str | None = None
    task: TaskName = "classification"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for key, choices in (("task", ("classification",)), ("mode", ("multiclass", "multilabel"))):
            _check_choice(key, getattr(self, key), choices)
        _check_choice("vote", self.vote, get_args(Vote))
        shared = ModelConfig(  # checks the keys that both configs have
            task=self.task,
            network="ensemble",
            classes=self.classes,
            mode=self.mode,
            thresholds=self.thresholds,
            temperature=self.temperature,
            positive=self.positive,
            format_version=self.format_version,
        )
        _set(self, "classes", shared.classes)
        _check_mapping(self.members, "members")
        if not self.members:
            raise ConfigError("An ensemble has members, each with its weight.")
        for name, weight in self.members.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
                raise ConfigError(f"A member's name is letters, digits, '_' and '-', for its folder, not {name!r}.")
            if not _is_number(weight) or weight <= 0:
                raise ConfigError(f"The weight of {name!r} must be a number above 0, not {weight!r}.")

    @property
    def network(self) -> str:
        """Text that names the members."""
        return f"ensemble of {', '.join(self.members)}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "the ensemble's config") -> Self:
        """Build from plain data, as read from `config.json`.

        Args:
            data: What `to_dict` returned.
            where: The file's name, for messages.

        Returns:
            The checked config.

        Raises:
            ConfigError: If a key is unknown or missing, or a value is wrong.
            PretrainedError: If a newer release wrote it.
        """
        check_format_version(data.get("format_version", FORMAT_VERSION), where)
        check_keys(data, {f.name for f in dataclasses.fields(cls)}, where)
        for key in ("classes", "mode", "members"):
            if key not in data:
                raise ConfigError(f"The key {key!r} is missing in {where}.")
        try:
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads back."""
        return _without_unset({**dataclasses.asdict(self), "classes": list(self.classes)})


def _without_unset(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out a positive class that is not set, so that releases without the key can read the config."""
    return {key: value for key, value in data.items() if key != "positive" or value is not None}


def _check_classes(task: TaskName, mode: Mode, classes: tuple[str, ...]) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise ConfigError(f"classes must be distinct names, at least one, not {classes}.")
    if task == "segmentation" and mode == "multiclass":
        raise ConfigError('Masks may overlap: use mode="multilabel" (or "binary" for one class), not "multiclass".')
    count = {"segmentation": 1, "classification": 2}[task]
    if mode == "binary" and len(classes) != count:
        raise ConfigError(f"Binary {task} has {count} class name(s), not {len(classes)}: {classes}.")
    if mode == "multiclass" and len(classes) < 2:
        raise ConfigError(f"Multiclass needs two classes or more, not {classes}.")


def _check_mapping(data: object, where: str) -> None:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a table of keys and values, not {type(data).__name__}.")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def _is_number(value: object) -> bool:
    # JSON knows NaN, Infinity and whole numbers of any length; no setting of ours may be one of them.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _numbers(values: object, kind: type, name: str) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not values or not all(_is_number(v) for v in values):
        raise ConfigError(f"{name} must be a list of numbers, not {values!r}.")
    if kind is int and any(v != int(v) for v in values):
        raise ConfigError(f"{name} must hold whole numbers, not {values!r}.")
    return tuple(kind(v) for v in values)


def _plain_steps(steps: object) -> tuple[str | dict[str, Any], ...]:
    """Check that steps are plain data, and copy them; the model that is built from them knows their names."""
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str | dict) for step in steps):
        raise ConfigError(f"steps must be a list of names, or of tables with a name and parameters, not {steps!r}.")
    try:
        return tuple(json.loads(json.dumps(steps, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"steps must hold JSON values only: {error}.") from error


def _set(config: object, name: str, value: object) -> None:
    object.__setattr__(config, name, value)  # the dataclass is frozen: only __post_init__ may do this
