"""Films with their answers, lungs and heat maps, one batch after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.data import Record
from covidcxr.data.fitting import fit_film
from covidcxr.data.threads import tracked
from covidcxr.errors import ConfigError, DatasetError, ImageReadError
from covidcxr.evaluation.sample import Asked, FilmSample, as_pipeline
from covidcxr.explain import Explanation, explain_many
from covidcxr.prediction import Prediction
from covidcxr.transforms import LUNGS_OF_REGION

__all__ = ["ExplainedFilm", "explained_films"]


@dataclass(frozen=True, eq=False)
class ExplainedFilm:
    """One film, explained.

    Attributes:
        record: What is known of it.
        film: Grey, in [0, 1].
        explanation: Of the class asked for; None where the classifier could not be asked.
        lungs: By mask class: as the pipeline draws them, else as the data set does; may be empty.
    """

    record: Record
    film: Float[np.ndarray, "height width"]
    explanation: Explanation | None
    lungs: Mapping[str, Bool[np.ndarray, "height width"]]


def explained_films(
    model: Asked, sample: FilmSample, *, target: str | None, method: str, batch_size: int, progress: bool
) -> Iterator[ExplainedFilm]:
    """Explain the films of a sample; those that cannot be read go to its `failed`.

    Raises:
        ConfigError: If there is no classifier, or no film can be read.
        UnknownNameError: If there is no such class or method.
    """
    count = 0
    with as_pipeline(model) as pipeline:
        if pipeline.classifier is None:
            raise ConfigError("There is no classifier to explain: the pipeline has none.")
        batches = sample.batches(batch_size)
        for batch in tracked(batches, -(-len(sample) // batch_size), "batches", progress):
            answers = [
                one
                for one in pipeline.predict([film for _, film in batch], batch_size=batch_size)
                if isinstance(one, Prediction)
            ]
            asked = [number for number, answer in enumerate(answers) if answer.probabilities]
            ways = [answers[n].orientation for n in asked]
            films = [way.correct(batch[n][1]) for n, way in zip(asked, ways, strict=True)]
            lungs = [way.correct_masks(answers[n].masks) for n, way in zip(asked, ways, strict=True)]
            maps = explain_many(pipeline.classifier, films, lungs, target=target, method=method, batch_size=batch_size)
            found = {
                n: replace(seen, heat=way.turn(seen.heat).copy())
                for n, way, seen in zip(asked, ways, maps, strict=True)
            }
            for number, ((record, film), answer) in enumerate(zip(batch, answers, strict=True)):
                count += 1
                drawn = answer.masks if pipeline.lung_segmenter is not None else _given_lungs(record, film)
                yield ExplainedFilm(record, film, found.get(number), drawn)
    if not count:
        raise ConfigError(f"None of {len(sample)} films can be read: {next(iter(sample.failed.values()))}")


def _given_lungs(
    record: Record, film: Float[np.ndarray, "height width"]
) -> dict[str, Bool[np.ndarray, "height width"]]:
    """Read the lungs that the data set draws, at the film's size; what cannot be read is unknown."""
    names = [name for name in LUNGS_OF_REGION["background"] if name in record.mask_paths]
    if record.box is not None or not names:  # the film was cut, its masks are not
        return {}
    try:
        masks = fit_film(record, film, (film.shape[0], film.shape[1]), "stretch", names).masks
    except (ImageReadError, DatasetError):
        return {}
    return {name: mask > 0 for name, mask in masks.items()}
