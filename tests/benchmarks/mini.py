"""Every figure of `mini`'s model card, by its whole pipeline: `python tests/benchmarks/mini.py DIR --model FOLDER`.

DIR is the folder that `examples/mini_table.py` read: with `data`, `data2` and `mini.csv`. Images of patients who
neither trained nor validated; the adults of `rsna`, whom the view check has not seen, and whatever is no frontal image
of an adult. Intervals are resampled over patients.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from covidcxr import Pipeline, read_image
from covidcxr.data import CSVDataModule
from covidcxr.evaluation import bootstrap, weighted_auroc, weighted_mean
from covidcxr.io.image import read_mask
from covidcxr.transforms.postprocess import lung_sides

CLASSES = ("covid19", "pneumonia", "normal")
MASKS = ("lung_field", "lung", "infection")
CHILDREN = r"/Normal \((?:[2-9]|1\d|2[01])\)\.png$"
"""Of COVID-QU-Ex, images that lie among the adults of RSNA by their numbers, and show children: seen by eye."""

VIEW_REASONS = {"not-a-frontal-film", "child", "film-inverted", "film-turned"}
Row = dict[str, Any]


def test_images(root: Path) -> list[Row]:
    """Return the rows of the table that are tested on, with `classified` = no other image of the patient trained."""
    table = pd.read_csv(root / "mini.csv", dtype=str).fillna("").set_index("path", drop=False)
    table.loc[(table.source == "rsna") & table.path.str.contains(CHILDREN), "label"] = "child"
    rows = []
    barred = {"terms": "restricted"}
    splits = [
        {
            record.image_id: record.split
            for record in CSVDataModule(root, table="mini.csv", views="all", test_only=those).records
        }
        for those in (barred, barred | {"source": "shenzhen"})
    ]
    for path, split in splits[1].items():
        row = table.loc[path].to_dict()
        if split == "test" or (row["source"] == "rsna" and split == "val"):
            rows.append(row | {"segmented": split == "test", "classified": splits[0][path] == "test"})
    return rows


def dice(mask: np.ndarray, other: np.ndarray) -> float:
    """Return the overlap of two masks."""
    return float(2 * (mask & other).sum() / max(1, mask.sum() + other.sum()))


def changed(image: np.ndarray, number: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield an image tilted by 5 degrees, mirrored, and with 2 % noise."""
    height, width = image.shape
    turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), 5 if number % 2 else -5, 1)
    yield "tilted by 5 degrees", cv2.warpAffine(image, turn, (width, height))
    yield "mirrored", np.ascontiguousarray(image[:, ::-1])
    noise = np.random.default_rng(number).normal(0, 0.02, image.shape)
    yield "noise of 2 %", (image + noise).clip(0, 1).astype(np.float32)


def measure(pipeline: Pipeline, row: Row, root: Path) -> Row:
    """Return a row with what the pipeline says of its image."""
    prediction = pipeline(root / row["path"])
    result = row | {"answer": prediction.label, "reasons": prediction.reasons, **prediction.probabilities}
    for name in MASKS if row["segmented"] and prediction.masks else ():
        if row[name]:
            truth, mask = read_mask(root / row[name]), prediction.masks[name]
            result["dice_" + name] = dice(truth, mask)
            if name != "infection":
                sides = zip(lung_sides(truth), lung_sides(mask), strict=True)
                result["lost_" + name] = min(dice(a, b) for a, b in sides) < 0.5
            elif prediction.masks["lung"].any():
                lungs = prediction.masks["lung"]
                result["fraction_error"] = float(mask[lungs].mean() - truth[lungs].mean())
    if row["segmented"] and row["label"] == "normal" and prediction.masks and prediction.masks["lung"].any():
        result["false_fraction"] = float(prediction.masks["infection"][prediction.masks["lung"]].mean())
    return result


class Report(dict[str, Any]):
    """Prints and keeps estimates."""

    def share(self, name: str, rows: list[Row], key: str | Callable[[Row], Any], share: bool = True) -> None:
        """Add the mean of what `key` is, or says, of each row."""
        values = np.array([float(row[key] if isinstance(key, str) else key(row)) for row in rows])
        self._add(name, rows, weighted_mean, values, share=share)

    def auroc(self, name: str, rows: list[Row], positive: str, negatives: Sequence[str]) -> None:
        """Add how well a class is told from others by its share of their probability."""
        rows = [row for row in rows if row["label"] in (positive, *negatives)]
        scores = np.array([row[positive] / (row[positive] + sum(row[name] for name in negatives)) for row in rows])
        self._add(name, rows, weighted_auroc, scores, np.array([row["label"] == positive for row in rows]))

    def _add(self, name: str, rows: list[Row], statistic: Any, *values: np.ndarray, share: bool = True) -> None:
        if rows:
            groups = [row["patient_id"] for row in rows]
            estimate = bootstrap(statistic, *values, groups=groups, share=share)
            self[name] = estimate.to_dict()
            print(f"{name:<70} {estimate}  {len(rows)} images, {len(set(groups))} patients", flush=True)


def report_classes(report: Report, rows: list[Row], thresholds: dict[str, float]) -> None:
    """Add how the classes do."""
    known = [row for row in rows if row["classified"] and row["label"] in CLASSES and row["source"] != "rsna"]
    asked = [row for row in known if "covid19" in row]

    def right(row: Row) -> bool:
        return max(CLASSES, key=lambda name: row[name]) == row["label"]

    def held(row: Row) -> bool:
        return row[row["label"]] >= thresholds.get(row["label"], 0.5)

    groups = {"all": asked, "open": [row for row in asked if row["terms"] == "open"]}
    groups |= {
        source: [row for row in asked if row["source"] == source] for source in sorted({r["source"] for r in asked})
    }
    for name, part in groups.items():
        report.share(f"{name}: accuracy", part, right)
        report.share(f"{name}: plausible classes hold the truth", part, held)
        report.share(f"{name}: gets an answer", part, lambda row: row["answer"] is not None)
        report.share(f"{name}: answer is right", [r for r in part if r["answer"]], lambda r: r["answer"] == r["label"])
    for label in CLASSES:
        part = [row for row in asked if row["label"] == label]
        report.share(f"{label}: sensitivity", part, right)
        report.share(f"{label}: plausible classes hold the truth", part, held)
        report.auroc(f"{label}: AUROC", asked, label, [name for name in CLASSES if name != label])
    for source, positive, negative in (("nih", "pneumonia", "normal"), ("ieee8023", "covid19", "pneumonia")):
        part = [row for row in asked if row["source"] == source]
        report.auroc(f"{positive} or {negative}, within {source}: AUROC", part, positive, [negative])


def report_masks(report: Report, rows: list[Row]) -> None:
    """Add how the masks do, by class and source."""
    for name in MASKS:
        for source in ("all", *sorted({row["source"] for row in rows if "dice_" + name in row})):
            part = [row for row in rows if "dice_" + name in row and source in ("all", row["source"])]
            report.share(f"{name}, {source}: Dice", part, "dice_" + name, share=False)
            if name != "infection":
                report.share(f"{name}, {source}: a lung lost", part, "lost_" + name)
    normal = [row for row in rows if "false_fraction" in row]
    for source in ("all", *sorted({row["source"] for row in normal})):
        part = [row for row in normal if source in ("all", row["source"])]
        name = f"normal images, {source}: infections on more than 2 % of the lungs"
        report.share(name, part, lambda row: row["false_fraction"] > 0.02)
    part = [row for row in rows if "fraction_error" in row]
    report.share("infected fraction, predicted less drawn", part, "fraction_error", share=False)
    errors = [row["fraction_error"] for row in part]
    print(
        "95 % limits of agreement",
        [round(float(np.mean(errors) + k * np.std(errors, ddof=1)), 3) for k in (-1.96, 1.96)],
    )


def report_views(report: Report, rows: list[Row]) -> None:
    """Add what the view check rejects, by source and kind."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        adult = row["label"] in (*CLASSES, "other")
        kinds.setdefault(f"adults of {row['source']}" if adult else row["label"], []).append(row)
    for kind, part in sorted(kinds.items()):
        report.share(f"view check, {kind}: rejected", part, lambda r: bool(VIEW_REASONS & {*r["reasons"]}))
        report.share(f"view check, {kind}: no answer at all", part, lambda r: r["answer"] is None)
        if kind == "child":
            report.share("view check, child: named as such", part, lambda r: "child" in r["reasons"])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--changes", type=int, default=100, help="images on which small changes are tried")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pipeline, report = Pipeline.from_pretrained(options.model), Report()
    rows = [measure(pipeline, row, options.root) for row in test_images(options.root)]
    report_classes(report, rows, pipeline.classifier.config.thresholds if pipeline.classifier else {})
    report_masks(report, rows)
    report_views(report, rows)
    print(Counter(reason for row in rows for reason in row["reasons"]))
    answered = [row for row in rows if row["classified"] and row["label"] in CLASSES and "covid19" in row]
    answered = answered[:: max(1, len(answered) // options.changes)]
    turned: dict[str, list[Row]] = {}
    for number, row in enumerate(answered):
        for name, image in changed(read_image(options.root / row["path"]), number):
            after = pipeline(image)
            classes = [max(CLASSES, key=lambda c: p[c]) if p else None for p in (row, after.probabilities)]
            turned.setdefault(name, []).append(
                row
                | {
                    "turned": after.label != row["answer"],
                    "other": classes[0] != classes[1],
                    "contradicted": after.label not in (None, row["answer"]),
                }
            )
    for name, part in turned.items():
        report.share(f"{name}: another most probable class", part, "other")
        report.share(f"{name}: another answer, or none any more", part, "turned")
        given = [row for row in part if row["answer"] is not None]
        report.share(f"{name}: a given answer became another class", given, "contradicted")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
