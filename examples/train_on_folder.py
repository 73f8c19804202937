"""Train a classifier on one folder a class: `python train_on_folder.py [FOLDER]`. Without a folder it draws images."""

import argparse
import tempfile
from pathlib import Path

import cv2
from lightning import Trainer

from covidcxr import ClassificationTask, FolderDataModule, ModelConfig, PreprocessConfig
from covidcxr.evaluation import score_rows
from covidcxr.phantom import draw_dataset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", nargs="?")
parser.add_argument("--patient-pattern", default=r"(.+)_\d+\.", help="finds the patient in a file name")
options = parser.parse_args()

scratch = Path(tempfile.mkdtemp(prefix="covidcxr-"))
root, side, epochs = options.folder, 256, 20
if root is None:
    root, side, epochs = scratch / "films", 64, 2
    for number, phantom in enumerate(draw_dataset(30, size=(96, 96))):
        (root / phantom.label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / phantom.label / f"person{number:03d}_1.png"), (phantom.image * 255).round())

data = FolderDataModule(root, patient_pattern=options.patient_pattern, image_size=(side, side), balance="class")
model = ModelConfig(
    task="classification",
    network="timm:mobilenetv3_small_050",
    classes=data.classes,
    preprocess=PreprocessConfig(image_size=(side, side)),
)
task = ClassificationTask(model, lr=1e-3)
trainer = Trainer(max_epochs=epochs, default_root_dir=scratch, logger=False)
trainer.fit(task, data)
trainer.test(task, data, verbose=False)
for name, estimate in score_rows(task.rows).items():
    print(f"{name:<24} {estimate}  {estimate.patients} patients")
print("Saved", task.save_pretrained(scratch / "my-model"))
