"""Are a classifier's heat maps true to it? Deletion and insertion over many images."""

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
from covidcxr.evaluation.plots import COLORS, as_picture, panels
from covidcxr.evaluation.predictions.sample import Asked, ExplainedImage, Images, ImageSample, explained_images
from covidcxr.explain import CURVES, Faithfulness, faithfulness
from covidcxr.models import Classifier
from covidcxr.models.network import lungs_of
from covidcxr.page import Section
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.transforms.geometry import fit_image, fit_mask, letterbox_box
from covidcxr.types import SplitName

__all__ = ["MapFaithfulness", "map_faithfulness"]


@dataclass(frozen=True)
class MapFaithfulness:
    """How true heat maps are to their classifier, with patient-clustered intervals (Petsiuk 2018, RISE).

    Attributes:
        method: How the maps were made.
        scores: Mean areas under the curves: `deletion` (low is good), `insertion` (high is good), both of a
            `random_...` map, and the paired gains over it, `deletion_gain` and `insertion_gain`: above 0, the map tells
            more than chance.
        fractions: The share of what the model sees that was taken away or shown, from 0 to 1.
        curves: By name, the mean probability of the class at these fractions.
        failed: From image id to why an image could not be read.
    """

    method: str
    scores: dict[str, Estimate]
    fractions: Float[np.ndarray, " steps"] = field(repr=False)
    curves: dict[str, Float[np.ndarray, " steps"]] = field(repr=False)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """What it comes to, in words."""
        gains = {name: self.scores[f"{name}_gain"] for name in ("deletion", "insertion")}
        held = [name for name, one in gains.items() if one.low > 0]
        figures = " and ".join(f"{name} by {one}" for name, one in gains.items())
        if len(held) == 2:
            words = f"The maps of {self.method} tell what the model answers by"
        elif held:
            words = f"The maps of {self.method} tell a part of what the model answers by"
        else:
            words = f"The maps of {self.method} tell no more than random ones of what the model answers by"
        return f"{words}: against random maps they better {figures} (area under the curve, {self.count} images)."

    @property
    def count(self) -> int:
        """Number of images."""
        return self.scores["deletion"].count

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "summary": self.summary,
            "method": self.method,
            "scores": {name: one.to_dict() for name, one in self.scores.items()},
            "fractions": self.fractions.tolist(),
            "curves": {name: values.tolist() for name, values in self.curves.items()},
            "failed": dict(self.failed),
        }

    def sections(self) -> list[Section]:
        """Return the part of a report."""
        figure, axes = panels(2, width=3.6, height=2.8)
        for axis, name, words in zip(axes, ("deletion", "insertion"), ("taken away", "shown"), strict=True):
            axis.plot(self.fractions, self.curves[name], color=COLORS[0], label="by the map")
            axis.plot(self.fractions, self.curves[f"random_{name}"], color=COLORS[1], linestyle="--", label="by chance")
            axis.set(title=name.capitalize(), xlabel=f"share {words}", ylabel="probability", ylim=(0, 1))
            axis.legend(frameon=False, fontsize=8)
        caption = "Mean probability of the class while what the map marks is taken away, or shown, first."
        return [Section("Do the heat maps tell the truth?", self.summary, [as_picture(figure, caption, caption)])]


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

    Images are measured at the model's size; images whose map is empty are left out.

    Args:
        model: A pipeline, or a classifier of the full image.
        data: A data module, or records or paths of images.
        split: Of a data module: "train", "val" or "test"; None = all images.
        method: A name of `covidcxr.explain.METHODS`.
        target: The class; None = each image's most probable one.
        steps: In how many steps an image is taken away and shown.
        max_images: Most images, drawn from as many patients as possible; None = all.
        batch_size: Images a batch.
        resamples: How often to resample patients.
        seed: Of the draw, the random maps and the intervals.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: If there are no images, no map could be made, there is no classifier, or a classifier of a region
            is given without its pipeline.
        UnknownNameError: If there is no such class or method.
    """
    sample = ImageSample(data, split=split, max_images=max_images, seed=seed)
    patients: list[str] = []
    measured: list[Faithfulness] = []
    found = explained_images(model, sample, target=target, method=method, batch_size=batch_size, progress=progress)
    for number, one in enumerate(found):
        if one.explanation is not None and not one.explanation.empty:
            classifier = model.classifier if isinstance(model, Pipeline) else model
            assert isinstance(classifier, Classifier)
            patients.append(one.record.patient)
            measured.append(_measure(classifier, one, steps, seed + number))
    if not measured:
        raise ConfigError(
            f"None of {len(sample)} images has a heat map that is not empty, so there is nothing to measure."
        )
    areas = {name: np.concatenate([image.area(name) for image in measured]) for name in CURVES}
    areas["deletion_gain"] = areas["random_deletion"] - areas["deletion"]
    areas["insertion_gain"] = areas["insertion"] - areas["random_insertion"]
    scores = bootstrap_many(
        lambda weights: {name: weighted_mean(weights, values) for name, values in areas.items()},
        groups=patients,
        resamples=resamples,
        seed=seed,
    )
    curves = {name: np.concatenate([getattr(image, name) for image in measured]).mean(0) for name in CURVES}
    return MapFaithfulness(method, scores, measured[0].fractions, curves, dict(sample.failed))


def _measure(model: Classifier, one: ExplainedImage, steps: int, seed: int) -> Faithfulness:
    """Measure one image at the size of the largest member, without padding, which nobody could take away."""
    assert one.explanation is not None
    settings = [member.config.preprocess for member in model.members]
    frame = max((own.image_size for own in settings), key=math.prod)
    size = letterbox_box(one.image.shape[0], one.image.shape[1], frame)[2:]
    image, heat = (torch.from_numpy(array)[None, None] for array in (one.image, one.explanation.heat))
    region = next((own.region for own in settings if own.region != "full"), None)
    lungs = None
    if region is not None:
        lungs = fit_mask(torch.from_numpy(lungs_of(one.lungs, region))[None, None].float(), size, "stretch")
    image, heat = (fit_image(tensor, size, "stretch") for tensor in (image, heat))
    return faithfulness(model, image, heat[:, 0], one.explanation.target, lungs, steps=steps, seed=seed)
