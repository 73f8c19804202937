"""What one film costs: `python tests/benchmarks/predict_cost.py [--films 40] [--size 1024] [--json]`.

Drawn films as JPEG, from bytes to answer, in process CPU time (all threads), through the bundled pipeline and through
one whose lung segmenter is an FPN with DenseNet121 at 256 (the network of an earlier published system, fresh weights:
speed does not depend on them). Both see the same films, in turns, in one run; what is reported is their ratio as well.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time

import numpy as np
from PIL import Image

from covidcxr import ClassificationModel, ModelConfig, Pipeline, SegmentationModel
from covidcxr.phantom import draw_phantom

LABELS = ("normal", "covid19", "pneumonia")


def jpegs(count: int, size: int) -> list[bytes]:
    files = []
    for seed in range(count):
        image = draw_phantom(seed, label=LABELS[seed % 3], size=(size, size)).image
        file = io.BytesIO()
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def cost(pipeline: Pipeline, file: bytes) -> float:
    start = time.process_time()
    pipeline(file)
    return (time.process_time() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = jpegs(options.films, options.size)
    classes = ("lung_field", "lung")
    peer = ModelConfig("segmentation", "smp:fpn", classes, "multilabel", {"encoder": "densenet121"})
    mini = Pipeline.from_pretrained("mini")
    other = Pipeline(lung_segmenter=SegmentationModel(peer), classifier=ClassificationModel.from_pretrained("mini"))
    for pipeline in (mini, other):
        pipeline(files[0])  # the first film pays for what is loaded on demand
    times = [(cost(mini, file), cost(other, file)) for file in files]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    found = {"films": len(files), "pixels": options.size**2, "mini_ms": ours, "fpn_densenet121_ms": theirs}
    found["ratio"] = theirs / ours
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{len(files)} films of {options.size} x {options.size}, median process CPU time from JPEG to answer")
        print(f"mini {ours:.1f} ms, with FPN-DenseNet121 {theirs:.1f} ms: {found['ratio']:.1f} times as much")


if __name__ == "__main__":
    main()
