"""From an image to a prediction: masks, calibrated probabilities and reasons. Needs no Lightning.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = [
    "Pipeline",
    "Prediction",
    "FailedPrediction",
    "in_words",
]

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import (
        Pipeline,
    )
    from covidcxr.pipeline.prediction import (
        FailedPrediction,
        Prediction,
        in_words,
    )

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Pipeline": "pipeline",
        "Prediction": "prediction",
        "FailedPrediction": "prediction",
        "in_words": "prediction",
    },
)
