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
    "fit_image",
    "fit_mask",
    "letterbox_box",
    "normalize",
    "unfit_map",
]

if TYPE_CHECKING:
    from covidcxr.transforms.geometry import (
        LUNGS_OF_REGION,
        apply_region,
        dilate,
        fit_image,
        fit_mask,
        letterbox_box,
        normalize,
        unfit_map,
    )

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LUNGS_OF_REGION": "geometry",
        "apply_region": "geometry",
        "dilate": "geometry",
        "fit_image": "geometry",
        "fit_mask": "geometry",
        "letterbox_box": "geometry",
        "normalize": "geometry",
        "unfit_map": "geometry",
    },
)
