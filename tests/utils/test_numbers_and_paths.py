"""Numbers of any library, and paths as users write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from covidcxr import CSVDataModule, Pipeline
from covidcxr.cli.main import main
from covidcxr.io import read_image, write_image
from covidcxr.phantom import write_dataset
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
