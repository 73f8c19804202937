"""Every broken and odd image gives its greys or exactly one error: read, predicted, from the command line, uploaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from images import encode
from odd_images import GREY8, MASK, OddImage, all_images
from serving import running, small_pipeline

from covidcxr import Pipeline, errors
from covidcxr.errors import ImageReadError
from covidcxr.io import read_image
from covidcxr.io.codestream import quiet_decoders
from covidcxr.pipeline import FailedPrediction, Prediction

IMAGES = all_images()
CURES = (
    r"again|Save|save|Get|Copy|Shrink|Fetch|Export|Unpack|Give|Divide|Replace|Rescale|Read it|Take it out|set HighBit|"
    r"Scale|scaled"
)


def is_refused(image: OddImage) -> bool:
    return image.grey is None


def try_to_read(image: Path | bytes) -> np.ndarray | ImageReadError:
    try:
        return read_image(image)
    except ImageReadError as error:
        return error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for image in IMAGES:
        (folder / image.name).write_bytes(image.content)
    return folder


def test_there_are_enough_of_them() -> None:
    assert len(IMAGES) >= 150
    assert sum(map(is_refused, IMAGES)) >= 75


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_read_image(image: OddImage, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = try_to_read(folder / image.name)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    if isinstance(result, ImageReadError):
        message = str(result)
        assert image.grey is None or isinstance(image.grey, str), message
        assert message.count(image.name) == 1
        assert re.search(image.words, message), message
        assert re.search(CURES, message), message
        assert "\n" not in message
    else:
        assert image.grey is not None, "it was read"
        assert result.dtype == np.float32
        assert 0 <= result.min() <= result.max() <= 1
        if not isinstance(image.grey, str):
            np.testing.assert_allclose(result, image.grey, rtol=0, atol=image.tolerance)


@pytest.mark.parametrize("packing", ["tiff_lzw", "tiff_adobe_deflate", "group3", "jpeg"])
def test_what_libtiff_prints_refuses_the_file(packing: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It gives a picture all the same, and a line on standard error."""
    random = np.random.default_rng(0)
    content = encode(MASK if packing == "group3" else GREY8, "TIFF", compression=packing)
    refused = 0
    for _ in range(40):
        damaged = bytearray(content)
        damaged[int(random.integers(8, len(content)))] ^= 0x55
        refused += isinstance(try_to_read(bytes(damaged)), ImageReadError)
    assert refused > 0
    assert capfd.readouterr() == ("", "")


def test_warnings_of_decoders_alone_are_kept_back(folder: Path) -> None:
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_decoders(), quiet_decoders():
            warnings.warn_explicit("of a decoder", UserWarning, "a.py", 1, module="PIL.TiffImagePlugin")
            warnings.warn_explicit("of somebody else", UserWarning, "a.py", 1, module="PILOT.plan")
        warnings.warn_explicit("later", UserWarning, "a.py", 1, module="PIL.TiffImagePlugin")
    assert [str(warning.message) for warning in caught] == ["of somebody else", "later"]
    assert list(warnings.filters) == filters


def test_pipeline(folder: Path) -> None:
    paths = [folder / image.name for image in IMAGES]
    predictions = list(Pipeline.from_pretrained("mini").predict(paths, on_error="return"))
    for image, prediction in zip(IMAGES, predictions, strict=True):
        assert isinstance(prediction, FailedPrediction | Prediction)
        assert image.name in prediction.image_id
        if image.grey is None:
            assert isinstance(prediction, FailedPrediction), image.name
        elif not isinstance(image.grey, str):
            assert isinstance(prediction, Prediction), image.name
            np.testing.assert_allclose(prediction.image / 255, image.grey, rtol=0, atol=image.tolerance + 0.003)


def test_predict_on_the_folder(folder: Path, tmp_path: Path) -> None:
    words = ["predict", str(folder), "--out", str(tmp_path / "out"), "--num-workers", "1"]
    result = subprocess.run([sys.executable, "-m", "covidcxr", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr  # some could not be read
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    entries = {entry["name"]: entry for entry in map(json.loads, lines)}
    assert len(lines) == len(entries) == len(IMAGES)
    for image in IMAGES:
        named = [entry for name, entry in entries.items() if image.name in (name, entry.get("image_id", ""))]
        named = named or [entry for entry in entries.values() if entry.get("image_id", "").endswith(f"/{image.name}")]
        (entry,) = named
        if image.grey is None:
            assert issubclass(getattr(errors, entry["kind"]), ImageReadError)
        elif not isinstance(image.grey, str):
            assert "error" not in entry
    left = [line for line in re.split(r"[\r\n]+", result.stderr) if line.strip() and "images" not in line]
    assert left == []


def upload_all(images: list[OddImage], store: Path) -> None:
    with running(store, small_pipeline()) as client:
        for image in images:
            response = client.post("/api/films", files={"file": (image.name, image.content)})
            assert response.status_code < 500, (image.name, response.text)
            if image.grey is None:
                assert 400 <= response.status_code < 500, image.name
                assert "Traceback" not in response.text
            elif not isinstance(image.grey, str):
                assert response.status_code == 201, (image.name, response.text)
                film = response.json()
                assert (film["height"], film["width"]) == image.grey.shape


def test_upload_of_a_sample(tmp_path: Path) -> None:
    upload_all(IMAGES[::7], tmp_path / "store")


@pytest.mark.slow
def test_upload_of_all(tmp_path: Path) -> None:
    upload_all(IMAGES, tmp_path / "store")
