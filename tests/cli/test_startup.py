"""Verbs that only tell something start at once: what they import, and what they cost."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import pytest

from covidcxr.cli.main import _parser
from covidcxr.data import summary
from covidcxr.registry import DATASETS

HEAVY = {"torch", "lightning", "torchmetrics", "torchvision", "timm", "matplotlib", "scipy", "numpy", "cv2", "pandas"}

RUN = """
import json, sys, time
from covidcxr.cli import main
codes = [0]
for line in sys.argv[1:]:
    try:
        codes.append(main(line.split()))
    except SystemExit as stop:
        codes.append(stop.code or 0)
names = sorted(name.partition(".")[0] for name in sys.modules)
print(json.dumps([max(codes), time.process_time(), names]), file=sys.stderr)
"""


NO_TORCH = """
import sys
from covidcxr import Pipeline
print("torch" in sys.modules)
"""


def start(*lines: str) -> tuple[int, float, set[str]]:
    """Worst exit code, seconds of CPU time and imported packages of commands in a process of their own."""
    done = subprocess.run([sys.executable, "-c", RUN, *lines], capture_output=True, text=True, check=True)
    code, seconds, modules = json.loads(done.stderr.splitlines()[-1])
    return code, seconds, set(modules)


@pytest.mark.parametrize(
    "line",
    [
        "--version",
        "--help",
        "predict --help",
        "fit --help",
        "tune --help",
        "doctor",
        "doctor --json",
        "datasets list",
        "datasets show csv",
        "recipes list",
        "recipes show mini-lungs",
    ],
)
def test_what_only_tells_something_loads_nothing_heavy(line: str) -> None:
    code, seconds, modules = start(line)
    assert code == 0
    assert not HEAVY & modules
    assert seconds < 1, "0.2 to 0.4 s of CPU time on the machine on which this was written"


def test_the_help_of_no_verb_loads_anything_heavy() -> None:
    kind = argparse._SubParsersAction
    (verbs,) = (action.choices for action in _parser()._actions if isinstance(action, kind) and action.choices)
    assert {"predict", "fit", "doctor", "datasets"} <= set(verbs)
    code, seconds, modules = start(*(f"{verb} --help" for verb in verbs))
    assert code == 0
    assert not HEAVY & modules
    assert seconds < 1.5, "of all together; 0.3 s of CPU time on the machine on which this was written"


def test_who_runs_exported_files_loads_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_recipe_without_a_search_is_refused_before_torch_is_loaded() -> None:
    code, _, modules = start("tune mini-lungs")
    assert code == 2
    assert not HEAVY & modules


def test_a_full_check_loads_no_lightning() -> None:
    code, _, modules = start("doctor --full --json")
    assert code == 0
    assert {"torch", "torchvision"} <= modules
    assert not {"lightning", "torchmetrics", "matplotlib", "pandas"} & modules


@pytest.mark.parametrize("name", sorted(DATASETS.sources))
def test_the_source_text_tells_what_the_class_tells(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def described() -> tuple[Any, Any]:
        entry = next(entry for entry in summary.list_datasets() if entry["name"] == name)
        return entry, summary.describe_dataset(name)

    from_text = described()
    monkeypatch.setattr(summary, "_described", DATASETS.get)
    assert described() == from_text
