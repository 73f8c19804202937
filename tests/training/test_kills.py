"""`kill -9` at ten random moments: the same command completes, with the results of an undisturbed one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from kill import kill_at_moments
from tiny import TINY

from covidcxr.models import load_model
from covidcxr.phantom import write_dataset
from covidcxr.training.recipe import write_yaml


@pytest.mark.slow
def test_a_killed_fit_completes_when_it_is_given_again(tmp_path: Path) -> None:
    """Weights and history are the same, bit for bit; a model that is there with its history is whole."""
    images = write_dataset(tmp_path / "images", 36, size=(64, 64)).parent
    trainer = TINY["trainer"] | {"max_epochs": 4, "logger": False}
    recipe = write_yaml(tmp_path / "tiny.yaml", TINY | {"compare": {}, "trainer": trainer})
    command = [sys.executable, "-m", "covidcxr", "fit", "--config", str(recipe), "--data.root", str(images)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    start = time.monotonic()
    whole = kill_at_moments([*command, "--output", "out"], tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.output
    seconds = time.monotonic() - start

    def check() -> None:
        for history in (tmp_path / "killed" / "out").rglob("history.json"):  # written last
            load_model(history.parent)

    end = kill_at_moments([*command, "--output", "out"], tmp_path / "killed", 10, seed=3, seconds=seconds, check=check)
    assert end.returncode == 0, end.output
    assert end.kills
    for name in ("model.safetensors", "config.json", "history.json"):
        assert (tmp_path / "killed" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()
