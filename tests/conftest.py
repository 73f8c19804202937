"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two OpenMP threads on a busy machine spin at barriers: measured up to 90 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what LightningCLI still uses


def find_real_data() -> Path | None:
    """The folder of real images: COVIDCXR_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("COVIDCXR_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if (folder / "manifest.csv").is_file() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = find_real_data()
    if folder is None:
        pytest.skip("needs the real images: set COVIDCXR_DATA to their folder, or put them in ../shared/data")
    return folder
