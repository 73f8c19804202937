"""The parts of a pipeline: which fit together, and how they are saved, with golden inputs beside them.

Golden inputs are drawn images (phantoms), saved with the outputs that the pipeline must give anywhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from covidcxr.config import FORMAT_VERSION, check_format_version, check_keys
from covidcxr.config.checks import check_names
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.io.folders import path_inside, replace_file
from covidcxr.io.image import read_image, read_mask, write_mask
from covidcxr.io.pretrained import StoredDtype, check_file, check_finite, check_link, read_json, write_json
from covidcxr.pipeline.severity import InfectionInterval
from covidcxr.pipeline.view_check import check_view_model
from covidcxr.transforms.postprocess import PostProcess
from covidcxr.transforms.pyramid import NOT_A_FRONTAL_IMAGE, ORIENTATIONS
from covidcxr.types import LUNG_CLASSES
from covidcxr.utils.plain import html_table

if TYPE_CHECKING:
    from covidcxr.models import CXRModel
    from covidcxr.phantom import PhantomLabel, PhantomView
    from covidcxr.pipeline.pipeline import Pipeline

__all__ = [
    "PARTS",
    "ShowsParts",
    "check_golden",
    "check_parts",
    "fingerprint",
    "is_single",
    "load_parts",
    "load_single",
    "part_of",
    "save_pipeline",
]

PARTS: dict[str, tuple[str, ...]] = {
    "gate": ("ClassificationModel",),
    "lung_segmenter": ("SegmentationModel",),
    "infection_segmenter": ("SegmentationModel",),
    "classifier": ("ClassificationModel", "EnsembleModel"),
}
"""From the name of a part to the classes of `covidcxr.models` that it may have, in the order in which parts run."""


class ShowsParts(ABC):
    """Shows its models in a console and in a notebook; abstract.

    Example:
        ```python
        from covidcxr import Pipeline

        assert "lung_segmenter=" in repr(Pipeline.from_pretrained("mini"))
        ```
    """

    @abstractmethod
    def models(self) -> dict[str, CXRModel]:
        """Return the models that are there, by the name of their part."""

    def __repr__(self) -> str:
        lines = (f"  {name}={model!r}," for name, model in self.models().items())
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])

    def _repr_html_(self) -> str:
        facts = {name: model.facts() for name, model in self.models().items()}
        rows = [(name.replace("_", " "), *values.values()) for name, values in facts.items()]
        title = f"{type(self).__name__}, for research only"
        return html_table(title, rows, ("", *next(iter(facts.values()))))


_PHANTOMS: tuple[tuple[PhantomLabel, PhantomView], ...] = (("normal", "PA"), ("covid19", "AP"), ("pneumonia", "PA"))
# Other processors, thread counts and library versions add up in another order; more than this is another model.
_PROBABILITY_TOLERANCE = 2e-3
_LEAST_DICE = 0.995
_SINGLE = ("", "segmenter", "classifier")
"""Where the models of a folder lie that is no pipeline."""
_LOAD = "covidcxr.Pipeline.from_pretrained(FOLDER)"
_LONGEST_CARD = 1_000_000  # bytes


def check_parts(pipeline: Pipeline) -> None:
    """Raise an error for parts that do not fit together.

    Args:
        pipeline: With its models set.

    Raises:
        ConfigError: If there is no model, one is of the wrong kind, or it lacks what it needs of another.
    """
    models = pipeline.models()
    for name, model in models.items():
        if not {*PARTS[name], "OnnxModel"} & {kind.__name__ for kind in type(model).__mro__}:
            raise ConfigError(f"The {name} must be a {' or '.join(PARTS[name])}, not a {type(model).__name__}.")
    if not isinstance(pipeline.postprocess, PostProcess):
        raise ConfigError(f"postprocess must be a PostProcess, not {pipeline.postprocess!r}: PostProcess([...]).")
    if not models:
        raise ConfigError(f"A pipeline needs at least one model: {', '.join(PARTS)}.")
    if pipeline.gate is not None:
        check_view_model(pipeline.gate)
    lungs, findings = pipeline.lung_segmenter, pipeline.infection_segmenter
    if lungs is not None and not set(LUNG_CLASSES) & set(lungs.config.classes):
        classes = list(lungs.config.classes)
        raise ConfigError(f"The lung_segmenter must draw {' or '.join(LUNG_CLASSES)}, not {classes}.")
    if findings is not None and set(findings.config.classes) <= set(LUNG_CLASSES):
        classes = list(findings.config.classes)
        raise ConfigError(f"The infection_segmenter must draw infection or another finding, not {classes}.")
    for name, model in models.items():
        if model.needs_lungs and (lungs is None or name == "lung_segmenter"):
            raise ConfigError(f"The {name} sees only a region of the image: it needs a lung_segmenter.")


def save_pipeline(pipeline: Pipeline, folder: Path, dtype: StoredDtype = "float32") -> None:
    """Write `pipeline.json`, one folder a model, golden inputs with their outputs, and the model card.

    Args:
        pipeline: What is saved.
        folder: Where to; made if need be. Parts of a larger pipeline that was saved there before are removed.
        dtype: "float16" halves the weights' files; they are loaded and computed with as float32.

    Raises:
        ConfigError: If a weight is not finite, or too large for `dtype`.
    """
    from covidcxr.models.base import default_card

    models = pipeline.models()
    for model in models.values():  # all of them before a file is replaced
        check_finite(model)
    if (folder / "pipeline.json").is_file():
        # A folder that no pipeline named is not ours to remove.
        for name in set(_read_index(folder / "pipeline.json")["components"]) - models.keys():
            shutil.rmtree(folder / name, ignore_errors=True)
    for name, model in models.items():
        model.save_pretrained(folder / name, dtype=dtype)
    index = {"format_version": FORMAT_VERSION, "components": sorted(models)}
    index |= {"postprocess": pipeline.postprocess.to_config(), "min_lung_area": pipeline.min_lung_area}
    if pipeline.infected_interval is not None:
        index["infected_interval"] = pipeline.infected_interval.to_config()
    write_json(folder / "pipeline.json", index)
    with replace_file(folder / "README.md") as temporary:
        temporary.write_text(pipeline.card or default_card(models, _LOAD), encoding="utf-8")
    saved = (
        pipeline if dtype == "float32" else type(pipeline).from_pretrained(folder)
    )  # rounding moves outputs a little
    _write_golden(saved, folder / "golden")


def load_parts(folder: Path) -> dict[str, Any]:
    """Read what `save_pipeline` wrote.

    Args:
        folder: A local folder.

    Returns:
        The keyword arguments of `Pipeline`. Two segmenters that see images alike and have equal encoders share one.
        Of a single model, or of the two of a multi-task training, those parts alone.

    Raises:
        PretrainedError: If a part is missing, damaged or altered, or is newer than this release.
        ConfigError: If a config has an unknown key or a wrong value, or a single classifier needs lungs.
    """
    if is_single(folder):
        models = load_single(folder)
        if "lung_segmenter" not in models and any(model.needs_lungs for model in models.values()):
            raise ConfigError(
                f"The model in {folder} sees only a region of the image, so it needs a lung segmenter. Join the two: "
                f"covidcxr assemble --classifier {folder} --lungs mini --out FOLDER"
            )
        return dict(models)
    if not os.path.lexists(folder / "pipeline.json") and (folder / "export.json").is_file():
        raise PretrainedError(f'{folder} is an export: Pipeline.from_pretrained(..., backend="onnx"), --backend onnx.')
    index = _read_index(folder / "pipeline.json")
    for name in index["components"]:
        if not (folder / name).is_dir():  # or its name would be taken for a Hub repository
            raise PretrainedError(f"{folder / name} is missing: this folder is not a complete saved pipeline.")
        check_link(folder / name)
    from covidcxr.models import load_model

    parts: dict[str, Any] = {name: load_model(folder / name) for name in index["components"]}
    if "lung_segmenter" in parts and "infection_segmenter" in parts:
        parts["lung_segmenter"].merge_encoder(parts["infection_segmenter"])
    card = folder / "README.md"
    if card.exists():
        check_file(card, _LONGEST_CARD)
    return {
        **parts,
        "postprocess": PostProcess.from_config(index["postprocess"]),
        "min_lung_area": index["min_lung_area"],
        "infected_interval": index.get("infected_interval"),
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
    }


def is_single(folder: Path) -> bool:
    """Say whether a folder holds one model, or the two of a multi-task training, rather than a pipeline.

    Args:
        folder: A local folder.

    Returns:
        Whether it does.
    """
    return not os.path.lexists(folder / "pipeline.json") and any(
        (folder / name / "config.json").is_file() for name in _SINGLE
    )


def load_single(folder: Path) -> dict[str, CXRModel]:
    """Load one model, or the two of a multi-task training, as parts of a pipeline.

    Args:
        folder: See `is_single`.

    Returns:
        From the name of the part to its model.

    Raises:
        PretrainedError: If a model is damaged or altered, or is newer than this release.
        ConfigError: If a config has an unknown key or a wrong value.
    """
    from covidcxr.models import load_model

    names = [name for name in _SINGLE if (folder / name / "config.json").is_file()]
    places = [folder / name if name else folder for name in names]
    for place in places[not names[0] :]:
        check_link(place)
    return {part_of(model): model for model in map(load_model, places)}


def part_of(model: CXRModel) -> str:
    """Return the part that a model is where nobody says it.

    Args:
        model: Of any kind.

    Returns:
        "classifier", "infection_segmenter" or, for what draws lungs and no infection, "lung_segmenter".
    """
    if model.config.task != "segmentation":
        return "classifier"
    classes = set(model.config.classes)
    return "lung_segmenter" if classes & set(LUNG_CLASSES) and "infection" not in classes else "infection_segmenter"


def fingerprint(pipeline: Pipeline) -> str:
    """Return the SHA-256 of all that decides a prediction: configs, clean-up and weights.

    Args:
        pipeline: The pipeline.

    Returns:
        64 hexadecimal digits.
    """
    settings: tuple[Any, ...] = (pipeline.postprocess.to_config(), pipeline.min_lung_area)
    settings += () if pipeline.infected_interval is None else (pipeline.infected_interval,)
    digest = hashlib.sha256(repr(settings).encode())
    for name, model in pipeline.models().items():
        digest.update(repr((name, model.config)).encode())
        if isinstance(sha256 := getattr(model, "sha256", None), str):  # an exported file
            digest.update(sha256.encode())
            continue
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_index(path: Path) -> dict[str, Any]:
    index = read_json(path)
    check_format_version(index.get("format_version"), str(path))
    keys = {"format_version", "components", "postprocess", "min_lung_area"}
    check_keys(index, {*keys, "infected_interval"}, str(path))
    for key in sorted(keys - set(index)):
        raise ConfigError(f"The key {key!r} is missing in {path}.")
    names = check_names(index["components"], f"components of {path}", files=True)
    check_keys(dict.fromkeys(names), set(PARTS), f"components of {path}")
    if "infected_interval" in index:
        where = f"infected_interval of {path}"
        index["infected_interval"] = InfectionInterval.from_config(index["infected_interval"], where)
    return index


def _write_golden(pipeline: Pipeline, folder: Path) -> None:
    """Draw phantoms into a folder, as PNG, with the pipeline's predictions as JSON and masks as PNG."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, image in enumerate(_images(with_views=pipeline.gate is not None)):
        name = f"film-{number}"
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / f"{name}.png")
        prediction = pipeline(folder / f"{name}.png")
        for mask_class, mask in prediction.masks.items():
            write_mask(path_inside(folder, f"{name}.{mask_class}.png"), mask)
        images.append(
            {
                "name": name,
                "label": prediction.label,
                "probabilities": prediction.probabilities,
                "reasons": list(prediction.reasons),
                "notes": list(prediction.notes),
                "masks": sorted(prediction.masks),
            }
        )
    write_json(folder / "golden.json", {"films": images})


def _images(*, with_views: bool) -> Iterator[Float[np.ndarray, "height width"]]:
    """Draw the images; for a view check also one that is turned, one that is inverted, and a page of text."""
    from covidcxr.phantom import draw_other, draw_phantom

    for seed, (label, view) in enumerate(_PHANTOMS):
        yield draw_phantom(seed, label=label, view=view, size=(320, 320)).image
    if with_views:
        for seed, name in enumerate(("turned-90", "inverted"), len(_PHANTOMS)):
            yield ORIENTATIONS[name].lay(draw_phantom(seed, size=(320, 256)).image)
        yield draw_other(0, "text", size=(320, 256))


def check_golden(pipeline: Pipeline, folder: Path) -> list[str]:
    """Run a pipeline over its golden inputs.

    Args:
        pipeline: The pipeline.
        folder: Where its golden inputs and outputs are.

    Returns:
        What differs, in words; empty = all is as it was saved.

    Raises:
        PretrainedError: If the folder holds no golden inputs.
        ImageReadError: If one of them cannot be read.
    """
    faults = []
    for image in read_json(folder / "golden.json")["films"]:
        name = image["name"]
        prediction = pipeline(read_image(folder / f"{name}.png"))
        if "notes" in image and list(prediction.notes) != image["notes"]:
            faults.append(f"{name}: corrected are {', '.join(prediction.notes) or 'nothing'}, not {image['notes']}")
        if (NOT_A_FRONTAL_IMAGE in prediction.reasons) != (NOT_A_FRONTAL_IMAGE in image["reasons"]):
            faults.append(f"{name}: it is rejected as no frontal image, or no longer")
        for label, wanted in image["probabilities"].items():
            given = prediction.probabilities.get(label, float("nan"))
            if not abs(given - wanted) <= _PROBABILITY_TOLERANCE:
                faults.append(f"{name}: the probability of {label} is {given:.4f}, not {wanted:.4f}")
        for mask_class in image["masks"]:
            wanted_mask = read_mask(folder / f"{name}.{mask_class}.png")
            given_mask = prediction.masks.get(mask_class, np.zeros_like(wanted_mask))
            total = int(wanted_mask.sum() + given_mask.sum())
            dice = 2 * int((wanted_mask & given_mask).sum()) / total if total else 1.0
            if dice < _LEAST_DICE:
                faults.append(f"{name}: the mask {mask_class} agrees only to a Dice of {dice:.3f}")
    return faults
