"""What a gate refuses, recognises and corrects: `python tests/benchmarks/gate.py --gate FOLDER --root DIR`.

Images of the test patients in all eight orientations, and what is no frontal chest radiograph: drawn with other seeds
than in training, images spoilt, and with `--others` real pictures, one folder a kind. Shares with 95 % intervals,
clustered by patient (pictures whose names agree up to "--" are parts of one).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covidcxr import ClassificationModel, read_image
from covidcxr.data.datasets.view_check import GateDataModule
from covidcxr.errors import ImageReadError
from covidcxr.evaluation import bootstrap, weighted_mean
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline.view_check import ViewCheck, check_views
from covidcxr.transforms.pyramid import NOT_A_FRONTAL_IMAGE, ORIENTATIONS, UPRIGHT

IMAGES = {"name": "csv", "table": "manifest.csv", "test_only": {"license": ["unstated*"]}}
Row = dict[str, Any]


def outcome(truth: str, found: ViewCheck) -> str:
    """Say in a word what became of a picture."""
    if NOT_A_FRONTAL_IMAGE in found.reasons:
        return "refused"
    if found.reasons:
        return "named" if found.orientation.name == truth else "misnamed"
    if found.orientation == UPRIGHT:
        return "passed"
    return "corrected" if found.orientation.name == truth else "miscorrected"


def askew(image: np.ndarray) -> dict[str, np.ndarray]:
    """Return what an image looks like mirrored, and tilted by less than a quarter turn, with black corners."""
    found = {"mirrored": np.ascontiguousarray(image[:, ::-1])}
    for angle in (10, 20, 30, 45):
        tilted = Image.fromarray(image).rotate(-angle, Image.Resampling.BILINEAR, expand=True)
        found[f"tilted by {angle}"] = np.array(tilted)
    return found


def pictures(data: GateDataModule, split: str, others: Path | None) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield what is known of each picture, and its greys."""
    drawn = "drawn "
    for record in data.records:
        if record.split != split:
            continue
        real = record.image_path.parts[:1] != ("drawn",)
        source = record.source if real or record.source.startswith(drawn) else drawn + record.source
        row = {"truth": record.label, "source": source, "patient": record.patient, "id": record.image_id}
        image = data.load_image(record)
        yield row, image
        if real and record.label == UPRIGHT.name:
            for name, changed in askew(image).items():
                yield {**row, "truth": name}, changed
    for path in sorted(others.glob("*/*")) if others else ():
        try:
            image = read_image(path)
        except ImageReadError:
            continue
        patient = path.stem.split("--")[0]
        yield (
            {"truth": NOT_A_FRONTAL_IMAGE, "source": f"real {path.parent.name}", "patient": patient, "id": str(path)},
            image,
        )


def judged(gate: ClassificationModel, data: GateDataModule, split: str, others: Path | None) -> list[Row]:
    """Ask the gate about every picture, 64 at a time."""
    rows: list[Row] = []
    batch: list[tuple[Row, np.ndarray]] = []

    def flush() -> None:
        for (row, _), found in zip(batch, check_views(gate, [image for _, image in batch]), strict=True):
            rows.append({**row, "outcome": outcome(row["truth"], found)})
        batch.clear()

    for item in pictures(data, split, others):
        batch.append(item)
        if len(batch) == 64:
            flush()
    flush()
    return rows


def cost(gate: ClassificationModel) -> float:
    """Return the process CPU time of an image of 1 megapixel, in milliseconds: the median of 40."""
    times = []
    for seed in range(40):
        image = draw_phantom(seed, size=(1024, 1024)).image
        start = time.process_time()
        check_views(gate, [image])
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def shares(rows: list[Row]) -> dict[str, Any]:
    """Return the share of each outcome, and of all that were refused for whatever reason, with its interval."""
    patients = [row["patient"] for row in rows]
    outcomes = {name: {name} for name in sorted({row["outcome"] for row in rows})}
    outcomes["not answered"] = {"refused", "named", "misnamed"}
    found = {}
    for name, those in outcomes.items():
        hits = np.array([float(row["outcome"] in those) for row in rows])
        found[name] = bootstrap(weighted_mean, hits, groups=patients, share=True).to_dict()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", required=True)
    parser.add_argument("--root", required=True, help="folder of manifest.csv and images/")
    parser.add_argument("--others", type=Path, help="folder with a folder of real pictures a kind")
    parser.add_argument("--hold-out-source", help="the source that the gate was trained without")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    gate = ClassificationModel.from_pretrained(options.gate)
    data = GateDataModule(options.root, films=IMAGES, hold_out_source=options.hold_out_source)
    rows = judged(gate, data, options.split, options.others)
    tables: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        chest = row["truth"] != NOT_A_FRONTAL_IMAGE
        drawn = row["source"].startswith("drawn")
        tables[f"{'drawn chests' if drawn else 'images'}, {row['truth']}" if chest else row["source"]].append(row)
        if row["truth"] == UPRIGHT.name and not drawn:
            tables[f"films of {row['source']}"].append(row)
    found = {"split": options.split, "shares": {name: shares(part) for name, part in tables.items()}}
    found["cpu_ms"] = cost(gate)
    found["not passed"] = [
        f"{row['id']}: {row['outcome']}"
        for row in rows
        if row["truth"] == UPRIGHT.name and row["outcome"] != "passed" and not row["source"].startswith("drawn")
    ]
    found["let through"] = [
        f"{row['id']}: {row['outcome']}"
        for row in rows
        if row["outcome"] in ("passed", "miscorrected")
        and row["truth"] in (NOT_A_FRONTAL_IMAGE, *list(ORIENTATIONS)[1:])
    ]
    if options.json:
        print(json.dumps(found))
        return
    for name, part in found["shares"].items():
        words = (f"{word} {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for word, one in part.items())
        print(f"{name:<34} {len(tables[name]):5d}  {'; '.join(words)}")
    print("\n".join(found["not passed"]))
    print(f"{found['cpu_ms']:.1f} ms of CPU time an image of 1 megapixel")


if __name__ == "__main__":
    main()
