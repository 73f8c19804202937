"""What the caller's program may be like: its numbers, paths, default types, modes, and its network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from PIL import Image
from tiny_models import tiny_classifier, tiny_pipeline, tiny_segmenter

from covidcxr import ClassificationModel, EnsembleModel, ModelConfig, Pipeline, PreprocessConfig, read_image
from covidcxr.cli.main import main
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.io import write_mask
from covidcxr.models import load_model
from covidcxr.phantom import draw_dataset
from covidcxr.transforms.postprocess import PostProcess

IMAGE = np.random.default_rng(0).random((40, 32), dtype=np.float32)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another one to work in, which must stay without a folder named "~"."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    pipeline = tiny_pipeline()
    assert pipeline.save_pretrained("~/pipeline") == home / "pipeline"
    assert tiny_classifier().save_pretrained("~/model") == home / "model"
    assert EnsembleModel({"a": tiny_classifier()}).save_pretrained("~/ensemble") == home / "ensemble"
    assert Pipeline.from_pretrained("~/pipeline")
    assert ClassificationModel.from_pretrained("~/model")
    Image.fromarray(np.rint(IMAGE * 255).astype(np.uint8)).save(home / "film.png")
    assert read_image("~/film.png").shape == IMAGE.shape
    write_mask("~/mask.png", IMAGE > 0.5)
    pipeline("~/film.png").save("~/saved")
    words = ["predict", "~/film.png", "--model=~/pipeline", "--out=~/out", "--root", "~", "--num-workers=0"]
    assert main(words) == 0
    assert (home / "mask.png").is_file()
    assert (home / "saved" / "film.json").is_file()
    assert (home / "out" / "films" / "film.png.json").is_file()
    assert not list(Path.cwd().iterdir())


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_torchs_default_type_makes_no_difference(tmp_path: Path, double: None) -> None:
    torch.set_default_dtype(torch.float32)
    pipeline = tiny_pipeline(classifier=tiny_classifier())
    expected = pipeline(IMAGE)
    torch.set_default_dtype(torch.float64)
    made = tiny_segmenter("lung_field")
    assert {weight.dtype for weight in made.parameters()} == {torch.float32}
    for under_test in (pipeline, Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))):
        prediction = under_test(IMAGE)
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert all(np.array_equal(prediction.masks[name], mask) for name, mask in expected.masks.items())
        assert prediction.explain().heat.shape == IMAGE.shape


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_prediction_is_explained_in_any_mode(mode: Callable[[], Any]) -> None:
    pipeline = Pipeline(classifier=tiny_classifier())
    heat = pipeline(IMAGE).explain("normal").heat
    with mode():
        assert np.allclose(pipeline(IMAGE).explain("normal").heat, heat, atol=1e-5)


def test_numbers_of_numpy() -> None:
    pipeline = tiny_pipeline(
        min_lung_area=np.float32(0.25), postprocess=PostProcess([{"name": "largest_components", "count": np.int64(2)}])
    )
    counts = {"batch_size": np.int64(2), "num_workers": np.int32(1)}
    assert len(list(pipeline.predict([IMAGE] * 3, **counts))) == 3
    with pytest.raises(ConfigError, match="batch_size"):
        pipeline.predict([IMAGE], batch_size=np.float64(1.5))  # type: ignore[arg-type]
    ensemble = EnsembleModel(
        {"a": tiny_classifier()},
        weights={"a": np.float32(2)},
        temperature=np.float64(2),
        thresholds={"normal": np.float32(0.5)},
    )
    assert ensemble.config.members == {"a": 2.0}
    settings = PreprocessConfig(image_size=np.array([32, 32]))  # type: ignore[arg-type]
    assert ClassificationModel(
        ModelConfig("classification", "hog", ("a", "b"), network_args={"cell": np.int64(16)}, preprocess=settings)
    )


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (HFValidationError("bad"), ConfigError, "no valid name of a Hub repository"),
        (OfflineModeIsEnabled("offline"), PretrainedError, "could not be uploaded .*OfflineModeIsEnabled"),
        (TypeError("unexpected keyword argument 'colour'"), ConfigError, "refused its arguments: .*colour"),
        (RuntimeError("a certificate\nis wrong"), PretrainedError, "a certificate is wrong.*Check the connection"),
    ],
)
def test_what_the_hub_raises_becomes_an_error_of_ours(
    error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    for model in (Pipeline(classifier=tiny_classifier()), tiny_classifier()):
        with pytest.raises(kind, match=message) as caught:
            model.push_to_hub("owner/name")
        assert "\n" not in str(caught.value)


def test_a_model_is_uploaded_with_a_card_that_the_hub_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def keep(_: object, *, repo_id: str, folder_path: str, **__: object) -> str:
        shutil.copytree(folder_path, tmp_path / repo_id)
        return "https://example.org"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", keep)
    ensemble = EnsembleModel({"a": tiny_classifier()})
    for name, model, task in (
        ("me/masks", tiny_segmenter("lung"), "image-segmentation"),
        ("me/labels", tiny_classifier(), "image-classification"),
        ("me/both", ensemble, "image-classification"),
        ("me/pipeline", Pipeline(lung_segmenter=tiny_segmenter("lung")), "image-segmentation"),
    ):
        assert model.push_to_hub(name) == "https://example.org"
        card = huggingface_hub.ModelCard.load(tmp_path / name / "README.md")
        assert (card.data.library_name, card.data.pipeline_tag) == ("covidcxr", task)
        assert "research-only" in card.data.tags
    assert load_model(tmp_path / "me/labels").config == tiny_classifier().config
    tiny_classifier().push_to_hub("me/mine", card="# Mine\n")
    assert (tmp_path / "me/mine/README.md").read_text() == "# Mine\n"


def test_several_threads_may_call_one_pipeline() -> None:
    pipeline = Pipeline.from_pretrained("mini")
    images = [phantom.image for phantom in draw_dataset(2, size=(96, 96))]
    alone = [pipeline(image).to_dict() for image in images]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda image: pipeline(image).to_dict(), images * 2))
    assert together == alone * 2
