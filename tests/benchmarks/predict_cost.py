"""What one image costs: `python tests/benchmarks/predict_cost.py [--model mini] [--films 40] [--size 1024] [--json]`.

Drawn images as JPEG, from bytes to answer, in process CPU time (all threads), through a pipeline; beside it
the lung segmenters that others use, by themselves, on the same images in the same run: an FPN with DenseNet121 at 256
(the network of an earlier published system) and the PSPNet of torchxrayvision at 512. Both have fresh weights: speed
does not depend on them. Memory is that of a process that does nothing but load the pipeline and answer; what
`import torch` takes of it depends on the build of torch: that for CUDA takes twice as much as that for CPUs.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from covidcxr import ModelConfig, Pipeline, SegmentationModel, read_image
from covidcxr.phantom import draw_phantom

LABELS = ("normal", "covid19", "pneumonia")
MEMORY = """
import sys, torch
from covidcxr import Pipeline
image = sys.stdin.buffer.read()
status = lambda name: next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith(name))
bare = status("VmHWM")
pipeline = Pipeline.from_pretrained(sys.argv[1])
for _ in range(10):
    pipeline(image)
print(bare, status("VmHWM"), status("RssAnon"))
"""


def jpegs(count: int, size: int) -> list[bytes]:
    """Draw images and write them as JPEG files."""
    files = []
    for seed in range(count):
        image = draw_phantom(seed, label=LABELS[seed % 3], size=(size, size)).image
        file = io.BytesIO()
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def fpn_densenet121() -> Callable[[bytes], object]:
    """Return the lung segmenter of an earlier published system, as a pipeline of its own."""
    classes = ("lung_field", "lung")
    config = ModelConfig("segmentation", "smp:fpn", classes, "multilabel", {"encoder": "densenet121"})
    return Pipeline(lung_segmenter=SegmentationModel(config))


def pspnet() -> Callable[[bytes], object]:
    """Return torchxrayvision's segmenter of 14 structures, without its weights, which it would download."""
    from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet as build

    network = build(14).eval()

    def segment(file: bytes) -> object:
        image = torch.from_numpy(read_image(file))[None, None].expand(1, 3, -1, -1)
        with torch.inference_mode():
            return network(torch.nn.functional.interpolate(image, size=(512, 512), mode="bilinear")).sigmoid() >= 0.5

    return segment


def cost(answer: Callable[[bytes], object], files: list[bytes]) -> float:
    """Return the median process CPU time an image, in ms; the first image pays for what is loaded on demand."""
    answer(files[0])
    times = []
    for file in files:
        start = time.process_time()
        answer(file)
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = jpegs(options.films, options.size)
    pipeline = Pipeline.from_pretrained(options.model)
    found: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    found |= {"films": len(files), "pixels": options.size**2, f"{options.model}_ms": cost(pipeline, files)}
    found["fpn_densenet121_ms"] = cost(fpn_densenet121(), files)
    found["pspnet_ms"] = cost(pspnet(), files[: max(3, len(files) // 10)])
    for part in pipeline.models().keys() - {"lung_segmenter"}:
        rest = Pipeline(**{name: model for name, model in pipeline.models().items() if name != part})
        found[f"without_{part}_ms"] = cost(rest, files)
    bare, peak, own = subprocess.run(
        [sys.executable, "-c", MEMORY, options.model], input=files[0], capture_output=True, check=True
    ).stdout.split()
    found |= {"import_torch_mb": int(bare), "peak_mb": int(peak), "own_mb": int(own)}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
