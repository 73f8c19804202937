"""What a saved model's `config.json` holds: plain data, checked strictly, standard library only."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from covidcxr.config.checks import (
    FORMAT_VERSION,
    check_choice,
    check_format_version,
    check_keys,
    check_mapping,
    check_names,
    check_number,
    json_values,
    numbers,
    plain_steps,
    short,
)
from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.types import CoverageBy, Fit, Mode, Region, TaskName, Vote
from covidcxr.utils.plain import is_number, plain

__all__ = ["FORMAT_VERSION", "PreprocessConfig", "ModelConfig", "EnsembleConfig", "check_format_version", "check_keys"]

_LARGEST_SIDE = 4096
_LONGEST_NETWORK = 200
_TEMPERATURES = (1e-3, 1e3)
_WEIGHTS = (1e-6, 1e6)
"""Of an ensemble's members. Numbers far from 1 would overflow, or vanish, in single precision."""


@dataclass(frozen=True)
class PreprocessConfig:
    """How a grey image in [0, 1] becomes the tensor that the network sees; saved inside the model.

    Attributes:
        image_size: Height and width of the network's input, in pixels; from 8 to 4096.
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
            _set(self, name, numbers(getattr(self, name), kind, name))
        size: tuple[int, ...] = self.image_size  # a config file may hold any number of values
        if len(size) != 2 or not 8 <= min(size) <= max(size) <= _LARGEST_SIDE:
            raise ConfigError(f"image_size must be two whole numbers from 8 to {_LARGEST_SIDE}, not {size}.")
        _set(self, "channels", plain(self.channels))
        if type(self.channels) is not int or self.channels not in (1, 3):  # True and 3.0 are equal to these
            raise ConfigError(f"channels must be 1 or 3, not {short(self.channels)}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ConfigError(f"{name} must hold 1 or {self.channels} numbers, not {len(values)}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be above 0, not {self.std}.")
        check_choice("fit", self.fit, get_args(Fit))
        check_choice("region", self.region, get_args(Region))
        _set(self, "lung_dilation", check_number(self.lung_dilation, "lung_dilation", 0, 0.5))
        _set(self, "steps", plain_steps(self.steps))

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
        check_mapping(data, where)
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
            without any, a multiclass or binary classifier predicts its most probable class. A single number holds for
            every class.
        temperature: Logits are divided by it before they become probabilities (Guo 2017); in [0.001, 1000].
        positive: The class whose sensitivity and specificity count, one of `classes`; None = not set.
        coverage: How often the classes from their thresholds up hold the truth, of images like those of validation, in
            (0, 1), as `covidcxr.evaluation.calibrate` promises it; None = nothing is promised, or not recorded.
        coverage_by: Of which images: of those of each "class", of each class in each "source", or of "all" together.
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
    coverage: float | None = None
    coverage_by: CoverageBy | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        # Masks are files, and some disks take upper and lower case for the same.
        files = self.task == "segmentation"
        _set(self, "classes", check_names(self.classes, "classes", files=files))
        _set(self, "thresholds", _for_each(self.thresholds, self.classes))
        for key in ("network_args", "thresholds"):
            check_mapping(getattr(self, key), key)
        _set(self, "network_args", json_values(dict(self.network_args), "network_args"))
        if not isinstance(self.preprocess, PreprocessConfig):
            _set(self, "preprocess", PreprocessConfig.from_dict(self.preprocess, "preprocess"))
        check_format_version(self.format_version, "this model config")
        check_choice("task", self.task, get_args(TaskName))
        check_choice("mode", self.mode, get_args(Mode))
        network: object = self.network
        if not isinstance(network, str) or len(network) > _LONGEST_NETWORK:
            raise ConfigError(f"network must be a name, not {short(network)}.")
        _check_mode(self.task, self.mode, self.classes)
        if self.positive is not None and self.positive not in self.classes:
            raise ConfigError(
                f"positive names the class {short(self.positive)}. {did_you_mean(str(self.positive), self.classes)}"
            )
        for name in self.thresholds:
            if name not in self.classes:
                raise ConfigError(f"thresholds names the class {short(name)}. {did_you_mean(str(name), self.classes)}")
        _set(self, "thresholds", _checked(self.thresholds, "The threshold", 0, 1))
        _set(self, "temperature", check_number(self.temperature, "temperature", *_TEMPERATURES))
        _check_coverage(self.coverage, self.coverage_by)

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
        check_mapping(data, where)
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
        members: From a member's name to the weight of its vote, in [0.000001, 1000000].
        vote: "soft" = mean of the members' probabilities, "hard" = share of the members that answer so.
        thresholds: As in `ModelConfig`.
        temperature: As in `ModelConfig`; the members' own come before it.
        positive: As in `ModelConfig`.
        coverage: As in `ModelConfig`.
        coverage_by: As in `ModelConfig`.
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
    coverage: float | None = None
    coverage_by: CoverageBy | None = None
    task: TaskName = "classification"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for key, choices in (("task", ("classification",)), ("mode", ("multiclass", "multilabel"))):
            check_choice(key, getattr(self, key), choices)
        check_choice("vote", self.vote, get_args(Vote))
        shared = ModelConfig(  # checks the keys that both configs have
            task=self.task,
            network="ensemble",
            classes=self.classes,
            mode=self.mode,
            thresholds=self.thresholds,
            temperature=self.temperature,
            positive=self.positive,
            coverage=self.coverage,
            coverage_by=self.coverage_by,
            format_version=self.format_version,
        )
        for key in ("classes", "thresholds", "temperature"):
            _set(self, key, getattr(shared, key))
        check_mapping(self.members, "members")
        if not self.members:
            raise ConfigError("An ensemble has members, each with its weight.")
        for name in self.members:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
                raise ConfigError(f"A member's name is letters, digits, '_' and '-', for its folder, not {name!r}.")
        check_names(list(self.members), "members", files=True)
        _set(self, "members", _checked(self.members, "The weight", *_WEIGHTS))

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


def _checked(values: Mapping[str, object], what: str, low: float, high: float) -> dict[str, float]:
    return {name: check_number(value, f"{what} of {name!r}", low, high) for name, value in values.items()}


_LATER = ("positive", "coverage", "coverage_by")


def _without_unset(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out later keys that are not set, so that releases without them can read the config."""
    return {key: value for key, value in data.items() if key not in _LATER or value is not None}


def _for_each(thresholds: object, classes: tuple[str, ...]) -> object:
    """Return one threshold for all classes as one for each."""
    if not is_number(thresholds):
        return thresholds
    return dict.fromkeys(classes, check_number(thresholds, "thresholds", 0, 1))


def _check_coverage(coverage: float | None, by: object) -> None:
    if coverage is not None and not 0 < check_number(coverage, "coverage", 0, 1) < 1:
        raise ConfigError(f"coverage must be in (0, 1), not {coverage}.")
    if by is not None:
        check_choice("coverage_by", by, get_args(CoverageBy))


def _check_mode(task: TaskName, mode: Mode, classes: tuple[str, ...]) -> None:
    if task == "segmentation" and mode == "multiclass":
        raise ConfigError('Masks may overlap: use mode="multilabel" (or "binary" for one class), not "multiclass".')
    count = {"segmentation": 1, "classification": 2}[task]
    if mode == "binary" and len(classes) != count:
        raise ConfigError(f"Binary {task} has {count} class name(s), not {len(classes)}: {classes}.")
    if mode == "multiclass" and len(classes) < 2:
        raise ConfigError(f"Multiclass needs two classes or more, not {classes}.")


def _set(config: object, name: str, value: object) -> None:
    object.__setattr__(config, name, value)  # the dataclass is frozen: only __post_init__ may do this
