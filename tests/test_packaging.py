"""Files that name versions, requirements and Python versions a second time agree with pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from covidcxr import Pipeline, __version__
from covidcxr.io import fetch
from covidcxr.pipeline.parts import check_golden

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {
    "torch": "pytorch",
    "opencv-python-headless": "py-opencv",
    "python-gdcm": "gdcm",
    "huggingface-hub": "huggingface_hub",
    "matplotlib": "matplotlib-base",
}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return content


def test_the_conda_recipe_requires_what_pyproject_requires() -> None:
    recipe = load("packaging/conda/recipe.yaml")
    wanted = []
    for requirement in PROJECT["dependencies"]:
        name, versions = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(.*)", requirement).groups()  # type: ignore[union-attr]
        wanted.append(f"{CONDA_NAMES.get(name, name)} {versions}")
    stated = recipe["requirements"]["run"]
    assert [line for line in stated if line in wanted] == wanted
    assert set(stated) - set(wanted) == {"python >=3.11", "docstring_parser", "typeshed_client"}
    assert recipe["context"]["version"] == __version__
    assert recipe["about"]["license"] == PROJECT["license"]


def test_the_citation_is_of_this_version() -> None:
    assert load("CITATION.cff")["version"] == __version__


def test_the_tested_python_versions_are_those_of_the_classifiers() -> None:
    tested = load(".github/workflows/tests.yml")["jobs"]["default"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    assert tested == [name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_the_install_page_names_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([a-z]+)` \|", page, re.M))
    assert named == PROJECT["optional-dependencies"].keys() - {"test", "docs", "dev"}


def test_all_has_every_extra_that_users_install() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = re.fullmatch(r"covidcxr\[([\w,]+)\]", everything)
    assert named is not None
    assert set(named[1].split(",")) == set(extras) - {"all", "test", "docs", "dev"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_read_and_no_more_unless_a_job_says_so(workflow: Path) -> None:
    content = load(str(workflow.relative_to(ROOT)))
    assert content["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in content["jobs"].values())


BASE = ROOT / "packages" / "covidcxr-base"
needs_base = pytest.mark.skipif(not BASE.is_dir(), reason="the source distribution comes without the package of base")


@needs_base
def test_the_package_of_base_names_its_weights_and_its_terms() -> None:
    project = tomllib.loads((BASE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (folder,) = project["entry-points"]["covidcxr.pretrained"].values()
    weights = BASE.joinpath("src", *folder.split("."))
    assert (weights / "pipeline.json").is_file()
    assert project["license-files"] == ["LICENSE"]
    assert project["license"].startswith("LicenseRef-")  # never the licence of the code
    head = ModelCard.load(weights / "README.md").data
    assert (head.license, head.library_name, head.pipeline_tag) == ("other", "covidcxr", "image-segmentation")
    assert {result.metric_type for result in head.eval_results} >= {"dice_infection", "dice_lung_field"}
    assert sum(file.stat().st_size for file in weights.rglob("*")) < 25_000_000


@needs_base
def test_base_loads_as_an_installed_package_and_gives_its_golden_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((BASE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = tmp_path / f"covidcxr_base-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.3\nName: covidcxr-base\nVersion: {project['version']}\n")
    (name, value), *_ = project["entry-points"]["covidcxr.pretrained"].items()
    (metadata / "entry_points.txt").write_text(f"[covidcxr.pretrained]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(BASE / "src")
    pipeline = Pipeline.from_pretrained("base")
    assert pipeline.infected_interval is not None
    assert check_golden(pipeline, fetch("base") / "golden") == []


@pytest.mark.slow
@needs_base
def test_the_wheel_of_base_holds_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the wheel is built by hatchling, without a network")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(words, cwd=BASE, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("covidcxr_base-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    weights = BASE / "src" / "covidcxr_base" / "weights"
    files = [file.relative_to(weights).as_posix() for file in weights.rglob("*") if file.is_file()]
    assert {f"covidcxr_base/weights/{file}" for file in files} < names
    assert any(name.endswith("licenses/LICENSE") for name in names)
