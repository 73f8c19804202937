"""Numbers of any library, and paths as users write them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from covidcxr import CSVDataModule, Pipeline
from covidcxr.cli.main import main
from covidcxr.io import read_image, write_image
from covidcxr.phantom import draw_phantom, write_dataset
from covidcxr.registry import (
    AUGMENTATIONS,
    CLASSIFICATION_LOSSES,
    POSTPROCESS_STEPS,
    PREPROCESS_STEPS,
    SEGMENTATION_LOSSES,
    Registry,
)
from covidcxr.utils.plain import is_number, user_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; the working folder is another one, in which no folder `~` may appear."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("value", [1, 0.5, np.int64(1), np.float32(0.5), np.uint8(3), np.float64("inf")])
def test_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, np.array([1.0]), 1j])
def test_no_numbers(value: object) -> None:
    assert not is_number(value)


REGISTRIES = (AUGMENTATIONS, CLASSIFICATION_LOSSES, SEGMENTATION_LOSSES, PREPROCESS_STEPS, POSTPROCESS_STEPS)


def of_numpy(default: object) -> object:
    """Return a default as NumPy has it; None where it holds no number."""
    if isinstance(default, tuple) and default:
        parts = [of_numpy(part) for part in default]
        return None if None in parts else tuple(parts)
    if isinstance(default, bool) or not isinstance(default, int | float):
        return None
    return np.int64(default) if isinstance(default, int) else np.float64(default)


@pytest.mark.parametrize(("registry", "name"), [(known, name) for known in REGISTRIES for name in known])
def test_everything_registered_takes_numbers_of_numpy(registry: Registry[Any], name: str) -> None:
    part = registry.get(name)
    defaults = {key: of_numpy(given.default) for key, given in inspect.signature(part).parameters.items()}
    settings = {key: value for key, value in defaults.items() if value is not None}
    image = np.tile(np.linspace(0, 1, 32), (32, 1))
    if registry is PREPROCESS_STEPS:
        np.testing.assert_array_equal(
            part(torch.tensor(image)[None, None], **settings), part(torch.tensor(image)[None, None])
        )
    elif registry is POSTPROCESS_STEPS:
        np.testing.assert_array_equal(part(image > 0.5, **settings), part(image > 0.5))
    else:
        part(**settings)


def test_phantoms_take_numbers_of_numpy(tmp_path: Path) -> None:
    drawn = draw_phantom(np.int64(3), size=(np.int64(64), np.int64(64)), severity=np.float32(0.5))  # type: ignore[arg-type]
    np.testing.assert_array_equal(drawn.image, draw_phantom(3, size=(64, 64)).image)
    write_dataset(tmp_path, np.int64(3), seed=np.int64(1))  # type: ignore[arg-type]


def test_only_the_home_folder_is_replaced(home: Path) -> None:
    assert user_path("~/a/b.png") == home / "a" / "b.png"
    for name in ("~draft.png", "a/~/b.png", "a.png", "~$lock.docx"):
        assert user_path(name) == Path(name)


def test_python_takes_paths_below_the_home_folder(home: Path) -> None:
    write_image("~/a.png", np.zeros((64, 64), np.uint8))
    assert read_image("~/a.png").shape == (64, 64)
    write_dataset("~/phantoms", 8)
    assert len(CSVDataModule("~/phantoms").records) == 8
    Pipeline.from_pretrained("mini").save_pretrained("~/pipeline")
    prediction = Pipeline.from_pretrained("~/pipeline")("~/a.png")
    assert prediction.save("~/answers", "a") == home / "answers" / "a.json"
    assert list(Path.cwd().iterdir()) == []


def test_the_command_line_takes_paths_below_the_home_folder(home: Path) -> None:
    write_dataset("~/phantoms", 4)
    assert main(["predict", "~/phantoms/images", "--out=~/answers"]) in (0, 1)
    assert (home / "answers" / "predictions.jsonl").is_file()
    assert main(["datasets", "check", "csv", "--root=~/phantoms"]) in (0, 1)
    assert list(Path.cwd().iterdir()) == []
