"""Lungs on images never trained on, as they are and spoilt: `python tests/benchmarks/lungs.py --root DIR [--json]`.

The test images of mini's recipes, each spoilt in several ways, with the clean-up of masks and without: Dice and 95 %
Hausdorff distance (in percent of the image's longer side) against the hand-drawn masks, on how many images a lung was
lost (Dice of either lung below 0.5), and how many the gate refused, which then count as empty masks. Intervals are
resampled over patients.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from covidcxr import Pipeline
from covidcxr.data import CSVDataModule, Record
from covidcxr.evaluation import bootstrap, weighted_mean
from covidcxr.io.image import read_image, read_mask
from covidcxr.transforms.geometry import hd95
from covidcxr.transforms.postprocess import PostProcess, lung_sides

MASKS = {
    "lung_field": {"column": "lung_mask", "where": {"source": ["montgomery", "shenzhen"]}},
    "lung": {"column": "lung_mask", "where": {"source": ["ieee8023"]}},
}
Spoil = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def as_it_is(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Change nothing."""
    return image, lungs


def specks(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Strew 40 dark discs of 1 to 2 % of the longer side over all of the image, and as many bright ones."""
    for grey in (0.1, 0.95):
        image = _discs(image, np.ones_like(lungs), rng, 40, (0.01, 0.02), grey)
    return image, lungs


def holes(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put 6 white discs of 3 to 5 % of the longer side into the lungs."""
    return _discs(image, lungs, rng, 6, (0.03, 0.05), 1.0), lungs


def fused(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make a band between the lungs, a fifth of their height, as dark as they are."""
    rows, columns = np.where(lungs)
    if not len(rows):
        return image, lungs
    middle, half = int(np.median(rows)), max(1, int(0.1 * (rows.max() - rows.min())))
    band = np.zeros_like(lungs)
    band[middle - half : middle + half, columns.min() : columns.max()] = True
    return np.where(band & ~lungs, np.float32(image[lungs].mean()), image), lungs


def one_lung_white(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make the lung on the image's left white, as an effusion does; the other one is what is to be found."""
    left, right = lung_sides(lungs)
    reach = cv2.dilate(left.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    return np.where(reach & ~right, np.float32(np.percentile(image, 90)), image), right


def tilted(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tilt the image by 10 degrees, to either side."""
    height, width = image.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.choice([-10, 10])), 1.0)
    moved = [cv2.warpAffine(np.asarray(part, np.float32), turn, (width, height)) for part in (image, lungs)]
    return moved[0], moved[1] >= 0.5


def turned(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn the image by a quarter, a half or three quarters."""
    quarters = int(rng.integers(1, 4))
    return np.ascontiguousarray(np.rot90(image, quarters)), np.ascontiguousarray(np.rot90(lungs, quarters))


def inverted(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn black into white."""
    return 1 - image, lungs


SPOILS: tuple[Spoil, ...] = (as_it_is, specks, holes, fused, one_lung_white, tilted, turned, inverted)


def _discs(
    image: np.ndarray,
    place: np.ndarray,
    rng: np.random.Generator,
    count: int,
    radii: tuple[float, float],
    grey: float,
) -> np.ndarray:
    image, spots = image.copy(), np.argwhere(place)
    for row, column in spots[rng.choice(len(spots), min(count, len(spots)), replace=False)]:
        radius = max(1, round(float(rng.uniform(*radii)) * max(image.shape)))
        cv2.circle(image, (int(column), int(row)), radius, grey, -1)
    return image


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return 2 |A and B| / (|A| + |B|); 1 where both are empty."""
    return float(2 * (mask & truth).sum() / max(1, mask.sum() + truth.sum())) if mask.any() or truth.any() else 1.0


def score(mask: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compare a mask of lungs with the truth."""
    sides = [dice(mask & reach, side) for side, reach in reaches(truth)]
    distance = hd95(mask, truth) / max(mask.shape) * 100 if mask.any() else 100.0
    return {"dice": dice(mask, truth), "hd95": distance, "lost": float(min(sides, default=1.0) < 0.5)}


def reaches(truth: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each lung that there is, and the part of the image that is nearer to it than to the other."""
    sides = [side for side in lung_sides(truth) if side.any()]
    if len(sides) < 2:
        return [(side, np.ones_like(side)) for side in sides]
    rows, columns = np.indices(truth.shape)
    centres = [(rows[side].mean(), columns[side].mean()) for side in sides]
    near = [
        (rows - row) ** 2 + (columns - column) ** 2 for row, column in centres
    ]  # lungs of a turned image lie otherwise
    first = near[0] < near[1]
    return [(sides[0], first), (sides[1], ~first)]


def rows_of(record: Record, pipelines: dict[str, Pipeline], seed: int) -> list[dict[str, Any]]:
    """Score one image in all ways."""
    (name, path), image = next(iter(record.mask_paths.items())), read_image(record.image_path)
    truth, rows = read_mask(path).astype(bool), []
    for number, spoil in enumerate(SPOILS):
        given, wanted = spoil(image, truth, np.random.default_rng([seed, number]))
        for clean, pipeline in pipelines.items():
            answer = pipeline(np.clip(given, 0, 1).astype(np.float32))
            mask = answer.masks.get(name, np.zeros_like(wanted))
            row = {"spoilt": spoil.__name__, "clean-up": clean, "mask": name, "source": record.source}
            row |= {"patient": record.patient, "reasons": list(answer.reasons), "refused": float(not answer.masks)}
            rows.append(row | score(mask, wanted))
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    barred = {"license": ["unstated*"]}
    data = CSVDataModule(options.root, mask_columns=MASKS, mask_classes=tuple(MASKS), test_only=barred)
    images = [record for record in data.records if record.split == "test" and record.mask_paths]
    clean, raw = (Pipeline.from_pretrained(options.model) for _ in range(2))
    raw.postprocess = PostProcess([])
    rows = [row for number, image in enumerate(images) for row in rows_of(image, {"on": clean, "off": raw}, number)]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sources = (row["source"],) if row["spoilt"] == "as_it_is" else ()
        for source in ("all", *sources):
            groups[row["spoilt"], row["mask"], source, row["clean-up"]].append(row)
    table = []
    for key, members in sorted(groups.items()):
        patients = [row["patient"] for row in members]
        found = {
            name: bootstrap(
                weighted_mean, np.array([r[name] for r in members]), groups=patients, share=name in ("lost", "refused")
            )
            for name in ("dice", "hd95", "lost", "refused")
        }
        table.append({"of": list(key), "films": len(members)} | {name: one.to_dict() for name, one in found.items()})
        print(f"{' '.join(key):50}", *(f"{name} {one}" for name, one in found.items()), len(members))
    if options.json:
        options.json.write_text(json.dumps({"table": table, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
