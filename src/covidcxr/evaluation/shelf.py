"""Films behind rows, opened again to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.evaluation.films import read_record, true_masks
from covidcxr.pipeline import Pipeline
from covidcxr.prediction import Prediction

if TYPE_CHECKING:
    from covidcxr.data.collection import Collection
    from covidcxr.explain import Explanation

__all__ = ["FilmShelf", "Look"]


@dataclass(frozen=True, eq=False)
class Look:
    """What there is to be seen of one film.

    Attributes:
        film: Grey, in [0, 1].
        answer: What the pipeline says of it; None = there is no pipeline.
        heat: Where its classifier looked; None = nothing to explain.
        masks: The true ones.
    """

    film: Float[np.ndarray, "height width"] = field(repr=False)
    answer: Prediction | None
    heat: Explanation | None
    masks: Mapping[str, Bool[np.ndarray, "height width"]] = field(repr=False)


class FilmShelf:
    """The films behind rows, to be looked at again.

    Args:
        data: The films.
        pipeline_of: Finds the pipeline that answered for a row; None = films are shown without answers.
    """

    def __init__(
        self, data: Collection, pipeline_of: Callable[[Mapping[str, Any]], Pipeline | None] | None = None
    ) -> None:
        self.data = data
        self._records = {record.image_id: record for record in data.records}
        self._pipeline_of = pipeline_of or (lambda row: None)

    def look(self, row: Mapping[str, Any], target: str | None = None) -> Look | None:
        """Open the film of a row, ask its pipeline again and explain a class.

        Args:
            row: Names the film.
            target: The class to explain.

        Returns:
            None if the film is not on the shelf or cannot be read.
        """
        record = self._records.get(str(row["image_id"]))
        if record is None:
            return None
        try:
            film = read_record(self.data, record)
            masks = true_masks(record, film.shape)
        except CovidCXRError:  # one bad film costs one entry of a gallery
            return None
        pipeline = self._pipeline_of(row)
        answer = None if pipeline is None else pipeline(film)
        heat = None
        if answer is not None and answer.probabilities:
            try:
                heat = answer.explain(target if target in answer.probabilities else None)
            except ConfigError:  # a network without a layer that keeps places
                heat = None
        return Look(film, answer, heat, masks)
