"""A pipeline from the files that `covidcxr export` wrote: ONNX Runtime computes, and torch is not imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.config import FORMAT_VERSION, EnsembleConfig, ModelConfig
from covidcxr.config.checks import check_choice
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.io.folders import path_inside
from covidcxr.io.pixels import unit_scale
from covidcxr.io.pretrained import check_file, read_json
from covidcxr.pipeline.parts import PARTS
from covidcxr.pipeline.severity import InfectionInterval
from covidcxr.transforms.postprocess import PostProcess, choose_class
from covidcxr.transforms.pyramid import ImagePyramid, Pixels, ResizedImages, fit_images, lungs_of
from covidcxr.types import Region
from covidcxr.utils.threads import count_cores, map_threads

__all__ = ["EXPORT_FILE", "OnnxModel", "load_exported", "require_onnx", "start_session"]

EXPORT_FILE = "export.json"
"""Says what the files of an export take and return."""

_LARGEST = 2_000_000_000
"""Bytes of a file; ONNX itself ends there."""
_KEYS = {"models", "postprocess", "min_lung_area"}
_MODEL_KEYS = {"file", "sha256", "inputs", "region", "config"}


class OnnxModel:
    """A model as an ONNX file: it stands where a pipeline has a segmenter or a classifier.

    An image is computed by one thread; the images of a batch share the cores (`OMP_NUM_THREADS` says how many).

    Args:
        config: What the model is.
        content: The file.
        region: What it sees of an image.

    Raises:
        PretrainedError: If the file is none of ours.

    Example:
        ```python
        from covidcxr import Pipeline
        from covidcxr.pipeline.onnx import OnnxModel

        def classes(folder: str) -> dict[str, tuple[str, ...]]:
            models = Pipeline.from_pretrained(folder, backend="onnx").models()
            assert all(isinstance(model, OnnxModel) for model in models.values())
            return {name: model.config.classes for name, model in models.items()}
        ```
    """

    def __init__(self, config: ModelConfig | EnsembleConfig, content: bytes, region: Region = "full") -> None:
        self.config = config
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._size, self._region = len(content), region
        self._session = start_session(content)
        names = [given.name for given in self._session.get_inputs()]
        if names != ["image", "lungs"][: 1 + self.needs_lungs] or self._output != "probabilities":
            raise PretrainedError(f"The ONNX file takes {', '.join(names)}: it is not what `covidcxr export` writes.")

    @property
    def _output(self) -> str:
        return str(self._session.get_outputs()[0].name)

    @property
    def needs_lungs(self) -> bool:
        """Whether it sees only a region of the image."""
        return self._region != "full"

    def facts(self) -> dict[str, str]:
        """Return what it is, in words, for people."""
        classes = ", ".join(self.config.classes)
        return {"network": self.config.network, "classes": classes, "file": f"{self._size / 1e6:.1f} MB of ONNX"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'; '.join(f'{name}: {value}' for name, value in self.facts().items())})"

    def answer(self, probabilities: dict[str, float]) -> tuple[str | None, tuple[str, ...]]:
        """Choose the one plausible class, or abstain; see `covidcxr.transforms.postprocess.choose_class`.

        Args:
            probabilities: By class name, calibrated.

        Returns:
            The class and no reasons, or None and the reasons.
        """
        return choose_class(self.config, probabilities)

    def predict_images(
        self,
        images: Sequence[Pixels | ImagePyramid],
        masks: Sequence[Mapping[str, Bool[np.ndarray, "_ _"]]],
        resized: ResizedImages | None = None,
    ) -> Float[np.ndarray, "batch ..."]:
        """Compute probabilities of images of any sizes.

        Args:
            images: Grey images [height, width], 8 bits or in [0, 1].
            masks: Of each image, by mask class, at the image's size; may be empty where the model needs no lungs.
            resized: These very images as earlier calls resized them; what is new is added.

        Returns:
            Probabilities [batch, classes], or of a segmenter [batch, classes, height, width] at the network's size.

        Raises:
            ConfigError: If the lungs of an image are needed and missing.
        """
        if isinstance(self.config, EnsembleConfig):  # its members want several sizes: the file resizes
            given = [self._whole(image, known) for image, known in zip(images, masks, strict=True)]
        else:
            batch, lungs = fit_images(self.config.preprocess, images, masks, resized)
            given = [{"image": plane[None]} for plane in batch]
            for feed, mask in zip(given, () if lungs is None else lungs, strict=False):
                feed["lungs"] = mask[None]
        threads = min(len(given), count_cores())
        results = map_threads(self._run, given, threads=threads) if threads > 1 else map(self._run, given)
        return np.concatenate(list(results))

    def _whole(self, image: Pixels | ImagePyramid, masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixels = unit_scale(image.image if isinstance(image, ImagePyramid) else image)
        given = {"image": pixels[None, None]}
        return given | (
            {"lungs": lungs_of(masks, self._region).astype(np.float32)[None, None]} if self.needs_lungs else {}
        )

    def _run(self, given: dict[str, np.ndarray]) -> np.ndarray:
        (probabilities,) = self._session.run([self._output], given)
        if probabilities.shape[1] != len(self.config.classes):
            wrong = f"{probabilities.shape[1]} classes, not {len(self.config.classes)}"
            raise PretrainedError(f"The ONNX file computes {wrong}: export it anew.")
        return np.asarray(probabilities)


def require_onnx(*packages: str) -> None:
    """Raise an error where a package is missing.

    Args:
        *packages: Names of those that are needed, of the extra "onnx".

    Raises:
        ConfigError: If one is not installed.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f'ONNX needs {" and ".join(missing)}: pip install "covidcxr[onnx]"')


def start_session(content: bytes) -> Any:
    """Start ONNX Runtime on a file, with one thread.

    Args:
        content: The file.

    Returns:
        The session.

    Raises:
        PretrainedError: If it is no ONNX file that this ONNX Runtime knows.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # what it raises has no common kind but this
        reason = str(error).strip().partition("\n")[0]
        raise PretrainedError(f"ONNX Runtime {onnxruntime.__version__} cannot read the file: {reason}") from error


def load_exported(folder: Path, kind: type[OnnxModel] = OnnxModel) -> dict[str, Any]:
    """Read what `covidcxr export` wrote.

    Args:
        folder: A local folder.
        kind: What a file becomes.

    Returns:
        The keyword arguments of `Pipeline`.

    Raises:
        ConfigError: If ONNX Runtime is not installed, or a config has an unknown key or a wrong value.
        PretrainedError: If the folder is no export, or a file of it is missing or altered.
    """
    require_onnx("onnxruntime")
    path = folder / EXPORT_FILE
    if not os.path.lexists(path):
        raise PretrainedError(
            f"{folder} is no export, it has no {EXPORT_FILE}. Write one and load that: "
            f"covidcxr export {folder.name} --out NEW"
        )
    about = read_json(path)
    if about.get("format") != "onnx":
        raise PretrainedError(f"{folder} holds files of the format {about.get('format')!r}; the backend reads onnx.")
    if not isinstance(about.get("format_version"), int) or about["format_version"] > FORMAT_VERSION:
        raise PretrainedError(f"{path} is newer than this release of covidcxr: update it.")
    models = about["models"] if about.keys() >= _KEYS and isinstance(about["models"], dict) else {}
    whole = all(isinstance(facts, dict) and facts.keys() >= _MODEL_KEYS for facts in models.values())
    if not models or not whole or not models.keys() <= PARTS.keys():
        raise PretrainedError(f"{path} lacks what a pipeline needs: export it anew.")
    parts = {name: _load_model(folder, name, facts, kind) for name, facts in models.items()}
    interval = about.get("infected_interval")
    where = f"infected_interval of {path}"
    return {
        **parts,
        "postprocess": PostProcess.from_config(about["postprocess"]),
        "min_lung_area": about["min_lung_area"],
        "infected_interval": None if interval is None else InfectionInterval.from_config(interval, where),
    }


def _load_model(folder: Path, name: str, facts: Mapping[str, Any], kind: type[OnnxModel]) -> OnnxModel:
    """Load the file of a part, if it is the very file that was written."""
    where = f"{folder / EXPORT_FILE}, {name}"
    known = EnsembleConfig if "members" in facts["config"] else ModelConfig
    config = known.from_dict(dict(facts["config"]), where)
    check_choice("region", facts["region"], get_args(Region))
    if (config.task == "segmentation") != PARTS[name][0].startswith("Segmentation"):
        raise PretrainedError(f"{where}: a model for {config.task} cannot be this part. Export it anew.")
    path = path_inside(folder, str(facts["file"]))
    check_file(path, _LARGEST)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise PretrainedError(
            f"{path} is not the file that was exported (its SHA-256 differs from {EXPORT_FILE}): it is truncated or "
            f"was altered. Export it anew."
        )
    try:
        return kind(config, content, facts["region"])
    except PretrainedError as error:
        raise PretrainedError(f"{path}: {error}") from error
