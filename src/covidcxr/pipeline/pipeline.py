"""Image in; lungs, infection, and a calibrated answer or "cannot say" with a reason out. No Lightning here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float

from covidcxr.config import FORMAT_VERSION, check_format_version, check_keys
from covidcxr.errors import ConfigError, ImageReadError, PretrainedError, did_you_mean
from covidcxr.io import pretrained
from covidcxr.io.atomic import replace_file
from covidcxr.io.image import is_single_image, read_image
from covidcxr.models import (
    ClassificationModel,
    CXRModel,
    EnsembleModel,
    SegmentationModel,
    load_model,
)
from covidcxr.models.network import fit_images, lungs_of
from covidcxr.pipeline.golden import write_golden
from covidcxr.pipeline.prediction import FailedPrediction, Prediction, as_image
from covidcxr.pipeline.view_check import Admission, admit, check_gate
from covidcxr.transforms.geometry import LUNG_CLASSES, UPRIGHT, unfit_map
from covidcxr.transforms.postprocess import PostProcess, lung_reasons
from covidcxr.types import ImageLike
from covidcxr.utils.threads import one_core

__all__ = ["Pipeline", "Prediction", "FailedPrediction"]

Image: TypeAlias = Float[np.ndarray, "height width"]
Masks: TypeAlias = dict[str, Bool[np.ndarray, "height width"]]
Finding: TypeAlias = tuple[Masks, dict[str, float], str | None, tuple[str, ...]]

_MODELS: dict[str, tuple[type[CXRModel], ...]] = {
    "gate": (ClassificationModel,),
    "lung_segmenter": (SegmentationModel,),
    "infection_segmenter": (SegmentationModel,),
    "classifier": (ClassificationModel, EnsembleModel),
}
_SMALL = 5_000_000
"""Up to so many weights in all, a single image takes half the CPU time on one core, and hardly longer."""


class Pipeline:
    """Runs the models over images, from file to answer. For research, not for clinical use.

    Args:
        gate: Refuses what is no frontal chest radiograph, and finds images that are inverted or turned, which are corrected
            where that is safe; see `covidcxr.gate`. Comes before all others.
        lung_segmenter: Draws "lung_field" (lungs without the heart) and/or "lung" (with the part behind it).
        infection_segmenter: Draws findings: "infection", of which only what lies within the lungs counts, and any
            others ("effusion", "nodule", ...), which are kept as they are drawn. Of a class that both segmenters draw,
            the lung segmenter's mask is kept.
        classifier: Says what the image shows; needs a lung segmenter where its region, or that of a member, is not
            "full".
        postprocess: Clean-up of the lung masks; by default the two largest parts, holes filled.
        min_lung_area: Below this fraction of the image, lungs ("lung" where it is drawn, else "lung_field") are not
            believed and the answer is "cannot say".
        card: The model card (Markdown), kept when the pipeline is saved.

    Raises:
        ConfigError: If no model is given, or they do not fit together.
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
        self._check()
        for model in self.models().values():
            model.eval()
        weights = sum(weight.numel() for model in self.models().values() for weight in model.parameters())
        self._small = weights <= _SMALL

    def models(self) -> dict[str, CXRModel]:
        """Return the models that are there, by the name of their part."""
        return {name: getattr(self, name) for name in _MODELS if getattr(self, name) is not None}

    def __call__(self, image: ImageLike) -> Prediction:
        """Answer for one image: a path, bytes, an array, a PIL image, a tensor or a DICOM data set.

        Raises:
            ImageReadError: If the image cannot be read.
        """
        prediction = next(self.predict([image]))
        assert isinstance(prediction, Prediction)
        return prediction

    def revise(self, image: ImageLike, masks: Mapping[str, Bool[np.ndarray, "height width"]]) -> Prediction:
        """Answer for one image from masks that somebody corrected; those not given are drawn as usual.

        Args:
            image: The image.
            masks: By mask class that this pipeline draws, of the image's own size. They count as they are: neither
                cleaned up, nor doubted for their shape; nor does a gate refuse the image, which somebody has looked at.

        Raises:
            ImageReadError: If the image cannot be read.
            ConfigError: If the pipeline does not draw such a mask, or one is of another size or holds no area.
        """
        read = _read((0, image))
        if isinstance(read, FailedPrediction):
            raise read.error
        drawn = {
            name for model in self.models().values() if model.task == "segmentation" for name in model.config.classes
        }
        for name, mask in masks.items():
            if name not in drawn:
                raise ConfigError(f"This pipeline draws no mask {name!r}. {did_you_mean(name, drawn)}")
            if mask.dtype != bool or mask.shape != read[1].shape or not (mask.any() or name not in LUNG_CLASSES):
                raise ConfigError(
                    f"The mask {name!r} must be true and false, of the image's size {read[1].shape} and not empty; "
                    f"it is {mask.dtype} {mask.shape}."
                )
        return self._answer([read], dict(masks))[0]

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[Prediction | FailedPrediction]:
        """Answer for many images, in their order, as they come; memory does not grow with their number.

        Args:
            images: The images; a generator is consumed a batch at a time.
            batch_size: Images a batch.
            num_workers: Threads that read images; 0 reads in this one.
            on_error: "raise" stops at the first image that cannot be read; "return" gives a `FailedPrediction` for
                it and goes on.

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
        return self._predict(iter(enumerate(images)), batch_size, num_workers, on_error)

    def _predict(
        self, images: Iterator[tuple[int, ImageLike]], batch_size: int, num_workers: int, on_error: str
    ) -> Iterator[Prediction | FailedPrediction]:
        pool = ThreadPoolExecutor(num_workers) if num_workers else None
        try:
            while batch := list(islice(images, batch_size)):
                read = list((pool.map if pool else map)(_read, batch))
                answers = iter(self._answer([image for image in read if not isinstance(image, FailedPrediction)]))
                for image in read:
                    if isinstance(image, FailedPrediction):
                        if on_error == "raise":
                            raise image.error
                        yield image
                    else:
                        yield next(answers)
        finally:
            if pool:
                pool.shutdown(cancel_futures=True)

    def _answer(self, read: Sequence[tuple[str, Image]], given: Masks | None = None) -> list[Prediction]:
        """Answer for images that were read; masks that are `given` take the place of drawn ones, undoubted."""
        with one_core() if len(read) == 1 and self._small else nullcontext():
            return list(self._answers(read, given))

    def _answers(self, read: Sequence[tuple[str, Image]], given: Masks | None) -> Iterator[Prediction]:
        images = [image for _, image in read]
        admissions = [Admission()] * len(images) if self.gate is None else admit(self.gate, images)
        if given:
            admissions = [Admission() if one.reasons else one for one in admissions]
        upright = [
            one.orientation.correct(image) for image, one in zip(images, admissions, strict=True) if not one.reasons
        ]
        masks = [one.orientation.correct_masks(given or {}) for one in admissions if not one.reasons]
        findings = iter(self._examine(upright, masks))
        for (image_id, image), one in zip(read, admissions, strict=True):
            found, chances, label, why = ({}, {}, None, one.reasons) if one.reasons else next(findings)
            shown = one.orientation.lay_masks(found)
            way = UPRIGHT if one.reasons else one.orientation
            yield Prediction(image_id, label, chances, why, shown, as_image(image), self.classifier, way)

    def _examine(self, images: Sequence[Image], given: Sequence[Masks]) -> Iterator[Finding]:
        """Find masks, probabilities, label and reasons of upright images; masks that are `given` count as they are."""
        if not images:
            return
        masks = [dict(known) for known in given]
        fitted: dict[Any, torch.Tensor] = {}  # of all images, for models that want one size
        reasons: list[tuple[str, ...]] = [() for _ in images]
        lung_maps, infection_maps = self._maps_of_both(images, fitted)
        if self.lung_segmenter is not None:
            if lung_maps is None:
                lung_maps = self.lung_segmenter.predict_fitted(*fit_images(self.lung_segmenter, images, masks, fitted))
            drawn = _draw(self.lung_segmenter, lung_maps, images, self.postprocess)
            masks = [found | known for found, known in zip(drawn, given, strict=True)]
            reasons = [
                ()
                if known.keys() & set(LUNG_CLASSES)
                else lung_reasons(_coarse(lungs_of(found, "background")), min_area=self.min_lung_area)
                for found, known in zip(masks, given, strict=True)
            ]
        if self.infection_segmenter is not None:
            if infection_maps is None:
                seen = fit_images(self.infection_segmenter, images, masks, fitted)
                infection_maps = self.infection_segmenter.predict_fitted(*seen)
            drawn = _draw(self.infection_segmenter, infection_maps, images)
            masks = [_clip_infection(new, known) | known for new, known in zip(drawn, masks, strict=True)]
        for found, chances, why in zip(masks, self._classify(images, masks, reasons, fitted), reasons, strict=True):
            label = None
            if self.classifier is not None and chances:
                label, doubts = self.classifier.answer(chances)
                why = (*why, *doubts)
            yield found, chances, None if why else label, why

    def _maps_of_both(
        self, images: Sequence[Image], fitted: dict[Any, torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Compute the maps of lungs and infections at once, where the two segmenters have one encoder."""
        lungs, infection = self.lung_segmenter, self.infection_segmenter
        if lungs is None or infection is None or not lungs.shares_encoder(infection):
            return None, None
        return lungs.predict_fitted_with(infection, fit_images(lungs, images, (), fitted)[0])

    def _classify(
        self,
        images: Sequence[Image],
        masks: Sequence[Masks],
        reasons: Sequence[tuple[str, ...]],
        fitted: dict[Any, torch.Tensor],
    ) -> list[dict[str, float]]:
        """Ask the classifier about every image that shows what it wants to see."""
        results: list[dict[str, float]] = [{} for _ in images]
        if self.classifier is None:
            return results
        full = not self.classifier.needs_lungs
        asked = [number for number, why in enumerate(reasons) if full or "lungs-not-found" not in why]
        if asked:
            shown, lungs = [images[n] for n in asked], [masks[n] for n in asked]
            known = fitted if len(asked) == len(images) else {}
            answers = [member.predict(*fit_images(member, shown, lungs, known)) for member in self.classifier.members]
            for number, row in zip(asked, self.classifier.combine(answers).tolist(), strict=True):
                results[number] = dict(zip(self.classifier.config.classes, row, strict=True))
        return results

    def to(self, device: str | torch.device) -> Self:
        """Move all models to a device and return the pipeline."""
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
        target = Path(folder)
        if (target / "pipeline.json").is_file():
            # Of a larger pipeline that was saved here before; a folder that no pipeline named is not ours to remove.
            for name in set(_read_index(target / "pipeline.json")["components"]) - self.models().keys():
                shutil.rmtree(target / name, ignore_errors=True)
        for name, model in self.models().items():
            model.save_pretrained(target / name, dtype=dtype)
        index = {"format_version": FORMAT_VERSION, "components": sorted(self.models())}
        index |= {"postprocess": self.postprocess.to_config(), "min_lung_area": self.min_lung_area}
        pretrained.write_json(target / "pipeline.json", index)
        with replace_file(target / "README.md") as temporary:
            temporary.write_text(self.card or _default_card(self), encoding="utf-8")
        saved = self if dtype == "float32" else type(self).from_pretrained(target)  # rounding moves answers a little
        write_golden(saved, target / "golden")
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

        Where the two segmenters see images alike and were saved with equal encoders, they get one, computed once an image.

        Args:
            source: A bundled name ("mini"), a folder, or a Hub repository "owner/name".
            revision: Branch, tag or commit of a Hub repository.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.

        Raises:
            PretrainedError: If it cannot be found, is damaged or altered, or is newer than this release.
            ConfigError: If a config has an unknown key or a wrong value.
        """
        folder = pretrained.fetch(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        path = folder / "pipeline.json"
        index = _read_index(path)
        for name in index["components"]:
            if not (folder / name).is_dir():  # or its name would be taken for a Hub repository
                raise PretrainedError(f"{folder / name} is missing: this folder is not a complete saved pipeline.")
        parts: dict[str, Any] = {name: load_model(folder / name) for name in index["components"]}
        if "lung_segmenter" in parts and "infection_segmenter" in parts:
            parts["lung_segmenter"].merge_encoder(parts["infection_segmenter"])
        card = folder / "README.md"
        return cls(
            **parts,
            postprocess=PostProcess.from_config(index["postprocess"]),
            min_lung_area=index["min_lung_area"],
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
        )

    def _check(self) -> None:
        for name, kinds in _MODELS.items():
            part = getattr(self, name)
            if part is not None and not isinstance(part, kinds):
                known = " or ".join(kind.__name__ for kind in kinds)
                raise ConfigError(f"The {name} must be a {known}, not a {type(part).__name__}.")
        if not isinstance(self.postprocess, PostProcess):
            raise ConfigError(f"postprocess must be a PostProcess, not {self.postprocess!r}: PostProcess([...]).")
        if not self.models():
            raise ConfigError(f"A pipeline needs at least one model: {', '.join(_MODELS)}.")
        if self.gate is not None:
            check_gate(self.gate)
        if not 0 <= self.min_lung_area < 1:
            raise ConfigError(f"min_lung_area must be in [0, 1), not {self.min_lung_area}.")
        lungs, findings = self.lung_segmenter, self.infection_segmenter
        if lungs is not None and not set(LUNG_CLASSES) & set(lungs.config.classes):
            drawn = list(lungs.config.classes)
            raise ConfigError(f"The lung_segmenter must draw {' or '.join(LUNG_CLASSES)}, not {drawn}.")
        if findings is not None and set(findings.config.classes) <= set(LUNG_CLASSES):
            drawn = list(findings.config.classes)
            raise ConfigError(f"The infection_segmenter must draw infection or another finding, not {drawn}.")
        for name, model in self.models().items():
            if model.needs_lungs and (self.lung_segmenter is None or name == "lung_segmenter"):
                raise ConfigError(f"The {name} sees only a region of the image: it needs a lung_segmenter.")


def _read(numbered: tuple[int, ImageLike]) -> tuple[str, Image] | FailedPrediction:
    number, image = numbered
    image_id = os.fspath(image) if isinstance(image, str | os.PathLike) else f"film-{number}"
    try:
        return image_id, read_image(image)
    except ImageReadError as error:
        return FailedPrediction(image_id, error)


def _draw(
    model: SegmentationModel, maps: torch.Tensor, images: Sequence[Image], clean: PostProcess | None = None
) -> list[Masks]:
    """Draw each image's masks at its own size from maps at the network's size, where those of lungs are cleaned."""
    drawn: list[Masks] = []
    for image, values in zip(images, maps.cpu().numpy(), strict=True):
        for name, plane, threshold in zip(model.config.classes, values, model.thresholds(), strict=True):
            if clean is not None and name in LUNG_CLASSES:
                raw = plane >= threshold
                kept = clean(raw)
                plane[raw & ~kept] = 0.0
                plane[kept & ~raw] = 1.0
        height, width = image.shape
        full = unfit_map(torch.from_numpy(values)[None], (height, width), model.config.preprocess.fit)[0].numpy()
        named = zip(model.config.classes, full, model.thresholds(), strict=True)
        drawn.append({name: plane >= threshold for name, plane, threshold in named})
    return drawn


def _clip_infection(findings: Masks, masks: Masks) -> Masks:
    """Keep of an infection, which is a part of the lungs by definition, what lies in any of those that are known.

    Other findings (an effusion, a device) may lie elsewhere and stay as they were drawn.
    """
    lungs = [masks[name] for name in LUNG_CLASSES if name in masks]
    if "infection" not in findings or not lungs:
        return findings
    return findings | {"infection": findings["infection"] & np.logical_or.reduce(lungs)}


def _coarse(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return every n-th pixel: the shape of lungs is judged by fractions, and some 200 pixels show it as well."""
    step = max(1, max(mask.shape) // 200)
    return mask[::step, ::step]


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_file() and (path.parent / "config.json").is_file():
        raise PretrainedError(
            f"{path.parent} is a single model, not a pipeline: load it with SegmentationModel.from_pretrained or "
            f"ClassificationModel.from_pretrained."
        )
    index = pretrained.read_json(path)
    check_format_version(index.get("format_version"), str(path))
    keys = {"format_version", "components", "postprocess", "min_lung_area"}
    check_keys(index, keys, str(path))
    for key in sorted(keys - set(index)):
        raise ConfigError(f"The key {key!r} is missing in {path}.")
    if not isinstance(index["components"], list) or not isinstance(index["min_lung_area"], int | float):
        raise ConfigError(f"components must be a list and min_lung_area a number in {path}.")
    check_keys(dict.fromkeys(map(str, index["components"])), set(_MODELS), f"components of {path}")
    return index


def _default_card(pipeline: Pipeline) -> str:
    parts = (
        f"- `{n}`: {m.config.network}, classes {', '.join(m.config.classes)}" for n, m in pipeline.models().items()
    )
    return "\n".join(
        (
            "# A covidcxr pipeline\n",
            "For research only; not for clinical use.\n",
            *parts,
            "\nLoad it with `covidcxr.Pipeline.from_pretrained(FOLDER)`.\n",
        )
    )
