"""Draws chest radiographs whose lungs, heart and opacities are known to the pixel.

No real image may be handed on with this library, so these stand in for them: in the demo, the golden inputs of
saved models, the pictures of the documentation, and the tests. They are cartoons of anatomy, not of patients.

An image is drawn as it is exposed: every organ adds to the matter in the beam (air takes away), and the image's
curve turns the sum into grey. So ribs shine through the heart and an opacity hides the vessels behind it.
"""

from __future__ import annotations

from covidcxr.phantom.anatomy import LABELS as LABELS
from covidcxr.phantom.anatomy import VIEWS as VIEWS
from covidcxr.phantom.anatomy import PhantomLabel, PhantomView, Sex
from covidcxr.phantom.draw import Phantom, draw_dataset, draw_phantom, write_dataset
from covidcxr.phantom.others import OTHERS as OTHERS
from covidcxr.phantom.others import OtherKind, draw_other

__all__ = [
    "Phantom",
    "PhantomLabel",
    "PhantomView",
    "Sex",
    "OtherKind",
    "draw_phantom",
    "draw_dataset",
    "draw_other",
    "write_dataset",
]
