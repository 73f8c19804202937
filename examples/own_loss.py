"""Train a lung segmenter with a loss of one's own: `python own_loss.py [ROOT]`. Without a root it draws images.

ROOT holds `manifest.csv` with the columns path, label, patient_id and lung_field (the mask's file).
"""

import sys
import tempfile

import torch
from lightning import Trainer

from covidcxr import CSVDataModule, ModelConfig, PreprocessConfig, SegmentationTask
from covidcxr.phantom import write_dataset
from covidcxr.registry import SEGMENTATION_LOSSES


@SEGMENTATION_LOSSES.register("squared")
class Squared(torch.nn.Module):
    """Mean squared difference of mask and probability (Brier)."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch."""
        return (logits.float().sigmoid() - target).square().mean()


root, side, epochs = (sys.argv[1], 256, 20) if len(sys.argv) > 1 else (tempfile.mkdtemp(prefix="covidcxr-"), 64, 2)
if len(sys.argv) == 1:
    write_dataset(root, 24, size=(96, 96))
data = CSVDataModule(
    root, mask_columns={"lung_field": "lung_field"}, mask_classes=["lung_field"], image_size=(side, side), batch_size=8
)
preprocess = PreprocessConfig(image_size=(side, side))
network = {"network": "smp:fpn", "network_args": {"encoder": "tu-mobilenetv3_small_050"}}
model = ModelConfig("segmentation", classes=data.mask_classes, mode="binary", preprocess=preprocess, **network)
task = SegmentationTask(model, loss="dice+squared", lr=3e-3)
trainer = Trainer(max_epochs=epochs, default_root_dir=root, logger=False)
trainer.fit(task, data)
print(trainer.test(task, data, verbose=False))
