"""What is done to images and masks: geometry, preprocessing, augmentation and mask post-processing.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = [
    "LUNGS_OF_REGION",
    "apply_region",
    "dilate",
    "resize_image",
    "resize_mask",
    "letterbox_box",
    "normalize",
    "restore_map",
]

if TYPE_CHECKING:
    from covidcxr.transforms.geometry import (
        LUNGS_OF_REGION,
        apply_region,
        dilate,
        normalize,
        resize_image,
        resize_mask,
        restore_map,
    )
    from covidcxr.transforms.pyramid import letterbox_box

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LUNGS_OF_REGION": "geometry",
        "apply_region": "geometry",
        "dilate": "geometry",
        "resize_image": "geometry",
        "resize_mask": "geometry",
        "letterbox_box": "pyramid",
        "normalize": "geometry",
        "restore_map": "geometry",
    },
)
