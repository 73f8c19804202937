"""Whether a classifier keeps its promises on its test images, by licence of the image:
`python tests/benchmarks/promise.py ROWS --model FOLDER --table manifest.csv [--json]`.

ROWS is the `predictions.csv` of `covidcxr test`. How often the plausible classes hold the truth, how many images get an
answer and how many of these are right, and the calibration error after and before the temperature: on images with a
stated licence, on the others, and on all. Intervals are resampled over patients.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from covidcxr import ClassificationModel
from covidcxr.evaluation import measure_reliability, read_rows, score_sets


def untempered(row: dict[str, Any], classes: tuple[str, ...], temperature: float) -> dict[str, Any]:
    """Return a row with the probabilities that it would have without a temperature."""
    names = [f"probability_{name}" for name in classes]
    odds = np.array([row[name] for name in names]) ** temperature
    return row | dict(zip(names, (odds / odds.sum()).tolist(), strict=True))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True, help="with the columns path and license")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config, rows = ClassificationModel.from_pretrained(options.model).config, read_rows(options.rows)
    with options.table.open(encoding="utf-8", newline="") as file:
        barred = {line["path"] for line in csv.DictReader(file) if line["license"].startswith("unstated")}
    groups = {
        "stated": [row for row in rows if row["image_id"] not in barred],
        "unstated": [row for row in rows if row["image_id"] in barred],
        "all": rows,
    }
    found = {}
    for name, images in groups.items():
        raw = [untempered(row, config.classes, config.temperature) for row in images]
        scores = score_sets(images, config.thresholds)
        scores["calibration_error_before"] = measure_reliability(raw).ece
        scores["calibration_error_after"] = measure_reliability(images).ece
        found[name] = {score: estimate.to_dict() for score, estimate in scores.items()}
        print(
            f"{name}:", *(f"{score} {estimate} of {estimate.count}" for score, estimate in scores.items()), sep="\n  "
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
