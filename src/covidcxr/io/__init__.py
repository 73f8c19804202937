"""Files: images and masks, DICOM, tables, archives, saved models; whole or not at all.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = [
    "MAX_PIXELS",
    "image_size",
    "is_single_image",
    "read_image",
    "read_mask",
    "write_image",
    "write_mask",
    "replace_file",
    "lock_folder",
    "path_inside",
    "run_folder",
    "StoredDtype",
    "bundled",
    "fetch",
    "read_json",
    "write_json",
    "load_weights",
    "save_weights",
]

if TYPE_CHECKING:
    from covidcxr.io.folders import lock_folder, path_inside, replace_file, run_folder
    from covidcxr.io.image import (
        MAX_PIXELS,
        image_size,
        is_single_image,
        read_image,
        read_mask,
        write_image,
        write_mask,
    )
    from covidcxr.io.pretrained import StoredDtype, bundled, fetch, load_weights, read_json, save_weights, write_json

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MAX_PIXELS": "image",
        "image_size": "image",
        "is_single_image": "image",
        "read_image": "image",
        "read_mask": "image",
        "write_image": "image",
        "write_mask": "image",
        "replace_file": "atomic",
        "lock_folder": "folders",
        "path_inside": "folders",
        "run_folder": "folders",
        "StoredDtype": "pretrained",
        "bundled": "pretrained",
        "fetch": "pretrained",
        "read_json": "pretrained",
        "write_json": "pretrained",
        "load_weights": "pretrained",
        "save_weights": "pretrained",
    },
)
