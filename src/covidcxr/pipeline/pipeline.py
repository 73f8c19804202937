"""Image in; masks, calibrated probabilities and a label, or the reasons for none, out. No Lightning here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError, ImageReadError, did_you_mean
from covidcxr.io import pretrained
from covidcxr.io.image import is_single_image, read_image
from covidcxr.models import ClassificationModel, CXRModel, EnsembleModel, SegmentationModel
from covidcxr.models.network import ResizedImages, lungs_of, resize_images
from covidcxr.pipeline.parts import MODEL_CLASSES, check_parts, load_parts, save_pipeline
from covidcxr.pipeline.prediction import FailedPrediction, Prediction, as_image
from covidcxr.pipeline.view_check import check_views
from covidcxr.transforms.geometry import LUNG_CLASSES, UPRIGHT, Orientation
from covidcxr.transforms.postprocess import PostProcess, lung_reasons
from covidcxr.types import ImageLike
from covidcxr.utils.threads import single_threaded

__all__ = ["Pipeline", "Prediction", "FailedPrediction"]

Image: TypeAlias = Float[np.ndarray, "height width"]
Masks: TypeAlias = dict[str, Bool[np.ndarray, "height width"]]

_SMALL = 5_000_000
"""Up to so many weights in all, a single image takes half the CPU time on one core, and hardly longer."""


@dataclass(slots=True)
class _Case:
    """One image on its way through the models; `pixels` and `masks` are upright, whatever the view check corrected."""

    image_id: str
    image: Image
    pixels: Image = field(init=False)
    orientation: Orientation = UPRIGHT
    masks: Masks = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    probabilities: dict[str, float] = field(default_factory=dict)
    label: str | None = None


class Pipeline:
    """Runs the models over images, from file to prediction. For research, not for clinical use.

    Every mask class of every segmenter is kept. "infection" is the infected part of the lungs, so it is cut to the
    lungs where these are known; any other finding ("effusion", "nodule", ...) may lie elsewhere and stays as it is
    predicted.

    Args:
        gate: The view check's model: rejects what is no frontal chest radiograph, and finds images that are inverted
            or turned, which are corrected where that is safe; see `covidcxr.pipeline.view_check`. Comes before all
            others.
        lung_segmenter: Predicts "lung_field" (lungs without the heart) and/or "lung" (with the part behind it).
        infection_segmenter: Predicts findings, "infection" or any others.
        classifier: Predicts what the image shows; needs a lung segmenter where its region, or that of a member, is
            not "full".
        postprocess: Clean-up of the lung masks; by default the two largest parts, holes filled.
        min_lung_area: Below this fraction of the image, in [0, 1), the lungs ("lung" where it is predicted, else
            "lung_field") are not trusted, and there is no label.
        card: The model card (Markdown), kept when the pipeline is saved.

    Raises:
        ConfigError: If no model is given, they do not fit together, or both segmenters predict the same class.

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
        card: str | None = None,
    ) -> None:
        self.gate = gate
        self.lung_segmenter = lung_segmenter
        self.infection_segmenter = infection_segmenter
        self.classifier = classifier
        self.postprocess = postprocess or PostProcess()
        self.min_lung_area = min_lung_area
        self.card = card
        check_parts(self)
        for model in self.models().values():
            model.eval()
        weights = sum(weight.numel() for model in self.models().values() for weight in model.parameters())
        self._small = weights <= _SMALL

    def models(self) -> dict[str, CXRModel]:
        """Return the models that are there, by the name of their part."""
        return {name: getattr(self, name) for name in MODEL_CLASSES if getattr(self, name) is not None}

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The classes of all masks that the segmenters predict, those of the lungs first."""
        segmenters = (self.lung_segmenter, self.infection_segmenter)
        return tuple(name for model in segmenters if model is not None for name in model.config.classes)

    def __call__(self, image: ImageLike) -> Prediction:
        """Predict for one image.

        Args:
            image: A path, bytes, an array, a PIL image, a tensor or a DICOM data set.

        Returns:
            The prediction.

        Raises:
            ImageReadError: If the image cannot be read.
        """
        return self._predict_batch([_read(image)])[0]

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
        case = _read(image)
        for name, mask in masks.items():
            if name not in self.mask_classes:
                raise ConfigError(f"This pipeline draws no mask {name!r}. {did_you_mean(name, self.mask_classes)}")
            if mask.dtype != bool or mask.shape != case.image.shape or not (mask.any() or name not in LUNG_CLASSES):
                raise ConfigError(
                    f"The mask {name!r} must be true and false, of the image's size {case.image.shape} and not empty; "
                    f"it is {mask.dtype} {mask.shape}."
                )
        return self._predict_batch([case], dict(masks))[0]

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[Prediction | FailedPrediction]:
        """Predict for many images, in their order, as they come; memory does not grow with their number.

        Args:
            images: The images; a generator is consumed a batch at a time.
            batch_size: Images a batch, from 1 up.
            num_workers: Threads that read images; 0 reads in this one.
            on_error: "raise" stops at the first image that cannot be read; "return" gives a `FailedPrediction` for
                it and goes on.

        Returns:
            An iterator over one result an image.

        Raises:
            ImageReadError: If an image cannot be read and `on_error` is "raise".
            ConfigError: If an argument is out of range, or one image is given where a list is wanted.
        """
        if is_single_image(images) or not isinstance(images, Iterable):
            raise ConfigError("predict wants a list of images; for one image call pipeline(image).")
        counts: tuple[object, object] = (batch_size, num_workers)
        whole = all(isinstance(count, int) for count in counts)
        if not whole or batch_size < 1 or num_workers < 0 or on_error not in ("raise", "return"):
            raise ConfigError(
                f"batch_size must be 1 or more, num_workers 0 or more and on_error 'raise' or 'return', "
                f"not {batch_size}, {num_workers} and {on_error!r}."
            )
        return self._stream(iter(enumerate(images)), batch_size, num_workers, on_error)

    def _stream(
        self, numbered: Iterator[tuple[int, ImageLike]], batch_size: int, num_workers: int, on_error: str
    ) -> Iterator[Prediction | FailedPrediction]:
        """Read and predict a batch at a time; the check of arguments stands apart, so that it comes at the call."""
        with ThreadPoolExecutor(num_workers) if num_workers else nullcontext() as pool:
            while batch := list(islice(numbered, batch_size)):
                read = list((pool.map if pool else map)(_try_to_read, batch))
                predictions = iter(self._predict_batch([case for case in read if isinstance(case, _Case)]))
                for case in read:
                    if isinstance(case, FailedPrediction) and on_error == "raise":
                        raise case.error
                    yield case if isinstance(case, FailedPrediction) else next(predictions)

    def _predict_batch(self, cases: Sequence[_Case], given: Masks | None = None) -> list[Prediction]:
        """Run all models over images; masks that are `given`, of the images as they lie, replace predicted ones."""
        resized: ResizedImages = {}  # for models that want one size; only while all images are in the batch
        with single_threaded() if len(cases) == 1 and self._small else nullcontext():
            self._check_views(cases, given or {})
            if accepted := [case for case in cases if not case.reasons]:
                self._segment(accepted, resized)
                self._classify(accepted, resized)
            return [
                Prediction(
                    case.image_id,
                    None if case.reasons else case.label,
                    case.probabilities,
                    case.reasons,
                    case.orientation.lay_masks(case.masks),
                    as_image(case.image),
                    self.classifier,
                    case.orientation,
                )
                for case in cases
            ]

    def _check_views(self, cases: Sequence[_Case], given: Masks) -> None:
        """Reject what is no frontal chest radiograph, and turn the others upright with their given masks."""
        if self.gate is not None:
            for case, view in zip(cases, check_views(self.gate, [case.image for case in cases]), strict=True):
                if not view.reasons:
                    case.orientation = view.orientation
                elif not given:  # else somebody has looked at the image
                    case.reasons = view.reasons
        for case in cases:
            case.pixels = case.orientation.correct(case.image)
            case.masks = case.orientation.correct_masks(given)

    def _segment(self, cases: Sequence[_Case], resized: ResizedImages) -> None:
        """Predict masks: those of the lungs first, which other models may need."""
        lungs, findings = self.lung_segmenter, self.infection_segmenter
        pixels = [case.pixels for case in cases]
        lung_maps = finding_maps = None
        if lungs is not None and findings is not None and lungs.shares_encoder(findings):
            lung_maps, finding_maps = lungs.predict_resized_with(findings, resize_images(lungs, pixels, (), resized)[0])
        for model, maps, clean in ((lungs, lung_maps, self.postprocess), (findings, finding_maps, None)):
            if model is None:
                continue
            if maps is None:
                maps = model.predict_resized(*resize_images(model, pixels, [case.masks for case in cases], resized))
            for case, masks in zip(cases, model.masks_of(maps, [image.shape for image in pixels], clean), strict=True):
                if model is lungs and not case.masks.keys() & set(LUNG_CLASSES):
                    shape = _coarse(lungs_of(masks, "background"))
                    case.reasons = lung_reasons(shape, min_area=self.min_lung_area)
                case.masks = _merge(masks, case.masks)

    def _classify(self, cases: Sequence[_Case], resized: ResizedImages) -> None:
        """Predict probabilities and label of every image that shows what the classifier is to see."""
        model = self.classifier
        if model is None:
            return
        seen = [case for case in cases if not model.needs_lungs or "lungs-not-found" not in case.reasons]
        if not seen:
            return
        pixels, masks = [case.pixels for case in seen], [case.masks for case in seen]
        known = resized if len(seen) == len(cases) else {}
        members = [member.predict(*resize_images(member, pixels, masks, known)) for member in model.members]
        for case, row in zip(seen, model.combine(members).tolist(), strict=True):
            case.probabilities = dict(zip(model.config.classes, row, strict=True))
            case.label, undecided = model.answer(case.probabilities)
            case.reasons += undecided

    def to(self, device: str | torch.device) -> Self:
        """Move all models to a device.

        Args:
            device: As `torch.nn.Module.to` takes it.

        Returns:
            The pipeline itself.
        """
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
            ConfigError: If a weight is too large for `dtype`.
        """
        save_pipeline(self, Path(folder), dtype)
        return Path(folder)

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
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **upload))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = "mini",
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a saved pipeline.

        Where the two segmenters see images alike and were saved with equal encoders, they get one, computed once an
        image.

        Args:
            source: A bundled name ("mini"), a folder, or a Hub repository "owner/name".
            revision: Branch, tag or commit of a Hub repository.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.

        Returns:
            The pipeline, in evaluation mode.

        Raises:
            PretrainedError: If it cannot be found, is damaged or altered, or is newer than this release.
            ConfigError: If a config has an unknown key or a wrong value.
        """
        folder = pretrained.fetch(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        return cls(**load_parts(folder))


def _image_id(image: ImageLike, number: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"film-{number}"


def _read(image: ImageLike, number: int = 0) -> _Case:
    return _Case(_image_id(image, number), read_image(image))


def _try_to_read(numbered: tuple[int, ImageLike]) -> _Case | FailedPrediction:
    number, image = numbered
    try:
        return _read(image, number)
    except ImageReadError as error:
        return FailedPrediction(_image_id(image, number), error)


def _merge(predicted: Masks, known: Masks) -> Masks:
    """Put new masks before known ones, which stay as they are; a new "infection" is cut to the lungs, if known."""
    merged = predicted | known
    lungs = [merged[name] for name in LUNG_CLASSES if name in merged]
    if lungs and "infection" in predicted and "infection" not in known:
        merged["infection"] = predicted["infection"] & np.logical_or.reduce(lungs)
    return merged


def _coarse(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return every n-th pixel: the shape of lungs is judged by fractions, and some 200 pixels show it as well."""
    step = max(1, max(mask.shape) // 200)
    return mask[::step, ::step]
