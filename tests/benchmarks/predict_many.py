"""Memory and time of `covidcxr predict` beside its models: `python tests/benchmarks/predict_many.py 200000`.

The models are replaced by a prediction that takes no time and opens no image, so what is left is the list, the lines,
the tables and the pages. It runs the command twice: from nothing, and once more when all is answered.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from covidcxr.pipeline import Pipeline, Prediction
from covidcxr.pipeline.folder import predict_folder

MASKS = {"lung": np.ones((8, 8), bool)}
IMAGE = np.zeros((8, 8), np.uint8)
PROBABILITIES = {"covid19": 0.5, "normal": 0.25, "pneumonia": 0.25}


def predict_batches(self: Pipeline, images: Iterable[Any], *, batch_size: int, **settings: Any) -> Iterator[list[Any]]:
    """Predict the same of every image."""
    batch = []
    for path in images:
        batch.append(Prediction(str(path), "normal", PROBABILITIES, (), MASKS, IMAGE))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def peak() -> int:
    """Return the largest resident memory so far, in MB (on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=int, help="number of images in the list")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="parquet", help="of the results")
    options = parser.parse_args()
    pipeline = Pipeline.from_pretrained("mini")
    Pipeline.predict_batches = predict_batches  # type: ignore[method-assign]
    before, seconds = peak(), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "list.csv")
        with names.open("w", encoding="utf-8") as file:
            file.write("id,path\n")
            file.writelines(f"study-{number:07},ward/{number:07}.png\n" for number in range(options.images))
        settings: dict[str, Any] = {"overlays": None, "masks": False, "format": options.format, "progress": False}
        for _ in range(2):
            start = time.process_time()
            summary = predict_folder([], Path(folder, "out"), manifest=names, model=pipeline, **settings)
            seconds.append(round(time.process_time() - start, 1))
            assert summary["films"] == options.images
    memory = {"mb_before": before, "mb_at_most": peak()}
    print(json.dumps({"images": options.images, "format": options.format, **memory, "cpu_s": seconds}))


if __name__ == "__main__":
    main()
