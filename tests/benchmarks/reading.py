"""What a sample costs beside bare OpenCV: `python tests/benchmarks/reading.py [--size 256] [--rounds 30] [--json]`.

Drawn images as JPEG and PNG of three sizes, read by `CXRDataset` and by `cv2.imdecode` and `cv2.resize` (area) into a
tensor, in turns, in one run, on one thread: medians of CPU time, and their ratio (above 1: the data set is faster). The
bare loop checks nothing: no damaged file, no orientation, no second picture in the file, no aspect ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from covidcxr.data import CXRDataset, Record
from covidcxr.phantom import draw_phantom

SIDES = (384, 1024, 2048)


def write_images(folder: Path, kind: str, side: int) -> list[Path]:
    """Write two drawn images with some grain."""
    paths = []
    for number in range(2):
        rng = np.random.default_rng(number)
        drawn = cv2.resize(draw_phantom(number).image, (side, side), interpolation=cv2.INTER_LINEAR)
        grey = np.rint(255 * (drawn + 0.01 * rng.standard_normal(drawn.shape)).clip(0, 1)).astype(np.uint8)
        paths.append(folder / f"{side}-{number}.{kind}")
        Image.fromarray(grey).save(paths[-1], **({"quality": 90} if kind == "jpg" else {}))
    return paths


def read_bare(path: Path, size: int) -> torch.Tensor:
    """Read an image as a short script does."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(resized).float()[None] / 255


def milliseconds(read: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    start = time.thread_time()
    read()
    return 1000 * (time.thread_time() - start)


def compare(paths: list[Path], size: int, rounds: int) -> dict[str, float]:
    """Read images both ways, in turns."""
    images = CXRDataset([Record(path) for path in paths], classes=("normal",), image_size=(size, size))
    bare, ours = [], []
    for number in range(rounds):
        place = number % len(paths)
        bare.append(milliseconds(lambda place=place: read_bare(paths[place], size)))
        ours.append(milliseconds(lambda place=place: images[place]))
    both = statistics.median(bare), statistics.median(ours)
    return {"bare_ms": both[0], "covidcxr_ms": both[1], "ratio": both[0] / both[1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="height and width of the samples")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("jpg", "png"):
            for side in SIDES:
                paths = write_images(Path(folder), kind, side)
                table[f"{kind} {side}"] = compare(paths, options.size, options.rounds)
    if options.json:
        print(json.dumps(table, indent=2))
        return
    for name, row in table.items():
        print(f"{name:10} bare {row['bare_ms']:7.2f} ms   covidcxr {row['covidcxr_ms']:7.2f} ms   {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
