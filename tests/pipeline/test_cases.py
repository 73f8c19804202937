"""Batches are bounded by their pixels, too: a batch of large images must not fill the memory."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from covidcxr.io import write_image
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline import FailedPrediction, Pipeline, cases
from covidcxr.pipeline.cases import BATCH_PIXELS, count_pixels, split_batches


@pytest.mark.parametrize(
    ("pixels", "split"),
    [
        ([1] * 7, [3, 3, 1]),
        ([BATCH_PIXELS, 1, 1], [1, 2]),
        ([BATCH_PIXELS // 2] * 5, [2, 2, 1]),
        ([5 * BATCH_PIXELS] * 3, [1, 1, 1]),
        ([0] * 4, [3, 1]),
        ([], []),
    ],
)
def test_images_are_split_by_number_and_pixels(pixels: list[int], split: list[int]) -> None:
    parts = list(split_batches(pixels, 3, int))
    assert [len(part) for part in parts] == split
    assert [count for part in parts for count in part] == pixels
    rest = [count for part in parts[1:] for count in part]
    assert list(split_batches(rest, 3, int)) == parts[1:], "the end of a batch depends on what came before it"


def test_images_are_taken_a_batch_at_a_time() -> None:
    taken: list[int] = []

    def images() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield 1

    next(split_batches(images(), 4, int))
    assert taken == [0, 1, 2, 3]


def test_pixels_are_counted_without_decoding(tmp_path: Path) -> None:
    grey = np.zeros((30, 20), np.uint8)
    path = tmp_path / "a.png"
    write_image(path, grey)
    dataset = pydicom.Dataset()
    dataset.Rows, dataset.Columns = 30, 20
    content = path.read_bytes()
    images: tuple[Any, ...] = (path, str(path), content, bytearray(content), upload := BytesIO(content))
    assert [count_pixels(image) for image in images] == [600] * 5
    assert upload.tell() == 0, "the upload is yet to be read"
    images = (grey, torch.zeros(1, 30, 20), dataset, Image.fromarray(grey))
    assert [count_pixels(image) for image in images] == [600] * 4
    assert [count_pixels(image) for image in (tmp_path / "missing.png", b"no image", None)] == [0, 0, 0]


def test_a_pipeline_holds_few_large_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[Any] = [(draw_phantom(seed, size=(96, 80)).image * 255).astype(np.uint8) for seed in range(5)]
    for number in (1, 3):
        write_image(tmp_path / f"{number}.png", images[number])
        images[number] = tmp_path / f"{number}.png"
    images.insert(2, tmp_path / "missing.png")
    pipeline = Pipeline.from_pretrained("mini")
    sizes: list[int] = []
    answer = pipeline._predict_batch

    def count(cases: Any, given: Any = None) -> Any:
        sizes.append(len(cases))
        return answer(cases, given)

    monkeypatch.setattr(pipeline, "_predict_batch", count)
    monkeypatch.setattr(cases, "BATCH_PIXELS", 2 * 96 * 80)
    results = list(pipeline.predict(images, on_error="return"))
    assert sizes == [2, 2, 1]
    assert [isinstance(result, FailedPrediction) for result in results] == [False, False, True, False, False, False]
    assert [result.image_id for result in results][1:3] == [str(tmp_path / "1.png"), str(tmp_path / "missing.png")]
    assert list(map(len, pipeline.predict_batches(images, batch_size=4))) == [3, 2, 1]
