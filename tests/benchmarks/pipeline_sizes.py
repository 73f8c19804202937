"""What a pipeline adds to its bare networks, by size of the image and of the batch, decoding aside.

    OMP_NUM_THREADS=1 python tests/benchmarks/pipeline_sizes.py

Drawn images of 1, 4 and 40 megapixels, as arrays of 8 bits, each beside the networks alone at the size that they take,
in turns; then batches of 8 and of 32 images of 1 megapixel. Milliseconds of CPU an image, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from covidcxr import Pipeline
from covidcxr.phantom import draw_phantom

SIDES = (1000, 2000, 6324)
BATCHES = (8, 32)


def milliseconds(work: Callable[[], Any]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = Pipeline.from_pretrained(options.model)
    small = (255 * draw_phantom(seed=0, size=(1000, 1000)).image).astype(np.uint8)
    images = {side: cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR) for side in SIDES}
    inputs = [
        (model.network, torch.zeros(1, 1, *model.config.preprocess.image_size)) for model in pipeline.models().values()
    ]

    def bare() -> None:
        with torch.inference_mode():
            for network, image in inputs:
                network(image)

    works: dict[str, tuple[Callable[[], Any], int]] = {"bare networks": (bare, 1)}
    for side, image in images.items():
        works[f"{side * side / 1e6:.0f} MP"] = (lambda image=image: pipeline(image)), 1
    for count in BATCHES:
        many = [np.roll(small, shift, 1) for shift in range(count)]
        works[f"batch of {count}"] = (lambda many=many: list(pipeline.predict(many, batch_size=len(many)))), count
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds + 1):
        for name, (work, count) in works.items():
            times[name].append(milliseconds(work) / count)
    print(json.dumps({name: round(statistics.median(own[1:]), 1) for name, own in times.items()}))


if __name__ == "__main__":
    main()
