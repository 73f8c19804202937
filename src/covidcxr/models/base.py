"""What all models share: images in, logits or probabilities out, load and save."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from covidcxr import aliases
from covidcxr.config import EnsembleConfig, ModelConfig
from covidcxr.config.checks import check_names
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.io import hub, pretrained
from covidcxr.transforms.postprocess import not_finite
from covidcxr.types import TaskName
from covidcxr.utils.plain import html_table

__all__ = [
    "CXRModel",
    "calibrate_logits",
    "check_images",
    "default_card",
    "evaluation_mode",
    "inference",
    "model_folder",
    "not_finite",
]

__getattr__ = partial(aliases.find, __name__)


class CXRModel(nn.Module, ABC):
    """A model of grey images, with its class names and its preprocessing inside; abstract.

    Example:
        ```python
        import torch
        from covidcxr import ClassificationModel
        from covidcxr.models import CXRModel

        model: CXRModel = ClassificationModel.from_pretrained("mini")
        assert model.predict(torch.rand(1, 1, 64, 64), torch.ones(1, 1, 64, 64)).shape == (1, 3)
        ```
    """

    task: ClassVar[TaskName]
    config: ModelConfig | EnsembleConfig

    def facts(self) -> dict[str, str]:
        """Return what it is, in words, for people: network, classes, region, image size and number of parameters."""
        config = self.config
        return {
            "network": getattr(config, "network", "ensemble"),
            "classes": ", ".join(config.classes),
            "parameters": f"{sum(weight.numel() for weight in self.parameters()) / 1e6:.1f} million",
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'; '.join(f'{name}: {value}' for name, value in self.facts().items())})"

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self.facts().items())

    @property
    @abstractmethod
    def needs_lungs(self) -> bool:
        """Whether it sees only a region of the image, for which it needs the lung mask."""

    @abstractmethod
    def forward(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Tensor:
        """Compute logits.

        Args:
            image: Grey images in [0, 1]; preprocessing happens inside.
            lung_mask: Lungs, 0 or 1, of the images' size; needed where the model `needs_lungs`.

        Returns:
            Logits [batch, outputs], or [batch, classes, *image_size] for masks.
        """

    @abstractmethod
    def predict(
        self,
        image: Float[Tensor, "batch 1 height width"],
        lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Tensor:
        """Compute calibrated probabilities, without gradients and in evaluation mode.

        Args:
            image: Grey images in [0, 1].
            lung_mask: Lungs, 0 or 1, of the images' size; needed where the model `needs_lungs`.

        Returns:
            Probabilities [batch, classes], or [batch, classes, height, width] for masks.
        """

    def calibrated_logits(self, image: Tensor, lung_mask: Tensor | None) -> Tensor:
        """Compute logits divided by the temperature, in evaluation mode and without gradients.

        Args:
            image: Grey images [batch, 1, height, width] in [0, 1].
            lung_mask: Lungs, 0 or 1, of the same shape; needed where the model `needs_lungs`.

        Returns:
            Logits, as `forward` returns them, in float32; NaN where they are infinite.

        Raises:
            ConfigError: If the images are not [batch, 1, H, W] in [0, 1].
        """
        check_images(image)
        with inference(self):
            return calibrate_logits(cast(Tensor, self(image, lung_mask)), self.config.temperature)

    @abstractmethod
    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: pretrained.StoredDtype = "float32") -> Path:
        """Write all that the model is into a folder.

        Args:
            folder: Where to; made if need be.
            dtype: "float16" halves the weights' file; it is loaded and computed with as float32.

        Returns:
            The folder.

        Raises:
            ConfigError: If a weight is too large for `dtype`.
        """

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        dtype: pretrained.StoredDtype = "float32",
        card: str | None = None,
        **upload: Any,
    ) -> str:
        """Save the model with a model card, and upload it to the Hugging Face Hub.

        Args:
            repo_id: "owner/name"; made if need be.
            private: Whether a new repository is private.
            token: Access token; by default the one of `hf auth login`.
            dtype: How weights are stored; see `save_pretrained`.
            card: The model card (Markdown); by default a short one is written, without a licence.
            **upload: Further arguments of huggingface_hub's `upload_folder` (`revision`, `commit_message`, ...).

        Returns:
            The address of the commit.

        Raises:
            PretrainedError: If the Hub cannot be reached or refuses the upload.
            ConfigError: If the name or an argument is wrong, or a weight is not finite.
        """

        def save(folder: Path) -> None:
            self.save_pretrained(folder, dtype=dtype)
            text = card or default_card({"model": self}, f"covidcxr.models.load_model({repo_id!r})")
            (folder / "README.md").write_text(text, encoding="utf-8")

        return hub.upload(save, repo_id, private=private, token=token, **upload)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a saved model, in evaluation mode.

        Args:
            source: A folder, a bundled name or a Hub repository that holds a model, or a whole pipeline with
                exactly one model of this kind.
            revision: Branch, tag or commit of a Hub repository.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.

        Returns:
            The model.

        Raises:
            PretrainedError: If it cannot be found, is damaged or altered, or is newer than this release.
            ConfigError: If its config has an unknown key or a wrong value, or is of another kind of model.
        """
        folder = pretrained.fetch(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        with pretrained.collection_paused():
            return cls.load(model_folder(folder, cls.task)).eval()

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save_pretrained` wrote; see `from_pretrained`.

        Args:
            folder: A local folder.

        Returns:
            The model, in evaluation mode.
        """


def default_card(models: Mapping[str, CXRModel], load: str) -> str:
    """Write a short model card: what the models are, and how to load them.

    Args:
        models: By the names of their parts.
        load: The Python call that loads them.

    Returns:
        Markdown, headed by what the Hub reads.
    """
    parts = (f"- `{name}`: {m.config.network}, classes {', '.join(m.config.classes)}" for name, m in models.items())
    head = ("# A covidcxr model\n", "For research only; not for clinical use.\n")
    lines = (*head, *parts, f"\nLoad it with `{load}`.\n")
    return hub.front_matter([model.task for model in models.values()]) + "\n".join(lines)


def calibrate_logits(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by a temperature.

    Args:
        logits: Of any shape.
        temperature: Above 0.

    Returns:
        Logits in float32; NaN where they are infinite, so that an overflow becomes no probability of 0 or 1.
    """
    calibrated = logits.float() / temperature
    return calibrated.where(calibrated.isfinite(), torch.nan)


def check_images(image: Tensor) -> None:
    """Raise an error for what are no grey images.

    Args:
        image: To be checked.

    Raises:
        ConfigError: If they are not [batch, 1, H, W] in [0, 1].
    """
    if image.ndim != 4 or image.shape[1] != 1 or image.numel() == 0:
        raise ConfigError(f"Images must be grey [batch, 1, height, width], not {tuple(image.shape)}.")
    low, high = (float(value) for value in image.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also refuses NaN
        raise ConfigError(f"Images must be in [0, 1], not [{low:.4g}, {high:.4g}]: read them with read_image.")


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode for a while, and leave every part of them in the mode in which it was.

    Args:
        *models: The models.

    Yields:
        Nothing.
    """
    modules = list(models)
    # The list grows as it goes: `modules()` would spend more on names than a small network does on an image.
    for module in modules:
        if children := module._modules:
            modules += [child for child in children.values() if child is not None]
    training = [module for module in modules if module.training]  # not all: a backbone may be frozen
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def inference(*models: nn.Module) -> Iterator[None]:
    """Compute without gradients and in evaluation mode, and leave the models in the mode in which they were.

    Args:
        *models: The models.

    Yields:
        Nothing.
    """
    with evaluation_mode(*models), torch.no_grad():
        yield


def model_folder(folder: Path, task: TaskName) -> Path:
    """Return `folder`, or the only one for a task among the models in it: a pipeline's, or those of a `MultiTask`.

    Args:
        folder: A saved model, pipeline or multi-task model.
        task: What the model shall do.

    Returns:
        The folder of the model.

    Raises:
        PretrainedError: If it holds several models, but none or more than one for the task.
    """
    if (folder / "pipeline.json").is_file():
        parts = check_names(pretrained.read_json(folder / "pipeline.json").get("components"), "components", files=True)
    else:
        parts = tuple(sorted(path.parent.name for path in folder.glob("*/config.json")))
        if not parts or (folder / "config.json").is_file():
            return folder
    for part in parts:
        pretrained.check_link(folder / part)
    fitting = [part for part in parts if pretrained.read_json(folder / part / "config.json").get("task") == task]
    # Of a pipeline's segmenters and classifiers, these are the ones that are meant.
    main = [part for part in fitting if part in ("lung_segmenter", "classifier")]
    fitting = main if len(main) == 1 else fitting
    if len(fitting) != 1:
        names = ", ".join(parts) or "none"
        raise PretrainedError(f"{folder} holds several models ({names}): name the one, {folder}/NAME.")
    return folder / fitting[0]
