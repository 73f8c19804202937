"""Types that all packages share: what an image may be, what a batch holds."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, Literal, NotRequired, TypeAlias, TypedDict, Union

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import pydicom
    import torch

__all__ = [
    "ImageLike",
    "Sample",
    "Batch",
    "Region",
    "LUNGS_OF_REGION",
    "LUNG_CLASSES",
    "Fit",
    "TaskName",
    "Mode",
    "Vote",
    "SplitName",
    "CoverageBy",
    "AgeGroup",
    "Backend",
    "GEOMETRY",
]

ImageLike: TypeAlias = Union[
    str,
    os.PathLike[str],
    bytes,
    bytearray,
    memoryview,
    IO[bytes],
    "np.ndarray[Any, Any]",
    "PIL.Image.Image",
    "torch.Tensor",
    "pydicom.Dataset",
]
"""Whatever `covidcxr.io.read_image` reads."""

Region: TypeAlias = Literal["full", "box", "lungs", "background"]
"""What a classifier sees: the whole image, the upright rectangle around the lungs, only the lungs, or the image
without the lungs."""

LUNGS_OF_REGION: dict[Region, tuple[str, ...]] = {
    "full": (),
    "box": ("lung_field", "lung"),
    "lungs": ("lung_field", "lung"),
    "background": ("lung", "lung_field"),
}
"""The mask classes that a region is cut by, best first: to keep the lungs, the field without heart and diaphragm, as
segmenters draw it; to remove them, the wider outline, so that nothing of the lung is left."""

LUNG_CLASSES = LUNGS_OF_REGION["lungs"]
"""The mask classes that are lungs; every other class is a finding."""

Fit: TypeAlias = Literal["stretch", "letterbox"]
"""How an image is brought to the network's size: squeezed, or scaled and padded with black."""

TaskName: TypeAlias = Literal["segmentation", "classification"]
Mode: TypeAlias = Literal["binary", "multiclass", "multilabel"]
Vote: TypeAlias = Literal["soft", "hard"]
SplitName: TypeAlias = Literal["train", "val", "test"]
CoverageBy: TypeAlias = Literal["class", "source", "all"]
"""Of which images it is promised that the set of plausible classes holds the truth: of those of each class, of each
class in each source, or of all together."""
AgeGroup: TypeAlias = Literal["adult", "child"]

Backend: TypeAlias = Literal["torch", "onnx"]
"""What runs the models of a pipeline: torch, or ONNX Runtime the files that `covidcxr export` wrote."""

GEOMETRY = ("image_size", "fit", "region", "lung_dilation")
"""The settings of a model's preprocessing that place things in an image; a data module takes them from the model."""


class Sample(TypedDict):
    """One image as the data set gives it; `Batch` has the same keys, collated.

    `image`: float [1, H, W], grey, in [0, 1].
    `label`: int, index into the data module's classes; -1 = not labelled. Where classes are not exclusive: float
    [classes], 1 = the image shows it, 0 = it does not, NaN = not known.
    `mask`: float [C, H, W], 0 or 1, in the order of the data module's mask classes; a class that is unknown for
    this image is NaN. Absent without mask classes.
    `lung_mask`: float [1, H, W], 0 or 1: the lungs by which `image` was cut. Absent for region "full".

    Example:
        ```python
        from covidcxr import CXRDataset, Record

        images = CXRDataset([Record("image.png", label="normal")], classes=("normal", "covid19"), image_size=(32, 32))
        sample = images[0]
        assert sample["image"].shape == (1, 32, 32) and sample["label"] == 0
        ```
    """

    image: torch.Tensor
    label: torch.Tensor
    mask: NotRequired[torch.Tensor]
    lung_mask: NotRequired[torch.Tensor]
    image_id: str
    source: str
    patient_id: str


class Batch(TypedDict):
    """A collated list of `Sample`: tensors gain a leading batch axis, strings become lists.

    Example:
        ```python
        import torch

        from covidcxr.types import Batch

        image = torch.rand(2, 1, 32, 32)
        names = {"image_id": ["a", "b"], "patient_id": ["p", "q"], "source": ["ward", "ward"]}
        batch = Batch(image=image, label=torch.tensor([0, -1]), **names)
        assert batch["label"].tolist() == [0, -1]
        ```
    """

    image: torch.Tensor
    label: torch.Tensor
    mask: NotRequired[torch.Tensor]
    lung_mask: NotRequired[torch.Tensor]
    image_id: list[str]
    source: list[str]
    patient_id: list[str]
