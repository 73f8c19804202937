"""Data: records, splits, one data set class and one data module base for all data sets.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = [
    "Record",
    "count_by",
    "find_leaks",
    "assign_splits",
    "k_folds",
    "take_fold",
    "CXRDataset",
    "CXRDataModule",
    "DataSettings",
    "CSVDataModule",
    "FolderDataModule",
    "DarkCovidNetDataModule",
    "CombinedDataModule",
    "FeedbackDataModule",
    "GateDataModule",
    "DuplicateGroup",
    "find_duplicates",
    "find_shared_images",
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
    from covidcxr.data.collection import DataSettings
    from covidcxr.data.curation.duplicates import DuplicateGroup, find_duplicates, find_shared_images
    from covidcxr.data.datamodule import CXRDataModule, compute_mean_std
    from covidcxr.data.dataset import CXRDataset
    from covidcxr.data.datasets.combined import CombinedDataModule
    from covidcxr.data.datasets.coronahack import CoronaHackDataModule
    from covidcxr.data.datasets.covid_ct_ucsd import CovidCTDataModule
    from covidcxr.data.datasets.covid_cxnet import CovidCXNetDataModule
    from covidcxr.data.datasets.covidx import CovidxCT2DataModule, CovidxCXR3DataModule
    from covidcxr.data.datasets.csv import CSVDataModule
    from covidcxr.data.datasets.folder import FeedbackDataModule, FolderDataModule
    from covidcxr.data.datasets.hannover import HannoverDataModule
    from covidcxr.data.datasets.ieee8023 import CovidXray5kDataModule, DarkCovidNetDataModule, Ieee8023DataModule
    from covidcxr.data.datasets.qatar import Covid19RadiographyDataModule, CovidQUExDataModule
    from covidcxr.data.datasets.torchxrayvision import XRayVisionDataModule
    from covidcxr.data.datasets.view_check import GateDataModule
    from covidcxr.data.records import Record, count_by, find_leaks
    from covidcxr.data.sampler import EpochSampler
    from covidcxr.data.splits import assign_splits, k_folds, take_fold

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Record": "records",
        "count_by": "records",
        "find_leaks": "records",
        "assign_splits": "splits",
        "k_folds": "splits",
        "take_fold": "splits",
        "CXRDataset": "dataset",
        "CXRDataModule": "datamodule",
        "DataSettings": "settings",
        "CSVDataModule": "datasets.csv",
        "FolderDataModule": "datasets.folder",
        "DarkCovidNetDataModule": "datasets.ieee8023",
        "CombinedDataModule": "datasets.combined",
        "FeedbackDataModule": "datasets.folder",
        "GateDataModule": "datasets.view_check",
        "DuplicateGroup": "curation.duplicates",
        "find_duplicates": "curation.duplicates",
        "find_shared_images": "curation.duplicates",
        "CovidQUExDataModule": "datasets.qatar",
        "CovidxCXR3DataModule": "datasets.covidx",
        "CoronaHackDataModule": "datasets.coronahack",
        "Covid19RadiographyDataModule": "datasets.qatar",
        "HannoverDataModule": "datasets.hannover",
        "CovidCXNetDataModule": "datasets.covid_cxnet",
        "XRayVisionDataModule": "datasets.torchxrayvision",
        "Ieee8023DataModule": "datasets.ieee8023",
        "CovidXray5kDataModule": "datasets.ieee8023",
        "CovidxCT2DataModule": "datasets.covidx",
        "CovidCTDataModule": "datasets.covid_ct_ucsd",
        "EpochSampler": "sampler",
        "compute_mean_std": "datamodule",
    },
)
