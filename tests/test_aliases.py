"""Modules and public names of 0.1.0 stay importable, and are the very same objects as their present names.

`saved/names_0_1_0.json` holds every module of 0.1.0 with its `__all__`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from covidcxr import aliases
from covidcxr.registry import DATASETS
from covidcxr.training.recipe import Recipe, _old_path
from covidcxr.utils import lazy

SAVED: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("saved").joinpath("names_0_1_0.json").read_text(encoding="utf-8")
)

REMOVED = {
    "evaluation.audit.classifiers": {"answer"},
    "evaluation.audit.features": {"categories", "projection_family"},
    "evaluation.audit.probes": {"score_answers"},
    "tune.trial": {"SurplusError"},
}
"""Internal functions of 0.1.0, in none of its pages, that have no counterpart today."""

IMPORT_OLD = """
import json, sys, warnings
from importlib import import_module
# Warnings of other libraries at import are theirs: they come first.
for name in ("lightning.pytorch.cli", "torchmetrics.classification", "timm", "segmentation_models_pytorch", "pydicom",
             "albumentations", "cv2", "scipy.ndimage", "pandas", "huggingface_hub", "rich.console", "optuna",
             "sklearn.ensemble", "matplotlib.pyplot", "fastapi", "skimage"):
    try:
        import_module(name)
    except ImportError:
        pass
warnings.simplefilter("error")
missing = []
for module, names in json.load(sys.stdin).items():
    loaded = import_module(f"covidcxr.{module}".rstrip("."))
    missing += [f"{module}.{name}" for name in names if not hasattr(loaded, name)]
print(json.dumps(missing))
"""


@pytest.mark.slow
def test_all_modules_and_names_of_0_1_0_are_importable_without_a_warning() -> None:
    kept = {module: [name for name in names if name not in REMOVED.get(module, ())] for module, names in SAVED.items()}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_OLD], input=json.dumps(kept), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("old", aliases.MODULES)
def test_an_old_module_has_the_objects_of_the_present_one(old: str) -> None:
    former, present = import_module(f"covidcxr.{old}"), import_module(f"covidcxr.{aliases.MODULES[old]}")
    assert former.__doc__ == present.__doc__
    for name in getattr(present, "__all__", ()):
        assert getattr(former, name) is getattr(present, name)


@pytest.mark.parametrize("old", aliases.NAMES)
def test_an_old_name_is_the_present_object(old: str) -> None:
    module, _, name = old.rpartition(".")
    place, _, renamed = aliases.NAMES[old].rpartition(".")
    present = getattr(import_module(f"covidcxr.{place}"), renamed)
    assert aliases.find(f"covidcxr.{module}", name) is present
    former = [known for known, moved in aliases.MODULES.items() if moved == module]
    for place in former:
        if name in SAVED.get(place, ()):
            assert getattr(import_module(f"covidcxr.{place}"), name) is present


def test_both_tables_are_sorted() -> None:
    assert list(aliases.MODULES) == sorted(aliases.MODULES)
    assert list(aliases.NAMES) == sorted(aliases.NAMES)


def test_no_old_module_hides_a_present_one() -> None:
    source = Path(aliases.__file__).parent
    hidden = [name for name in aliases.MODULES if source.joinpath(*name.split(".")).with_suffix(".py").exists()]
    assert hidden == []


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        aliases.find("covidcxr.pipeline", "Pipelin")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module("covidcxr.hub").nothing
    with pytest.raises(ImportError):
        import_module("covidcxr.never_was")


def test_old_class_paths_in_a_config_are_resolved(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "about: As 0.1.0 wrote it.\n"
        "model:\n  class_path: covidcxr.tasks.ClassificationTask\n"
        "data:\n  class_path: covidcxr.data.table.CSVDataModule\n"
    )
    config = Recipe.read(str(path)).base()
    place, _, name = config["data"]["class_path"].rpartition(".")
    assert getattr(import_module(place), name) is DATASETS.get("csv")


@pytest.mark.parametrize("name", [*DATASETS.names(), "ClassificationTask", "SegmentationTask", "MultiTask"])
def test_the_old_path_of_a_class_is_where_0_1_0_had_it(name: str) -> None:
    known = getattr(import_module("covidcxr.tasks"), name) if name.endswith("Task") else DATASETS.get(name)
    former = [module for module, names in SAVED.items() if known.__name__ in names and "." in module]
    assert _old_path(f"{known.__module__}.{known.__name__}") == f"covidcxr.{former[0]}.{known.__name__}"


def test_old_keyword_arguments_are_taken_under_one_name_only() -> None:
    @lazy.old_arguments(max_films="max_images")
    def draw(*, max_images: int) -> int:
        return max_images

    old = {"max_films": 3}
    assert draw(**old) == 3  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_films is the old name of max_images"):
        draw(max_images=3, **old)  # type: ignore[arg-type]
