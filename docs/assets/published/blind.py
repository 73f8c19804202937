"""What can be scored on COVID-QU-Ex without a network: blind probes, and masks that never look at the image.

    python docs/assets/published/blind.py OUT

OUT is the folder of run.sh, with the compact copy in it; writes OUT/blind.json. Every figure stands there twice: on the
official test part ("official"), and on those of its images whose group is listed in manifest.csv and has no image in
the training or validation part ("groups").
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from covidcxr.evaluation.metrics.bootstrap import bootstrap
from covidcxr.evaluation.metrics.weighted import weighted_mean
from covidcxr.evaluation.shortcuts.features import (
    FeatureTable,
    background_features,
    border_features,
    corner_features,
    grey_features,
    one_hot,
    thumbnail,
)
from covidcxr.evaluation.shortcuts.probes import PROBES, train_and_test
from covidcxr.evaluation.shortcuts.targets import Target

CLASSES = ("COVID-19", "Non-COVID", "Normal")
EVERY = 3  # one in so many official training and validation images teaches, to save time
WIDER = 0.08  # by how much the lungs are widened before they are removed, as in the audit

Rows = Sequence[dict[str, Any]]


def read_rows(copy: Path) -> Rows:
    """Read the records of a compact copy."""
    with gzip.open(copy / "records.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def thin_out(rows: Rows, parts: dict[str, np.ndarray]) -> tuple[Rows, dict[str, np.ndarray]]:
    """Keep all test images, and one in `EVERY` of the others."""
    kept = [n for n in range(len(rows)) if parts["official"][n] or n % EVERY == 0]
    return [rows[n] for n in kept], {part: own[kept] for part, own in parts.items()}


def test_parts(rows: Rows) -> dict[str, np.ndarray]:
    """Return which images test: the official part, and those of it whose group is known and nowhere else."""
    test = np.array([row["split"] == "test" for row in rows])
    elsewhere = {row.get("patient_id") for row in rows if row["split"] != "test"} | {None}
    return {"official": test, "groups": test & np.array([row.get("patient_id") not in elsewhere for row in rows])}


def _read(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def feature_tables(copy: Path, rows: Rows) -> dict[str, FeatureTable]:
    """Return what each probe sees of the images; the lungs are removed by the data set's own masks."""
    pixels: dict[str, list[list[float]]] = {}
    for row in rows:
        image = _read(copy / row["image_path"]).astype(np.float32) / 255
        lungs = _read(copy / row["mask_paths"]["lung_field"]) > 127
        side = 2 * round(WIDER * max(image.shape)) + 1
        hull = np.zeros(image.shape, np.uint8)
        for outline in cv2.findContours(lungs.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            cv2.fillConvexPoly(hull, cv2.convexHull(outline), 1)
        wide = cv2.dilate(hull, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) > 0
        seen = {
            "border": border_features(image),
            "corners": corner_features(image),
            "background": background_features(image, wide),
            "grey": grey_features(image),
            "thumbnail": thumbnail(image),
        }
        for name, values in seen.items():
            pixels.setdefault(name, []).append(values)
    known = np.ones(len(rows), bool)
    columns = {name: one_hot([row.get(name) for row in rows]) for name in ("source", "age_group")}
    tables = {"source": columns["source"], "age": columns["age_group"]}
    return {name: FeatureTable(np.asarray(values, float), known) for name, values in {**tables, **pixels}.items()}


def score_probes(copy: Path, rows: Rows, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Train each probe on the official training and validation images, and score it on both test parts."""
    tables = feature_tables(copy, rows)
    target = Target("label", CLASSES, np.array([CLASSES.index(row["label"]) for row in rows]))
    patients = np.unique([row.get("patient_id") or row["image_id"] for row in rows], return_inverse=True)[1]
    scores: dict[str, Any] = {}
    for part, test in parts.items():
        for probe in PROBES:
            if probe.name in tables:
                table = tables[probe.name]
                score = train_and_test(probe, table, target, ~parts["official"], test, patients, 0)
                if score is not None:
                    scores.setdefault(part, {})[probe.title] = score.to_dict()
    return scores


def _masks(copy: Path, rows: Rows, name: str) -> np.ndarray:
    return np.array([_read(copy / row["mask_paths"][name]) > 127 for row in rows])


def _dice(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    both = (predicted & true).sum((1, 2))
    return np.asarray(2 * both / (predicted.sum((1, 2)) + true.sum((1, 2))).clip(1))


def score_masks(copy: Path, rows: Rows, parts: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Score one mask for all images: the mean of the training masks, cut where Dice is best there.

    For infections the whole lungs are scored, too.
    """
    for name, labels in (("lung_field", CLASSES), ("infection", CLASSES[:1])):
        used = np.array([row["label"] in labels for row in rows])
        train, test = used & ~parts["official"], used & parts["official"]
        learnt = _masks(copy, [rows[n] for n in np.flatnonzero(train)], name)
        true = _masks(copy, [rows[n] for n in np.flatnonzero(test)], name)
        mean = learnt.mean(0)
        cuts = np.arange(0.1, 0.75, 0.05)
        cut = max(cuts, key=lambda cut: float(_dice((mean > cut)[None], learnt).mean()))
        guesses = {"the mean training mask": np.broadcast_to(mean > cut, true.shape)}
        if name == "infection":
            guesses["the whole lungs"] = _masks(copy, [rows[n] for n in np.flatnonzero(test)], "lung_field")
        people = [rows[n].get("patient_id") or rows[n]["image_id"] for n in np.flatnonzero(test)]
        for guess, predicted in guesses.items():
            dice = _dice(predicted, true)
            for part, images in parts.items():
                own = np.flatnonzero(images[test])
                estimate = bootstrap(weighted_mean, dice[own], groups=[people[n] for n in own])
                yield f"{name}/{guess}/{part}", estimate.to_dict()


def main(out: Path) -> None:
    """Score everything and write it."""
    rows = read_rows(out / "copy")
    rows, parts = thin_out(rows, test_parts(rows))
    images = {
        part: {
            label: sum(row["label"] == label for row, test in zip(rows, own, strict=True) if test) for label in CLASSES
        }
        for part, own in parts.items()
    }
    probes = score_probes(out / "copy", rows, parts)
    masks = dict(score_masks(out / "copy", rows, parts))
    result = {"images": images, "probes": probes, "masks": masks}
    (out / "blind.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
