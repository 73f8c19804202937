"""What a reader sees is true: code blocks run, commands parse, examples work, pages and names are complete."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml
from lightning import Trainer

import covidcxr
from covidcxr import ClassificationModel, ModelConfig, PreprocessConfig, SegmentationModel, registry
from covidcxr.cli import main
from covidcxr.io import write_image
from covidcxr.phantom import draw_dataset, write_dataset

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")}
PAGES |= {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").rglob("*.md"))}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REGISTRIES = {word: getattr(registry, word) for word in registry.__all__ if word.isupper()}

# What Lightning says to everybody who trains on a laptop.
CHATTER = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*tensorboardX.*"),
    pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter.*"),
]


def read_page(name: str) -> str:
    """A page with what it includes from other files, as mkdocs would show it."""

    def included(match: re.Match[str]) -> str:
        path, _, section = match[1].partition(":")
        if not section and not (ROOT / path).is_file():
            return ""  # test_links_lead_somewhere says so
        text = (ROOT / path).read_text(encoding="utf-8")
        return text.split(f"[start:{section}] -->")[1].split("<!-- --8<-- [end:")[0] if section else text

    return re.sub(r'^--8<-- "(.+)"$', included, PAGES[name].read_text(encoding="utf-8"), flags=re.MULTILINE)


def code_blocks(name: str, language: str) -> list[str]:
    """The blocks of a language, but for those under a comment that says why they are not run."""
    found = re.finditer(rf"(<!-- not run: .+ -->\n)?^```{language}\n(.*?)^```$", read_page(name), re.M | re.S)
    return [match[2] for match in found if match[1] is None]


def commands(name: str) -> list[str]:
    """The `covidcxr` commands of a page."""
    lines = "\n".join(code_blocks(name, "bash")).replace("&& ", "\n").splitlines()
    return [line for line in lines if line.startswith("covidcxr ")]


def first_seen(blocks_of: Any) -> dict[str, list[str]]:
    """Pages with the blocks that no page before them has."""
    seen: set[str] = set()
    pages: dict[str, list[str]] = {}
    for name in PAGES:
        blocks = blocks_of(name)
        if not set(blocks) <= seen:
            pages[name] = blocks
        seen.update(blocks)
    return pages


PYTHON = first_seen(lambda name: code_blocks(name, "python"))
COMMANDS = sorted({command for name in PAGES for command in commands(name)})
CONFIGS = [block for name in PAGES for block in code_blocks(name, "yaml")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documentation speaks of."""
    desk = tmp_path_factory.mktemp("desk")
    write_dataset(desk / "phantoms", 24, size=(96, 96))
    for number, phantom in enumerate(draw_dataset(24, size=(96, 96))):
        folder = desk / "my-films" / phantom.label
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"p{number:03d}_1.png", phantom.image)
    (desk / "films").mkdir()
    for film in sorted((desk / "phantoms" / "images").iterdir())[:3]:
        shutil.copy(film, desk / "films")
    shutil.copy(desk / "films" / "phantom-00000.png", desk / "film.png")
    (desk / "films" / "broken.png").write_text("no film")
    preprocess = PreprocessConfig(image_size=(64, 64))
    classes = ("covid19", "normal", "pneumonia")
    classifier = ModelConfig("classification", "timm:mobilenetv3_small_050", classes, preprocess=preprocess)
    encoder = {"encoder": "tu-mobilenetv3_small_100"}
    lungs = ModelConfig("segmentation", "smp:fpn", ("lung_field", "lung"), "multilabel", encoder, preprocess)
    ClassificationModel(classifier).save_pretrained(desk / "my-model")
    SegmentationModel(lungs).save_pretrained(desk / "my-lungs")
    for config in CONFIGS:
        if {"model", "data"} <= yaml.safe_load(config).keys():
            (desk / "config.yaml").write_text(config)
    return desk


@pytest.fixture
def reader(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Somebody who sits at a desk of their own and trains for a moment only."""
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["example.py"])
    for table in REGISTRIES.values():
        table.names()  # our own entries come with the first look: they are to stay
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    build = Trainer.__init__

    def briefly(self: Trainer, **settings: Any) -> None:
        epochs = max(1, settings.pop("max_epochs") // 20)
        limits = {"limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu", "enable_progress_bar": False}
        build(self, max_epochs=epochs, **limits, **settings)

    monkeypatch.setattr(Trainer, "__init__", briefly)
    yield tmp_path


@pytest.mark.parametrize("name", PYTHON)
def test_python_blocks_run(name: str, request: pytest.FixtureRequest) -> None:
    for mark in CHATTER:
        request.node.add_marker(mark)
    request.getfixturevalue("reader")
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in PYTHON[name]:
        exec(compile(block, name, "exec"), namespace)
