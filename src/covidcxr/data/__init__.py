"""Data: records, splits, one data set class and one data module base for all data sets.

Names are loaded on first use: `from covidcxr.data import Record` loads neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_ROOMS = {
    "Record": "records",
    "count_by": "records",
    "find_leaks": "records",
    "assign_splits": "splits",
    "k_folds": "splits",
    "take_fold": "splits",
    "CXRDataset": "dataset",
    "CXRDataModule": "datamodule",
    "CSVDataModule": "table",
    "FolderDataModule": "folder",
    "DarkCovidNetDataModule": "darkcovidnet",
    "EpochSampler": "sampler",
    "compute_mean_std": "statistics",
}

__all__ = [
    "Record",
    "count_by",
    "find_leaks",
    "assign_splits",
    "k_folds",
    "take_fold",
    "CXRDataset",
    "CXRDataModule",
    "CSVDataModule",
    "FolderDataModule",
    "DarkCovidNetDataModule",
    "EpochSampler",
    "compute_mean_std",
]

if TYPE_CHECKING:
    from covidcxr.data.darkcovidnet import DarkCovidNetDataModule
    from covidcxr.data.datamodule import CXRDataModule
    from covidcxr.data.dataset import CXRDataset
    from covidcxr.data.folder import FolderDataModule
    from covidcxr.data.records import Record, count_by, find_leaks
    from covidcxr.data.sampler import EpochSampler
    from covidcxr.data.splits import assign_splits, k_folds, take_fold
    from covidcxr.data.statistics import compute_mean_std
    from covidcxr.data.table import CSVDataModule


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'covidcxr.data' has no attribute {name!r}")
    value = getattr(import_module(f"covidcxr.data.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
