"""Exported pipelines that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from covidcxr.cli import main


@pytest.fixture(scope="session")
def exported_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `covidcxr export mini`."""
    folder = tmp_path_factory.mktemp("export") / "mini"
    assert main(["export", "mini", "--out", str(folder)]) == 0
    return folder
