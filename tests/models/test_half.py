"""Weights stored in half precision: half the file, the same answers to within rounding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import small_pipeline

from covidcxr import Pipeline
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.io.pretrained import save_weights
from covidcxr.models import ClassificationModel, EnsembleModel
from covidcxr.models.network import resize_images
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline.parts import check_golden


@pytest.fixture(scope="module")
def whole() -> Pipeline:
    return small_pipeline(temperature=1.0)


@pytest.fixture(scope="module")
def saved(whole: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole.save_pretrained(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def halved(whole: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole.save_pretrained(tmp_path_factory.mktemp("models") / "half", dtype="float16")


def weights_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_the_file_is_half_as_large(saved: Path, halved: Path) -> None:
    assert 0.49 < weights_of(halved) / weights_of(saved) < 0.55
    assert json.loads((halved / "classifier" / "config.json").read_text())["weights_dtype"] == "float16"


def test_it_computes_in_single_precision_and_answers_nearly_alike(whole: Pipeline, halved: Path) -> None:
    loaded = Pipeline.from_pretrained(halved)
    assert whole.classifier is not None
    assert loaded.classifier is not None
    for model in loaded.models().values():
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    for seed in range(4):
        image = draw_phantom(seed, label="covid19", size=(320, 320)).image
        full, half = whole(image), loaded(image)
        for name, mask in full.masks.items():
            assert 2 * (mask & half.masks[name]).sum() / (mask.sum() + half.masks[name].sum()) > 0.999
        seen = resize_images(whole.classifier.members[0], [image], [full.masks])
        expected, given = whole.classifier.predict(*seen), loaded.classifier.predict(*seen)
        assert torch.allclose(expected, given, atol=5e-3)
        assert not torch.equal(expected, given)  # it was rounded indeed
        # A few pixels on the rim of a mask move an answer more than the rounding of the classifier does.
        assert full.probabilities == pytest.approx(half.probabilities, abs=0.05)


def test_its_golden_answers_are_its_own(halved: Path) -> None:
    assert check_golden(Pipeline.from_pretrained(halved), halved / "golden") == []


def test_saving_in_half_changes_nothing_in_memory(whole: Pipeline, saved: Path, halved: Path) -> None:
    assert halved.is_dir()
    for name, model in Pipeline.from_pretrained(saved).models().items():
        own, fresh = whole.models()[name].state_dict(), model.state_dict()
        assert all(torch.equal(own[key], fresh[key]) for key in fresh)


def test_members_of_an_ensemble(whole: Pipeline, saved: Path, tmp_path: Path) -> None:
    model = whole.classifier
    assert isinstance(model, ClassificationModel)
    folder = EnsembleModel({"a": model, "b": model}).save_pretrained(tmp_path, dtype="float16")
    assert 0.49 < weights_of(folder) / (2 * weights_of(saved / "classifier")) < 0.55
    image, lungs = torch.rand(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    expected, given = model.predict(image, lungs), EnsembleModel.from_pretrained(folder).predict(image, lungs)
    np.testing.assert_allclose(expected.numpy(), given.numpy(), atol=5e-3)


def test_an_altered_half_is_refused(halved: Path, tmp_path: Path) -> None:

    shutil.copytree(halved, tmp_path / "copy")
    path = tmp_path / "copy" / "classifier" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2] + b"\1\2")
    with pytest.raises(PretrainedError, match="not the file that was saved"):
        Pipeline.from_pretrained(tmp_path / "copy")


def test_a_value_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    layer.weight.data[0, 0] = 70_000
    with pytest.raises(ConfigError, match="weight holds a value above 65504"):
        save_weights(layer, tmp_path / "w.safetensors", "float16")
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype must be one of float32, float16, not 'int8'"):
        save_weights(torch.nn.Linear(1, 1), tmp_path / "w", "int8")  # type: ignore[arg-type]
