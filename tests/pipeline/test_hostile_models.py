"""Folders of models that are hostile, broken or careless: each is one clear error, or loads, and soon."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_models import CASES
from PIL import Image
from tiny_models import tiny_pipeline

from covidcxr import ClassificationModel, CovidCXRError, Pipeline, SegmentationModel
from covidcxr.cli.main import main

SECONDS = 30
"""Most cases take less than 0.1 s; a hang takes forever, and this machine may be busy."""

LOADS = {"weights-huge-numbers", "class-overlay", "classifier-preprocess-2"}
"""What is no fault: numbers that overflow later, a class that is no file's name, and an empty table (all defaults)."""

ALWAYS = 4
"""Every so many-th folder is tried in the fast tests, too."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound pipeline, an image, and what nobody may touch."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline().save_pretrained(folder / "sound")
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40), dtype=np.uint8)
    for name in ("film.png", "precious.png"):
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        pytest.fail(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def error_of(act: Callable[[], Any]) -> str | None:
    """Return the message of our own error, None where there is none; any other error goes through."""
    try:
        act()
    except CovidCXRError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 3000
        return message
    return None


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60 * ALWAYS
    assert CASES.keys() >= LOADS


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if number % ALWAYS else []) for number, name in enumerate(CASES)],
)
def test_a_hostile_folder_is_one_error_or_loads(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, folder = tmp_path / "place", tmp_path / "place" / "model"
    shutil.copytree(prepared, place)
    shutil.copytree(place / "sound", folder)
    monkeypatch.chdir(place)
    CASES[name](folder)
    before = contents(place)
    message = error_of(lambda: Pipeline.from_pretrained(folder)("film.png"))
    for part, kind in (("classifier", ClassificationModel), ("lung_segmenter", SegmentationModel)):
        error_of(lambda kind=kind, part=part: kind.from_pretrained(folder / part))  # type: ignore[misc]
        error_of(lambda kind=kind: kind.from_pretrained(folder))  # type: ignore[misc]
    capsys.readouterr()
    code = main(["predict", "film.png", "--model", str(folder), "--out", str(tmp_path / "out"), "--num-workers", "0"])
    printed = capsys.readouterr().err
    assert (message is None) == (name in LOADS)
    assert code == (0 if message is None else 2)
    if message is not None:
        assert printed == f"covidcxr: {message}\n"
    assert contents(place) == before


def contents(place: Path) -> dict[Path, bytes]:
    """What lies in a folder beside the model, and what is in it."""
    return {
        path: path.read_bytes() for path in place.rglob("*") if path.is_file() and place / "model" not in path.parents
    }
