"""covidcxr: honest deep learning on chest X-rays of COVID-19 and other lung infections.

For research; not for clinical use. Names are loaded on first use (PEP 562): `import covidcxr` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from covidcxr.utils.lazy import install_old_modules

__version__ = "0.1.0"

install_old_modules()

_MODULES = {
    "Pipeline": "pipeline",
    "Prediction": "pipeline",
    "FailedPrediction": "pipeline",
    "SegmentationModel": "models",
    "ClassificationModel": "models",
    "EnsembleModel": "models",
    "SegmentationTask": "tasks",
    "ClassificationTask": "tasks",
    "MultiTask": "tasks",
    "ModelConfig": "config",
    "PreprocessConfig": "config",
    "CXRDataModule": "data",
    "CXRDataset": "data",
    "CSVDataModule": "data",
    "FolderDataModule": "data",
    "DarkCovidNetDataModule": "data",
    "Record": "data",
    "assign_splits": "data",
    "k_folds": "data",
    "compute_mean_std": "data",
    "read_image": "io",
    "read_mask": "io",
    "CovidCXRError": "errors",
}

__all__ = [
    "__version__",
    "Pipeline",
    "Prediction",
    "FailedPrediction",
    "SegmentationModel",
    "ClassificationModel",
    "EnsembleModel",
    "SegmentationTask",
    "ClassificationTask",
    "MultiTask",
    "ModelConfig",
    "PreprocessConfig",
    "CXRDataModule",
    "CXRDataset",
    "CSVDataModule",
    "FolderDataModule",
    "DarkCovidNetDataModule",
    "Record",
    "assign_splits",
    "k_folds",
    "compute_mean_std",
    "read_image",
    "read_mask",
    "CovidCXRError",
]

if TYPE_CHECKING:
    from covidcxr.config import ModelConfig, PreprocessConfig
    from covidcxr.data import (
        CSVDataModule,
        CXRDataModule,
        CXRDataset,
        DarkCovidNetDataModule,
        FolderDataModule,
        Record,
        assign_splits,
        compute_mean_std,
        k_folds,
    )
    from covidcxr.errors import CovidCXRError
    from covidcxr.io import read_image, read_mask
    from covidcxr.models import ClassificationModel, EnsembleModel, SegmentationModel
    from covidcxr.pipeline import FailedPrediction, Pipeline, Prediction
    from covidcxr.tasks import ClassificationTask, MultiTask, SegmentationTask


def __getattr__(name: str) -> Any:
    """Load a module, or a public name from its module, on first use."""
    if name not in _MODULES:
        if not name.startswith("_") and find_spec(f"covidcxr.{name}"):
            return import_module(f"covidcxr.{name}")
        raise AttributeError(f"module 'covidcxr' has no attribute {name!r}")
    value = getattr(import_module(f"covidcxr.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
