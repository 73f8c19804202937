"""NaN and infinity: weights that hold them are neither loaded nor saved; an image that leads to them has no label."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES, VIEWS, tiny_classifier, tiny_gate, tiny_pipeline, tiny_segmenter
from torch import nn

from covidcxr import ClassificationModel, EnsembleModel, ModelConfig, Pipeline, PreprocessConfig
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.models import CXRModel
from covidcxr.models.network import resize_images
from covidcxr.pipeline.prediction import in_words
from covidcxr.pipeline.view_check import check_views

DARK, BRIGHT = (np.random.default_rng(0).random((40, 50), dtype=np.float32) * share for share in (0.4, 1.0))


def fails_on_bright(model: Any, value: float = math.nan, *, of_call: int | None = None) -> Any:
    """Let a model compute `value` for one place in the logits of bright images, in its n-th call alone if given."""
    calls = []

    def spoil(_: nn.Module, images: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if of_call in (None, len(calls)):
            bright = images[0].flatten(1).std(1) > 0.8  # of what preprocessing made of them
            logits = logits.clone()
            logits[(bright, 0, 0, 0)[: logits.ndim]] = value
        return logits

    model.network.register_forward_hook(spoil)
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("part", "model"),
    [
        ("gate", tiny_gate),
        ("lung_segmenter", lambda: tiny_segmenter("lung_field", "lung")),
        ("infection_segmenter", lambda: tiny_segmenter("infection")),
        ("classifier", tiny_classifier),
    ],
)
def test_an_output_that_is_not_finite_is_an_abstention_for_its_image_alone(
    part: str, model: Callable[[], CXRModel], value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("covidcxr.pipeline.pipeline.lung_reasons", lambda *_, **__: ())
    pipeline = tiny_pipeline(classifier=tiny_classifier())
    dark = pipeline(DARK)
    setattr(pipeline, part, fails_on_bright(model(), value))
    before, failed, after = pipeline.predict([DARK, BRIGHT, DARK])
    for prediction in (before, after):
        assert prediction.label == dark.label is not None
        assert prediction.probabilities == pytest.approx(dark.probabilities, abs=1e-5)
        assert all(np.array_equal(prediction.masks[name], mask) for name, mask in dark.masks.items())
    assert failed.label is None
    (reason,) = (reason for reason in failed.reasons if reason.endswith("-not-finite"))
    assert reason == f"{part.replace('_', '-')}-not-finite"
    assert "no finite numbers" in in_words(reason)
    kept = {
        "gate": set(),
        "lung_segmenter": set(),
        "infection_segmenter": {"lung_field", "lung"},
        "classifier": {"lung_field", "lung", "infection"},
    }
    assert failed.masks.keys() == kept[part]
    assert (failed.infected_fraction is None) == (part != "classifier")
    assert all(map(math.isfinite, failed.probabilities.values()))
    path = failed.save(tmp_path, "film")
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    if part == "classifier":
        assert written["probabilities"] == dict.fromkeys(CLASSES)


def test_lungs_that_are_not_finite_cut_no_image() -> None:
    pipeline = tiny_pipeline(lung_segmenter=fails_on_bright(tiny_segmenter("lung_field", "lung")), gate=None)
    dark, bright = pipeline.predict([DARK, BRIGHT])
    assert dark.probabilities
    assert (bright.probabilities, bright.reasons) == ({}, ("lung-segmenter-not-finite",))
    given = dict.fromkeys(("lung_field", "lung"), np.ones(BRIGHT.shape, bool))
    assert "lung-segmenter-not-finite" not in pipeline.revise(BRIGHT, given).reasons


@pytest.mark.parametrize("part", ["lung_segmenter", "infection_segmenter"])
def test_segmenters_with_one_encoder_fail_apart(part: str) -> None:
    lungs, infection = tiny_segmenter("lung_field"), tiny_segmenter("infection")
    pipeline = tiny_pipeline(lung_segmenter=lungs, infection_segmenter=infection, gate=None, classifier=None)
    lungs.shares_encoder = lambda _: True  # type: ignore[method-assign]

    def both(_: Any, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = lungs.predict_resized(image), infection.predict_resized(image)
        maps[part == "infection_segmenter"][1, 0, 0, 0] = torch.nan
        return maps

    lungs.predict_resized_with = both  # type: ignore[method-assign,assignment]
    reasons = [[word for word in each.reasons if "finite" in word] for each in pipeline.predict([DARK] * 3)]
    assert reasons == [[], [f"{part.replace('_', '-')}-not-finite"], []]


def test_the_second_look_of_the_view_check() -> None:
    gate = tiny_classifier(VIEWS)
    with torch.no_grad():
        gate.network.head[1].bias += torch.tensor([0.0, 100.0, 0.0])  # every image lies turned
    assert check_views(gate, [BRIGHT])[0].reasons == ("film-turned",)
    (check,) = check_views(fails_on_bright(gate, of_call=2), [BRIGHT])
    assert check.reasons == ("gate-not-finite",)


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
@pytest.mark.parametrize("vote", ["soft", "hard"])
def test_a_member_of_an_ensemble(mode: Any, vote: Any) -> None:
    settings = PreprocessConfig(image_size=(32, 32))
    arguments = {"cell": 8, "side": 32}
    members = {
        name: ClassificationModel(ModelConfig("classification", "hog", CLASSES, mode, arguments, settings)).eval()
        for name in ("first", "second")
    }
    fails_on_bright(members["second"], math.inf)
    ensemble = EnsembleModel(members, vote=vote)
    dark, bright = Pipeline(classifier=ensemble).predict([DARK, BRIGHT])
    assert dark.probabilities
    assert (bright.label, bright.reasons) == (None, ("classifier-not-finite",))
    alone = ensemble.predict(resize_images(members["first"], [DARK, BRIGHT], [{}, {}])[0])
    assert alone.isfinite().all(1).tolist() == [True, False]


def boosted() -> ClassificationModel:
    """Two trees of depth one on a tiny backbone; the second class wins left of each split."""
    arguments = {"backbone": "cnn19", "stages": 2, "depth": 1}
    settings = PreprocessConfig(image_size=(32, 32))
    config = ModelConfig("classification", "boosted", CLASSES, "multiclass", arguments, settings)
    model = ClassificationModel(config).eval()
    model.network.threshold[0] = torch.inf
    model.network.leaf[..., 0] = torch.tensor([0.0, 1.0, 0.0])
    return model


def test_boosted_trees_do_not_decide_on_features_that_are_not_finite() -> None:
    model = boosted()
    assert model.predict(torch.rand(1, 1, 32, 32)).argmax() == 1
    scores = model.network.score(torch.tensor([[0.0] * 64, [0.0] * 63 + [math.nan], [math.inf] * 64]))
    assert scores.isfinite().all(1).tolist() == [True, False, False]


def test_boosted_trees_split_on_features_that_there_are() -> None:
    model = boosted()
    for feature in (10**6, -1):
        model.network.feature[0, 0, 0] = feature
        with pytest.raises(PretrainedError, match="damaged or of another backbone"):
            model.predict(torch.rand(1, 1, 32, 32))


def alter(folder: Path, name: str, value: float, dtype: torch.dtype | None = None) -> None:
    """Put a value into one tensor of a saved model, whose config says so."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name].to(dtype or tensors[name].dtype)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("make", "name", "value", "dtype"),
    [
        (tiny_classifier, "head.1.weight", math.nan, None),
        (tiny_classifier, "head.0.running_var", math.inf, None),
        (tiny_classifier, "head.1.weight", 1e300, torch.float64),  # infinite in single precision
        (tiny_classifier, "head.1.weight", math.inf, torch.float16),
        (lambda: tiny_segmenter("lung_field"), "encoder.levels.0.residual.0.running_mean", math.nan, None),
        (boosted, "leaf", math.inf, None),
        (boosted, "initial", math.nan, None),
        (boosted, "threshold", math.nan, None),
    ],
)
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(
    make: Callable[[], CXRModel], name: str, value: float, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    model = make()
    folder = model.save_pretrained(tmp_path / "model")
    assert type(model).from_pretrained(folder)  # infinite thresholds of boosted trees are what they should be
    alter(folder, name, value, dtype)
    with pytest.raises(PretrainedError, match=rf"not finite \({name}\)"):
        type(model).from_pretrained(folder)
    model.network.state_dict()[name].view(-1)[-1] = math.inf if value > 1e38 else value
    if dtype is None:
        with pytest.raises(ConfigError, match=rf"not finite \(network.{name}|not finite \({name}"):
            model.save_pretrained(tmp_path / "again")
        assert not list(tmp_path.glob("again/*"))


def test_nothing_of_a_pipeline_or_an_ensemble_is_replaced_where_one_part_is_not_finite(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(gate=None)
    ensemble = EnsembleModel({"a": tiny_classifier(), "b": tiny_classifier()})
    before = {}
    for name, saved in {"pipeline": pipeline, "ensemble": ensemble}.items():
        saved.save_pretrained(tmp_path / name)
        before |= {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
    for model in (*pipeline.models().values(), ensemble.members[0]):
        for parameter in model.parameters():
            parameter.data += 1
    for spoilt in (pipeline.classifier, ensemble.members[1]):
        spoilt.network.head[1].weight.data[0, 0] = math.nan
    for name, saved in {"pipeline": pipeline, "ensemble": ensemble}.items():
        with pytest.raises(ConfigError, match="diverged"):
            saved.save_pretrained(tmp_path / name)
    assert all(path.read_bytes() == content for path, content in before.items())
