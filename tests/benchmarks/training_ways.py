"""What the flags for faster training bring on this machine: time of a training step beside that without them.

    OMP_NUM_THREADS=1 python tests/benchmarks/training_ways.py
    python tests/benchmarks/training_ways.py --batch-size 64 --size 256 --steps 100       on a GPU

An FPN with an EfficientNet-Lite0 encoder learns drawn lungs, by a task and Lightning's Trainer, with images kept
in memory. Steps of each way are timed after the first three, in turns, and the faster round of two counts. The ratio is
below 1 where a flag makes a step faster. A step of `accumulate` holds a quarter of the images of the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from covidcxr import CSVDataModule, ModelConfig, PreprocessConfig, SegmentationTask
from covidcxr.phantom import write_dataset

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"channels_last": False}, {}),
    "channels_last": ({"channels_last": True}, {}),
    "bf16-mixed": ({"channels_last": False}, {"precision": "bf16-mixed"}),
    "compile": ({"channels_last": False, "compile": True}, {}),
    "accumulate": ({"channels_last": False}, {"accumulate_grad_batches": 4}),
}
"""Settings of the task, and of the Trainer."""
WARM_UP = 3


class Clock(Callback):
    """Takes the time after the first steps."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Start, or read, the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if trainer.fit_loop.total_batch_idx + 1 == WARM_UP:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - getattr(self, "start", 0.0)


def measure(folder: Path, way: str, size: int, batch_size: int, steps: int) -> float:
    """Return milliseconds an image."""
    task, trainer = WAYS[way]
    smaller = trainer.get("accumulate_grad_batches", 1)
    batch, count = batch_size // smaller, steps * smaller
    config = ModelConfig(
        "segmentation",
        "smp:fpn",
        ("lung_field",),
        "multilabel",
        {"encoder": "tu-tf_efficientnet_lite0"},
        PreprocessConfig(image_size=(size, size)),
    )
    data = CSVDataModule(
        folder,
        mask_columns={"lung_field": "lung_field"},
        mask_classes=("lung_field",),
        fractions=(1.0, 0.0),
        batch_size=batch,
        cache="memory",
        num_workers=0,
        augment=None,
    )
    clock = Clock()
    runner = Trainer(
        max_epochs=-1,
        max_steps=(count + WARM_UP) // smaller + 1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
        **trainer,
    )
    torch.manual_seed(0)
    runner.fit(SegmentationTask(config, **task), data)
    return 1000 * clock.seconds / ((runner.fit_loop.total_batch_idx + 1 - WARM_UP) * batch)


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    times = dict.fromkeys(WAYS, float("inf"))
    with tempfile.TemporaryDirectory() as name:
        folder = write_dataset(Path(name), 4 * options.batch_size, size=(256, 256)).parent
        for _ in range(options.rounds):
            for way in WAYS:
                value = measure(folder, way, options.size, options.batch_size, options.steps)
                times[way] = min(times[way], value)
    ratios = {
        way: {"ms_an_image": round(value, 1), "ratio": round(value / times["plain"], 2)} for way, value in times.items()
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
