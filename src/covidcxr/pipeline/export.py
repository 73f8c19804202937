"""A pipeline as ONNX or `torch.export` files that run without covidcxr: preprocessing and thresholds are inside."""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from covidcxr.errors import ConfigError
from covidcxr.io.folders import path_inside
from covidcxr.io.image import read_image
from covidcxr.io.pretrained import write_json
from covidcxr.models import Classifier, CXRModel, NetworkModel, SegmentationModel
from covidcxr.models.base import calibrate_logits, evaluation_mode
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline.onnx import (
    EXPORT_FILE,
    Precision,
    check_precision,
    reduce_precision,
    require_onnx,
    start_session,
)
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.transforms.geometry import restore_traced
from covidcxr.transforms.pyramid import lungs_of
from covidcxr.types import LUNG_CLASSES, ImageLike, Region
from covidcxr.utils.plain import user_path

__all__ = ["EXPORT_FILE", "ExportFormat", "export_pipeline"]

ExportFormat: TypeAlias = Literal["onnx", "torch"]

_SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
_TOLERANCE = 1e-4
_ROUNDED = 5e-4
"""Tolerance where preprocessing steps look at whole greys: of one between two, the last bit of a number decides. Files
resize as torch does it, but a matrix product may sum a long row in parts."""
_LARGEST = 16384  # of an image's sides, in pixels
_OPSET = 20

_Run: TypeAlias = Callable[[np.ndarray, np.ndarray | None], list[np.ndarray]]


class _Exported(nn.Module):
    """What the file of a model computes: probabilities, and of a segmenter its masks at the images' own size."""

    def __init__(self, model: CXRModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lungs: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return probabilities, and masks (0 or 1, 8 bits) of a segmenter."""
        model = self.model
        logits = calibrate_logits(cast(Tensor, model(image, lungs)), model.config.temperature)
        if isinstance(model, Classifier):
            return (model.probabilities(logits),)
        assert isinstance(model, SegmentationModel)
        maps = logits.sigmoid()
        large = restore_traced(maps, image, model.config.preprocess.fit)
        thresholds = torch.tensor(model.thresholds(), dtype=large.dtype, device=large.device)[:, None, None]
        return maps, (large >= thresholds).to(torch.uint8)


def export_pipeline(
    pipeline: Pipeline,
    folder: str | os.PathLike[str],
    *,
    format: ExportFormat = "onnx",  # noqa: A002 - the name that the verb has, and that torch's users expect
    images: Iterable[ImageLike] = (),
    precision: Precision = "float32",
    calibrate: Iterable[ImageLike] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Write a file for each model, and `export.json`, and compare what they compute with the models themselves.

    A file takes images of any size, [batch, 1, height, width] in [0, 1], and where the model sees a region the lungs
    (0 or 1) of the same shape. It returns calibrated probabilities; a segmenter's at the network's size, with its masks
    at the size of the images beside them. `export.json` says the rest, and the greatest difference that was found.

    Args:
        pipeline: The pipeline.
        folder: A new or empty folder.
        format: "onnx" for ONNX Runtime, browsers and others, or "torch" for `torch.export.load`.
        images: Images to compare on; three drawn ones of different sizes if there are none.
        precision: Of ONNX files; see `covidcxr.pipeline.onnx.reduce_precision`.
        calibrate: Images on which the loss of a lower precision is measured, and "int8" is calibrated.
        force: Write files that lose more than is allowed.

    Returns:
        What `export.json` holds.

    Raises:
        ConfigError: If the folder is not empty, a package is missing, a model cannot be traced, or a file computes
            something else than its model; or if a lower precision has too few images, or loses too much on them.
        ImageReadError: If an image cannot be read.

    Example:
        ```python
        import tempfile

        import torch

        from covidcxr import ClassificationModel, ModelConfig, Pipeline, PreprocessConfig
        from covidcxr.pipeline.export import export_pipeline

        settings = PreprocessConfig(image_size=(32, 32))
        config = ModelConfig("classification", "timm:test_resnet", ("covid19", "normal"), "binary", preprocess=settings)
        pipeline = Pipeline(classifier=ClassificationModel(config))
        folder = tempfile.mkdtemp()
        assert export_pipeline(pipeline, folder, format="torch")["models"]["classifier"]["difference"] < 1e-4
        program = torch.export.load(f"{folder}/classifier.pt2").module()
        assert program(torch.rand(2, 1, 70, 90))[0].shape == (2, 2)
        ```
    """
    target, measured = user_path(folder), list(calibrate)
    _check_request(target, format, precision, measured)
    samples = [read_image(image) for image in images] or _draw_samples()
    target.mkdir(parents=True, exist_ok=True)
    description = _export_models(pipeline, target, format, samples)
    write_json(target / EXPORT_FILE, description)
    if precision != "float32":
        description = reduce_precision(target, description, precision, measured, force=force)
    return description


def _export_models(
    pipeline: Pipeline,
    folder: Path,
    format: ExportFormat,  # noqa: A002
    samples: Sequence[Float[np.ndarray, "height width"]],
) -> dict[str, Any]:
    """Write the files of all models, and describe them."""
    lungs, interval = [_lungs(pipeline, sample) for sample in samples], pipeline.infected_interval
    models = {
        name: _export_model(name, model, folder, format, samples, lungs) for name, model in pipeline.models().items()
    }
    return {
        "format_version": 1,
        "format": format,
        "precision": "float32",
        "input": "image: float32 [batch, 1, height, width], grey in [0, 1]; lungs: the same shape, 0 or 1",
        "models": models,
        "postprocess": pipeline.postprocess.to_config(),
        "min_lung_area": pipeline.min_lung_area,
        "infected_interval": None if interval is None else interval.to_config(),
        "compared_on": len(samples),
        "warning": "For research only; not for clinical use.",
    }


def _check_request(folder: Path, format: object, precision: object, measured: Sequence[ImageLike]) -> None:  # noqa: A002
    """Raise an error, before the work begins, for what cannot be exported so."""
    if format not in get_args(ExportFormat):
        raise ConfigError(f"format must be one of {', '.join(get_args(ExportFormat))}, not {format!r}.")
    check_precision(precision, measured)
    if format == "onnx":
        require_onnx("onnx", "onnxscript", "onnxruntime")
    elif precision != "float32":
        raise ConfigError(f"The format {format} has float32 only; {precision} needs the format onnx.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty. Choose a new folder for the export.")


def _export_model(
    name: str,
    model: CXRModel,
    folder: Path,
    format: ExportFormat,  # noqa: A002
    samples: Sequence[Float[np.ndarray, "height width"]],
    lungs: Sequence[Bool[np.ndarray, "height width"]],
) -> dict[str, Any]:
    """Write the file of a model and describe it."""
    path = path_inside(folder, name + _SUFFIXES[format])
    # A copy: it is brought to the CPU, and the parts that models of a pipeline have in common stay as they are.
    module = _Exported(copy.deepcopy(model).cpu().float()).eval()
    batch = torch.rand(2, 1, 96, 112, generator=torch.Generator().manual_seed(0))
    example = (batch, (batch > 0.5).float()) if model.needs_lungs else (batch,)
    sides = {2: torch.export.Dim("height", min=8, max=_LARGEST), 3: torch.export.Dim("width", min=8, max=_LARGEST)}
    dynamic = {0: torch.export.Dim("batch", min=1, max=4096), **sides}
    outputs = ["probabilities"] + ["masks"] * isinstance(model, SegmentationModel)
    try:
        with evaluation_mode(module), torch.no_grad():
            program = torch.export.export(module, example, dynamic_shapes=(dynamic,) * len(example), strict=False)
            if format == "torch":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about weights that share memory, which are on the CPU here
                    torch.export.save(program, path)
            else:
                _write_onnx(program, path, ["image", "lungs"][: len(example)], outputs)
    except Exception as error:  # what tracing raises has no common kind
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"The {name} ({_network(model)}) cannot be traced for an export: {type(error).__name__}: {reason}"
        ) from error
    difference = _compare(module, _runner(path, format), samples, lungs if model.needs_lungs else None)
    tolerance = _ROUNDED if any(member.config.preprocess.steps for member in _members(model)) else _TOLERANCE
    if not difference <= tolerance:
        raise ConfigError(f"The exported {name} differs from the model by {difference:.2g}, more than {tolerance:g}.")
    return {"file": path.name, "sha256": _sha256(path), **_facts(name, model), "difference": difference}


def _facts(name: str, model: CXRModel) -> dict[str, Any]:
    """Say what the file of a model takes and returns, and what its numbers mean."""
    config = model.config
    return {
        "task": config.task,
        "inputs": ["image"] + ["lungs"] * model.needs_lungs,
        "outputs": ["probabilities"] + ["masks"] * isinstance(model, SegmentationModel),
        "classes": list(config.classes),
        "mode": config.mode,
        "positive": config.positive,
        "thresholds": dict(config.thresholds),
        "region": _region(name, model),
        "config": config.to_dict(),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _region(name: str, model: CXRModel) -> Region:
    """Return what a model sees of an image; an ensemble's file takes one mask of lungs, so its members must agree."""
    regions = {member.config.preprocess.region for member in _members(model)} - {"full"}
    if "background" in regions and len(regions) > 1:
        raise ConfigError(f"The {name} cannot be exported: its members remove and keep lungs, by different masks.")
    return cast(Region, min(regions, default="full"))


def _members(model: CXRModel) -> tuple[NetworkModel, ...]:
    return model.members if isinstance(model, Classifier) else (cast(NetworkModel, model),)


def _network(model: CXRModel) -> str:
    return str(getattr(model.config, "network", None) or ", ".join(getattr(model.config, "members", ())))


def _write_onnx(program: torch.export.ExportedProgram, path: Path, inputs: list[str], outputs: list[str]) -> None:
    exported = torch.onnx.export(
        program, input_names=inputs, output_names=outputs, opset_version=_OPSET, dynamo=True, verbose=False
    )
    assert exported is not None
    exported.save(path, external_data=False)


def _runner(path: Path, format: ExportFormat) -> _Run:  # noqa: A002
    """Return a function that runs a file on arrays."""
    if format == "torch":
        module = torch.export.load(path).module()

        def run_torch(image: np.ndarray, lungs: np.ndarray | None) -> list[np.ndarray]:
            given = [torch.from_numpy(array) for array in (image, lungs) if array is not None]
            with torch.no_grad():
                return [output.numpy() for output in module(*given)]

        return run_torch
    session = start_session(path.read_bytes())

    def run_onnx(image: np.ndarray, lungs: np.ndarray | None) -> list[np.ndarray]:
        given = {"image": image} if lungs is None else {"image": image, "lungs": lungs}
        return [np.asarray(output) for output in session.run(None, given)]

    return run_onnx


def _compare(
    module: _Exported,
    run: _Run,
    samples: Sequence[Float[np.ndarray, "height width"]],
    lungs: Sequence[Bool[np.ndarray, "height width"]] | None,
) -> float:
    """Return the greatest difference of a probability between a model and its file, over all images."""
    greatest = 0.0
    for number, sample in enumerate(samples):
        image = np.ascontiguousarray(sample, dtype=np.float32)[None, None]
        mask = None if lungs is None else lungs[number].astype(np.float32)[None, None]
        with torch.inference_mode():
            wanted = module(torch.from_numpy(image), None if mask is None else torch.from_numpy(mask))
        given = run(image, mask)
        greatest = max(greatest, float(np.abs(wanted[0].numpy() - given[0]).max()))
    return greatest


def _draw_samples() -> list[Float[np.ndarray, "height width"]]:
    sizes = ((256, 256), (300, 240), (410, 512))
    return [draw_phantom(number, size=size).image for number, size in enumerate(sizes)]


def _lungs(pipeline: Pipeline, image: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return lungs to cut an image by: predicted, or the middle of the image."""
    if pipeline.lung_segmenter is not None:
        masks = pipeline(image).masks
        if masks.keys() & set(LUNG_CLASSES) and (lungs := lungs_of(masks, "lungs")).any():
            return lungs
    lungs = np.zeros(image.shape, bool)
    height, width = image.shape
    lungs[height // 8 : -height // 8, width // 8 : -width // 8] = True
    return lungs
