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
    "CombinedDataModule": "combined",
    "FeedbackDataModule": "feedback",
    "GateDataModule": "gate",
    "DuplicateGroup": "duplicates",
    "find_duplicates": "duplicates",
    "find_shared_films": "duplicates",
    "CovidQUExDataModule": "covid_qu_ex",
    "CovidxCXR3DataModule": "covidx_cxr3",
    "CoronaHackDataModule": "coronahack",
    "Covid19RadiographyDataModule": "covid19_radiography",
    "HannoverDataModule": "hannover",
    "CovidCXNetDataModule": "covid_cxnet",
    "XRayVisionDataModule": "xrayvision",
    "Ieee8023DataModule": "ieee8023",
    "CovidXray5kDataModule": "covid_xray_5k",
    "CovidxCT2DataModule": "covidx_ct2",
    "CovidCTDataModule": "covid_ct_ucsd",
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
    "CombinedDataModule",
    "FeedbackDataModule",
    "GateDataModule",
    "DuplicateGroup",
    "find_duplicates",
    "find_shared_films",
    "CovidQUExDataModule",
    "CovidxCXR3DataModule",
    "CoronaHackDataModule",
    "Covid19RadiographyDataModule",
    "HannoverDataModule",
    "CovidCXNetDataModule",
    "XRayVisionDataModule",
    "Ieee8023DataModule",
    "CovidXray5kDataModule",
    "CovidxCT2DataModule",
    "CovidCTDataModule",
    "EpochSampler",
    "compute_mean_std",
]

if TYPE_CHECKING:
    from covidcxr.data.combined import CombinedDataModule
    from covidcxr.data.coronahack import CoronaHackDataModule
    from covidcxr.data.covid19_radiography import Covid19RadiographyDataModule
    from covidcxr.data.covid_ct_ucsd import CovidCTDataModule
    from covidcxr.data.covid_cxnet import CovidCXNetDataModule
    from covidcxr.data.covid_qu_ex import CovidQUExDataModule
    from covidcxr.data.covid_xray_5k import CovidXray5kDataModule
    from covidcxr.data.covidx_ct2 import CovidxCT2DataModule
    from covidcxr.data.covidx_cxr3 import CovidxCXR3DataModule
    from covidcxr.data.darkcovidnet import DarkCovidNetDataModule
    from covidcxr.data.datamodule import CXRDataModule
    from covidcxr.data.dataset import CXRDataset
    from covidcxr.data.duplicates import DuplicateGroup, find_duplicates, find_shared_films
    from covidcxr.data.feedback import FeedbackDataModule
    from covidcxr.data.folder import FolderDataModule
    from covidcxr.data.gate import GateDataModule
    from covidcxr.data.hannover import HannoverDataModule
    from covidcxr.data.ieee8023 import Ieee8023DataModule
    from covidcxr.data.records import Record, count_by, find_leaks
    from covidcxr.data.sampler import EpochSampler
    from covidcxr.data.splits import assign_splits, k_folds, take_fold
    from covidcxr.data.statistics import compute_mean_std
    from covidcxr.data.table import CSVDataModule
    from covidcxr.data.xrayvision import XRayVisionDataModule


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'covidcxr.data' has no attribute {name!r}")
    value = getattr(import_module(f"covidcxr.data.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
