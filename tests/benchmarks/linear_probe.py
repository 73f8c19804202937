"""What a linear model of a frozen backbone tells on patients and sources that it has not seen, by stage and decay:

    python tests/benchmarks/linear_probe.py DIR --masks MASKS

DIR is the folder that `examples/mini_table.py` read, MASKS the lungs that `covidcxr datasets masks` drew (see the
recipe `mini-classifier`). The features of the recipe's network are computed once, without augmentation; logistic
regressions of them are fitted on openly licensed images and tested on all: in four folds of patients, and without each
source in turn (all but NIH, which alone has other pneumonia under an open licence). Intervals are resampled over
patients.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from covidcxr import ClassificationModel, ModelConfig
from covidcxr.data import CSVDataModule
from covidcxr.evaluation import bootstrap, weighted_auroc, weighted_mean
from covidcxr.io.image import read_mask
from covidcxr.training.recipe import Recipe

CLASSES = ("covid19", "pneumonia", "normal")
VARIANTS = {
    "stages 2, 3, 4 (`mini`)": ((2, 3, 4), 0.01),
    "stages 2, 3": ((2, 3), 0.01),
    "stages 3, 4": ((3, 4), 0.01),
    "stage 4": ((4,), 0.01),
    "ten times the decay": ((2, 3, 4), 0.001),
    "a third of the decay": ((2, 3, 4), 0.03),
}


def features_of(data: CSVDataModule, config: ModelConfig) -> tuple[np.ndarray, list[int]]:
    """Return the mean of each channel [images, channels], and the number of channels of each stage."""
    model = ClassificationModel(config, pretrained_backbone=True).eval()
    channels = model.network.backbone.feature_info.channels()
    model.network.head = torch.nn.Identity()
    rows = []
    with torch.inference_mode():
        for record in data.records:
            image = torch.from_numpy(data.load_image(record))[None, None]
            lungs = torch.from_numpy(read_mask(record.mask_paths["lung_field"]))[None, None].float()
            rows.append(model(image, lungs)[0].numpy())
    return np.stack(rows), channels


def fitted(features: np.ndarray, labels: np.ndarray, strength: float) -> Pipeline:
    """Return a logistic regression of standardised features, classes weighted equally."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=500, random_state=0)
    )
    return model.fit(features, labels)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--masks", type=Path, required=True)
    options = parser.parse_args()
    recipe = Recipe.read("mini-classifier").config
    settings = recipe["data"]["init_args"]
    settings = {key: settings[key] for key in ("table", "where", "classes")}
    data = CSVDataModule(options.root, drawn_masks=options.masks, **settings)
    features, channels = features_of(data, ModelConfig(**recipe["model"]["init_args"]["model"]))
    terms = pd.read_csv(options.root / "mini.csv", index_col="path").terms
    is_open = np.array([terms[record.image_id] == "open" for record in data.records])
    labels = np.array([CLASSES.index(record.label) for record in data.records])
    sources = np.array([record.source for record in data.records])
    patients = np.array([record.patient for record in data.records])
    starts = np.cumsum([0, *channels])
    for name, (stages, strength) in VARIANTS.items():
        seen = np.concatenate([features[:, starts[s - 2] : starts[s - 1]] for s in stages], 1)
        folds = np.full((len(labels), 3), np.nan)
        for train, test in GroupKFold(4).split(seen, labels, patients):
            train = train[is_open[train]]
            folds[test] = fitted(seen[train], labels[train], strength).predict_proba(seen[test])
        unseen = np.full((len(labels), 3), np.nan)
        for source in set(sources) - {"nih"}:
            train = (sources != source) & is_open
            unseen[sources == source] = fitted(seen[train], labels[train], strength).predict_proba(
                seen[sources == source]
            )
        print(f"| {name} | {' | '.join(scores(folds, unseen, labels, sources, patients))} |", flush=True)


def scores(
    folds: np.ndarray, unseen: np.ndarray, labels: np.ndarray, sources: np.ndarray, patients: np.ndarray
) -> Iterator[str]:
    """Yield the columns of the table."""
    right = (folds.argmax(1) == labels).astype(float)
    yield str(bootstrap(weighted_mean, right, groups=patients, share=True))
    for table, source, positive, negative in (
        (folds, "nih", 1, 2),
        (folds, "ieee8023", 0, 1),
        (unseen, "ieee8023", 0, 1),
    ):
        part = (sources == source) & np.isin(labels, (positive, negative))
        share = table[part, positive] / (table[part, positive] + table[part, negative])
        yield str(bootstrap(weighted_auroc, share, labels[part] == positive, groups=patients[part], share=True))
    for source in ("montgomery", "hannover", "cxnet"):
        part = sources == source
        right = (unseen[part].argmax(1) == labels[part]).astype(float)
        yield str(bootstrap(weighted_mean, right, groups=patients[part], share=True))


if __name__ == "__main__":
    main()
