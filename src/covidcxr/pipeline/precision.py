"""Exported ONNX files with weights in 16 bits or convolutions in 8, and what that costs: measured, and bounded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from covidcxr.errors import ConfigError
from covidcxr.io.pretrained import write_json
from covidcxr.pipeline.onnx import EXPORT_FILE, OnnxModel, load_exported
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.types import ImageLike

__all__ = [
    "LEAST_DICE",
    "LEAST_IMAGES",
    "MOST_CHANGE",
    "Precision",
    "check_precision",
    "measure_loss",
    "reduce_precision",
]

Precision: TypeAlias = Literal["float32", "float16", "int8"]

LEAST_DICE = 0.98
"""Mean Dice of each mask class with the same mask in float32, below which an export is refused."""
MOST_CHANGE = 0.02
"""Mean change of a probability, above which an export is refused."""
LEAST_IMAGES = 8
"""So many images calibrate 8 bits at least, and as many measure what it costs."""

_LEAST_WEIGHTS = 256
"""Smaller tensors stay in 32 bits: scales and sizes."""


class _Recorder(OnnxModel):
    """Keeps what its file is given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.given: list[dict[str, np.ndarray]] = []

    def _run(self, given: dict[str, np.ndarray]) -> np.ndarray:
        self.given.append(given)
        return super()._run(given)


def check_precision(precision: object, images: Sequence[ImageLike]) -> None:
    """Raise an error for an unknown precision, or too few images for it.

    Args:
        precision: One of `Precision`.
        images: Those that calibrate and measure it.

    Raises:
        ConfigError: If there is no such precision, or there are too few images.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}.")
    least = {"float32": 0, "float16": 1, "int8": 2 * LEAST_IMAGES}[str(precision)]
    if len(images) < least:
        raise ConfigError(
            f"{precision} needs at least {least} images of the kind that it shall answer, to measure what it costs; "
            f"there are {len(images)}: --calibrate FOLDER, or calibrate=[...]."
        )


def reduce_precision(
    folder: Path,
    description: dict[str, Any],
    precision: Precision,
    images: Sequence[ImageLike],
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Rewrite the files of an export, and measure what that costs.

    Args:
        folder: What `export_pipeline` wrote, with its `export.json`. It is emptied where the export is refused.
        description: What `export.json` holds.
        precision: "float16", or "int8" for convolutions in 8 bits.
        images: For "int8", every second one calibrates and the others measure; else all measure.
        force: Take any loss.

    Returns:
        What `export.json` now holds; "loss" is what `measure_loss` returned.

    Raises:
        ConfigError: If more is lost than `LEAST_DICE` and `MOST_CHANGE` allow.
        ImageReadError: If an image cannot be read.
    """
    before = Pipeline(**load_exported(folder))
    recorded: dict[str, Any] = {}
    if precision == "int8":
        recorded = load_exported(folder, _Recorder)
        list(Pipeline(**recorded).predict(images[::2]))
    models = {}
    for name, facts in description["models"].items():
        path = folder / facts["file"]
        if precision == "float16":
            _halve(path)
        elif recorded[name].given:  # else no image came as far as this model, which stays as it is
            _quantize(path, recorded[name].given)
        models[name] = facts | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    description = description | {"precision": precision, "models": models}
    write_json(folder / EXPORT_FILE, description)
    after = Pipeline(**load_exported(folder))
    loss = measure_loss(before, after, images[1::2] if precision == "int8" else images)
    try:
        _check_loss(loss, precision, force)
    except ConfigError:
        for path in folder.iterdir():
            path.unlink()
        raise
    description["loss"] = loss
    write_json(folder / EXPORT_FILE, description)
    return description


def measure_loss(before: Pipeline, after: Pipeline, images: Iterable[ImageLike]) -> dict[str, Any]:
    """Compare the predictions of two pipelines.

    Args:
        before: The pipeline in full precision.
        after: The other one.
        images: What both predict for.

    Returns:
        "images", how many; "dice" by mask class, "mean" and "least" over images where either mask is not empty;
        "probability", the "mean" and "greatest" change of one; "labels_changed" and "reasons_changed", how many images
        have another label, or other reasons for none.
    """
    dice: dict[str, list[float]] = {name: [] for name in before.mask_classes}
    changes, labels, reasons, number = list[float](), 0, 0, 0
    for image in images:
        wanted, given = before(image), after(image)
        number += 1
        labels += wanted.label != given.label
        reasons += wanted.reasons != given.reasons
        changes += _changes(wanted, given)
        for name, mask in wanted.masks.items():
            other = given.masks.get(name, np.zeros_like(mask))
            if total := int(mask.sum()) + int(other.sum()):
                dice[name].append(2 * int((mask & other).sum()) / total)
    return {
        "images": number,
        "dice": {
            name: {"mean": float(np.mean(values)), "least": min(values)} for name, values in dice.items() if values
        },
        "probability": {"mean": float(np.mean(changes or [0])), "greatest": max(changes, default=0.0)},
        "labels_changed": labels,
        "reasons_changed": reasons,
    }


def _check_loss(loss: dict[str, Any], precision: Precision, force: bool) -> None:
    """Raise an error where too much is lost."""
    faults = [
        f"the mask {name} agrees to a Dice of {value['mean']:.3f}, less than {LEAST_DICE}"
        for name, value in loss["dice"].items()
        if value["mean"] < LEAST_DICE
    ]
    if (change := loss["probability"]["mean"]) > MOST_CHANGE:
        faults.append(f"a probability changes by {change:.3f} in the mean, more than {MOST_CHANGE}")
    if faults and not force:
        raise ConfigError(
            f"{precision} loses too much on these images: {'; '.join(faults)}. Give more images of the kind that it "
            f"shall answer, take float16, or write it nevertheless: --force."
        )


def _changes(wanted: Prediction, given: Prediction) -> list[float]:
    shared = wanted.probabilities.keys() & given.probabilities.keys()
    return [abs(wanted.probabilities[name] - given.probabilities[name]) for name in sorted(shared)]


def _halve(path: Path) -> None:
    """Store weights in 16 bits; they are computed with in 32, as the saved weights of models are.

    The converters that compute in 16 bits pass preprocessing through 16 bits too, where counts of pixels are infinite.
    """
    import onnx

    model = onnx.load(path)
    graph, casts = model.graph, []
    for held in graph.initializer:
        if held.data_type != onnx.TensorProto.FLOAT or np.prod(held.dims) < _LEAST_WEIGHTS:
            continue
        values = onnx.numpy_helper.to_array(held)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = held.name
        held.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [held.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _before_convolutions(path: Path) -> list[str]:
    """Return the names of the nodes that follow no convolution: preprocessing, which stays as it is."""
    import onnx

    after, others = set[str](), []
    for node in onnx.load(path).graph.node:  # in the order in which they run
        if node.op_type == "Conv" or after & {*node.input}:
            after |= {*node.output}
        else:
            others.append(node.name)
    return others


def _quantize(path: Path, given: list[dict[str, np.ndarray]]) -> None:
    """Compute convolutions in 8 bits, with ranges from what the file was given."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._left = iter(given)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    with TemporaryDirectory() as scratch:
        prepared, done = Path(scratch, "prepared.onnx"), Path(scratch, "done.onnx")
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises what has just been done
        try:
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(done),
                Reader(),
                quant_format=QuantFormat.QDQ,
                # What follows a convolution, too: its output is cut to [0, 6], and has a wide range before.
                op_types_to_quantize=["Conv", "Clip", "Relu", "Add"],
                nodes_to_exclude=_before_convolutions(prepared),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # 7 bits of weights: with 8, processors without VNNI saturate in silence
            )
        finally:
            logging.root.setLevel(level)
        path.write_bytes(done.read_bytes())
