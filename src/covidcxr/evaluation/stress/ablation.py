"""Ablation: what does a classifier still know when the lungs are painted out, and when there is nothing else?"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from covidcxr.data import Record
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.weighted import stratified_auroc
from covidcxr.evaluation.predictions.sample import Asked, Images, ImageSample, as_pipeline, given_lungs, known_classes
from covidcxr.models import Classifier
from covidcxr.models.network import resize_images
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.types import LUNG_CLASSES, SplitName
from covidcxr.utils.threads import tracked

__all__ = ["VIEWS", "Ablation", "ablation", "keep_lungs", "paint_out_lungs"]

Grey = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]
OneOfMany = Float[np.ndarray, "_ _"]
"""An image among others of other sizes."""
Outlines = Mapping[str, Bool[np.ndarray, "_ _"]]
"""By mask class; those of an image that was turned have another shape."""

VIEWS = ("whole", "without_lungs", "lungs_only")
"""What the classifier is shown: the whole image, the image with its lungs painted out, the lungs alone."""

DIFFERENCES = {
    "needs_lungs": ("whole", "without_lungs"),
    "needs_rest": ("whole", "lungs_only"),
    "lungs_lead": ("lungs_only", "without_lungs"),
}
"""Paired differences of the AUROC: the first less the second."""

WIDENED = 0.03
"""By how much the lungs are widened, and over how far the image fades into the grey, as a fraction of the longer side:
what a segmenter leaves of their rim would be seen otherwise."""

GREY = 0.5
"""Stands for what is not shown: it is the same in all images, and so says nothing about any."""

_SHOWN = 3
_SIDE = 300


@dataclass(frozen=True)
class Ablation:
    """The AUROC of a classifier on whole images, on images without lungs and on lungs alone, of the same images.

    The lungs are painted out by an even grey, the same in all images, within the upright rectangle around both lungs,
    widened by 3 % of the longer side: no outline of the lungs is left. Of the lungs alone, everything outside them is
    that grey. The image fades into it within another 3 %. The classifier is the trained one: nothing is trained again.

    Attributes:
        images: Images with lungs, a label and a prediction.
        patients: Their patients.
        left_out: Images without one of these, by what they lack.
        region: What the classifier sees of an image ("full", "box", "lungs", ...).
        lungs: Who drew the lungs.
        scores: By class, and "" = the mean over the classes: AUROC of each of `VIEWS`, and the paired differences
            `needs_lungs` (whole less without lungs), `needs_rest` (whole less lungs alone) and `lungs_lead` (lungs
            alone less without lungs).
        pictures: From image id to a PNG of the three views side by side, of a few images.
        models: Number of models: of a cross-validation one a fold, whose AUROC compares images of one fold only.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.stress.ablation import Ablation

        values = {"whole": 0.9, "without_lungs": 0.55, "lungs_only": 0.88}
        scores = {"": {name: Estimate(value, value - 0.1, 1.0, 60, 50) for name, value in values.items()}}
        assert Ablation(60, 50, {}, "full", "the model", scores).overall["lungs_only"].value == 0.88
        ```
    """

    images: int
    patients: int
    left_out: Mapping[str, int]
    region: str
    lungs: str
    scores: Mapping[str, Mapping[str, Estimate]]
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    models: int = 1

    @property
    def overall(self) -> Mapping[str, Estimate]:
        """The scores of all classes together."""
        return self.scores[""]

    def to_dict(self) -> dict[str, Any]:
        """Return every number."""
        numbers = {
            name or "all classes": {score: estimate.to_dict() for score, estimate in scores.items()}
            for name, scores in self.scores.items()
        }
        plain = {key: value for key, value in asdict(self).items() if key not in ("scores", "pictures")}
        return plain | {"scores": numbers}


def ablation(
    model: Asked | Mapping[str, Asked],
    data: Images,
    *,
    split: SplitName | None = "test",
    folds: Mapping[str, str] | None = None,
    lungs: Pipeline | None = None,
    max_images: int | None = None,
    batch_size: int = 8,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Ablation:
    """Show a classifier images without their lungs, and lungs without the rest of the image.

    A model that reads a mark in the corner scores as well without the lungs, and by chance on the lungs alone; one that
    reads the lungs does the opposite. The models of a cross-validation answer each for the images that they were tested
    on. What they have in common may move from fold to fold, so images are compared with those of their own fold.

    Args:
        model: A pipeline, or a classifier of the full image; of a cross-validation one of each fold, by its name.
        data: A data module, or records of images with labels.
        split: Of a data module: "train", "val" or "test"; None = all images. With `folds` it does not count.
        folds: Of a cross-validation, from image id to the fold that tested the image; other images are not shown.
        lungs: Draws the lungs where the pipeline does not and the data set has no masks; None = the bundled `mini`.
        max_images: Most images, drawn from as many patients as possible; None = all.
        batch_size: Images in a batch.
        resamples: Number of bootstrap resamples of patients.
        seed: Seed of the draw and the intervals.
        progress: Show a progress bar on standard error.

    Returns:
        The scores.

    Raises:
        ConfigError: If there is no classifier, no image has lungs, a label and a prediction, or models and folds do not
            fit each other.
    """
    models = model if isinstance(model, Mapping) else {"": model}
    if lacking := ({""} if folds is None else set(folds.values())) - set(models):
        which = ", ".join(sorted(lacking)) or "all images"
        raise ConfigError(f"There is no model of {which}: give one model, or `folds` and a model for each fold.")
    part = split if folds is None else None
    sample = ImageSample(data, split=part, max_images=max_images, among=folds, seed=seed)
    with ExitStack() as stack:
        pipelines = {name: stack.enter_context(as_pipeline(own)) for name, own in models.items()}
        run = _Run(pipelines, folds or {}, lungs)
        for batch in tracked(sample.batches(batch_size), -(-len(sample) // batch_size), "batches", progress):
            run.add(batch)
    if sample.failed:
        run.left_out["cannot be read"] = len(sample.failed)
    if not run.records:
        why = ", ".join(f"{count} {reason}" for reason, count in run.left_out.items())
        raise ConfigError(f"Of {len(sample)} images none can be shown without its lungs: {why}.")
    return run.score(resamples, seed)


class _Run:
    """The probabilities of each view, collected batch by batch; each image by the pipeline of its fold."""

    def __init__(self, pipelines: Mapping[str, Pipeline], folds: Mapping[str, str], lungs: Pipeline | None) -> None:
        self.pipelines, self._folds, self._lungs = pipelines, folds, lungs
        self.classifiers = {
            name: pipeline.classifier for name, pipeline in pipelines.items() if pipeline.classifier is not None
        }
        if len(self.classifiers) < len(pipelines):
            raise ConfigError("There is no classifier whose lungs could be painted out.")
        self.config = next(iter(self.classifiers.values())).config
        if any(classifier.config.classes != self.config.classes for classifier in self.classifiers.values()):
            raise ConfigError("The models of the folds know other classes than each other.")
        self._drawer = "the bundled segmenter of lungs" if lungs is None else "the given segmenter of lungs"
        self.records: list[Record] = []
        self.strata: list[str] = []
        self.rows: dict[str, list[list[float]]] = {view: [] for view in VIEWS}
        self.left_out: dict[str, int] = {}
        self.drawers: set[str] = set()
        self.pictures: dict[str, bytes] = {}

    def add(self, batch: Sequence[tuple[Record, OneOfMany]]) -> None:
        """Predict all views of a batch of images."""
        by_fold: dict[str, list[tuple[Record, OneOfMany]]] = {}
        for record, image in batch:
            by_fold.setdefault(self._folds.get(record.image_id, ""), []).append((record, image))
        for fold, images in by_fold.items():
            self._add(fold, images)

    def _add(self, fold: str, batch: Sequence[tuple[Record, OneOfMany]]) -> None:
        pipeline = self.pipelines[fold]
        predictions = pipeline.predict([image for _, image in batch], batch_size=len(batch))
        kept = [
            (record, prediction.orientation.correct(image), masks)
            for (record, image), prediction in zip(batch, predictions, strict=True)
            if isinstance(prediction, Prediction)
            and (masks := self._usable(pipeline, record, image, prediction)) is not None
        ]
        if not kept:
            return
        outlines = [own for _, _, own in kept]
        views: dict[str, list[Grey]] = {view: [] for view in VIEWS}
        for record, image, own in kept:
            outline = np.logical_or.reduce([own[name] for name in LUNG_CLASSES if name in own])
            three = dict(zip(VIEWS, (image, paint_out_lungs(image, outline), keep_lungs(image, outline)), strict=True))
            for view, shown in three.items():
                views[view].append(shown)
            if len(self.pictures) < _SHOWN:
                self.pictures[record.image_id] = _png(list(three.values()))
        self.records += [record for record, _, _ in kept]
        self.strata += [fold] * len(kept)
        for view, images in views.items():
            self.rows[view] += _probabilities(self.classifiers[fold], images, outlines)

    def _usable(self, pipeline: Pipeline, record: Record, image: Grey, prediction: Prediction) -> Outlines | None:
        """Return the lungs of an image that counts; else note what it lacks."""
        lacking = "have no prediction"
        if prediction.probabilities:
            lacking = "have no label"
            if any(not math.isnan(value) for value in known_classes(record, self.config.classes)):
                masks = self._draw(pipeline, record, image, prediction)
                if any(masks[name].any() for name in LUNG_CLASSES if name in masks):
                    return prediction.orientation.correct_masks(dict(masks))
                lacking = "have no lungs"
        self.left_out[lacking] = self.left_out.get(lacking, 0) + 1
        return None

    def _draw(self, pipeline: Pipeline, record: Record, image: Grey, prediction: Prediction) -> Outlines:
        if pipeline.lung_segmenter is not None:
            self.drawers.add("the pipeline")
            return prediction.masks
        if masks := given_lungs(record, image):
            self.drawers.add("the data set")
            return masks
        if self._lungs is None:
            self._lungs = Pipeline(lung_segmenter=Pipeline.from_pretrained("mini").lung_segmenter)
        self.drawers.add(self._drawer)
        return self._lungs(image).masks

    def score(self, resamples: int, seed: int) -> Ablation:
        """Score the views on the same resamples of patients."""
        config, strata = self.config, np.array(self.strata)
        truth = np.array([known_classes(record, config.classes) for record in self.records])
        tables = {view: np.array(rows) for view, rows in self.rows.items()}
        used = [_compared(truth[:, c], strata) for c in range(len(config.classes))]
        both = [c for c, images in enumerate(used) if images.any()]
        if config.mode != "multilabel" and len(config.classes) == 2:
            both = both[-1:]  # of two exclusive classes one says all

        def table(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
            areas = {
                view: [stratified_auroc(weights, values[:, c], truth[:, c], strata) for c in both]
                for view, values in tables.items()
            }
            numbers: dict[str, np.ndarray] = {}
            for place, name in [(None, ""), *enumerate(config.classes[c] for c in both)]:
                of = {v: np.mean(own, axis=0) if place is None else own[place] for v, own in areas.items()}
                numbers |= {f"{name}\0{view}": values for view, values in of.items()}
            return numbers

        if not both:
            of = " of a fold" if len(self.pipelines) > 1 else ""
            raise ConfigError(f"The images with lungs{of} are all of one class: no AUROC can be computed.")
        groups = [record.patient for record in self.records]
        names = ["", *(config.classes[c] for c in both)]
        shares = [f"{name}\0{view}" for name in names for view in VIEWS]
        of_class = [[used[c] & (truth[:, c] == kind) for kind in (1, 0)] for c in both]
        kinds = dict(zip(names, [[kind for own in of_class for kind in own], *of_class], strict=True))
        estimates = bootstrap_many(
            table,
            groups=groups,
            shares=shares,
            kinds={share: kinds[share.partition("\0")[0]] for share in shares},
            differences={
                f"{name}\0{key}": (f"{name}\0{minuend}", f"{name}\0{subtrahend}")
                for name in names
                for key, (minuend, subtrahend) in DIFFERENCES.items()
            },
            resamples=resamples,
            seed=seed,
        )
        scores: dict[str, dict[str, Estimate]] = {name: {} for name in names}
        for key, estimate in estimates.items():
            name, _, score = key.rpartition("\0")
            scores[name][score] = estimate
        region = ", ".join(
            sorted({member.config.preprocess.region for own in self.classifiers.values() for member in own.members})
        )
        drawn = " and ".join(sorted(self.drawers))
        about = (len(groups), len({*groups}), self.left_out, region, drawn)
        return Ablation(*about, scores, self.pictures, len(self.classifiers))


def _compared(truth: np.ndarray, strata: np.ndarray) -> Bool[np.ndarray, " images"]:
    """Return the images of those strata that hold both kinds: others add nothing to the AUROC."""
    both = [own for own in np.unique(strata) if {0.0, 1.0} <= {*truth[strata == own].tolist()}]
    return np.isin(strata, both)


@torch.inference_mode()
def _probabilities(classifier: Classifier, images: Sequence[OneOfMany], masks: Sequence[Outlines]) -> list[list[float]]:
    members = [member.predict(*resize_images(member, images, masks)) for member in classifier.members]
    rows: list[list[float]] = classifier.combine(members).tolist()
    return rows


def paint_out_lungs(image: Grey, lungs: Mask) -> Grey:
    """Paint the lungs out: the upright rectangle around them becomes an even grey.

    A rectangle, since a fill of the lungs' own shape would leave their outline, from which much can be read; and a grey
    that is the same in all images, since the mean of what surrounds the lungs says how the image was exposed.

    Args:
        image: Grey, in [0, 1].
        lungs: The lungs; not empty.

    Returns:
        The image without lungs; around the rectangle, widened by 3 % of the longer side, it fades into the grey.
    """
    rows, columns = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
    margin = round(WIDENED * max(image.shape))
    shown = np.ones(image.shape, bool)
    shown[
        max(0, int(rows[0]) - margin) : int(rows[-1]) + margin + 1,
        max(0, int(columns[0]) - margin) : int(columns[-1]) + margin + 1,
    ] = False
    return _faded(image, _distance(~shown) / max(1, margin))


def keep_lungs(image: Grey, lungs: Mask) -> Grey:
    """Keep the lungs alone: all else becomes an even grey, the same in all images.

    Args:
        image: Grey, in [0, 1].
        lungs: The lungs; not empty.

    Returns:
        The image of the lungs, which fades into the grey within 3 % of the longer side around them.

    Example:
        ```python
        import numpy as np

        from covidcxr.evaluation.stress.ablation import keep_lungs, paint_out_lungs

        image, lungs = np.random.default_rng(0).random((64, 64), np.float32), np.zeros((64, 64), bool)
        lungs[20:40, 10:25] = lungs[20:40, 40:55] = True
        assert (keep_lungs(image, lungs)[:10] == 0.5).all() and (paint_out_lungs(image, lungs)[lungs] == 0.5).all()
        ```
    """
    return _faded(image, 1 - _distance(lungs) / max(1, round(WIDENED * max(image.shape))))


def _distance(mask: Mask) -> Float[np.ndarray, "height width"]:
    """Return how far each pixel is from a mask, in pixels."""
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5))


def _faded(image: Grey, share: Float[np.ndarray, "height width"]) -> Grey:
    """Show a share of each pixel; the rest is the grey."""
    share = share.clip(0, 1)
    return np.asarray(share * image + (1 - share) * GREY, np.float32)


def _png(views: Sequence[Grey]) -> bytes:
    from PIL import Image

    row = np.concatenate([np.pad(view, ((0, 0), (0, 6)), constant_values=1.0) for view in views], axis=1)[:, :-6]
    picture = Image.fromarray((row * 255).clip(0, 255).round().astype(np.uint8))
    picture.thumbnail((3 * _SIDE, 3 * _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
