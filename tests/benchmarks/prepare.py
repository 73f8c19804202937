"""What a compact copy saves: `python tests/benchmarks/prepare.py [--data DIR] [--images 200] [--size 2000] [--json]`.

Epochs of training images at 256 x 256, from the data set, from the PNG files of its compact copy and from the one
mapped file of the copy, in turns, in one run; in process CPU time an image, with and without augmentation. On drawn
images of 2,000 x 2,000 pixels as PNG, the size of images that hospitals hand out, and with --data on the images of a
folder with a `manifest.csv`. With --workers N also how many samples a second N worker processes give, and what memory
they hold, from PNG files, from the mapped file, and with `cache="memory"`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from covidcxr.data import CSVDataModule
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.phantom import draw_phantom

LABELS = ("normal", "covid19", "pneumonia")
ROUNDS = 3


def write_set(root: Path, pictures: int, size: int) -> Path:
    """Write drawn images with lung masks: a few, drawn at a quarter of the size, each with fresh grain at the whole."""
    rng = np.random.default_rng(0)
    drawn = [draw_phantom(seed, label=LABELS[seed % 3], size=(size // 4, size // 4)) for seed in range(12)]
    (root / "lungs").mkdir(parents=True)
    with (root / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "patient_id", "lung_mask"))
        for number in range(pictures):
            picture = drawn[number % len(drawn)]
            image = cv2.resize(picture.image, (size, size), interpolation=cv2.INTER_CUBIC)
            image += 0.01 * rng.standard_normal(image.shape, np.float32)
            mask = cv2.resize(picture.lung_field.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
            for name, pixels in ((f"{number}.png", image.clip(0, 1)), (f"lungs/{number}.png", mask)):
                cv2.imwrite(str(root / name), np.rint(pixels * 255).astype(np.uint8))
            table.writerow((f"{number}.png", LABELS[number % 3], number, f"lungs/{number}.png"))
    return root


def open_set(root: Path, augment: str | None) -> CSVDataModule:
    return CSVDataModule(
        root,
        mask_columns={"lung_field": "lung_mask"},
        mask_classes=["lung_field"],
        fractions=(1.0, 0.0),
        augment=augment,
        views="all",
    )


def epoch(module: CSVDataModule) -> float:
    """Return the CPU milliseconds an image of one epoch."""
    loader = module.train_dataloader()
    start = time.process_time()
    pictures = sum(len(batch["image"]) for batch in loader)
    return 1000 * (time.process_time() - start) / pictures


def memory_mb() -> dict[str, int]:
    """Return the memory of this process and its children: their own pages, and their share of those they share."""
    processes = [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    sums = {"pss": 0, "private": 0}
    for process in processes:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        values = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        sums["pss"] += values["Pss"]
        sums["private"] += values["Private_Dirty"]
    return {name: kilobytes // 1024 for name, kilobytes in sums.items()}


def with_workers(root: Path, workers: int, cache: Literal["memory"] | None = None) -> dict[str, int]:
    """Return the samples a second of a second epoch by worker processes, and the memory that is held then."""
    module = open_set(root, None)
    module.num_workers, module.cache, module.batch_size = workers, cache, 32
    loader = module.train_dataloader()
    for _ in range(2):
        start = time.perf_counter()
        images = sum(len(batch["image"]) for batch in loader)
    return {"samples_a_second": round(images / (time.perf_counter() - start)), **memory_mb()}


def compare(root: Path, copy: Path, workers: int = 0) -> dict[str, Any]:
    start = time.process_time()
    report = prepare_dataset(open_set(root, None), copy)
    files = copy.with_name(f"{copy.name}-png")
    shutil.copytree(copy, files, ignore=shutil.ignore_patterns("pixels.bin"))
    found: dict[str, Any] = {"films": report.images, "prepare_ms": 1000 * (time.process_time() - start) / report.images}
    paths = [
        path for record in open_set(root, None).records for path in (record.image_path, *record.mask_paths.values())
    ]
    found |= {"original_mb": sum(path.stat().st_size for path in paths) / 1e6, "copy_mb": report.size / 1e6}
    found["mapped_mb"] = (copy / "pixels.bin").stat().st_size / 1e6
    for augment in (None, "default"):
        modules = open_set(root, augment), open_set(files, augment), open_set(copy, augment)
        for module in modules:
            module.train_dataset[0]  # pays for what is loaded on demand
        rounds = [[epoch(module) for module in modules] for _ in range(ROUNDS)]
        original, copied, mapped = (statistics.median(column) for column in zip(*rounds, strict=True))
        words = "augmented" if augment else "plain"
        found |= {f"{words}_original_ms": original, f"{words}_copy_ms": copied, f"{words}_mapped_ms": mapped}
    if workers:
        ways: dict[str, tuple[Path, Literal["memory"] | None]]
        ways = {"png": (files, None), "mapped": (copy, None), "memory": (files, "memory")}
        found["workers"] = {name: with_workers(path, workers, cache) for name, (path, cache) in ways.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="a folder of images with a manifest.csv")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads that wait for each other burn CPU time on a busy machine
    with tempfile.TemporaryDirectory() as folder:
        roots = {
            f"drawn, {options.size} x {options.size} PNG": write_set(
                Path(folder) / "drawn", options.images, options.size
            )
        }
        if options.data:
            roots[f"films of {options.data}"] = Path(options.data)
        copies = {name: Path(folder, f"copy{place}") for place, name in enumerate(roots)}
        found = {name: compare(root, copies[name], options.workers) for name, root in roots.items()}
    if options.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        sizes = f"copy {row['copy_mb']:.1f} MB, mapped file {row['mapped_mb']:.1f} MB"
        print(f"{row['films']} {name}: {row['original_mb']:.1f} MB, {sizes}")
        print(f"  prepared in {row['prepare_ms']:.1f} ms CPU an image, once")
        for words in ("plain", "augmented"):
            original, copied, mapped = (row[f"{words}_{way}_ms"] for way in ("original", "copy", "mapped"))
            print(f"  {words} epoch: {original:.2f} ms, from the copy's PNG {copied:.2f}, from its file {mapped:.2f}")
        for way, numbers in row.get("workers", {}).items():
            print(f"  {options.workers} workers, {way}: {numbers}")


if __name__ == "__main__":
    main()
