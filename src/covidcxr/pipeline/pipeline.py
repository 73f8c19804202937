"""Image in; masks, calibrated probabilities and a label, or the reasons for none, out. No Lightning here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from jaxtyping import Bool

from covidcxr.config.checks import check_number
from covidcxr.errors import ConfigError
from covidcxr.io import hub, pretrained
from covidcxr.io.image import is_single_image
from covidcxr.io.pixels import check_bits
from covidcxr.pipeline.cases import (
    BATCH_IMAGES,
    Case,
    Masks,
    check_counts,
    check_masks,
    coarse,
    count_pixels,
    hold_content,
    merge_masks,
    one_by_one,
    read_case,
    split_batches,
    try_to_read,
)
from covidcxr.pipeline.onnx import OnnxModel, load_exported
from covidcxr.pipeline.parts import PARTS, ShowsParts, check_parts, load_parts, save_pipeline
from covidcxr.pipeline.prediction import FailedPrediction, Prediction
from covidcxr.pipeline.severity import InfectionInterval
from covidcxr.pipeline.view_check import turn_cases
from covidcxr.transforms.postprocess import Maps, PostProcess, cut_masks, lung_reasons, not_finite
from covidcxr.transforms.pyramid import ResizedImages, lungs_of
from covidcxr.types import LUNG_CLASSES, Backend, ImageLike
from covidcxr.utils.plain import user_path
from covidcxr.utils.threads import single_threaded

if TYPE_CHECKING:
    import torch

    from covidcxr.models import ClassificationModel, CXRModel, EnsembleModel, SegmentationModel

__all__ = ["Pipeline", "Prediction", "FailedPrediction"]

_SMALL = 8_000_000
"""Up to so many weights in all, a single image takes half the CPU time on one core, and hardly longer."""

_NO_LUNGS = {"lungs-not-found", not_finite("lung_segmenter")}
"""With one of these reasons there are no lungs by which an image could be cut."""


class Pipeline(ShowsParts):
    """Runs the models over images, from file to prediction. For research, not for clinical use.

    Every mask class of every segmenter is kept; of a class that both predict, the mask of the lung segmenter. An
    "infection" is cut to the lungs of the lung segmenter where there is one; any other finding ("effusion",
    "nodule", ...) may lie elsewhere and stays as it is predicted.

    Args:
        gate: The view check's model, which comes first: rejects what is no frontal chest radiograph, and finds images
            that are inverted or turned, which are corrected where that is safe; see `covidcxr.pipeline.view_check`.
        lung_segmenter: Predicts "lung_field" (without the heart) and/or "lung" (with it), and findings if it does both.
        infection_segmenter: Predicts findings, "infection" or any others.
        classifier: Predicts what the image shows; needs a lung segmenter where its region, or that of a member, is
            not "full".
        postprocess: Clean-up of the lung masks; by default the two largest parts, holes filled.
        min_lung_area: Below this fraction of the image, in [0, 1), the lungs ("lung" where it is predicted, else
            "lung_field") are not trusted, and there is no label.
        infected_interval: How far a reader's infected fraction may lie from the predicted one;
            `covidcxr.pipeline.severity.InfectionInterval.fit` or `covidcxr assemble --infected-interval` make it.
        card: The model card (Markdown), kept when the pipeline is saved.

    Raises:
        ConfigError: If no model is given, or they do not fit together.

    Example:
        ```python
        from covidcxr import Pipeline

        pipeline = Pipeline.from_pretrained("mini")
        prediction = pipeline("image.png")
        assert {"lung_field", "infection"} <= prediction.masks.keys()
        ```
    """

    def __init__(
        self,
        *,
        gate: ClassificationModel | None = None,
        lung_segmenter: SegmentationModel | None = None,
        infection_segmenter: SegmentationModel | None = None,
        classifier: ClassificationModel | EnsembleModel | None = None,
        postprocess: PostProcess | None = None,
        min_lung_area: float = 0.15,
        infected_interval: InfectionInterval | None = None,
        card: str | None = None,
    ) -> None:
        self.gate = gate
        self.lung_segmenter = lung_segmenter
        self.infection_segmenter = infection_segmenter
        self.classifier = classifier
        self.postprocess = postprocess or PostProcess()
        self.min_lung_area = check_number(min_lung_area, "min_lung_area", 0, math.nextafter(1, 0))
        self.infected_interval = infected_interval
        self.card = card
        check_parts(self)
        models = () if self.backend == "onnx" else self.models().values()
        for model in models:
            model.eval()
        self._small = sum(weight.numel() for model in models for weight in model.parameters()) <= _SMALL

    def models(self) -> dict[str, CXRModel]:
        """Return the models that are there, by the name of their part."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}

    @property
    def backend(self) -> Backend:
        """What runs the models: "torch", or "onnx" where they are exported files."""
        return "onnx" if any(isinstance(model, OnnxModel) for model in self.models().values()) else "torch"

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The classes of all masks that the segmenters predict, those of the lungs first."""
        segmenters = (self.lung_segmenter, self.infection_segmenter)
        return tuple(dict.fromkeys(name for model in segmenters if model is not None for name in model.config.classes))

    def __call__(self, image: ImageLike) -> Prediction:
        """Predict for one image.

        Args:
            image: A path, bytes, an array, a PIL image, a tensor or a DICOM data set.

        Returns:
            The prediction.

        Raises:
            ImageReadError: If the image cannot be read.
        """
        return self._predict_batch([read_case(image)])[0]

    def revise(self, image: ImageLike, masks: Mapping[str, Bool[np.ndarray, "height width"]]) -> Prediction:
        """Predict for one image from masks that somebody corrected; those not given are predicted as usual.

        Args:
            image: The image.
            masks: By mask class of this pipeline, of the image's own size. They count as they are: they are neither
                cleaned up nor rejected for their shape; nor does the view check reject the image, which somebody has
                looked at.

        Returns:
            The prediction.

        Raises:
            ImageReadError: If the image cannot be read.
            ConfigError: If the pipeline predicts no such mask, or one is of another size or holds no area.
        """
        case = read_case(image)
        check_masks(masks, self.mask_classes, case.image.shape)
        return self._predict_batch([case], dict(masks))[0]

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = BATCH_IMAGES,
        num_workers: int = 0,
        on_error: Literal["raise", "return"] = "raise",
        bits: int | None = None,
    ) -> Iterator[Prediction | FailedPrediction]:
        """Predict for many images, in their order, as they come; memory does not grow with their number.

        Args:
            images: The images; a generator is consumed a batch at a time.
            batch_size: Images a batch, from 1 up. Large images make smaller batches, of at most 32 million pixels.
            num_workers: Threads that read images; 0 reads in this one.
            on_error: "raise" stops at the first image that cannot be read; "return" gives a `FailedPrediction` for
                it and goes on.
            bits: Bits of numbers whose type does not tell, 8 to 16; see `read_image`.

        Returns:
            An iterator over one result an image.

        Raises:
            ImageReadError: If an image cannot be read and `on_error` is "raise".
            ConfigError: If an argument is out of range, or one image is given where a list is wanted.
        """
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error must be 'raise' or 'return', not {on_error!r}.")
        batches = self.predict_batches(images, batch_size=batch_size, num_workers=num_workers, bits=bits)
        return one_by_one(batches, stop=on_error == "raise")

    def predict_batches(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = BATCH_IMAGES,
        num_workers: int = 0,
        bits: int | None = None,
    ) -> Iterator[list[Prediction | FailedPrediction]]:
        """Predict as `predict` does, but give the results of a batch at a time, which says where a batch ends.

        Args:
            images: The images.
            batch_size: Images a batch, from 1 up.
            num_workers: Threads that read images; 0 reads in this one.
            bits: Bits of numbers whose type does not tell, 8 to 16; see `read_image`.

        Returns:
            An iterator over the results of a batch each; an image that cannot be read is a `FailedPrediction`.

        Raises:
            ConfigError: If an argument is out of range, or one image is given where a list is wanted.
        """
        if is_single_image(images) or not isinstance(images, Iterable):
            raise ConfigError("predict wants a list of images; for one image call pipeline(image).")
        check_bits(bits)
        return self._stream(enumerate(images), *check_counts(batch_size, num_workers), bits)

    def _stream(
        self, numbered: Iterable[tuple[int, ImageLike]], batch_size: int, num_workers: int, bits: int | None
    ) -> Iterator[list[Prediction | FailedPrediction]]:
        """Read and predict a batch at a time; the check of arguments stands apart, so that it comes at the call."""
        with ThreadPoolExecutor(num_workers) if num_workers else nullcontext() as pool:
            held = ((number, hold_content(image)) for number, image in numbered)
            for batch in split_batches(held, batch_size, lambda numbered: count_pixels(numbered[1])):
                read = list((pool.map if pool else map)(partial(try_to_read, bits=bits), batch))
                predictions = iter(self._predict_batch([case for case in read if isinstance(case, Case)]))
                yield [case if isinstance(case, FailedPrediction) else next(predictions) for case in read]

    def _predict_batch(self, cases: Sequence[Case], given: Masks | None = None) -> list[Prediction]:
        """Run all models over images; masks that are `given`, of the images as they lie, replace predicted ones."""
        resized: ResizedImages = {}  # for models that want one size; only while all images are in the batch
        with single_threaded() if len(cases) == 1 and self._small else nullcontext():
            turn_cases(self.gate, cases, given or {})
            if accepted := [case for case in cases if not case.reasons]:
                self._segment(accepted, resized)
                self._classify(accepted, resized)
            interval = None if given and "infection" in given else self.infected_interval
            return [case.to_prediction(self.classifier, interval) for case in cases]

    def _segment(self, cases: Sequence[Case], resized: ResizedImages) -> None:
        """Predict masks: those of the lungs first, which other models may need."""
        lungs, findings = self.lung_segmenter, self.infection_segmenter
        lung_maps = finding_maps = None
        if lungs is not None and findings is not None and self.backend == "torch" and lungs.shares_encoder(findings):
            lung_maps, finding_maps = lungs.predict_images_with(findings, [case.upright for case in cases], resized)
        if lungs is not None:
            self._add_masks("lung_segmenter", lungs, cases, lung_maps, resized)
        with_lungs = [case for case in cases if not_finite("lung_segmenter") not in case.reasons]
        if findings is not None and with_lungs:
            if len(with_lungs) < len(cases):
                finding_maps, resized = None, {}
            self._add_masks("infection_segmenter", findings, with_lungs, finding_maps, resized)

    def _add_masks(
        self, part: str, model: SegmentationModel, cases: Sequence[Case], maps: Maps | None, resized: ResizedImages
    ) -> None:
        """Predict the masks of one segmenter, by its `maps` where they are there; a map that is not finite is none."""
        images = [case.upright for case in cases]
        if maps is None:
            maps = model.predict_images(images, [case.masks for case in cases], resized)
        finite = np.isfinite(maps).all(axis=(1, 2, 3))
        clean = self.postprocess if part == "lung_segmenter" else None
        predicted = cut_masks(model.config, maps, [image.image.shape for image in images], clean)
        for case, masks, is_finite in zip(cases, predicted, finite, strict=True):
            if not is_finite and masks.keys() - case.masks.keys():
                case.reasons += (not_finite(part),)
                continue
            if clean is not None and not case.masks.keys() & set(LUNG_CLASSES):
                shape = coarse(lungs_of(masks, "background"))
                case.reasons = lung_reasons(shape, min_area=self.min_lung_area)
            own = {name: masks[name] for name in LUNG_CLASSES if clean is not None and name in masks}
            case.masks = merge_masks(masks, own | case.masks)

    def _classify(self, cases: Sequence[Case], resized: ResizedImages) -> None:
        """Predict probabilities and label of every image that shows what the classifier is to see."""
        if (model := self.classifier) is None:
            return
        seen = [case for case in cases if not (model.needs_lungs and _NO_LUNGS & {*case.reasons})]
        if not seen:
            return
        # Lungs that the infection segmenter draws besides are a mask like any other: they cut no image.
        lungs = () if self.lung_segmenter is None else self.lung_segmenter.config.classes
        masks = [{name: case.masks[name] for name in lungs if name in case.masks} for case in seen]
        images = [case.upright for case in seen]
        known = resized if len(seen) == len(cases) else {}
        for case, row in zip(seen, model.predict_images(images, masks, known).tolist(), strict=True):
            probabilities = dict(zip(model.config.classes, row, strict=True))
            case.label, undecided = model.answer(probabilities)
            case.reasons += undecided
            if not_finite("classifier") not in undecided:
                case.probabilities = probabilities

    def to(self, device: str | torch.device) -> Self:
        """Move all models to a device.

        Args:
            device: As `torch.nn.Module.to` takes it.

        Returns:
            The pipeline itself.

        Raises:
            ConfigError: If the models are exported files, which run on the CPU, and the device is another.
        """
        if self.backend == "onnx":
            if str(device) != "cpu":
                raise ConfigError(f"The backend onnx runs on the CPU, not on {device}.")
            return self
        for model in self.models().values():
            model.to(device)
        return self

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: pretrained.StoredDtype = "float32") -> Path:
        """Write `pipeline.json`, one folder a model, golden inputs with their outputs, and the model card.

        Args:
            folder: Where to; made if need be.
            dtype: "float16" halves the weights' files; they are loaded and computed with as float32.

        Returns:
            The folder, which `from_pretrained` reads.

        Raises:
            ConfigError: If a weight is too large for `dtype`, or the models are exported files.
        """
        if self.backend == "onnx":
            raise ConfigError("A pipeline of exported files is not saved: copy its folder, or save what was exported.")
        target = user_path(folder)
        save_pipeline(self, target, dtype)
        return target

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        dtype: pretrained.StoredDtype = "float32",
        **upload: Any,
    ) -> str:
        """Save the pipeline and upload it to the Hugging Face Hub.

        Args:
            repo_id: "owner/name"; made if need be.
            private: Whether a new repository is private.
            token: Access token; by default the one of `hf auth login`.
            dtype: How weights are stored; see `save_pretrained`.
            **upload: Further arguments of huggingface_hub's `upload_folder` (`revision`, `commit_message`, ...).

        Returns:
            The address of the commit.

        Raises:
            PretrainedError: If the Hub cannot be reached or refuses the upload.
            ConfigError: If the name or an argument is wrong, or a weight is not finite.
        """
        return hub.upload(
            lambda folder: self.save_pretrained(folder, dtype=dtype), repo_id, private=private, token=token, **upload
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = "mini",
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        backend: Backend = "torch",
    ) -> Self:
        """Load a saved pipeline, or a single model as one.

        Args:
            source: A bundled name ("mini"), a folder, or a Hub repository "owner/name"; of a pipeline, of one model, or
                of the two of a multi-task training. To join other models: `covidcxr assemble`.
            revision: Branch, tag or commit of a Hub repository.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            backend: "onnx" runs a folder that `covidcxr export` wrote by ONNX Runtime, and does not import torch.

        Returns:
            The pipeline, in evaluation mode.

        Raises:
            PretrainedError: If it cannot be found, is damaged or altered, or is newer than this release.
            ConfigError: If a config has an unknown key or a wrong value, or ONNX Runtime is not installed.
        """
        if backend not in get_args(Backend):
            raise ConfigError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}.")
        folder = pretrained.fetch(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        with pretrained.collection_paused():
            return cls(**(load_exported if backend == "onnx" else load_parts)(folder))
