"""Put models together into a pipeline: `python assemble_pipeline.py [LUNGS] [CLASSIFIER] [FILM]`.

LUNGS and CLASSIFIER are folders that `save_pretrained` wrote. By default: the bundled lung segmenter, a classifier with
fresh weights (its answers mean nothing), and a drawn image.
"""

import sys
import tempfile
from pathlib import Path

from covidcxr import ClassificationModel, ModelConfig, Pipeline, PreprocessConfig, SegmentationModel
from covidcxr.phantom import draw_phantom

given = dict(zip(("lungs", "classifier", "film"), sys.argv[1:], strict=False))

config = ModelConfig(
    task="classification",
    network="timm:mobilenetv3_small_050",
    classes=("covid19", "pneumonia", "normal"),
    preprocess=PreprocessConfig(image_size=(128, 128), region="lungs", lung_dilation=0.05),
)
pipeline = Pipeline(
    lung_segmenter=SegmentationModel.from_pretrained(given.get("lungs", "mini")),
    classifier=ClassificationModel.from_pretrained(given["classifier"])
    if "classifier" in given
    else ClassificationModel(config),
)
image = given.get("film", draw_phantom(0, label="covid19").image)
prediction = pipeline(image)
print(prediction.label or "cannot say", prediction.probabilities, prediction.reasons)

with tempfile.TemporaryDirectory() as scratch:
    folder = pipeline.save_pretrained(Path(scratch) / "my-pipeline")
    print(*sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")), sep="\n")
    again = Pipeline.from_pretrained(folder)(image)
assert again.probabilities == prediction.probabilities  # what is saved answers as what was made
