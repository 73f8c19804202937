"""Exports: files that compute what the models compute, for images of every size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from covidcxr import ClassificationModel, ModelConfig, Pipeline, PreprocessConfig, SegmentationModel
from covidcxr.cli import main
from covidcxr.errors import ConfigError
from covidcxr.io import write_image
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline.export import export_pipeline
from covidcxr.transforms import geometry, preprocess

CLASSES = ("covid19", "normal", "pneumonia")
STEPS = [{"name": "crop", "threshold": 0.002, "largest": False}, "equalize"]


def pipeline() -> Pipeline:
    """A segmenter and a classifier that sees the rectangle around its lungs; nobody trained them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = PreprocessConfig(image_size=(48, 64), region="box", steps=STEPS)
        classifier = ModelConfig(
            "classification",
            "timm:test_resnet",
            CLASSES,
            preprocess=settings,
            temperature=2.0,
            thresholds={"normal": 0.4},
        )
        lungs = ModelConfig(
            "segmentation",
            "residual_unet",
            ("lung_field", "infection"),
            "multilabel",
            {"depth": 2, "width": 4},
            PreprocessConfig(image_size=(64, 48)),
            thresholds={"infection": 0.6},
        )
        return Pipeline(lung_segmenter=SegmentationModel(lungs), classifier=ClassificationModel(classifier))


SIZES = [(64, 48), (48, 64), (30, 200), (300, 260), (101, 97)]


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_what_can_be_traced_resizes_and_restores_alike(size: tuple[int, int], fit: geometry.Fit) -> None:
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        geometry._resize_any(image, (64, 48), fit), geometry.resize_image(image, (64, 48), fit), atol=1e-6, rtol=0
    )
    maps = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        geometry.restore_traced(maps, image, fit), geometry.restore_map(maps, size, fit), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.3])
def test_what_can_be_traced_crops_alike(margin: float) -> None:
    image = torch.zeros(3, 1, 40, 60)
    image[0, 0, 5:20, 30:31] = 0.7
    image[1, 0, 12:40, 0:50] = torch.rand(28, 50, generator=torch.Generator().manual_seed(0)).clamp_min(0.1)
    wanted = preprocess.crop_image(image, threshold=0.05, largest=False, margin=margin)  # the last one is black
    given = preprocess._crop_any(image, image >= 0.05, margin)
    # The same bits where processors multiply and add at once; elsewhere the last one.
    torch.testing.assert_close(given, wanted, atol=2e-7, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_files_compute_what_the_models_compute(kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason='needs pip install "covidcxr[onnx]"')
    whole, out = pipeline(), tmp_path / "out"
    images = [tmp_path / "wide.png", tmp_path / "high.png"]
    for number, path in enumerate(images):
        write_image(path, draw_phantom(number, size=((64, 80), (90, 70))[number]).image)
    result = export_pipeline(whole, out, format=kind, images=images)  # type: ignore[arg-type]
    assert result == json.loads((out / "export.json").read_text())
    assert result["compared_on"] == 2
    segmenter, classifier = result["models"]["lung_segmenter"], result["models"]["classifier"]
    assert segmenter["difference"] < 1e-4
    assert classifier["difference"] < 1e-4
    assert (segmenter["inputs"], segmenter["outputs"]) == (["image"], ["probabilities", "masks"])
    assert classifier["inputs"] == ["image", "lungs"]
    assert classifier["thresholds"] == {"normal": 0.4}
    image = draw_phantom(3, size=(200, 170)).image.astype(np.float32)[None, None]
    if kind == "torch":
        maps, masks = (
            output.detach().numpy()
            for output in torch.export.load(out / "lung_segmenter.pt2").module()(torch.from_numpy(image))
        )
    else:
        import onnxruntime

        maps, masks = onnxruntime.InferenceSession(str(out / "lung_segmenter.onnx")).run(None, {"image": image})
    assert whole.lung_segmenter is not None
    wanted = whole.lung_segmenter.predict(torch.from_numpy(image)).numpy()
    assert masks.shape == wanted.shape == (1, 2, 200, 170)
    assert maps.shape == (1, 2, 64, 48)
    thresholds = np.array([0.5, 0.6])[:, None, None]
    clear = np.abs(wanted - thresholds) > 1e-4
    np.testing.assert_array_equal(masks.astype(bool)[clear], (wanted >= thresholds)[clear])


def test_what_cannot_be_traced_is_one_error_that_names_it(tmp_path: Path) -> None:
    settings = PreprocessConfig(image_size=(32, 32), steps=["crop"])  # follows the parts of each image
    model = ClassificationModel(ModelConfig("classification", "timm:test_resnet", CLASSES, preprocess=settings))
    with pytest.raises(
        ConfigError, match=r"^The classifier \(timm:test_resnet\) cannot be traced for an export: "
    ) as error:
        export_pipeline(Pipeline(classifier=model), tmp_path / "out", format="torch")
    assert "\n" not in str(error.value)


def test_a_folder_with_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["export", "mini", "--format", "torch", "--out", str(tmp_path)]) == 2
    assert "is not empty. Choose a new folder for the export." in capsys.readouterr().err
