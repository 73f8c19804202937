"""Mean and standard deviation of a data set, for normalisation."""

from __future__ import annotations

import numpy as np

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.utils.threads import Progress

__all__ = ["compute_mean_std"]


def compute_mean_std(
    datamodule: CXRDataModule,
    *,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Compute the mean and standard deviation of the training films' pixels, one film in memory at a time.

    Films are taken at the data module's size, without augmentation, before a region is cut, and without the black
    frame that letterboxing adds; every pixel counts alike.

    Args:
        datamodule: The data set; the films of its training split are read.
        sample: Read only that many of them, drawn at random; None = all.
        seed: Seeds the draw.
        progress: Told after each film how many of how many are read.

    Returns:
        Mean and standard deviation, for films in [0, 1].

    Raises:
        ConfigError: If `sample` is not at least 1.
        DatasetError: If there is no training film.
        ImageReadError: If a film cannot be read.
    """
    films = datamodule.train_dataset
    if len(films) == 0:
        raise DatasetError(f"{type(datamodule).__name__} has no training film to compute a mean from.")
    if sample is not None and sample < 1:
        raise ConfigError(f"sample must be a number of films from 1 up (or null = all), not {sample}.")
    order = np.random.default_rng(seed).permutation(len(films))[:sample].tolist()
    histogram = np.zeros(256, np.int64)  # films are uint8 at this point, so the sums are exact in any order
    for done, index in enumerate(sorted(order), 1):
        histogram += np.bincount(films.pixels(index).ravel(), minlength=256)
        if progress is not None:
            progress(done, len(order))
    grey = np.arange(256) / 255
    mean = np.average(grey, weights=histogram)
    variance = np.average((grey - mean) ** 2, weights=histogram)
    return float(mean), float(np.sqrt(variance))
