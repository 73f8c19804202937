"""`--safe`: nothing that a config names by a dotted path is imported, unless it is registered."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY

from covidcxr.phantom import write_dataset

BUNDLED = ("mini-infection", "das2021-multitask", "loan2022-masks", "loan2022-lungs", "multidataset")
ONE = {key: value for key, value in TINY.items() if key != "compare"}
RUN = "import sys; from covidcxr.cli import main; codes = [main(words) for words in {commands}]; print(codes)"


def with_key(key: str, value: object) -> dict[str, Any]:
    recipe = copy.deepcopy(ONE)
    *parents, last = key.split(".")
    table: Any = recipe
    for parent in parents:
        table = table[parent]
    table[last] = value
    return recipe


HOSTILE: list[dict[str, Any]] = [
    with_key("model.class_path", "hostile.Task"),
    with_key("data.class_path", "hostile.Data"),
    with_key("trainer.callbacks", [{"class_path": "hostile.Callback"}]),
    with_key("trainer.callbacks", ["hostile.Callback"]),
    with_key("trainer.logger", {"class_path": "hostile.Logger"}),
    with_key("trainer.strategy", {"class_path": "hostile.Strategy"}),
    with_key("trainer.plugins", [{"class_path": "hostile.Plugin"}]),
    with_key("trainer.callbacks", [{"class_path": "LambdaCallback", "init_args": {"on_fit_start": "hostile.run"}}]),
    {**ONE, "compare": {"it": {"a": {}, "b": {"data.class_path": "hostile.Data"}}}},
]


def run(folder: Path, commands: list[list[str]]) -> tuple[list[int], str]:
    """Run commands in a process of its own, which --safe binds to its end."""
    script = [sys.executable, "-c", RUN.format(commands=repr(commands))]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    codes: list[int] = yaml.safe_load(done.stdout.splitlines()[-1])
    return codes, done.stderr


def write_hostile(folder: Path) -> Path:
    """A module that leaves a file when it is imported, and a recipe for each way to name it."""
    trace = folder / "imported"
    (folder / "hostile.py").write_text(f"open({str(trace)!r}, 'w')\n")
    for number, recipe in enumerate(HOSTILE):
        (folder / f"hostile-{number}.yaml").write_text(yaml.safe_dump(recipe))
    return trace


def test_no_foreign_code_is_imported(tmp_path: Path) -> None:
    trace, images = write_hostile(tmp_path), write_dataset(tmp_path / "images", 12).parent
    place = ["--data.root", str(images), "--safe"]
    commands = [["recipes", "run", f"hostile-{number}.yaml", *place] for number in range(len(HOSTILE))]
    commands += [["fit", "--config", f"hostile-{number}.yaml", *place] for number in range(len(HOSTILE) - 1)]
    searched = {**ONE, "search": {"it": {"values": {"a": {"data.class_path": "hostile.Data"}}}}}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(searched))
    commands.append(["tune", "search.yaml", *place])
    commands.append(["audit", "--config", "hostile-1.yaml", *place, "--out", "audit"])
    codes, errors = run(tmp_path, commands)
    assert codes == [2] * len(commands), errors
    assert not trace.exists()
    lines = [line for line in errors.splitlines() if line.startswith("covidcxr: ")]
    assert len(lines) == len(commands)
    assert [line for line in lines if "with --safe nothing else is imported" not in line] == []
    assert "Traceback" not in errors


def test_the_same_recipe_is_code_without_it(tmp_path: Path) -> None:
    trace = write_hostile(tmp_path)
    codes, _ = run(tmp_path, [["fit", "--config", "hostile-1.yaml", "--data.root", "nowhere"]])
    assert codes == [2]
    assert trace.exists()


@pytest.mark.slow
def test_what_is_registered_runs(tmp_path: Path) -> None:
    images = write_dataset(tmp_path / "images", 18).parent
    recipe = copy.deepcopy(ONE)
    recipe["trainer"] |= {"max_epochs": 1, "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}}
    recipe["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    place = ["--data.root", str(images), "--safe", "--output"]
    commands = [["recipes", "run", "mine.yaml", *place, "run"], ["fit", "--config", "mine.yaml", *place, "fit"]]
    # Their images or weights are not there, which is looked at after the classes.
    bundled = [["recipes", "run", name, "--data.root", "nowhere", "--safe"] for name in BUNDLED]
    codes, errors = run(tmp_path, [*commands, *bundled])
    assert codes == [0, 0, *(2 for _ in bundled)], errors
    assert (tmp_path / "run" / "scores.json").is_file()
    assert (tmp_path / "fit" / "history.json").is_file()
    assert "--safe" not in errors
    lacking = ("does not find nowhere", "Pretrained weights", "is no folder, no installed weights")
    assert sum(errors.count(words) for words in lacking) == len(bundled), errors
