"""The front door: `import covidcxr` costs nothing, changes nothing, and every public name is behind it."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

import pytest

import covidcxr

HEAVY = {"torch", "numpy", "lightning", "timm", "segmentation_models_pytorch", "cv2", "PIL", "pandas", "rich"}

LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def run_python(code: str, *flags: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import covidcxr",
        "import covidcxr; covidcxr.ModelConfig, covidcxr.CovidCXRError, dir(covidcxr)",
        "import covidcxr.cli",
        "import covidcxr.registry",
    ],
)
def test_stays_light(code: str) -> None:
    assert not HEAVY & set(json.loads(run_python(f"{code}\n{LOADED}")))


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["predict", "--help"], ["datasets", "stats", "--help"], []]
)
def test_help_stays_light(words: list[str]) -> None:
    code = f"""
import contextlib, io
from covidcxr.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    with contextlib.suppress(SystemExit):
        main({words!r})
{LOADED}"""
    assert not HEAVY & set(json.loads(run_python(code)))


def test_the_way_from_image_to_answer_loads_no_lightning() -> None:
    modules = "covidcxr.pipeline, covidcxr.models, covidcxr.networks, covidcxr.io, covidcxr.transforms"
    assert "lightning" not in json.loads(run_python(f"import {modules}\n{LOADED}"))


def test_import_takes_less_than_50_ms() -> None:
    code = "import time; start = time.process_time(); import covidcxr; print(time.process_time() - start)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.05


@pytest.mark.parametrize("name", covidcxr.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(covidcxr, name)
    assert name == "__version__" or value.__name__ == name
    module = covidcxr._MODULES.get(name)
    assert module is None or name in sys.modules[f"covidcxr.{module}"].__all__


def test_dir_is_all_and_nothing_is_named_twice() -> None:
    assert dir(covidcxr) == sorted(covidcxr.__all__)
    assert len(set(covidcxr.__all__)) == len(covidcxr.__all__)
    assert set(covidcxr._MODULES) == set(covidcxr.__all__) - {"__version__"}


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(covidcxr.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: f"{node.module}" for node in imports for alias in node.names} == {
        name: f"covidcxr.{module}" for name, module in covidcxr._MODULES.items()
    }


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'covidcxr' has no attribute 'Pipelin'"):
        _ = covidcxr.Pipelin  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from covidcxr import Pipelin")


def test_types_ship() -> None:
    assert (files("covidcxr") / "py.typed").is_file()


IMPORT_ALL = """
import os, pkgutil, random, warnings
from importlib import import_module
import numpy, torch
# What other libraries do when they are imported is theirs: they come first, and may warn.
with warnings.catch_warnings(action="ignore"):
    for name in ("lightning.pytorch.cli", "torchmetrics.classification", "timm", "segmentation_models_pytorch", "cv2",
                 "albumentations", "pydicom", "scipy.ndimage", "pandas", "huggingface_hub", "rich.console", "PIL"):
        import_module(name)

def state():
    return {
        "warning filters": list(warnings.filters),
        "environment": dict(os.environ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype()),
        "determinism": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "random": random.getstate(),
        "numpy.random": str(numpy.random.get_state(legacy=False)),
        "torch random": torch.get_rng_state().tolist(),
    }

import covidcxr
before = state()
names = [module.name for module in pkgutil.walk_packages(covidcxr.__path__, "covidcxr.")]
names.remove("covidcxr.__main__")
for name in names:
    import_module(name)
    after = state()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"importing {name} changes {changed}"
print(len(names))
"""


def test_nothing_happens_at_import() -> None:
    assert int(run_python(IMPORT_ALL, "-W", "error")) > 20


def test_version_and_help_from_the_shell() -> None:
    script = shutil.which("covidcxr", path=sysconfig.get_path("scripts"))
    assert script is not None, "the package is not installed with its script"
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"covidcxr {covidcxr.__version__}\n"
    module = subprocess.run([sys.executable, "-m", "covidcxr", "--help"], capture_output=True, text=True, check=True)
    assert all(verb in module.stdout for verb in ("predict", "demo", "fit", "validate", "test", "doctor"))
    assert "not for clinical use" in module.stdout
    wrong = subprocess.run([sys.executable, "-m", "covidcxr", "nonsense"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "nonsense" in wrong.stderr
