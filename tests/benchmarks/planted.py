"""Which planted shortcuts the audit finds, by kind, agreement with the label and number of patients.

    python tests/benchmarks/planted.py [--seeds 1] [--clean 40] [--size 160] [--patients 60 120 240]
    python tests/benchmarks/planted.py --power

All images are drawn. Labels are dealt out at random, so that nothing but what is planted goes with them. A shortcut
that agrees with the label in a share q of the patients of each class has an AUROC of q; q = 0.5 is a clean data set.
Noise, blur and JPEG leave the outermost 4 % of the image as they were. Lungs are those that were drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from covidcxr.data import Record
from covidcxr.evaluation.shortcuts import images as reading
from covidcxr.evaluation.shortcuts import run
from covidcxr.evaluation.shortcuts.association import detectable_auroc, strongest_features
from covidcxr.evaluation.shortcuts.features import FeatureTable
from covidcxr.evaluation.shortcuts.leakage import find_leakage
from covidcxr.evaluation.shortcuts.probes import MARGIN
from covidcxr.evaluation.shortcuts.result import DataAudit, mark_alarms
from covidcxr.evaluation.shortcuts.targets import Target
from covidcxr.phantom import draw_phantom

Image = np.ndarray
Plant = Callable[[Image, np.random.Generator], Image]


def noise(image: Image, rng: np.random.Generator, deviation: float) -> Image:
    return image + rng.normal(0, deviation / 255, image.shape)


def blur(image: Image, rng: np.random.Generator) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0))


def jpeg(image: Image, rng: np.random.Generator) -> Image:
    code = cv2.imencode(".jpg", np.round(image * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE) / 255


def letter(image: Image, rng: np.random.Generator, place: str) -> Image:
    size = len(image)
    grey = np.ascontiguousarray(np.round(image * 255), np.uint8)
    where = {
        "top": (int(rng.uniform(0.06, 0.86) * size), int(0.12 * size)),
        "edge": (1, int(0.5 * size)),
        "corner": (int(0.05 * size), int(0.1 * size)),
    }[place]
    return cv2.putText(grey, "L", where, cv2.FONT_HERSHEY_SIMPLEX, size / 400, 255, max(1, size // 128)) / 255


PICTURES: dict[str, Plant] = {
    "noise, sd 3 of 255": partial(noise, deviation=3),
    "noise, sd 10 of 255": partial(noise, deviation=10),
    "blur, sd 1 px": blur,
    "JPEG, quality 30": jpeg,
    "letter anywhere in the top strip": partial(letter, place="top"),
    "letter at mid edge": partial(letter, place="edge"),
    "letter in a corner": partial(letter, place="corner"),
}
COLUMNS = ("source", "age")


def plant(image: Image, change: Plant, rng: np.random.Generator) -> Image:
    rim = max(1, round(0.04 * len(image)))
    whole = np.asarray(np.clip(change(image, rng), 0, 1), np.float32)
    if getattr(change, "func", change) is letter:
        return whole
    kept = image.copy()
    kept[rim:-rim, rim:-rim] = whole[rim:-rim, rim:-rim]
    return np.round(kept * 255).astype(np.uint8).astype(np.float32) / 255


def read(image: Image, lungs: np.ndarray) -> dict[str, list[float]]:
    opened = reading._describe(image, (image.shape[0], image.shape[1]))
    return opened.features | dict(zip(reading._WITHOUT_LUNGS, reading._without_lungs(opened, lungs), strict=True))


class Pool:
    """Drawn images, clean and with each shortcut, as the features that probes read."""

    def __init__(self, count: int, size: int, pictures: Mapping[str, Plant] = PICTURES, first: int = 0) -> None:
        self.features: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in ("", *pictures)}
        for number in range(first, first + count):
            drawn = draw_phantom(number, size=(size, size))
            image = np.round(drawn.image * 255).astype(np.uint8).astype(np.float32) / 255
            lungs = np.asarray(drawn.lung, bool)
            self.features[""].append(read(image, lungs))
            for kind, change in pictures.items():
                planted = plant(image, change, np.random.default_rng([number, 1]))
                self.features[kind].append(read(planted, lungs))
            if sys.stderr.isatty():
                print(f"\r{number + 1 - first} of {count} images drawn", end="", file=sys.stderr)

    def audit(self, kind: str, agreement: float, patients: int, seed: int) -> DataAudit:
        """Audit a data set of one image a patient, half of each class."""
        rng = np.random.default_rng([seed, patients])
        chosen = rng.permutation(len(self.features[""]))[:patients]
        labels = rng.permutation(patients) % 2
        agrees = np.zeros(patients, bool)
        for label in (0, 1):
            own = rng.permutation(np.flatnonzero(labels == label))
            agrees[own[: round(agreement * len(own))]] = True
        planted = (labels == 1) == agrees
        records = []
        for number, shown in enumerate(planted.tolist()):
            source = "ab"[int(shown if kind == "source" else rng.integers(2))]
            age = (rng.integers(20, 50) if shown else rng.integers(50, 90)) if kind == "age" else rng.integers(20, 90)
            path = Path(f"{number}.png")
            records.append(
                Record(path, label="ab"[labels[number]], patient_id=path.stem, source=source, age=float(age))
            )
        rows = [
            self.features[kind if shown and kind in PICTURES else ""][n]
            for n, shown in zip(chosen, planted, strict=True)
        ]
        tables = reading._column_tables(records)
        for name in rows[0]:
            tables[name] = FeatureTable.from_rows(patients, {n: row[name] for n, row in enumerate(rows)})
        tables = {name: table for name, table in tables.items() if table.varies}
        people = np.arange(patients)
        inputs = run._ProbeInputs(records, people, people % 5, tables, 10**9, seed)
        targets, _ = run._run_probes(inputs, [Target("label", ("a", "b"), labels)], None, {}, lambda done, total: None)
        leakage = find_leakage(records, people, copies=None, exclusive=True)
        return mark_alarms(DataAudit("planted", patients, patients, targets, None, leakage, {}, 0, {}, 0, {}))


def simulate_power(patients: int, tests: int, simulations: int = 300) -> tuple[float, float]:
    """Return the AUROC that is said to be noticed with a chance of 80 %, and how often it is."""
    auroc, hits = detectable_auroc(patients, patients, tests=tests, features=3), 0
    labels = np.repeat([0, 1], patients)
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(2 * patients, 3))
        values[:, 0] += 8 * (rng.random(2 * patients) < np.where(labels == 1, auroc, 1 - auroc))
        test = strongest_features(values, labels, np.arange(2 * patients), ("a", "b"), seed)["b"]
        hits += test.p_value < 0.025 / tests and test.auroc >= 0.5 + MARGIN
    return auroc, hits / simulations


def alarms(audit: DataAudit) -> list[str]:
    return [score.probe.name for score in audit.targets[0].alarms]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="data sets a cell (%(default)s)")
    parser.add_argument("--clean", type=int, default=40, help="clean data sets (%(default)s)")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first data set (%(default)s)")
    parser.add_argument("--only", default="", help="only the shortcuts whose names begin so")
    parser.add_argument("--patients", type=int, nargs="+", default=[60, 120, 240])
    parser.add_argument("--power", action="store_true", help="only check by simulation what the audit says it can show")
    options = parser.parse_args()
    if options.power:
        print("| patients a class | weakest shortcut noticed, AUROC | share noticed |\n|---:|---:|---:|")
        for patients in (20, 30, 60, 100, 200, 400):
            auroc, share = simulate_power(patients, tests=20)
            print(f"| {patients} | {auroc:.2f} | {share:.0%} |", flush=True)
        return
    pictures = {kind: change for kind, change in PICTURES.items() if kind.startswith(options.only)}
    pool = Pool(2 * max(options.patients), options.size, pictures)
    clean = Counter(
        bool(alarms(pool.audit("", 0.5, options.patients[n % len(options.patients)], options.seed + n)))
        for n in range(options.clean)
    )
    print(f"{clean[True]} of {options.clean} clean data sets raise an alarm")
    seeds = range(options.seed, options.seed + options.seeds)
    cells = [(q, n) for q in (1, 0.8, 0.65) for n in options.patients]
    print("| planted | " + " | ".join(f"q {q}, {n} patients" for q, n in cells) + " |")
    print("|---|" + "---|" * len(cells))
    noticed = {n: pool.audit("", 0.5, n, 0).detectable["label"]["a"] for n in options.patients}
    print("| *detectable AUROC* | " + " | ".join(f"{noticed[n]:.2f}" for _, n in cells) + " |")
    for kind in (*pictures, *(name for name in COLUMNS if name.startswith(options.only))):
        row = []
        for agreement, patients in cells:
            found = [alarms(pool.audit(kind, agreement, patients, seed)) for seed in seeds]
            hits = sum(map(bool, found))
            named = Counter(names[0] for names in found if names)
            first = named.most_common(1)[0][0] if named else ""
            row.append(f"{first or '-'}" if options.seeds == 1 else f"{hits} of {options.seeds} {first}".strip())
        print(f"| {kind} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
