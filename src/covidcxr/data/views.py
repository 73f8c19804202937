"""Projections: which films are frontal radiographs."""

from __future__ import annotations

import re
from functools import cache

__all__ = ["bimcv_view", "projection"]

_PROJECTIONS = {  # words of a view as data sets write it -> what it shows
    "lateral": {"l", "ll", "rl", "lat", "lateral", "oblique", "decubitus"},
    "abdomen": {"abdomen", "kub"},
    "CT slice": {"ct", "axial", "coronal", "sagittal", "volume"},
    "unknown view": {"unknown"},
}


@cache
def projection(view: str | None) -> str:
    """Tell what a film shows from its view.

    Args:
        view: As the source states it ("PA", "AP Supine", "L", "Axial", ...); "unknown" where a source that states the
            views of its films does not know this one's; None where the source states no views.

    Returns:
        "frontal", "lateral", "abdomen", "CT slice" or "unknown view". What is not stated, and any other word, counts
        as frontal.
    """
    words = set(re.split(r"[^a-z]+", (view or "").lower()))
    return next((name for name, known in _PROJECTIONS.items() if words & known), "frontal")


def bimcv_view(name: str) -> str | None:
    """Read the view from the name of a BIMCV film: "PA" from "sub-S00001_ses-E00002_run-1_bp-chest_vp-pa_dx.png"."""
    tag = re.search(r"_vp-([a-z]+)_", name)
    return tag[1].upper() if tag else None
