"""Attention: the share of a classifier's heat map that lies within the lungs."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from covidcxr.transforms.geometry import dilate, resize_image, resize_mask
from covidcxr.transforms.pyramid import letterbox_box
from covidcxr.types import LUNGS_OF_REGION, SplitName
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.plain import count_of

__all__ = ["Attention", "AttentionRow", "attention", "MapFaithfulness", "map_faithfulness"]

_SHOWN = 6
"""Number of images with the least heat in the lungs of which a picture is kept."""

_SIDE = 360
"""Longer side of these pictures in pixels."""


@dataclass(frozen=True)
class AttentionRow:
    """Where the heat of an image lies.

    Attributes:
        image_id: The image.
        patient_id: Its patient.
        source: Its source.
        label: Its true class, or "" where it has none or several.
        target: The class that was explained; "" where there is no prediction.
        share: Share of the heat within the lungs, in [0, 1]; NaN where the map is empty or the lungs are not known.
        chance: Share of the image that the lungs cover, in [0, 1]: what evenly spread heat would give.
        empty: Whether the map is empty: nothing in the image is evidence for the class.

    Example:
        ```python
        from covidcxr.evaluation.stress.attention import AttentionRow

        row = AttentionRow("a.png", "p1", "north", "covid19", "covid19", share=0.8, chance=0.3, empty=False)
        assert row.share > row.chance
        ```
    """

    image_id: str
    patient_id: str
    source: str
    label: str
    target: str
    share: float
    chance: float
    empty: bool


@dataclass(frozen=True)
class Attention:
    """How much of a classifier's heat lies within the lungs, with patient-clustered intervals.

    Attributes:
        method: Method of the heat maps.
        region: What the classifier sees ("full", "lungs", "background", or several of an ensemble).
        overall: `share`, `chance` and their paired `difference`, over all images with a map and lungs.
        by_class: The same for the images of each true class.
        by_source: The same for the images of each source.
        rows: The measurement of each image.
        failed: From image id to why an image could not be read.
        least: From image id to a PNG of image and heat map, for the images with the least heat in the lungs.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.stress.attention import Attention

        overall = {name: Estimate(value, 0.1, 0.9, 20, 10) for name, value in (("share", 0.7), ("chance", 0.3))}
        assert Attention("gradcam", "full", overall, {}, {}, ()).summary.startswith("70%")
        ```
    """

    method: str
    region: str
    overall: dict[str, Estimate]
    by_class: dict[str, dict[str, Estimate]]
    by_source: dict[str, dict[str, Estimate]]
    rows: tuple[AttentionRow, ...] = field(repr=False)
    failed: dict[str, str] = field(default_factory=dict)
    least: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def summary(self) -> str:
        """The conclusion in one or two sentences."""
        share, chance = self.overall["share"], self.overall["chance"]
        if math.isnan(share.value):
            return "No image has both a heat map and lungs, so it is not known where the model looks."
        interval = "" if math.isnan(share.low) else f" [{share.low:.0%}, {share.high:.0%}]"
        words = (
            f"{share.value:.0%}{interval} of the evidence lies within the lungs, which cover {chance.value:.0%} of the "
            f"image ({self.method})."
        )
        if self.region == "lungs":
            words += " The model sees only the lungs, so this follows from its construction and is not an achievement."
        elif self.region == "background":
            words += " The model sees the image without its lungs."
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "summary": self.summary,
            "method": self.method,
            "region": self.region,
            "overall": _plain(self.overall),
            "by_class": {name: _plain(scores) for name, scores in self.by_class.items()},
            "by_source": {name: _plain(scores) for name, scores in self.by_source.items()},
            "rows": [
                {name: None if value != value else value for name, value in asdict(row).items()} for row in self.rows
            ],
            "failed": dict(self.failed),
        }


@old_arguments(max_films="max_images")
def attention(
    model: Asked,
    data: Images,
    *,
    split: SplitName | None = "test",
    method: str = "gradcam",
    target: str | None = None,
    dilation: float = 0.03,
    max_images: int | None = None,
    batch_size: int = 8,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Attention:
    """Measure how much of a classifier's evidence lies within the lungs.

    The lungs are those that the pipeline segments, else those of the data set: with the part behind heart and diaphragm
    where it is known.

    Args:
        model: A pipeline, or a classifier of the full image.
        data: A data module, or records or paths of images.
        split: Of a data module: "train", "val" or "test"; None = all images.
        method: A name of `covidcxr.explain.METHODS`.
        target: The class whose evidence is measured; None = each image's most probable one.
        dilation: By how much the lungs are widened, as a fraction of the longer side: heat maps are coarse.
        max_images: Most images, drawn from as many patients as possible; None = all.
        batch_size: Images in a batch.
        resamples: Number of bootstrap resamples of patients.
        seed: Seed of the draw and the intervals.
        progress: Show a progress bar on standard error.

    Returns:
        The shares of all images, by class and by source.

    Raises:
        ConfigError: If there are no images, none can be read, there is no classifier, or a classifier of a region is
            given without its pipeline.
        UnknownNameError: If there is no such class or method.
    """
    if not 0 <= dilation < 1:
        raise ConfigError(f"dilation must be in [0, 1), not {dilation}.")
    sample = ImageSample(data, split=split, max_images=max_images, seed=seed)
    rows: list[AttentionRow] = []
    least: list[tuple[float, str, bytes]] = []
    images = explained_images(model, sample, target=target, method=method, batch_size=batch_size, progress=progress)
    for image in images:
        row = _measure(image, dilation)
        rows.append(row)
        if not math.isnan(row.share) and (len(least) < _SHOWN or row.share < least[-1][0]):
            least = sorted([*least, (row.share, row.image_id, _png(image))], key=lambda entry: entry[0])[:_SHOWN]
    pictures = {image_id: png for _, image_id, png in least}
    return Attention(method, _region(model), *_score(rows, resamples, seed), tuple(rows), dict(sample.failed), pictures)


def _measure(image: ExplainedImage, dilation: float) -> AttentionRow:
    record, explanation, share, chance = image.record, image.explanation, math.nan, math.nan
    lungs = next((image.lungs[name] for name in LUNGS_OF_REGION["background"] if name in image.lungs), None)
    if lungs is not None and lungs.any():
        wide = dilate(torch.from_numpy(lungs)[None, None].float(), dilation)[0, 0].numpy() > 0
        chance = float(wide.mean())
        if explanation is not None and not explanation.empty:
            share = float(explanation.heat[wide].sum(dtype=float) / explanation.heat.sum(dtype=float))
    target = "" if explanation is None else explanation.target
    empty = explanation is not None and explanation.empty
    return AttentionRow(
        record.image_id, record.patient, record.source, record.label or "", target, share, chance, empty
    )


_Scores = dict[str, Estimate]


def _score(
    rows: Sequence[AttentionRow], resamples: int, seed: int
) -> tuple[_Scores, dict[str, _Scores], dict[str, _Scores]]:
    """Average over all images, by class and by source, on the same resamples of patients."""
    groups = {("all", ""): np.ones(len(rows), bool)}
    for kind in ("label", "source"):
        values = np.array([getattr(row, kind) for row in rows])
        groups |= {(kind, name): values == name for name in sorted({*values.tolist()} - {""})}
    share, chance = np.array([row.share for row in rows]), np.array([row.chance for row in rows])
    chance = np.where(np.isnan(share), math.nan, chance)  # of the same images
    columns = {"share": share, "chance": chance, "difference": share - chance}
    values_of = {
        "\0".join((*group, name)): np.where(images, column, math.nan)
        for group, images in groups.items()
        for name, column in columns.items()
    }

    def table(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
        return {key: weighted_mean(weights, values) for key, values in values_of.items()}

    estimates = bootstrap_many(
        table,
        groups=[row.patient_id for row in rows],
        images={key: ~np.isnan(values) for key, values in values_of.items()},
        resamples=resamples,
        seed=seed,
    )
    scores: dict[str, dict[str, _Scores]] = {"all": {}, "label": {}, "source": {}}
    for key, estimate in estimates.items():
        kind, group, name = key.split("\0")
        scores[kind].setdefault(group, {})[name] = estimate
    return scores["all"][""], scores["label"], scores["source"]


def _png(image: ExplainedImage) -> bytes:
    from PIL import Image

    assert image.explanation is not None
    picture = Image.fromarray(image.explanation.overlay(image.image))
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _region(model: Asked) -> str:
    classifier = model.classifier if isinstance(model, Pipeline) else model
    members = getattr(classifier, "members", ())
    return ", ".join(sorted({member.config.preprocess.region for member in members}))


def _plain(scores: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_dict() for name, estimate in scores.items()}


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
        from covidcxr.evaluation.stress.attention import MapFaithfulness

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
            measured.append(_measure_faithfulness(model, image, steps, seed + number))
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


def _measure_faithfulness(model: Asked, explained: ExplainedImage, steps: int, seed: int) -> Faithfulness:
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
