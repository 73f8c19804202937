"""Whether a classifier keeps its promises on its test films, by licence of the film:
`python tests/benchmarks/promise.py ROWS --model FOLDER --table manifest.csv [--json]`.

ROWS is the `predictions.csv` of `covidcxr test`. How often the plausible classes hold the truth, how many films get an
answer and how many of these are right, and the calibration error after and before the temperature: on films with a
stated licence, on the others, and on all. Intervals are resampled over patients.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from covidcxr import ClassificationModel
from covidcxr.evaluation import bootstrap, expected_calibration_error, read_rows, weighted_mean


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True, help="with the columns path and license")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, rows = ClassificationModel.from_pretrained(options.model), read_rows(options.rows)
    with options.table.open(encoding="utf-8", newline="") as file:
        unstated = {line["path"]: line["license"].startswith("unstated") for line in csv.DictReader(file)}
    classes = model.config.classes
    chances = np.array([[row[f"probability_{name}"] for name in classes] for row in rows])
    truth = np.array([classes.index(row["label"]) for row in rows])
    sets = chances >= np.array([model.config.thresholds[name] for name in classes])
    answered = sets.sum(1) == 1
    right = chances.argmax(1) == truth
    raw = np.log(chances.clip(1e-12)) * model.config.temperature
    raw = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    barred = np.array([unstated[row["image_id"]] for row in rows])
    found = {}
    for name, chosen in (("stated", ~barred), ("unstated", barred), ("all", np.full(len(rows), True))):

        def share(values: np.ndarray, among: np.ndarray) -> str:
            patients = [rows[place]["patient_id"] for place in np.flatnonzero(among)]
            return str(bootstrap(weighted_mean, values[among].astype(float), groups=patients, share=True))

        found[name] = {
            "films": int(chosen.sum()),
            "sets_hold_the_truth": share(sets[np.arange(len(rows)), truth], chosen),
            "answered": int((answered & chosen).sum()),
            "right_of_the_answered": share(right, answered & chosen),
            "right_answers": int((right & answered & chosen).sum()),
            "calibration_error_before": round(expected_calibration_error(raw[chosen], truth[chosen]), 3),
            "calibration_error_after": round(expected_calibration_error(chances[chosen], truth[chosen]), 3),
        }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
