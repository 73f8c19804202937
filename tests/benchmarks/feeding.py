"""Whether images keep a device busy: training steps fed by the data module, beside steps fed by one resident batch.

    python tests/benchmarks/feeding.py --data DIR                       on a GPU: bf16, channels-last, some 5 minutes
    python tests/benchmarks/feeding.py --steps 3 --batch-size 4 --size 64    a dry run on the CPU

DIR holds images and a `manifest.csv`; without it images are drawn. A compact copy is made first. Images a second of
each network at SIZE x SIZE, by both ways in turns; the ratio is 1 where reading costs nothing, and the goal is 0.9.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from covidcxr import ClassificationModel, CSVDataModule, ModelConfig, SegmentationModel
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.phantom import write_dataset

CLASSES = ("covid19", "normal", "pneumonia")
LUNGS = {"encoder": "tu-tf_efficientnet_lite0"}


def make_networks(size: int) -> dict[str, tuple[nn.Module, bool]]:
    """Return the networks, untrained, and whether they draw masks."""
    preprocess: dict[str, Any] = {"preprocess": {"image_size": [size, size]}}
    networks: dict[str, tuple[nn.Module, bool]] = {}
    for name in ("resnet50", "densenet121"):
        config = {"task": "classification", "network": f"timm:{name}", "classes": list(CLASSES)} | preprocess
        networks[name] = ClassificationModel(ModelConfig.from_dict(config)), False
    config = {"task": "segmentation", "network": "smp:fpn", "classes": ["lung_field"], "mode": "multilabel"}
    config |= {"network_args": LUNGS} | preprocess
    networks["fpn-efficientnet-lite0"] = SegmentationModel(ModelConfig.from_dict(config)), True
    return networks


def endless(loader: Any) -> Iterator[dict[str, Any]]:
    """Yield the batches of epoch after epoch."""
    while True:
        yield from loader


def make_step(model: nn.Module, masks: bool, device: torch.device) -> Callable[[dict[str, Any]], None]:
    """Return a training step: both ways of feeding take the same."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    lossy: nn.Module = nn.BCEWithLogitsLoss() if masks else nn.CrossEntropyLoss()

    def step(batch: dict[str, Any]) -> None:
        images: Tensor = batch["image"].to(device, non_blocking=True)
        target = batch["mask"].nan_to_num(0) if masks else batch["label"].clamp(min=0)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            loss = lossy(model(images).float(), target.to(device, non_blocking=True))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rate(step: Callable[[dict[str, Any]], None], batches: Iterator[dict[str, Any]], steps: int, size: int) -> float:
    """Return images a second."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(2):
        step(next(batches))
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    synchronize()
    return steps * size / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with manifest.csv; drawn images without it")
    parser.add_argument("--mask-column", default="lung_field", help="column of the lung masks (%(default)s)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--num-workers", type=int, default=8, help="processes that read (%(default)s)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, Any] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    size = options.batch_size
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or write_dataset(Path(folder, "drawn"), 2 * size, size=(512, 512)).parent
        masks = {"lung_field": options.mask_column}
        prepare_dataset(
            CSVDataModule(root, mask_columns=masks), Path(folder, "copy"), image_size=(options.size, options.size)
        )
        for name, (model, draws) in make_networks(options.size).items():
            data = CSVDataModule(
                Path(folder, "copy"),
                mask_columns=masks,
                mask_classes=["lung_field"] if draws else [],
                fractions=(1.0, 0.0),
                official_split=False,
                image_size=(options.size, options.size),
                batch_size=size,
                num_workers=options.num_workers,
            )
            step = make_step(model.to(device).train(), draws, device)
            fed = endless(data.train_dataloader())
            resident = repeat({key: each.to(device) for key, each in next(fed).items() if isinstance(each, Tensor)})
            rates = {"resident": 0.0, "fed": 0.0}
            for _ in range(2):
                for way, batches in (("resident", resident), ("fed", fed)):
                    rates[way] = max(rates[way], rate(step, iter(batches), options.steps, size))
            results[name] = {way: round(value, 1) for way, value in rates.items()}
            results[name]["ratio"] = round(rates["fed"] / rates["resident"], 3)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
