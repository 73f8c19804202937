"""What config.json holds: it comes back as it went, and everything wrong is named."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covidcxr.config import (
    FORMAT_VERSION,
    EnsembleConfig,
    ModelConfig,
    PreprocessConfig,
    check_format_version,
    check_keys,
)
from covidcxr.errors import ConfigError, CovidCXRError, PretrainedError

INFINITY = float("inf")
NAN = float("nan")
HUGE = 10**400
"""JSON knows such numbers (`Infinity`, `NaN` and as many digits as you like), and so do Python's parsers."""

MINIMAL = {"task": "classification", "network": "timm:resnet18", "classes": ["covid", "normal"]}

FULL = ModelConfig(
    task="segmentation",
    network="smp:fpn",
    classes=("lung", "infection"),
    mode="multilabel",
    network_args={"encoder": "resnet18", "decoder_dropout": 0.1},
    preprocess=PreprocessConfig(
        image_size=(96, 64),
        channels=3,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        fit="stretch",
        region="lungs",
        lung_dilation=0.05,
    ),
    thresholds={"lung": 0.4},
    temperature=1.5,
)


@pytest.mark.parametrize("config", [FULL, ModelConfig.from_dict(MINIMAL)])
def test_round_trip_through_json(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


def test_plain_data_is_the_callers_own() -> None:
    data = FULL.to_dict()
    data["network_args"]["encoder"] = "other"
    data["preprocess"]["mean"].append(9)
    assert FULL.network_args["encoder"] == "resnet18"
    assert FULL.preprocess.mean == (0.4, 0.5, 0.6)


def test_defaults_and_frozen() -> None:
    config = ModelConfig.from_dict(MINIMAL)
    assert config.mode == "multiclass"
    assert config.preprocess == PreprocessConfig()
    assert config.format_version == FORMAT_VERSION
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.temperature = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("task", "mode", "classes", "outputs"),
    [
        ("classification", "multiclass", ["a", "b", "c"], 3),
        ("classification", "multilabel", ["a"], 1),
        ("classification", "binary", ["a", "b"], 1),
        ("segmentation", "binary", ["a"], 1),
        ("segmentation", "multilabel", ["a", "b"], 2),
    ],
)
def test_outputs(task: str, mode: str, classes: list[str], outputs: int) -> None:
    config = ModelConfig.from_dict({**MINIMAL, "task": task, "mode": mode, "classes": classes})
    assert config.outputs == outputs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("image_size", value) for value in ([64], [64, 64, 64], [4, 64], [64.5, 64], "64", 64, ["a", "b"], [])],
        *[("image_size", value) for value in ([True, 64], [INFINITY, 64], [NAN, 64], None)],
        *[("channels", value) for value in (2, 0, "1", None, [1], True, 3.0)],
        *[("mean", value) for value in ([], [0.1, 0.2], "0.5", 0.5, [None], [NAN], [INFINITY], [HUGE])],
        *[("std", value) for value in ([0], [-0.1], [0.1, 0.2], [NAN], [INFINITY], None)],
        *[("fit", value) for value in ("crop", None, 1, ["stretch"], {})],
        *[("region", value) for value in ("heart", None, 1, ["full"], {})],
        *[("lung_dilation", value) for value in (-0.1, 0.6, "0", None, True, NAN, HUGE)],
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_preprocessing_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        PreprocessConfig.from_dict({key: value})
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_dict({**MINIMAL, "preprocess": {key: value}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("task", value) for value in ("detection", None, 1, [], {})],
        *[("network", value) for value in (None, 1, ["timm:resnet18"])],
        *[("classes", value) for value in ([], ["a", "a"], ["a"], "ab", [1, 2], [["a"], ["b"]], None, 5)],
        *[("mode", value) for value in ("single", None, 1, [])],
        *[("network_args", value) for value in (None, [], "x", 1)],
        *[("preprocess", value) for value in (None, [], "x", 1)],
        *[("thresholds", value) for value in (None, [], {"covid": 2}, {"covid": -0.1}, {"covid": "0.5"})],
        *[("thresholds", value) for value in ({"covid": NAN}, {"covid": True}, {"covid": HUGE}, {"covid": None})],
        *[("temperature", value) for value in (0, -1, "1", None, True, NAN, INFINITY, HUGE)],
        *[("format_version", value) for value in (0, -1, 1.0, "1", None, True)],
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_setting_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key.rstrip("s")):
        ModelConfig.from_dict({**MINIMAL, key: value})


def test_a_single_threshold_is_one_for_each_class() -> None:
    config = ModelConfig.from_dict({**MINIMAL, "thresholds": 0.25})
    assert config.thresholds == dict.fromkeys(config.classes, 0.25)
    assert config.to_dict().keys() & {"coverage", "coverage_by"} == set()
    promised = ModelConfig.from_dict({**MINIMAL, "coverage": 0.9, "coverage_by": "source"})
    assert ModelConfig.from_dict(promised.to_dict()) == promised
    for fault in ({"coverage": 1}, {"coverage": "0.9"}, {"coverage_by": "site"}):
        with pytest.raises(ConfigError, match=next(iter(fault))):
            ModelConfig.from_dict({**MINIMAL, **fault})


@pytest.mark.parametrize("key", ["classes", "thresholds", "network_args", "preprocess", "network"])
def test_a_constructor_refuses_the_same(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelConfig(**{**MINIMAL, key: 5})  # type: ignore[arg-type]


def test_threshold_of_an_unknown_class_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"thresholds names the class 'covod'\. Did you mean 'covid'\?"):
        ModelConfig.from_dict({**MINIMAL, "thresholds": {"covod": 0.5}})


@pytest.mark.parametrize("changes", [{"task": "segmentation"}, {"task": "segmentation", "mode": "binary"}])
def test_mode_that_does_not_fit_the_task(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_dict({**MINIMAL, **changes})


@pytest.mark.parametrize("key", ["task", "network", "classes"])
def test_missing_key_is_named_with_its_place(key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' is missing in folder/config.json"):
        ModelConfig.from_dict({k: v for k, v in MINIMAL.items() if k != key}, "folder/config.json")


def test_unknown_keys_at_both_levels() -> None:
    with pytest.raises(ConfigError, match=r"Unknown key 'temprature' in config\.json\. Did you mean 'temperature'\?"):
        ModelConfig.from_dict({**MINIMAL, "temprature": 1.0}, "config.json")
    with pytest.raises(
        ConfigError, match=r"Unknown key 'image_sise' in preprocess of config\.json\. Did you mean 'image_size'\?"
    ):
        ModelConfig.from_dict({**MINIMAL, "preprocess": {"image_sise": [64, 64]}}, "config.json")
    with pytest.raises(ConfigError, match="Known: a, b"):
        check_keys({"zzzzzz": 1}, {"a", "b"}, "here")


def test_newer_format_is_told_before_its_unknown_keys() -> None:
    with pytest.raises(PretrainedError, match=r"format version 2; this release reads up to 1.*pip install --upgrade"):
        ModelConfig.from_dict({"format_version": FORMAT_VERSION + 1, "key_of_tomorrow": 1}, "config.json")
    check_format_version(FORMAT_VERSION, "here")


def test_wrong_value_says_where() -> None:
    with pytest.raises(ConfigError, match=r"folder/config\.json"):
        ModelConfig.from_dict({**MINIMAL, "temperature": -1}, "folder/config.json")
    with pytest.raises(ConfigError, match=r"folder/config\.json"):
        ModelConfig.from_dict({**MINIMAL, "preprocess": {"std": [0]}}, "folder/config.json")


@pytest.mark.parametrize("data", [None, [], "x", 1, True])
def test_not_a_table(data: Any) -> None:
    with pytest.raises(ConfigError, match="must be a table"):
        ModelConfig.from_dict(data)
    with pytest.raises(ConfigError, match="must be a table"):
        PreprocessConfig.from_dict(data)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(HUGE)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(fields(ModelConfig)), JSON, max_size=3),
    st.dictionaries(st.sampled_from(fields(PreprocessConfig)), JSON, max_size=3),
)
def test_anything_in_a_config_is_read_or_refused_in_our_words(data: dict[str, Any], preprocess: dict[str, Any]) -> None:
    try:
        config = ModelConfig.from_dict({**MINIMAL, "preprocess": preprocess, **data})
    except (ConfigError, PretrainedError):
        return
    written = json.dumps(config.to_dict())  # what is accepted can be written and read back
    assert json.dumps(ModelConfig.from_dict(json.loads(written)).to_dict()) == written


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_anything_at_all_is_refused_in_our_words(data: Any) -> None:
    with pytest.raises(CovidCXRError):
        ModelConfig.from_dict(data)


# --- names that become files, and what would take a machine down ------------------------------------------------------


@pytest.mark.parametrize("task", ["segmentation", "classification"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../x", "separator of paths"),
        ("a/b", "separator of paths"),
        ("a\\b", "separator of paths"),
        ("lung\n", "control character"),
        ("a\0b", "control character"),
        ("\x1b[31mred", "control character"),
        ("nodule\u202egnp", "invisible character"),
        ("a\u2028b", "line break"),
        ("\ud800", "no character"),
        (".lung", "a dot at its beginning"),
        ("a:b", "no file of Windows may have"),
        ("a|b?", "no file of Windows may have"),
        ("CON", "a device on Windows"),
        ("com1.left", "a device on Windows"),
        ("..", "a dot at its beginning"),
        ("x" * 65, "more than 64 characters"),
        ("", "must be a name"),
        ("  ", "must be a name"),
        (7, "must be a name"),
    ],
)
def test_names_of_classes_can_be_part_of_a_files_name(task: Any, name: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig(task, "hog", ("lung", name), "multilabel")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [("linke Lunge", "Erguß (groß)"), ("肺", "感染"), ("viral pneumonia", "COVID-19")])
def test_names_with_spaces_and_of_any_alphabet(classes: tuple[str, str]) -> None:
    for task in ("segmentation", "classification"):
        config = ModelConfig(task, "hog", classes, "multilabel")
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_masks_whose_files_would_be_one_on_some_disks() -> None:
    for classes in (("lung", "Lung"), ("Erguß", "ERGUSS"), ("\u00e9", "e\u0301")):
        with pytest.raises(ConfigError, match="distinct"):
            ModelConfig("segmentation", "residual_unet", classes, "multilabel")
        assert ModelConfig("classification", "hog", classes).classes == classes
    with pytest.raises(ConfigError, match="Overlay"):
        ModelConfig("segmentation", "residual_unet", ("lung", "Overlay"), "multilabel")
    with pytest.raises(ConfigError, match="distinct"):
        EnsembleConfig(("a", "b"), "multiclass", {"one": 1.0, "ONE": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 5e-324}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"thresholds": {"a": float("nan")}}, "threshold"),
        ({"classes": tuple(f"class {n}" for n in range(1001))}, "1 to 1000 names"),
        ({"network": "n" * 201}, "network"),
        ({"network_args": {"depth": 10**7}}, "above 1,000,000"),
        ({"network_args": {"deep": [{"er": [-(10.0**7)]}]}}, "above 1,000,000"),
        ({"preprocess": PreprocessConfig(image_size=(8, 4096)).__dict__ | {"image_size": (8, 4097)}}, "from 8 to 4096"),
        ({"preprocess": {"steps": ["equalize"] * 17}}, "16 steps at most"),
    ],
)
def test_what_would_take_a_machine_down(change: dict[str, Any], message: str) -> None:
    plain: dict[str, Any] = {"task": "classification", "network": "hog", "classes": ("a", "b")}
    assert ModelConfig(**plain)
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**plain | change)


@pytest.mark.parametrize("weight", [0.0, 5e-324, 1e300, float("nan")])
def test_weights_of_votes_that_would_vanish_or_overflow(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight of 'x'"):
        EnsembleConfig(("a", "b"), "multiclass", {"x": weight})


def test_numbers_of_numpy_become_plain_ones() -> None:
    given = PreprocessConfig(
        image_size=np.array([64, 32]),  # type: ignore[arg-type]
        channels=np.int64(3),  # type: ignore[arg-type]
        mean=np.float32([0.5, 0.25, 0.125]),  # type: ignore[arg-type]
        std=(np.float64(0.25),),
        lung_dilation=np.float32(0.125),  # type: ignore[arg-type]
        steps=({"name": "sharpen", "amount": np.float32(0.5)},),
    )
    plain = PreprocessConfig((64, 32), 3, (0.5, 0.25, 0.125), (0.25,), lung_dilation=0.125, steps=given.steps)
    assert given == plain
    model = ModelConfig(
        "classification",
        "hog",
        np.array(["a", "b"]),  # type: ignore[arg-type]
        network_args={"cell": np.int32(8)},
        thresholds={"a": np.float32(0.5)},  # type: ignore[dict-item]
        temperature=np.float64(2),
        preprocess=given,
    )
    ensemble = EnsembleConfig(("a", "b"), "multiclass", {"x": np.int64(2)})  # type: ignore[dict-item]
    for config in (model, ensemble):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
