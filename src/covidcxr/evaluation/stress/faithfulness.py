"""Faithfulness of a classifier's heat maps: deletion and insertion over many images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.weighted import weighted_mean
from covidcxr.evaluation.predictions.sample import Asked, ExplainedImage, Images, ImageSample, explained_images
from covidcxr.explain import CURVES, Faithfulness, faithfulness
from covidcxr.models import Classifier
from covidcxr.models.network import lungs_of
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.transforms.geometry import resize_image, resize_mask
from covidcxr.transforms.pyramid import letterbox_box
from covidcxr.types import SplitName
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.plain import count_of

__all__ = ["MapFaithfulness", "map_faithfulness"]


@dataclass(frozen=True)
class MapFaithfulness:
    """How faithful heat maps are to their classifier, with patient-clustered intervals (Petsiuk 2018, RISE).

    Attributes:
        method: Method of the heat maps.
        scores: Mean areas under the curves, in [0, 1]: `deletion` (low is good), `insertion` (high is good), both of a
            `random_...` map, and the paired gains over it, `deletion_gain` and `insertion_gain`: above 0, the map is
            better than chance.
        fractions: The share of what the model sees that was removed or shown, from 0 to 1.
        curves: By name, the mean probability of the class at these fractions.
        failed: From image id to why an image could not be read.

    Example:
        ```python
        import numpy as np

        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.stress.faithfulness import MapFaithfulness

        names = ("deletion", "deletion_gain", "insertion_gain")
        scores = {name: Estimate(0.2, 0.1, 0.3, 20, 10) for name in names}
        result = MapFaithfulness("gradcam", scores, np.linspace(0, 1, 5), {})
        assert result.count == 20
        assert "better than random maps" in result.summary
        ```
    """

    method: str
    scores: dict[str, Estimate]
    fractions: Float[np.ndarray, " steps"] = field(repr=False)
    curves: dict[str, Float[np.ndarray, " steps"]] = field(repr=False)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The conclusion in one sentence."""
        gains = {name: self.scores[f"{name}_gain"] for name in ("deletion", "insertion")}
        better = [name for name, gain in gains.items() if gain.low > 0]
        figures = " and ".join(f"{name} {gain}" for name, gain in gains.items())
        verdict = (
            "no better than" if not better else "better than" if len(better) == 2 else f"better in {better[0]} than"
        )
        return (
            f"The maps of {self.method} are {verdict} random maps: gain in {figures} (area under the curve, "
            f"{count_of(self.count, 'image')})."
        )

    @property
    def count(self) -> int:
        """Number of images."""
        return self.scores["deletion"].count

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "summary": self.summary,
            "method": self.method,
            "scores": {name: estimate.to_dict() for name, estimate in self.scores.items()},
            "fractions": self.fractions.tolist(),
            "curves": {name: values.tolist() for name, values in self.curves.items()},
            "failed": dict(self.failed),
        }


@old_arguments(max_films="max_images")
def map_faithfulness(
    model: Asked,
    data: Images,
    *,
    split: SplitName | None = "test",
    method: str = "gradcam",
    target: str | None = None,
    steps: int = 20,
    max_images: int | None = None,
    batch_size: int = 8,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> MapFaithfulness:
    """Measure deletion and insertion of a classifier's heat maps over many images, beside random maps.

    Images are measured at the model's input size; images whose map is empty are left out.

    Args:
        model: A pipeline, or a classifier of the full image.
        data: A data module, or records or paths of images.
        split: Of a data module: "train", "val" or "test"; None = all images.
        method: A name of `covidcxr.explain.METHODS`.
        target: The class; None = each image's most probable one.
        steps: Number of steps in which an image is removed and shown.
        max_images: Most images, drawn from as many patients as possible; None = all.
        batch_size: Images in a batch.
        resamples: Number of bootstrap resamples of patients.
        seed: Seed of the draw, the random maps and the intervals.
        progress: Show a progress bar on standard error.

    Returns:
        The areas and the mean curves.

    Raises:
        ConfigError: If there are no images, no map could be made, there is no classifier, or a classifier of a region
            is given without its pipeline.
        UnknownNameError: If there is no such class or method.
    """
    sample = ImageSample(data, split=split, max_images=max_images, seed=seed)
    patients: list[str] = []
    measured: list[Faithfulness] = []
    images = explained_images(model, sample, target=target, method=method, batch_size=batch_size, progress=progress)
    for number, image in enumerate(images):
        if image.explanation is not None and not image.explanation.empty:
            patients.append(image.record.patient)
            measured.append(_measure(model, image, steps, seed + number))
    if not measured:
        raise ConfigError(f"None of {len(sample)} images has a heat map that is not empty: nothing can be measured.")
    areas = {name: np.concatenate([image.area(name) for image in measured]) for name in CURVES}
    areas["deletion_gain"] = areas["random_deletion"] - areas["deletion"]
    areas["insertion_gain"] = areas["insertion"] - areas["random_insertion"]

    def table(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
        return {name: weighted_mean(weights, values) for name, values in areas.items()}

    scores = bootstrap_many(table, groups=patients, resamples=resamples, seed=seed)
    curves = {name: np.concatenate([getattr(image, name) for image in measured]).mean(0) for name in CURVES}
    return MapFaithfulness(method, scores, measured[0].fractions, curves, dict(sample.failed))


def _measure(model: Asked, explained: ExplainedImage, steps: int, seed: int) -> Faithfulness:
    """Measure an image at the size of the largest member, without padding, which cannot be removed."""
    classifier = model.classifier if isinstance(model, Pipeline) else model
    assert isinstance(classifier, Classifier)
    assert explained.explanation is not None
    settings = [member.config.preprocess for member in classifier.members]
    frame = max((own.image_size for own in settings), key=math.prod)
    size = letterbox_box(explained.image.shape[0], explained.image.shape[1], frame)[2:]
    image, heat = (torch.from_numpy(array)[None, None] for array in (explained.image, explained.explanation.heat))
    region = next((own.region for own in settings if own.region != "full"), None)
    lungs = None
    if region is not None:
        lungs = resize_mask(torch.from_numpy(lungs_of(explained.lungs, region))[None, None].float(), size, "stretch")
    image, heat = (resize_image(tensor, size, "stretch") for tensor in (image, heat))
    return faithfulness(classifier, image, heat[:, 0], explained.explanation.target, lungs, steps=steps, seed=seed)
