"""Time of intervals: all scores of a classifier by covidcxr, beside torchmetrics' BootStrapper, in one run.

    OMP_NUM_THREADS=2 python tests/benchmarks/bootstrap.py --images 34000 --patients 20000 --resamples 1000

BootStrapper copies the predictions for each resample and knows no patients; it is given the scores it has (accuracy,
AUROC and average precision, one against the rest) and, unless `--same` is given, fewer resamples, whose time is scaled
up: the line says so.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torchmetrics import BootStrapper, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassAveragePrecision

from covidcxr.evaluation import classification_metrics


def draw(images: int, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities [images, 3] that know something, labels and patients."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=images)
    logits = rng.normal(size=(images, 3)) + 1.5 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels, rng.integers(patients, size=images)


def time_torchmetrics(metric: Metric, probabilities: np.ndarray, labels: np.ndarray, resamples: int) -> float:
    """Return the seconds that BootStrapper takes for one metric."""
    strapper = BootStrapper(metric, num_bootstraps=resamples, sampling_strategy="multinomial", quantile=0.025)
    torch.manual_seed(0)
    start = time.perf_counter()
    strapper.update(torch.from_numpy(probabilities).float(), torch.from_numpy(labels))
    strapper.compute()
    return time.perf_counter() - start


def main() -> None:
    """Print the time of each, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=34_000)
    parser.add_argument("--patients", type=int, default=20_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--few", type=int, default=50, help="resamples of BootStrapper, scaled up")
    parser.add_argument("--same", action="store_true", help="as many resamples of BootStrapper")
    settings = parser.parse_args()
    probabilities, labels, patients = draw(settings.images, settings.patients)
    start = time.perf_counter()
    found = classification_metrics(probabilities, labels, patients, "abc", resamples=settings.resamples)
    ours = time.perf_counter() - start
    print(f"covidcxr: {len(found)} scores, {settings.resamples} resamples of patients: {ours:.2f} s")
    few = settings.resamples if settings.same else settings.few
    total = 0.0
    for metric in (MulticlassAccuracy, MulticlassAUROC, MulticlassAveragePrecision):
        seconds = time_torchmetrics(metric(3), probabilities, labels, few)
        scaled = seconds * settings.resamples / few
        total += scaled
        how = "" if few == settings.resamples else f", scaled to {settings.resamples}: {scaled:.1f} s"
        print(f"BootStrapper({metric.__name__}): {few} resamples of images: {seconds:.2f} s{how}")
    print(f"BootStrapper, these three scores: {total:.1f} s; {total / ours:.0f} times as long as covidcxr for all")


if __name__ == "__main__":
    main()
