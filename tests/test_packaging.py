"""Files that name versions, requirements and Python versions a second time agree with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from covidcxr import __version__

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
