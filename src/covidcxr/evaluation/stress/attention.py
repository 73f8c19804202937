"""Does a classifier look at the lungs? The share of its heat that lies there."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.weighted import weighted_mean
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions.sample import Asked, ExplainedImage, Images, ImageSample, explained_images
from covidcxr.page import Block, Gallery, Picture, Section, Words
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.transforms.geometry import LUNGS_OF_REGION, dilate
from covidcxr.types import SplitName

__all__ = ["Attention", "AttentionRow", "attention"]

_SHOWN = 6
"""Images with the least heat in the lungs that are shown."""

_WIDE = 360
"""Longer side of their pictures."""


@dataclass(frozen=True)
class AttentionRow:
    """Where the heat of one image lies.

    Attributes:
        image_id: The image.
        patient_id: Its patient.
        source: Where it came from.
        label: Its true class, or "" where it has none or several.
        target: The class that was explained; "" where the classifier could not be asked.
        share: Share of the heat within the lungs, in [0, 1]; NaN where the map is empty or the lungs are not known.
        chance: Share of the image that the lungs cover: what heat spread evenly would give.
        empty: Whether nothing on the image speaks for the class.
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
        method: How the maps were made.
        region: What the classifier sees ("full", "lungs", "background", or several of an ensemble).
        overall: `share`, `chance` and their paired `difference`, over all images with a map and lungs.
        by_class: The same for the images of each true class.
        by_source: The same for the images of each source.
        rows: An image each.
        failed: From image id to why an image could not be read.
        least: Pictures of the images with the least heat in the lungs.
    """

    method: str
    region: str
    overall: dict[str, Estimate]
    by_class: dict[str, dict[str, Estimate]]
    by_source: dict[str, dict[str, Estimate]]
    rows: tuple[AttentionRow, ...] = field(repr=False)
    failed: dict[str, str] = field(default_factory=dict)
    least: tuple[Picture, ...] = field(default=(), repr=False)

    @property
    def summary(self) -> str:
        """What it comes to, in words."""
        share, chance = self.overall["share"], self.overall["chance"]
        if math.isnan(share.value):
            return "No image has both a heat map and lungs, so nothing can be said of where the model looks."
        words = (
            f"{_percent(share)} of the evidence lies within the lungs, which cover {chance.value:.0%} of the image "
            f"({self.method})."
        )
        if self.region == "lungs":
            words += " The model is shown nothing but the lungs, so this is how it was built and no merit."
        elif self.region == "background":
            words += " The model is shown the image without its lungs."
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "summary": self.summary,
            "method": self.method,
            "region": self.region,
            "overall": _plain(self.overall),
            "by_class": {name: _plain(one) for name, one in self.by_class.items()},
            "by_source": {name: _plain(one) for name, one in self.by_source.items()},
            "rows": [
                {name: None if value != value else value for name, value in asdict(row).items()} for row in self.rows
            ],
            "failed": dict(self.failed),
        }

    def sections(self) -> list[Section]:
        """Return the part of a report."""
        blocks: list[Block] = []
        groups = {"all images": self.overall, **self.by_class}
        groups |= {f"source {name}": one for name, one in self.by_source.items()}
        shown = {name: one["share"] for name, one in groups.items() if not math.isnan(one["share"].value)}
        if shown:
            title, chance = "Share of the heat within the lungs", self.overall["chance"].value
            figure = plot_estimates(shown, title=title, chance=chance, limits=(-0.02, 1.02))
            caption = f"{title}, by class and by source; dotted: the share of the image that they cover."
            blocks.append(as_picture(figure, f"{title}, by class and by source", caption))
        empty, unasked = sum(row.empty for row in self.rows), sum(not row.target for row in self.rows)
        left = {"got no answer": unasked, "have an empty map": empty, "could not be read": len(self.failed)}
        if any(left.values()):
            words = ", ".join(f"{count} {what}" for what, count in left.items() if count)
            blocks.append(Words(f"Left out of {len(self.rows) + len(self.failed)} images: {words}."))
        if self.least:
            blocks.append(Words("The images with the least heat in the lungs:"))
            blocks.append(Gallery(self.least))
        return [Section("Where the model looks", self.summary, blocks)]


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

    The lungs are those that the pipeline draws, else those of the data set: with the part behind heart and diaphragm
    where it is known.

    Args:
        model: A pipeline, or a classifier of the full image.
        data: A data module, or records or paths of images.
        split: Of a data module: "train", "val" or "test"; None = all images.
        method: A name of `covidcxr.explain.METHODS`.
        target: The class whose evidence is measured; None = each image's most probable one.
        dilation: By how much the lungs are widened first, as a fraction of the longer side: maps are coarse.
        max_images: Most images, drawn from as many patients as possible; None = all.
        batch_size: Images a batch.
        resamples: How often to resample patients.
        seed: Of the draw and the intervals.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: If there are no images, none can be read, there is no classifier, or a classifier of a region is
            given without its pipeline.
        UnknownNameError: If there is no such class or method.
    """
    if not 0 <= dilation < 1:
        raise ConfigError(f"dilation must be in [0, 1), not {dilation}.")
    sample = ImageSample(data, split=split, max_images=max_images, seed=seed)
    rows: list[AttentionRow] = []
    least: list[tuple[float, Picture]] = []
    found = explained_images(model, sample, target=target, method=method, batch_size=batch_size, progress=progress)
    for image in found:
        row = _row(image, dilation)
        rows.append(row)
        if row.share == row.share and (len(least) < _SHOWN or row.share < least[-1][0]):
            least = sorted([*least, (row.share, _picture(image, row))], key=lambda pair: pair[0])[:_SHOWN]
    groups = {"": ("", np.ones(len(rows), bool))}
    for kind in ("label", "source"):
        names = sorted({getattr(row, kind) for row in rows} - {""})
        groups |= {f"{kind}/{n}": (n, np.array([getattr(row, kind) == n for row in rows])) for n in names}
    scores = _score(rows, {name: images for name, (_, images) in groups.items()}, resamples, seed)
    return Attention(
        method,
        _region(model),
        scores[""],
        {name: scores[key] for key, (name, _) in groups.items() if key.startswith("label/")},
        {name: scores[key] for key, (name, _) in groups.items() if key.startswith("source/")},
        tuple(rows),
        dict(sample.failed),
        tuple(picture for _, picture in least),
    )


def _row(one: ExplainedImage, dilation: float) -> AttentionRow:
    record, share, chance = one.record, math.nan, math.nan
    lungs = next((one.lungs[name] for name in LUNGS_OF_REGION["background"] if name in one.lungs), None)
    if lungs is not None and lungs.any():
        wide = dilate(torch.from_numpy(lungs)[None, None].float(), dilation)[0, 0].numpy() > 0
        chance = float(wide.mean())
        if one.explanation is not None and not one.explanation.empty:
            share = float(one.explanation.heat[wide].sum(dtype=float) / one.explanation.heat.sum(dtype=float))
    target = "" if one.explanation is None else one.explanation.target
    empty = one.explanation is not None and one.explanation.empty
    return AttentionRow(
        record.image_id, record.patient, record.source, record.label or "", target, share, chance, empty
    )


def _score(
    rows: Sequence[AttentionRow], groups: Mapping[str, Bool[np.ndarray, " images"]], resamples: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    share, chance = np.array([row.share for row in rows]), np.array([row.chance for row in rows])
    chance = np.where(np.isnan(share), math.nan, chance)  # of the same images
    columns = {"share": share, "chance": chance, "difference": share - chance}
    values = {
        (group, name): np.where(images, column, math.nan)
        for group, images in groups.items()
        for name, column in columns.items()
    }

    def table(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
        return {"\0".join(key): weighted_mean(weights, column) for key, column in values.items()}

    images = {"\0".join(key): ~np.isnan(column) for key, column in values.items()}
    found = bootstrap_many(
        table, groups=[row.patient_id for row in rows], images=images, resamples=resamples, seed=seed
    )
    return {group: {name: found[f"{group}\0{name}"] for name in columns} for group in groups}


def _picture(one: ExplainedImage, row: AttentionRow) -> Picture:
    from PIL import Image

    assert one.explanation is not None
    picture = Image.fromarray(one.explanation.overlay(one.image))
    picture.thumbnail((_WIDE, _WIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    truth = f", truth {row.label}" if row.label else ""
    caption = f"{row.image_id}: {row.share:.0%} in the lungs; for {row.target}{truth}"
    return Picture(buffer.getvalue(), f"Heat map of {row.image_id}", caption)


def _region(model: Asked) -> str:
    classifier = model.classifier if isinstance(model, Pipeline) else model
    members = getattr(classifier, "members", ())
    return ", ".join(sorted({member.config.preprocess.region for member in members}))


def _plain(scores: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: one.to_dict() for name, one in scores.items()}


def _percent(one: Estimate) -> str:
    return f"{one.value:.0%}" + ("" if math.isnan(one.low) else f" [{one.low:.0%}, {one.high:.0%}]")
