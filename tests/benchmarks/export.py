"""How far an ONNX export is from its pipeline: `python tests/benchmarks/export.py DIR [--images 100] [--model mini]`.

Images are drawn at random from all pictures below DIR. Printed are the greatest differences of a probability: of each
file, which then resizes the images itself, and of the pipeline by `backend="onnx"`, with the pixels of its masks.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from covidcxr import Pipeline
from covidcxr.pipeline.export import export_pipeline
from covidcxr.pipeline.prediction import Prediction

KINDS = (".png", ".jpg", ".jpeg", ".dcm")


def differences(given: Prediction, wanted: Prediction) -> tuple[float, int]:
    """Return the greatest difference of a probability, and of a mask in pixels."""
    assert (given.label, given.reasons) == (wanted.label, wanted.reasons), (given.label, wanted.label)
    probabilities = (abs(given.probabilities[name] - value) for name, value in wanted.probabilities.items())
    masks = (int((given.masks[name] != mask).sum()) for name, mask in wanted.masks.items())
    return max(probabilities, default=0.0), max(masks, default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--model", default="mini")
    options = parser.parse_args()
    found = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in KINDS)
    images = random.Random(0).sample(found, min(options.images, len(found)))
    pipeline = Pipeline.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        about = export_pipeline(pipeline, folder, images=images)
        exported = Pipeline.from_pretrained(folder, backend="onnx")
        rows = [differences(exported(image), pipeline(image)) for image in images]
    files = {name: model["difference"] for name, model in about["models"].items()}
    probability, pixels = (max(column) for column in zip(*rows, strict=True))
    print(json.dumps({"images": len(images), "files": files, "pipeline": probability, "mask_pixels": pixels}, indent=2))


if __name__ == "__main__":
    main()
