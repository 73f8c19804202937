"""Wall time of `covidcxr predict` by one process and by several, and what many images would cost by that.

    python tests/benchmarks/predict_processes.py --images 200 --processes 1 2 --plan 100000000

The command itself runs on drawn JPEG images, in turns; its start, measured on `FEW` images, is taken off.
Threads of torch and OpenCV are those of OMP_NUM_THREADS. The plan multiplies: CPU seconds, bytes of results and of
images, all of one image, by the number of images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covidcxr.phantom import draw_phantom

LABELS = ("normal", "covid19", "pneumonia")
FEW = 8


def draw(folder: Path, images: int, size: int) -> int:
    """Write images, of which a dozen are drawn and the others differ in their grain; return their bytes."""
    rng = np.random.default_rng(0)
    drawn = [draw_phantom(seed, label=LABELS[seed % 3], size=(size, size)).image for seed in range(12)]
    folder.mkdir(parents=True)
    for number in range(images):
        noisy = drawn[number % 12] + 0.01 * rng.standard_normal((size, size), np.float32)
        pixels = np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)
    return sum(path.stat().st_size for path in folder.iterdir())


def predict(images: Path, out: Path, processes: int, model: str) -> tuple[float, float]:
    """Run the command; return its wall and CPU seconds, those of its processes included."""
    words = ["predict", str(images), "--out", str(out), "--model", model, "--format", "parquet", "--no-overlays"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "covidcxr", "--quiet", *words, "--processes", str(processes)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def plan(images: int, cpu_s: float, result_bytes: float, image_bytes: float, cores: int) -> dict[str, Any]:
    """Say what so many images take."""
    core_hours = images * cpu_s / 3600
    return {
        "images": images,
        "core_hours": round(core_hours),
        "hours_by_machines": {n: round(core_hours / (n * cores), 1) for n in (1, 10, 100)},
        "cores_a_machine": cores,
        "results_tb": round(images * result_bytes / 1e12, 2),
        "images_tb": round(images * image_bytes / 1e12, 2),
        "network_mb_s_a_machine": round(cores / cpu_s * image_bytes / 1e6, 1),
    }


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--plan", type=int, metavar="IMAGES", help="print what so many images would take")
    parser.add_argument("--cores", type=int, default=64, help="of a machine of the plan")
    options = parser.parse_args()
    results: dict[str, Any] = {"images": options.images, "size": options.size, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image_bytes = draw(folder / "many", options.images, options.size) / options.images
        draw(folder / "few", FEW, options.size)
        for turn in range(options.rounds):
            for processes in options.processes:
                few = predict(folder / "few", folder / f"few-{processes}-{turn}", processes, options.model)
                out = folder / f"many-{processes}-{turn}"
                many = predict(folder / "many", out, processes, options.model)
                wall, cpu = ((b - a) / (options.images - FEW) for a, b in zip(few, many, strict=True))
                row = {
                    "wall_s": many[0],
                    "start_s": few[0],
                    "wall_ms_an_image": 1000 * wall,
                    "cpu_ms_an_image": 1000 * cpu,
                }
                print(
                    processes, "process(es):", {name: round(value, 1) for name, value in row.items()}, file=sys.stderr
                )
                best = results.setdefault(str(processes), row)
                results[str(processes)] = {name: min(value, best[name]) for name, value in row.items()}
        result_bytes = sum(path.stat().st_size for path in out.rglob("*.parquet")) / options.images
    results |= {"image_kb": image_bytes / 1000, "result_kb": result_bytes / 1000}
    if options.plan:
        cpu_s = results[str(options.processes[-1])]["cpu_ms_an_image"] / 1000
        results["plan"] = plan(options.plan, cpu_s, result_bytes, image_bytes, options.cores)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
